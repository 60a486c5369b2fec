//! Drivers that are killed with SIGKILL, again and again: whatever is lost, the study that is resumed comes to the very end of
//! one that was left alone, trial by trial. This program is its own driver, so it has a `main` of its own.
//!
//! With REGATTA_KILL_ROUNDS it kills as often as one has patience for.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use regatta_track::event::CheckpointCommitted;
use regatta_track::{Draft, Store, StoreConfig};
use regatta_train::{Tracked, TrainContext, Trainer, metrics};
use regatta_tune::sampler::Tpe;
use regatta_tune::scheduler::{Asha, Pbt, SchedulerConfig};
use regatta_tune::space::{Space, float, group};
use regatta_tune::study::Machine;
use regatta_tune::{Halt, RunningTrial, StudyEvent, Tuner};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::{Value, json};

/// How often drivers are killed, unless somebody says.
const ROUNDS: usize = 20;

fn space() -> Space {
    group().with("x", float(-1.0..=1.0)).with("rate", float(1e-3..=1.0).log()).build().unwrap()
}

fn loss(config: &Value, step: u64) -> f64 {
    let number = |name: &str| config[name].as_f64().unwrap_or(f64::NAN);
    number("x").abs() + (number("rate").ln() + 3.0).abs() / step as f64
}

/// A call that reports nine times, and fails now and then.
fn call(trial: &mut RunningTrial) -> Result<f64, Halt> {
    if trial.number() % 11 == 10 {
        Err("told to fail")?;
    }
    let config = trial.config().clone();
    for step in 1..=9 {
        trial.report(step, loss(&config, step))?;
    }
    Ok(loss(&config, 9))
}

/// A training that sums what it was configured with, so that its end shows every configuration it ever had.
fn training(ctx: &mut TrainContext, config: Value) -> regatta_train::Result<f64> {
    let sum = Tracked::new(0.0_f64);
    let mut state = ctx.state().with("sum", sum.clone());
    ctx.restore(&mut state)?;
    for epoch in state.epochs(12) {
        sum.update(|sum| *sum += config["rate"].as_f64().unwrap_or(0.0));
        let loss = config["x"].as_f64().unwrap_or(0.0).abs() + 1.0 / (epoch + 1) as f64;
        ctx.report(metrics! { loss, sum: sum.get() }).checkpoint(&state)?;
    }
    Ok(sum.get())
}

fn tuner(kind: &str, storage: &str) -> Tuner {
    let tuner = match kind {
        "call" => Tuner::objective(call).scheduler(Asha::new(1..=9)).samples(24),
        "asha" => trainings().scheduler(Asha::new(1..=9)).samples(6),
        _ => trainings().scheduler(SchedulerConfig::from(Pbt::new(3, 2).max(8))).samples(3),
    };
    tuner
        .space(space())
        .minimize("loss")
        .sampler(Tpe::default().startup(4))
        .concurrent(1)
        .storage(storage)
        .experiment("e")
        .name("s")
}

fn trainings() -> Tuner {
    let base = json!({ "x": 0.0, "rate": 0.1 });
    Tuner::new(Trainer::new(training, base).in_process())
}

/// Drives a study until it was told so many things, and then dies; or to its end, which it prints.
fn driver(kind: &str, folder: &str, kill_at: usize) -> ExitCode {
    let mut tuner = tuner(kind, folder);
    let study = Path::new(folder).join("e/s");
    if study.join("run.db").exists() {
        tuner = tuner.resume(&study);
    }
    let mut told = 0;
    let (sender, receiver) = std::sync::mpsc::channel();
    let watch = move |event: &StudyEvent<'_>, study: &Machine| match event {
        StudyEvent::Told { .. } => {
            told += 1;
            if told == kill_at {
                kill_process(getpid(), Signal::KILL).expect("it may kill itself");
            }
        }
        StudyEvent::Ended { .. } => {
            let end: Value = study
                .trials()
                .map(|(number, facts)| {
                    let (config, outcome) = (study.config(number), format!("{:?}", facts.outcome));
                    json!([number, config, facts.values, facts.reports, outcome])
                })
                .collect();
            sender.send(end).ok();
        }
        _ => {}
    };
    let grid = match tuner.callback(watch).fit() {
        Ok(grid) => grid,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let end = receiver.recv().unwrap_or(Value::Null);
    // What the driver let go of and put together again is what it once stored.
    if let Some(trial) = grid.trials().iter().find(|trial| end[trial.number as usize][1] != trial.full) {
        eprintln!("trial {} had {}, and now it is {}", trial.number, trial.full, end[trial.number as usize]);
        return ExitCode::FAILURE;
    }
    std::fs::write(Path::new(folder).join("end.json"), end.to_string())
        .expect("the folder can be written to");
    ExitCode::SUCCESS
}

/// Runs a driver; whether it came to the study's end.
fn run(kind: &str, folder: &Path, kill_at: usize) -> Result<bool, Failed> {
    let me = std::env::current_exe()?;
    let out = Command::new(me)
        .env("KILLED_DRIVER", kind)
        .env("KILLED_FOLDER", folder)
        .env("KILLED_AT", kill_at.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .output()?;
    if !out.status.success() && out.status.code().is_some() {
        return Err(format!("killed at {kill_at}: {}", String::from_utf8_lossy(&out.stderr)).into());
    }
    Ok(out.status.success())
}

fn end(folder: &Path) -> Result<Value, Failed> {
    Ok(serde_json::from_str(&std::fs::read_to_string(folder.join("end.json"))?)?)
}

/// Kills drivers of one study after the other, until that often.
fn equal(kind: &'static str, rounds: usize) -> Result<(), Failed> {
    let calm = tempfile::tempdir()?;
    if !run(kind, calm.path(), usize::MAX)? {
        return Err("it did not come to its end".into());
    }
    let calm = end(calm.path())?;
    let (mut kills, mut seed) = (0, 1_usize);
    while kills < rounds {
        let folder = tempfile::tempdir()?;
        loop {
            // Some die before they have done anything, some late.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            if run(kind, folder.path(), 1 + (seed >> 33) % 29)? {
                break;
            }
            kills += 1;
            // Near the end of the rounds one is let through.
            if kills >= rounds && run(kind, folder.path(), usize::MAX)? {
                break;
            }
        }
        let killed = end(folder.path())?;
        if killed != calm {
            let left = folder.keep();
            return Err(
                format!("after {kills} kills, left in {}\n{killed}\nis not\n{calm}", left.display()).into()
            );
        }
    }
    Ok(())
}

/// A driver dies when a worker has committed a checkpoint, and before it heard of the report that led to it. The next one finds
/// the checkpoint and dies as well; the third must not go on from there, as nobody would ever hear of the report.
fn found() -> Result<(), Failed> {
    let calm = tempfile::tempdir()?;
    run("asha", calm.path(), usize::MAX)?;
    let begun = |kill_at: usize| -> Result<_, Failed> {
        let folder = tempfile::tempdir()?;
        run("asha", folder.path(), kill_at)?;
        let store = Store::open(folder.path().join("e/s/trials/00000"), StoreConfig::default());
        Ok(store.ok().map(|store| (folder, store)))
    };
    let (folder, store) =
        (1..29).find_map(|kill_at| begun(kill_at).transpose()).ok_or("none ever begins")??;
    let name = "step-000000.g1.000000000001".to_owned();
    let committed = CheckpointCommitted { id: name, generation: 1, ..CheckpointCommitted::default() };
    store.append(Draft::new(committed).attempt(1))?.wait(Duration::from_secs(10))?;
    store.close()?;
    run("asha", folder.path(), usize::MAX)?;
    let (found, calm) = (end(folder.path())?, end(calm.path())?);
    (found == calm).then_some(()).ok_or_else(|| format!("{found}\nis not\n{calm}").into())
}

fn main() -> ExitCode {
    if let Ok(kind) = std::env::var("KILLED_DRIVER") {
        let folder = std::env::var("KILLED_FOLDER").expect("a folder");
        let at = std::env::var("KILLED_AT").ok().and_then(|at| at.parse().ok()).expect("a number");
        return driver(&kind, &folder, at);
    }
    let asked = std::env::var("REGATTA_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let tests = vec![
        Trial::test("a_killed_study_of_calls_equals_one_left_alone", move || {
            equal("call", asked.unwrap_or(ROUNDS))
        }),
        Trial::test("a_killed_study_of_trainings_equals_one_left_alone", move || {
            equal("asha", asked.unwrap_or(ROUNDS / 2))
        }),
        Trial::test("a_killed_population_equals_one_left_alone", move || {
            equal("pbt", asked.unwrap_or(ROUNDS / 2))
        }),
        Trial::test("no_trial_goes_on_from_a_checkpoint_whose_reports_may_be_lost", found),
    ];
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}
