//! Against the real system: a process killed at any moment, a disk that is full, a kernel that answers with errors, and
//! the safetensors of Python. Each is skipped, with a message, where the system lacks what it needs.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use regatta_checkpoint::*;

/// With this set, the test `child` saves into the folder it names, for ever or so often.
const FOLDER: &str = "REGATTA_TEST_SAVE_INTO";
const STEPS: &str = "REGATTA_TEST_STEPS";

/// Not a test of its own: what the others start, and kill.
#[test]
fn child() {
    let Ok(folder) = std::env::var(FOLDER) else { return };
    let steps = std::env::var(STEPS).ok().and_then(|steps| steps.parse().ok()).unwrap_or(u64::MAX);
    let store = store::open(&folder).unwrap();
    let first = match recover::newest(store.clone(), Verify::Full) {
        Ok(found) => found.checkpoint.manifest().step + 1,
        Err(Error::NoCheckpoint { damaged, .. }) if damaged.is_empty() => 1,
        Err(error) => panic!("{error}"),
    };
    let config = SaverConfig { retention: Retention::last(2), ..config() };
    let mut saver = config.build(store, Arc::new(Solo)).unwrap();
    say("ready".to_owned());
    for step in first..first.saturating_add(steps) {
        match start(&mut saver, step, 0, 1).unwrap().wait(LIMIT) {
            // Said only after it is acknowledged.
            Ok(_) => say(format!("saved {step}")),
            Err(error) => say(format!("failed {step}: {error}")),
        }
    }
}

/// A line in one write, so that a kill cannot tear it and the number of writes is known.
fn say(line: String) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

fn child_command(program: &[&str], folder: &Path, steps: Option<u64>) -> Command {
    let this = std::env::current_exe().unwrap();
    let mut command = match program {
        [] => Command::new(&this),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(&this);
            command
        }
    };
    command.args(["--exact", "child", "--nocapture"]).env(FOLDER, folder);
    if let Some(steps) = steps {
        command.env(STEPS, steps.to_string());
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn saved(line: &str) -> Option<u64> {
    line.strip_prefix("saved ").and_then(|step| step.parse().ok())
}

#[test]
fn kill_9_at_random_loses_nothing_that_was_acknowledged() {
    let rounds: u64 = std::env::var("REGATTA_KILL_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(folder.path().to_str().unwrap()).unwrap();
    let (mut acknowledged, mut torn) = (0, 0);
    let mut a_save = Duration::from_millis(5);
    for round in 0..rounds {
        let mut child = child_command(&[], folder.path(), None).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(|line| line.ok());
        let ready = lines.by_ref().find(|line| line == "ready" || line.contains("panicked"));
        assert_eq!(ready.as_deref(), Some("ready"), "round {round}");
        for _ in 0..round % 3 {
            let began = Instant::now();
            acknowledged =
                lines.by_ref().find_map(|line| saved(&line)).expect("it saves on").max(acknowledged);
            a_save = began.elapsed();
        }
        // Any moment of the save that comes now: what is random is when it is killed, not a wait for something.
        std::thread::sleep(a_save.mul_f64((round.wrapping_mul(7919) % 1000) as f64 / 1000.0));
        child.kill().unwrap();
        child.wait().unwrap();
        let told = lines.filter_map(|line| saved(&line)).max();
        acknowledged = told.unwrap_or(0).max(acknowledged);
        torn += catalog::list(&*store).unwrap().iter().filter(|one| one.status.word() == "torn").count();
        match recover::newest(store.clone(), Verify::Full) {
            Ok(found) => {
                let step = found.checkpoint.manifest().step;
                assert!(
                    step >= acknowledged,
                    "round {round}: step {acknowledged} was acknowledged, found {step}"
                );
                assert!(found.damaged.is_empty(), "round {round}: {:?}", found.damaged);
                assert_whole(&found.checkpoint);
            }
            Err(error) => assert_eq!(acknowledged, 0, "round {round}: {error}"),
        }
    }
    assert!(torn > 0 || rounds < 100, "{acknowledged} acknowledged, none torn: the kills missed");
    assert!(
        run(&mut child_command(&[], folder.path(), Some(1)))
            .unwrap()
            .iter()
            .any(|line| saved(line).is_some())
    );
    let left = catalog::list(&*store).unwrap();
    let clean = left.iter().all(|one| one.status.word() == "committed");
    assert!(left.len() <= 3 && clean, "what kills left behind is collected: {left:?}");
}

fn run(command: &mut Command) -> Option<Vec<String>> {
    let output = command.output().ok()?;
    Some(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect())
}

fn works(program: &str, arguments: &[&str]) -> bool {
    let quiet = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}

#[test]
fn errors_of_the_kernel_fail_the_save_and_nothing_else() {
    if !works("strace", &["-qq", "-o", "/dev/null", "true"]) {
        eprintln!("skipped: strace is not here, or may not trace");
        return;
    }
    for (calls, inject, when, reason) in [
        ("write", "error=ENOSPC", "7", "os error 28"),
        ("write", "error=EIO", "7", "os error 5"),
        ("fsync", "error=EIO", "7", "os error 5"),
        ("fsync", "error=EIO", "10", "os error 5"),
        ("fallocate", "error=EDQUOT", "4", "os error 122"),
        ("renameat2", "error=EROFS", "3", "os error 30"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            run(&mut child_command(&[], folder.path(), Some(1))).unwrap().contains(&"saved 1".to_owned())
        );
        let expression = format!("inject={calls}:{inject}:when={when}");
        let trace =
            ["strace", "-qq", "-f", "-o", "/dev/null", "-e", &format!("trace={calls}"), "-e", &expression];
        let lines = run(&mut child_command(&trace, folder.path(), Some(3))).unwrap();
        let failed: Vec<&String> = lines.iter().filter(|line| line.starts_with("failed")).collect();
        assert!(failed.iter().any(|line| line.contains(reason)), "{calls} {inject}: {lines:?}");
        let store = store::open_existing(folder.path().to_str().unwrap()).unwrap();
        let found = recover::newest(store.clone(), Verify::Full).unwrap();
        let last = lines.iter().filter_map(|line| saved(line)).max().unwrap_or(1);
        assert_eq!(
            (found.checkpoint.manifest().step, found.damaged),
            (last, vec![]),
            "{calls} {inject}: {lines:?}"
        );
        assert_whole(&found.checkpoint);
        assert!(
            run(&mut child_command(&[], folder.path(), Some(1)))
                .unwrap()
                .iter()
                .any(|line| saved(line).is_some())
        );
        let left = catalog::list(&*store).unwrap();
        assert!(left.iter().all(|one| one.status.word() == "committed"), "{calls} {inject}: {left:?}");
    }
}

#[test]
fn a_full_disk_keeps_the_old_checkpoint_and_leaves_no_rest() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().to_str().unwrap();
    if !works("mount", &["-t", "tmpfs", "-o", "size=3m", "tmpfs", disk]) {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let outcome = std::panic::catch_unwind(|| {
        let store = store::open(disk).unwrap();
        let mut saver = config().build(store.clone(), Arc::new(Solo)).unwrap();
        let data = vec![7u8; 1 << 20];
        let save = |saver: &mut Saver, step| {
            let tensors = [Tensor::replicated("x", Dtype::U8, &[1 << 20], &data)];
            saver.save(&Save::new(step, &tensors)).unwrap().wait(LIMIT)
        };
        save(&mut saver, 1).unwrap();
        save(&mut saver, 2).unwrap();
        for step in 3..6 {
            let error = save(&mut saver, step).unwrap_err().to_string();
            assert!(error.contains("space"), "{error}");
        }
        saver.finish(LIMIT).unwrap();
        assert_eq!(catalog::names(&*store).unwrap().len(), 2, "nothing is left of the failed ones");
        assert_eq!(recover::newest(store.clone(), Verify::Full).unwrap().checkpoint.manifest().step, 2);
        let oldest = catalog::names(&*store).unwrap().remove(1);
        collect::remove(&*store, &oldest).unwrap();
        save(&mut saver, 6).unwrap();
    });
    assert!(works("umount", &["-l", disk]));
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn pythons_safetensors_opens_every_shard_and_export() {
    let python = std::env::var("REGATTA_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !works(&python, &["-c", "import safetensors, numpy"]) {
        eprintln!("skipped: {python} has no safetensors; set REGATTA_PYTHON to one that has");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let store = store::open(folder.path().to_str().unwrap()).unwrap();
    let mut savers = build_all(&config(), &store, group(3)).unwrap();
    save_all(&mut savers, 1).into_iter().for_each(|outcome| drop(outcome.unwrap()));
    let found = recover::newest(store, Verify::Full).unwrap().checkpoint;
    export::export(&found, &folder.path().join("one"), u64::MAX).unwrap();
    export::export(&found, &folder.path().join("many"), 1000).unwrap();
    std::fs::write(folder.path().join("embed"), content(&specs()[0], 1)).unwrap();
    let script = r#"
import glob, sys
from safetensors import safe_open
folder, = sys.argv[1:]
files = sorted(glob.glob(folder + "/checkpoints/step*/*.safetensors") + glob.glob(folder + "/*/model*.safetensors"))
assert len(files) >= 6, files
rows, whole = {}, open(folder + "/embed", "rb").read()
for file in files:
    with safe_open(file, "np") as f:
        assert f.metadata() == {"format": "pt"}, f.metadata()
        for name in f.keys():
            shape = f.get_slice(name).get_shape()
            if name == "embed.weight":
                assert f.get_tensor(name).tobytes() == whole, file
            elif name.startswith("embed.weight@"):
                start = int(name.split("@")[1].split(":")[0])
                part = f.get_tensor(name).tobytes()
                assert whole[start * 32:start * 32 + len(part)] == part, file
                rows[start] = len(part)
assert sum(rows.values()) in (0, len(whole)), rows
print(len(files), "files")
"#;
    let output = Command::new(&python).args(["-c", script]).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
