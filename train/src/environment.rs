//! What a run runs in, written down so that it can be told later why two runs differ: the code, the command, the machine.
//! Environment variables are never written down: they hold secrets.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The file of what was changed and not committed, in the run's folder.
pub const DIFF: &str = "git.diff";
/// The largest difference that is kept.
const DIFF_LIMIT: usize = 1 << 20;
/// How long git may take for an answer.
const GIT_DEADLINE: Duration = Duration::from_secs(5);

/// What a run runs in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Environment {
    /// The run's seed.
    pub seed: u64,
    /// The command.
    pub argv: Vec<String>,
    /// Where it was given.
    pub cwd: PathBuf,
    /// The host.
    pub host: String,
    /// Its system.
    pub os: String,
    /// The processor's name.
    pub cpu: String,
    /// How many of its threads may be used.
    pub cpus: usize,
    /// Its memory.
    pub memory_bytes: u64,
    /// Its GPUs, by name.
    pub devices: Vec<String>,
    /// Versions: Regatta's own, and what other parts of the program know.
    pub versions: BTreeMap<String, String>,
    /// The code.
    pub git: Option<Git>,
    /// The BLAKE3 of the Cargo.lock in the folder or above.
    pub cargo_lock: Option<String>,
}

/// The state of a git work tree.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Git {
    /// The commit.
    pub commit: String,
    /// The branch, `HEAD` if none.
    pub branch: String,
    /// Whether anything was changed and not committed.
    pub dirty: bool,
    /// The file with the changes, in the run's folder.
    pub diff: Option<String>,
    /// Whether the changes were too large to keep them all.
    pub cut: bool,
}

/// A version that another part of the program knows, such as libtorch's. Submit one with `inventory::submit!`.
pub struct Version {
    /// Of what.
    pub name: &'static str,
    /// Which; asked on a thread of its own.
    pub get: fn() -> Option<String>,
}

inventory::collect!(Version);

impl Environment {
    /// Looks it all up. Takes as long as git takes, so not on the way to the first step.
    pub fn capture(seed: u64) -> Self {
        let cwd = std::env::current_dir().unwrap_or_default();
        let known = inventory::iter::<Version>.into_iter();
        let mut versions: BTreeMap<String, String> =
            known.filter_map(|version| Some((version.name.to_owned(), (version.get)()?))).collect();
        versions.insert("regatta".into(), env!("CARGO_PKG_VERSION").into());
        Environment {
            seed,
            argv: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
            host: read("/proc/sys/kernel/hostname"),
            os: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease")),
            cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory(),
            devices: devices(),
            versions,
            git: Git::of(&cwd),
            cargo_lock: cargo_lock(&cwd),
            cwd,
        }
    }

    /// Looks it up and writes it into a run's folder, with what git says was changed beside it.
    pub(crate) fn record(seed: u64, folder: &Path) -> Self {
        let mut environment = Environment::capture(seed);
        if let Some(git) = environment.git.as_mut().filter(|git| git.dirty) {
            git.keep_diff(&environment.cwd, folder);
        }
        let text = serde_json::to_string_pretty(&environment).unwrap_or_default();
        if let Err(error) = std::fs::write(folder.join("env.json"), text) {
            tracing::warn!(folder = %folder.display(), %error, "env.json could not be written");
        }
        environment
    }
}

impl Git {
    fn of(folder: &Path) -> Option<Git> {
        let (told, _) = git(folder, &["rev-parse", "HEAD", "--abbrev-ref", "HEAD"], 4096)?;
        let told = String::from_utf8_lossy(&told).into_owned();
        let mut lines = told.lines();
        let (commit, branch) = (lines.next()?.to_owned(), lines.next().unwrap_or("HEAD").to_owned());
        let (status, _) = git(folder, &["status", "--porcelain"], 4096)?;
        Some(Git { commit, branch, dirty: !status.is_empty(), ..Git::default() })
    }

    fn keep_diff(&mut self, from: &Path, folder: &Path) {
        let changes = git(from, &["diff", "HEAD", "--no-ext-diff", "--no-color"], DIFF_LIMIT);
        let Some((diff, cut)) = changes.filter(|(diff, _)| !diff.is_empty()) else { return };
        match std::fs::write(folder.join(DIFF), diff) {
            Ok(()) => (self.diff, self.cut) = (Some(DIFF.into()), cut),
            Err(error) => tracing::warn!(%error, "the changes to the code could not be written down"),
        }
    }
}

/// What git answers, up to a limit, and whether there was more; nothing if it does not answer well and in time.
fn git(folder: &Path, args: &[&str], limit: usize) -> Option<(Vec<u8>, bool)> {
    let mut child = Command::new("git")
        .args(args)
        .current_dir(folder)
        .env("GIT_OPTIONAL_LOCKS", "0")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut stdout = child.stdout.take()?;
    let (sender, answer) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stdout.by_ref().take(limit as u64 + 1).read_to_end(&mut bytes);
        sender.send(read.map(|_| bytes)).ok();
    });
    let deadline = Instant::now() + GIT_DEADLINE;
    let bytes = answer.recv_timeout(GIT_DEADLINE);
    let cut = matches!(&bytes, Ok(Ok(bytes)) if bytes.len() > limit);
    // Its output is at its end, so it is about to leave; or it is not, and has to.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if bytes.is_ok() && !cut && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(1));
            }
            _ => {
                child.kill().ok();
                break child.wait().ok();
            }
        }
    };
    let mut bytes = bytes.ok()?.ok()?;
    bytes.truncate(limit);
    (cut || status?.success()).then_some((bytes, cut))
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The value of the first line `name : value` of a file.
fn field(path: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.trim_start().starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory() -> u64 {
    let kib = field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn devices() -> Vec<String> {
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = gpus.map(|gpu| gpu.path().join("information")).collect();
    files.sort();
    files.iter().filter_map(|file| field(file.to_str()?, "Model")).collect()
}

fn cargo_lock(folder: &Path) -> Option<String> {
    let bytes = folder.ancestors().find_map(|above| std::fs::read(above.join("Cargo.lock")).ok())?;
    Some(blake3::hash(&bytes).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_tree_is_written_down_with_its_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (tree, run) = (folder.path().join("tree"), folder.path().join("run"));
        std::fs::create_dir_all(&tree).unwrap();
        std::fs::create_dir_all(&run).unwrap();
        assert_eq!(Git::of(&tree), None, "no work tree yet");
        let sh = |script: &str| {
            let git = "git -c user.name=a -c user.email=a@example.org";
            let script = format!("export HOME={0} GIT_CONFIG_NOSYSTEM=1; {script}", tree.display());
            let script = script.replace("git ", &format!("{git} "));
            let done =
                Command::new("sh").arg("-ec").arg(script).current_dir(&tree).stdout(Stdio::null()).status();
            assert!(done.unwrap().success());
        };
        sh("git init -q -b trunk; echo one > file; git add file; git commit -q -m first");
        let clean = Git::of(&tree).unwrap();
        assert_eq!((clean.branch.as_str(), clean.commit.len(), clean.dirty), ("trunk", 40, false));

        sh("echo two > file");
        let mut dirty = Git::of(&tree).unwrap();
        assert!(dirty.dirty);
        dirty.keep_diff(&tree, &run);
        assert_eq!((dirty.diff.as_deref(), dirty.cut), (Some(DIFF), false));
        assert!(std::fs::read_to_string(run.join(DIFF)).unwrap().contains("+two"));

        sh("seq 1000000 > file");
        dirty.keep_diff(&tree, &run);
        assert!(dirty.cut);
        assert_eq!(std::fs::metadata(run.join(DIFF)).unwrap().len(), DIFF_LIMIT as u64);
    }

    #[test]
    fn what_is_written_down_holds_no_variable() {
        let folder = tempfile::tempdir().unwrap();
        let environment = Environment::record(7, folder.path());
        let text = std::fs::read_to_string(folder.path().join("env.json")).unwrap();
        assert_eq!(serde_json::from_str::<Environment>(&text).unwrap(), environment);
        assert_eq!((environment.seed, environment.cpus > 0), (7, true));
        assert!(environment.memory_bytes > 1 << 20 && !environment.argv.is_empty());
        let path = std::env::var("PATH").unwrap();
        assert!(!text.contains(&path), "variables do not belong there");
    }
}
