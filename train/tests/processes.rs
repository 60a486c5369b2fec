//! Runs of real worker processes, and what befalls them. This program is its own worker, so it has a `main` of its own. It
//! trains plain numbers: what a rank counts up, all ranks add together.

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use regatta_train::{
    Error, FailureConfig, Result, RunEvent, RunResult, Status, StopReason, Tracked, TrainContext, Trainer,
    metrics,
};
use serde::{Deserialize, Serialize};

/// What a test wants of the toy.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
struct Toy {
    steps: u64,
    /// What befalls which rank, at which step, up to which attempt.
    fault: Fault,
    rank: usize,
    at: u64,
    attempts: u32,
    /// A file that is made once the first step is done.
    begun: Option<std::path::PathBuf>,
    /// How long a step takes.
    step_ms: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
enum Fault {
    #[default]
    None,
    Error,
    Panic,
    Exit,
    Segfault,
    Kill,
    LeaveOutReport,
    Nan,
}

impl Default for Toy {
    fn default() -> Self {
        Toy { steps: 6, fault: Fault::None, rank: 1, at: 4, attempts: 1, begun: None, step_ms: 0 }
    }
}

#[expect(clippy::exit, reason = "that is the fault")]
fn befall(fault: Fault) -> Result<()> {
    match fault {
        Fault::None | Fault::LeaveOutReport | Fault::Nan => {}
        Fault::Error => return Err(Error::other("read the data", "the file is cut off")),
        Fault::Panic => panic!("index out of bounds"),
        Fault::Exit => std::process::exit(3),
        Fault::Segfault => signal("SEGV"),
        Fault::Kill => signal("KILL"),
    }
    Ok(())
}

fn signal(name: &str) {
    let me = std::process::id().to_string();
    // The first SIGSEGV that is no real one is taken by the standard library's own handler.
    for _ in 0..2 {
        Command::new("kill").args([&format!("-{name}"), &me]).status().ok();
    }
    std::thread::sleep(Duration::from_secs(30));
}

/// Adds up 1 + 2 + ... + steps on every rank, with a checkpoint at every second step.
fn toy(ctx: &mut TrainContext, config: Toy) -> Result<u64> {
    let sum = Tracked::new(0_u64);
    let mut state = ctx.state().with("sum", sum.clone());
    ctx.restore(&mut state)?;
    while state.step() < config.steps {
        let step = state.step() + 1;
        std::thread::sleep(Duration::from_millis(config.step_ms));
        let struck = ctx.attempt() <= config.attempts && ctx.rank() == config.rank && step == config.at;
        if struck {
            eprintln!("rank {} is struck", ctx.rank());
            befall(config.fault)?;
        }
        sum.update(|sum| *sum += step);
        ctx.step(&state)?;
        if struck && config.fault == Fault::LeaveOutReport {
            std::thread::sleep(Duration::from_secs(60));
        }
        let loss = if struck && config.fault == Fault::Nan { f64::NAN } else { sum.get() as f64 };
        let report = ctx.report(metrics! { loss: regatta_train::metrics::mean(loss) });
        if step.is_multiple_of(2) {
            report.checkpoint(&state)?
        } else {
            report.send()?
        }
        if let Some(begun) = &config.begun {
            std::fs::write(begun, "").map_err(|source| Error::io("tell the test", source))?;
        }
    }
    Ok(sum.get())
}

#[rustfmt::skip]
mod registered {
    use super::{Toy, toy};
    use regatta_train::registry::{Registration, normalise, parse, run, write};

    regatta_train::__private::inventory::submit! {
        Registration {
            name: "toy",
            type_name: || std::any::type_name_of_val(&toy),
            config: std::any::type_name::<Toy>,
            run: |context, config| run(toy, context, config),
            normalise: normalise::<Toy>,
            parse: parse::<Toy>,
            write: write::<Toy>,
        }
    }
}

fn main() -> ExitCode {
    if std::env::var_os("TOY_FORGETS_TO_ENTER").is_none() {
        regatta_train::worker::enter();
    }
    match std::env::var("TOY_DRIVER") {
        Ok(folder) => driver(&folder),
        Err(_) => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

/// A driver of its own, to be sent signals or killed.
fn driver(folder: &str) -> ExitCode {
    let begun = Some(std::path::Path::new(folder).join("begun"));
    let config = Toy { steps: 200, step_ms: 20, begun, ..Toy::default() };
    let mut trainer = Trainer::new(toy, config).workers(2).run("one").storage(folder).handle_signals(true);
    if std::path::Path::new(folder).join("toy/one/run.db").exists() {
        trainer = trainer.resume("one");
    }
    match trainer.fit() {
        Ok(result) => match result.status() {
            Status::Completed => ExitCode::SUCCESS,
            Status::Stopped { forced: false, .. } => ExitCode::from(75),
            _ => ExitCode::from(130),
        },
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn()| {
        Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        })
    };
    vec![
        trial("a_killed_rank_is_made_good_bit_for_bit", a_killed_rank_is_made_good_bit_for_bit),
        trial("every_end_has_its_message", every_end_has_its_message),
        trial("a_missing_report_names_its_rank", a_missing_report_names_its_rank),
        trial("a_program_that_forgot_its_entry_says_so", a_program_that_forgot_its_entry_says_so),
        trial("signals_stop_a_run_that_goes_on_later", signals_stop_a_run_that_goes_on_later),
        trial("a_killed_controller_loses_nothing", a_killed_controller_loses_nothing),
        trial("what_never_fits_is_refused_at_once", what_never_fits_is_refused_at_once),
        trial("threads_do_the_same", threads_do_the_same),
    ]
}

fn trainer(folder: &tempfile::TempDir, config: Toy) -> Trainer {
    let failure = FailureConfig { max_failures: 1, ..FailureConfig::default() };
    let storage = folder.path().to_str().unwrap();
    Trainer::new(toy, config).workers(2).run("one").storage(storage).failure(failure)
}

fn root() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn a_killed_rank_is_made_good_bit_for_bit() {
    let folder = root();
    let times = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let (seen, begun) = (times.clone(), Instant::now());
    let told = move |event: &RunEvent<'_>| match event {
        RunEvent::Started { .. } => seen.lock().unwrap().push(("started", begun.elapsed())),
        RunEvent::Failed { .. } => seen.lock().unwrap().push(("failed", begun.elapsed())),
        RunEvent::Restored { .. } => seen.lock().unwrap().push(("restored", begun.elapsed())),
        _ => {}
    };
    let result = trainer(&folder, Toy { fault: Fault::Kill, ..Toy::default() }).callback(told).fit().unwrap();
    assert_eq!((result.value::<u64>().unwrap(), result.attempts()), (21, 2));
    assert_eq!(result.status(), &Status::Completed);
    assert_eq!(result.last_checkpoint().unwrap().step, 6);
    let history: Vec<(u64, f64)> =
        result.history("loss").unwrap().iter().map(|p| (p.step, p.value)).collect();
    assert_eq!(history, [(1, 1.0), (2, 3.0), (3, 6.0), (4, 10.0), (5, 15.0), (6, 21.0)]);
    let iterations: Vec<f64> = result.history("iteration").unwrap().iter().map(|p| p.value).collect();
    assert_eq!(iterations, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let times = times.lock().unwrap();
    let [.., (_, failed), _, (_, restored)] = times.as_slice() else { panic!("{times:?}") };
    eprintln!("user code runs again {:?} after the failure was known", *restored - *failed);
    assert!(*restored - *failed < Duration::from_secs(15), "{times:?}");
}

fn every_end_has_its_message() {
    let expected = [
        (Fault::Error, "failed: read the data: the file is cut off"),
        (Fault::Panic, "index out of bounds"),
        (Fault::Exit, "exited with code 3 before it finished"),
        (Fault::Segfault, "was killed by signal 11 (SIGSEGV"),
    ];
    for (fault, message) in expected {
        let folder = root();
        let config = Toy { fault, attempts: 9, ..Toy::default() };
        let error = trainer(&folder, config).fit().unwrap_err().to_string();
        let (_, root_cause) = error.rsplit_once("root cause: ").unwrap_or_else(|| panic!("{error}"));
        assert!(root_cause.starts_with("rank 1 (slot 1, attempt 1)"), "{error}");
        assert!(root_cause.contains(message), "{error}");
        assert!(
            error.contains("run toy/one (2 failures, and 1 were to be made good (max_failures)) failed"),
            "{error}"
        );
        // A panic's backtrace, where one is asked for, may take up all of the log's end.
        let logged = error.contains("| rank 1 is struck") || fault == Fault::Panic;
        assert!(logged, "the log's end is missing: {error}");
    }
    // Not a number is a figure like any other.
    let folder = root();
    let result = trainer(&folder, Toy { fault: Fault::Nan, ..Toy::default() }).fit().unwrap();
    assert_eq!(result.attempts(), 1);
    assert!(result.history("loss").unwrap()[3].value.is_nan());
}

fn a_missing_report_names_its_rank() {
    let folder = root();
    let failure = FailureConfig { max_failures: 0, report_deadline_seconds: 0.5, ..FailureConfig::default() };
    let config = Toy { fault: Fault::LeaveOutReport, ..Toy::default() };
    let begun = Instant::now();
    let error = trainer(&folder, config).failure(failure).fit().unwrap_err().to_string();
    assert!(error.contains("rank 1 did not report within 500ms after the first"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(30), "its sleep was waited for");
}

fn a_program_that_forgot_its_entry_says_so() {
    let folder = root();
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .env("TOY_DRIVER", folder.path())
        .env("TOY_FORGETS_TO_ENTER", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("call regatta::init()? first thing in main()"), "{text}");
    assert_eq!(
        RunResult::open(folder.path().join("toy/one")).unwrap().attempts(),
        1,
        "no restart would help"
    );
}

fn drive(folder: &tempfile::TempDir) -> std::process::Child {
    let program = std::env::current_exe().unwrap();
    std::fs::remove_file(folder.path().join("begun")).ok();
    Command::new(program).env("TOY_DRIVER", folder.path()).stdin(Stdio::null()).spawn().unwrap()
}

fn wait_for_begin(folder: &tempfile::TempDir, child: &mut std::process::Child) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let begun = folder.path().join("begun");
    while !begun.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the driver ended before its first step");
        assert!(Instant::now() < deadline, "the run did not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn send(name: &str, child: &std::process::Child) {
    let done = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(done.unwrap().success());
}

fn signals_stop_a_run_that_goes_on_later() {
    let folder = root();
    for (signal, reason) in [("TERM", StopReason::User), ("USR2", StopReason::Preempted)] {
        let mut child = drive(&folder);
        wait_for_begin(&folder, &mut child);
        send(signal, &child);
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let result = RunResult::open(folder.path().join("toy/one")).unwrap();
        assert_eq!(result.status(), &Status::Stopped { reason, forced: false });
        let (last, step) = (result.last_checkpoint().unwrap(), result.step());
        assert!(last.step + 1 >= step, "stopped at {step}, saved at {}", last.step);
    }
    let mut child = drive(&folder);
    wait_for_begin(&folder, &mut child);
    send("KILL", &child);
    child.wait().unwrap();
    assert_eq!(RunResult::open(folder.path().join("toy/one")).unwrap().status(), &Status::Running);
    finish(&folder, 4, 2);
}

/// The sum at the end is that of a run that nothing befell, and each step was reported on the way to it, but for those that
/// the run stopped at: it saves and ends before their reports.
fn finish(folder: &tempfile::TempDir, attempts: u32, stops: usize) {
    let status = drive(folder).wait().unwrap();
    assert_eq!(status.code(), Some(0));
    let result = RunResult::open(folder.path().join("toy/one")).unwrap();
    assert_eq!((result.status(), result.value::<u64>().unwrap()), (&Status::Completed, 200 * 201 / 2));
    assert_eq!(result.attempts(), attempts);
    let steps: Vec<u64> = result.history("loss").unwrap().iter().map(|point| point.step).collect();
    assert!(steps.is_sorted_by(|a, b| a < b) && steps.len() + stops >= 200, "{steps:?}");
}

fn a_killed_controller_loses_nothing() {
    let folder = root();
    let mut child = drive(&folder);
    wait_for_begin(&folder, &mut child);
    send("KILL", &child);
    child.wait().unwrap();
    let before = RunResult::open(folder.path().join("toy/one")).unwrap();
    assert_eq!(before.status(), &Status::Running);
    finish(&folder, 2, 0);
}

fn what_never_fits_is_refused_at_once() {
    let folder = root();
    let error = trainer(&folder, Toy::default()).workers(60_000).fit().unwrap_err().to_string();
    assert!(error.contains("can never run here: 60000 workers"), "{error}");
    assert!(!folder.path().join("toy").exists(), "nothing was made");
}

fn threads_do_the_same() {
    let folder = root();
    let config = Toy { fault: Fault::Error, ..Toy::default() };
    let result = trainer(&folder, config).in_process().fit().unwrap();
    assert_eq!((result.value::<u64>().unwrap(), result.attempts()), (21, 2));
}
