//! How a run is submitted to Slurm, as a file says it. It is known to every build, so that one without the engine can say so.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a run is submitted, and how long the driver waits for what no longer answers: `Slurm(partition: "gpu", nodes: 2)`.
/// All that is left out is as Slurm has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SlurmConfig {
    /// The partition.
    pub partition: Option<String>,
    /// The account to charge.
    pub account: Option<String>,
    /// The quality of service.
    pub qos: Option<String>,
    /// Features nodes must have.
    pub constraint: Option<String>,
    /// The reservation to use.
    pub reservation: Option<String>,
    /// How long the job may run, as Slurm writes it: `90` minutes, `04:00:00`, `2-12:00:00`.
    pub time: Option<String>,
    /// Over how many nodes packed or spread workers go; Slurm decides if not given.
    pub nodes: Option<usize>,
    /// Nodes beyond those, to replace such as fail.
    pub spare: usize,
    /// Further options of sbatch, as in `--nice=5`.
    pub options: Vec<String>,
    /// The folder with `sbatch` and the others; those on the `PATH` if not given.
    pub tools: Option<PathBuf>,
    /// How long a call of one of them may take.
    pub tool_seconds: f64,
    /// How long a killed worker may still be there before its node is given up.
    pub kill_seconds: f64,
    /// How long a worker's step may take to start before the launch fails.
    pub start_seconds: f64,
}

impl Default for SlurmConfig {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            constraint: None,
            reservation: None,
            time: None,
            nodes: None,
            spare: 0,
            options: Vec::new(),
            tools: None,
            tool_seconds: 30.0,
            kill_seconds: 2.0,
            start_seconds: 60.0,
        }
    }
}

impl SlurmConfig {
    /// Checks what can be without Slurm.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, problem: String| Err(Error::BadRequest { what: what.into(), problem });
        if let Some(time) = &self.time
            && duration(time).is_none()
        {
            let problem =
                format!("`{time}` is no time of Slurm's: write `90` minutes, `04:00:00` or `2-12:00:00`");
            return wrong("engine.Slurm.time", problem);
        }
        if self.nodes == Some(0) {
            return wrong(
                "engine.Slurm.nodes",
                "no nodes are no job; leave it out, or give 1 or more".into(),
            );
        }
        for (what, seconds) in [
            ("engine.Slurm.tool_seconds", self.tool_seconds),
            ("engine.Slurm.kill_seconds", self.kill_seconds),
            ("engine.Slurm.start_seconds", self.start_seconds),
        ] {
            if !(0.0..=86_400.0).contains(&seconds) {
                return wrong(what, format!("{seconds} is no time to wait: give seconds, at most a day"));
            }
        }
        Ok(())
    }

    /// How long the job may run, if that is said.
    #[must_use]
    pub fn time_limit(&self) -> Option<Duration> {
        self.time.as_deref().and_then(duration)
    }

    #[cfg(feature = "slurm")]
    pub(super) fn kill_patience(&self) -> Duration {
        Duration::try_from_secs_f64(self.kill_seconds).unwrap_or_default()
    }

    #[cfg(feature = "slurm")]
    pub(super) fn start_patience(&self) -> Duration {
        Duration::try_from_secs_f64(self.start_seconds).unwrap_or_default()
    }
}

/// A time as Slurm writes it: minutes, `minutes:seconds`, `hours:minutes:seconds`, `days-hours[:minutes[:seconds]]`.
fn duration(text: &str) -> Option<Duration> {
    let number = |part: &str| part.parse::<u64>().ok();
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(number(days)?), rest),
        None => (None, text),
    };
    let parts = rest.split(':').map(number).collect::<Option<Vec<u64>>>()?;
    let (hours, minutes, seconds) = match (days, parts.as_slice()) {
        (None, [minutes]) => (0, *minutes, 0),
        (None, [minutes, seconds]) => (0, *minutes, *seconds),
        (_, [hours, minutes, seconds]) => (*hours, *minutes, *seconds),
        (Some(_), [hours]) => (*hours, 0, 0),
        (Some(_), [hours, minutes]) => (*hours, *minutes, 0),
        _ => return None,
    };
    let all = days.unwrap_or(0).checked_mul(24)?.checked_add(hours)?.checked_mul(60)?.checked_add(minutes)?;
    Some(Duration::from_secs(all.checked_mul(60)?.checked_add(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_slurm_reads_them() {
        for (text, seconds) in [
            ("90", 5400),
            ("1:30", 90),
            ("04:00:00", 14_400),
            ("2-12", 216_000),
            ("1-00:30", 88_200),
            ("1-00:00:01", 86_401),
        ] {
            assert_eq!(duration(text), Some(Duration::from_secs(seconds)), "{text}");
        }
        for wrong in ["", "4h", "1-", "1:2:3:4", "-1"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_cannot_be_is_said_with_its_key() {
        assert!(SlurmConfig::default().check().is_ok());
        for (config, key) in [
            (SlurmConfig { time: Some("4h".into()), ..SlurmConfig::default() }, "engine.Slurm.time"),
            (SlurmConfig { nodes: Some(0), ..SlurmConfig::default() }, "engine.Slurm.nodes"),
            (SlurmConfig { kill_seconds: f64::NAN, ..SlurmConfig::default() }, "engine.Slurm.kill_seconds"),
        ] {
            assert!(config.check().unwrap_err().to_string().starts_with(key), "{key}");
        }
    }
}
