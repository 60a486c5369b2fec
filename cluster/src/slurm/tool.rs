//! Running Slurm's command-line tools: they are the one interface that stays the same from version to version.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{ENGINE, SlurmConfig};
use crate::error::{Error, Result};

/// What the tools themselves need.
pub(super) const KEPT: [&str; 6] = ["SLURM_CONF", "SLURM_JOB_ID", "PATH", "LD_LIBRARY_PATH", "HOME", "USER"];

/// Where the tools are and how long one may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tools {
    /// The folder with `sbatch` and the others; those on the `PATH` if not given.
    folder: Option<PathBuf>,
    /// How long one call may take: a controller that does not answer must not hold a client for ever.
    patience: Duration,
}

/// What a tool said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) ok: bool,
    pub(super) out: String,
    pub(super) err: String,
}

impl Tools {
    pub(super) fn of(config: &SlurmConfig) -> Self {
        let patience = Duration::try_from_secs_f64(config.tool_seconds).unwrap_or_default();
        Self { folder: config.tools.clone(), patience }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(|| name.into(), |folder| folder.join(name))
    }

    /// Runs a tool to its end and returns what it said, whether or not it liked what was asked.
    pub(super) async fn run(&self, name: &'static str, args: Vec<OsString>, input: Vec<u8>) -> Result<Said> {
        let tools = self.clone();
        let ran = tokio::task::spawn_blocking(move || tools.run_blocking(name, &args, input)).await;
        ran.unwrap_or_else(|error| Err(Error::SpawnerGone { engine: ENGINE, cause: error.to_string() }))
    }

    /// Runs a tool that must succeed.
    pub(super) async fn ask(&self, name: &'static str, args: &[&str]) -> Result<String> {
        let said = self.run(name, args.iter().map(Into::into).collect(), Vec::new()).await?;
        if said.ok { Ok(said.out) } else { Err(refused(name, &said)) }
    }

    fn run_blocking(&self, name: &'static str, args: &[OsString], input: Vec<u8>) -> Result<Said> {
        let path = self.path(name);
        let system = |source| Error::Launch {
            slot: 0,
            node: "this host".into(),
            program: path.clone().into(),
            source,
        };
        let mut command = Command::new(&path);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Nothing of the user's own: formats and options would change what is read here, and what a job is submitted with
        // stays with the controller. The driver's variables go another way.
        let own = std::env::vars_os().filter(|(variable, _)| KEPT.iter().any(|kept| variable == kept));
        command.env_clear().envs(own);
        let mut child = command.spawn().map_err(system)?;
        if let Some(mut stdin) = child.stdin.take() {
            std::thread::spawn(move || stdin.write_all(&input));
        }
        let out = child.stdout.take().map(read);
        let err = child.stderr.take().map(read);
        let since = Instant::now();
        let status = loop {
            match child.try_wait().map_err(system)? {
                Some(status) => break status,
                None if since.elapsed() > self.patience => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(Error::Engine {
                        engine: ENGINE,
                        what: format!("`{name}`"),
                        reason: format!("no answer within {:?}", self.patience),
                        advice: ": is the controller up? `scontrol ping` tells".into(),
                    });
                }
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        let text = |reader: Option<std::thread::JoinHandle<String>>| {
            reader.and_then(|r| r.join().ok()).unwrap_or_default()
        };
        Ok(Said { ok: status.success(), out: text(out), err: text(err) })
    }
}

fn read(mut from: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// The error of a tool that did not do it, in Slurm's words and with what they mean.
pub(super) fn refused(name: &str, said: &Said) -> Error {
    let strip = |line: &str| {
        line.trim_start_matches(name).trim_start_matches(": ").trim_start_matches("error: ").to_owned()
    };
    let lines: Vec<String> = said.err.lines().filter(|line| !line.trim().is_empty()).map(strip).collect();
    let reason = if lines.is_empty() { "it said nothing".to_owned() } else { lines.join("; ") };
    let advice = match &reason {
        r if r.contains("node configuration is not available") => {
            ": ask for fewer nodes, CPUs, GPUs or less memory per node; `sinfo -o '%P %D %c %m %G'` shows what there is"
        }
        r if r.contains("nvalid partition") => ": `sinfo -s` lists the partitions",
        r if r.contains("ccount") => ": `sacctmgr show assoc user=$USER` lists your accounts",
        r if r.contains("qos") || r.contains("QOS") => ": `sacctmgr show qos` lists them",
        r if r.contains("time limit") => ": `sinfo -o '%P %l'` shows each partition's limit",
        r if r.contains("contact slurm controller") => ": is the controller up? `scontrol ping` tells",
        _ => "",
    };
    Error::Engine { engine: ENGINE, what: format!("`{name}`"), reason, advice: advice.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_slurm_said_and_what_to_do() {
        let err =
            "sbatch: error: Batch job submission failed: Requested node configuration is not available\n";
        let said = Said { ok: false, out: String::new(), err: err.into() };
        let text = refused("sbatch", &said).to_string();
        assert!(
            text.starts_with("slurm refused `sbatch`: Batch job submission failed: Requested node"),
            "{text}"
        );
        assert!(text.contains("sinfo -o"), "{text}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_or_is_not_there_is_an_error_in_time() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("squeue");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let tools = Tools { folder: Some(folder.path().into()), patience: Duration::from_millis(200) };
        let error = tools.ask("squeue", &["-h"]).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 200ms"), "{error}");
        let error = tools.ask("sbatch", &[]).await.unwrap_err();
        assert!(error.to_string().contains("sbatch") && matches!(error, Error::Launch { .. }), "{error}");
    }
}
