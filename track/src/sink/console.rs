//! Events as lines for people. The library prints nothing: [`render`] gives a line to whoever wants it, and [`Console`]
//! writes lines to the writer it was given.

use std::io::Write;
use std::path::Path;

use super::{Sink, Start};
use crate::error::{Error, Result};
use crate::event::{Cause, Envelope, Event, Outcome};

/// The event as one line without a line break, or `None` for those that only machines read.
pub fn render(e: &Envelope) -> Option<String> {
    let text = match &e.event {
        Event::RunCreated(body) => format!("run {}/{}", body.experiment, body.name),
        Event::RunFinished(body) => format!("run {}", ended(body.outcome, body.cause.as_ref())),
        Event::AttemptStarted(body) => {
            let from = body.restored.as_ref().map(|c| format!(" from {c}")).unwrap_or_default();
            let workers = if body.world_size == 1 { "worker" } else { "workers" };
            format!(
                "attempt {} started at step {}{from}, {} {workers}",
                e.attempt, body.step, body.world_size
            )
        }
        Event::AttemptEnded(body) => {
            format!("attempt {} {}", e.attempt, ended(body.outcome, body.cause.as_ref()))
        }
        Event::WorkerJoined(_)
        | Event::RunConfigured(_)
        | Event::RunEnvironment(_)
        | Event::StudyConfigured(_)
        | Event::Unknown(_) => return None,
        Event::WorkerLost(body) => format!("rank {} lost: {}", rank(e), body.reason),
        Event::WorkerExited(body) => match (body.code, body.signal) {
            (Some(0), _) => return None,
            (_, Some(signal)) => format!("rank {} was ended by signal {signal}", rank(e)),
            (Some(code), None) => format!("rank {} exited with status {code}", rank(e)),
            (None, None) => format!("rank {} exited", rank(e)),
        },
        Event::Report(_) if e.rank.unwrap_or(0) != 0 => return None,
        Event::Report(body) => {
            let mut line = format!("step {}", body.step);
            for (name, value) in body.metrics.iter() {
                line.push_str(&format!("  {name} {}", figure(value)));
            }
            line
        }
        Event::CheckpointCommitted(body) => {
            format!("saved {} ({:.1} MB)", body.id, body.bytes as f64 / 1e6)
        }
        Event::CheckpointDeleted(_) => return None,
        Event::Decision(body) => format!("{}: {} ({})", body.by, body.action, body.reason),
        Event::TrialCreated(body) => format!("created {}", body.config),
        Event::TrialConfigured(body) => format!("configured {}", body.config),
        Event::TrialPaused(_) => "paused".into(),
        Event::TrialResumed(_) => "resumed".into(),
        Event::TrialCloned(body) => format!("cloned from trial {:05} as {}", body.from, body.config),
        Event::TrialFinished(body) => ended(body.outcome, body.cause.as_ref()),
        Event::LogTail(body) => {
            let lines = body.lines.iter().map(|line| line.trim_end().replace('\n', " | "));
            format!("rank {} wrote: {}", rank(e), lines.collect::<Vec<_>>().join(" | "))
        }
    };
    let line = match e.trial {
        Some(trial) => format!("trial {trial:05}  {text}"),
        None => text,
    };
    Some(line.replace(['\n', '\r'], " "))
}

fn rank(e: &Envelope) -> String {
    e.rank.map_or("-".into(), |rank| rank.to_string())
}

fn ended(outcome: Outcome, cause: Option<&Cause>) -> String {
    let word = match outcome {
        Outcome::Completed => "completed",
        Outcome::Stopped => "stopped",
        Outcome::Interrupted => "interrupted",
        Outcome::Failed => "failed",
    };
    let Some(cause) = cause else { return word.into() };
    let rank = cause.rank.map(|rank| format!("rank {rank}: ")).unwrap_or_default();
    format!("{word}: {rank}{}", cause.message)
}

/// Four significant digits, without the zeros that say nothing.
fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() || (value.fract() == 0.0 && value.abs() < 1e9) {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..9).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    format!("{value:.*}", usize::try_from(3 - magnitude).unwrap_or(0))
}

/// A sink of lines. It begins with the present: what is past was shown before.
pub struct Console<W> {
    out: W,
}

impl<W: Write + Send> Console<W> {
    /// Lines go to this writer.
    pub fn new(out: W) -> Self {
        Console { out }
    }
}

impl<W: Write + Send> Sink for Console<W> {
    fn name(&self) -> &str {
        "console"
    }

    fn resume(&mut self) -> Result<Start> {
        Ok(Start::Now)
    }

    fn write(&mut self, events: &[Envelope]) -> Result<()> {
        for line in events.iter().filter_map(render) {
            writeln!(self.out, "{line}").map_err(Error::io("write to", Path::new("the console")))?;
        }
        Ok(())
    }

    fn save(&mut self, _upto: u64) -> Result<()> {
        self.out.flush().map_err(Error::io("write to", Path::new("the console")))
    }
}
