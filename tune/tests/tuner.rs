//! Studies of calls, through the tuner: what is found, what fails, what is stopped, and what is refused.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use regatta_tune::sampler::{Random, Tpe};
use regatta_tune::scheduler::{Asha, Median};
use regatta_tune::space::{Space, branches, choice, float, group, int};
use regatta_tune::stopper::StopperConfig;
use regatta_tune::study::{Input, Machine};
use regatta_tune::{Ending, Error, Halt, ResultGrid, RunningTrial, StudyEvent, Tuner};
use tempfile::TempDir;

fn bowl(trial: &mut RunningTrial) -> f64 {
    let x = trial.config()["x"].as_f64().unwrap();
    (x - 1.0).powi(2)
}

fn line() -> Space {
    group().with("x", float(-5.0..=5.0)).build().unwrap()
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    fn storage(&self) -> String {
        self.0.path().to_str().unwrap().into()
    }

    fn study(&self) -> std::path::PathBuf {
        self.0.path().join("study/one")
    }

    /// A study named `one` that minimises `loss`.
    fn tuner<V: regatta_tune::runner::IntoValues>(
        &self,
        objective: impl Fn(&mut RunningTrial) -> V + Send + Sync + 'static,
    ) -> Tuner {
        Tuner::objective(objective).minimize("loss").storage(self.storage()).name("one").concurrent(2)
    }
}

fn states(grid: &ResultGrid) -> Vec<&str> {
    grid.trials().iter().map(|trial| trial.state.as_str()).collect()
}

#[test]
fn a_search_finds_what_is_good_and_its_results_are_on_the_disk() {
    let place = Place::new();
    let tuner = place
        .tuner(bowl)
        .space(line())
        .samples(60)
        .sampler(Tpe::default())
        .enqueue(serde_json::json!({ "x": 4.5 }));
    let grid = tuner.fit().unwrap();
    assert_eq!(grid.trials().len(), 60);
    assert_eq!(grid.trials()[0].full["x"], 4.5);
    let best = grid.best().unwrap();
    assert!(best.value < 0.05, "{} at {}", best.value, best.config);
    let again = ResultGrid::open(place.study()).unwrap();
    assert_eq!(again.best().unwrap().value, best.value);
}

#[test]
fn a_space_is_discovered_by_what_trials_ask_for() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        let layers = trial.int("layers", 1..=3).get()?;
        let mut sum = 0.0;
        for layer in 0..layers {
            sum += (trial.float(&format!("width_{layer}"), 0.0..=1.0).get()? - 0.5).abs();
        }
        Ok(sum + layers as f64)
    };
    let grid = place.tuner(objective).samples(40).sampler(Tpe::default()).fit().unwrap();
    let best = grid.best().unwrap();
    assert_eq!(best.config["layers"], 1);
    assert!(grid.parameters().len() >= 3, "{:?}", grid.parameters());
    // And a resumed one knows it.
    let grid =
        place.tuner(objective).samples(45).sampler(Tpe::default()).resume(place.study()).fit().unwrap();
    assert_eq!(grid.trials().len(), 45);
}

/// The configurations of trials that are over are not kept, but put together from what the sampler knows.
#[test]
fn what_a_trial_was_made_with_can_be_asked_for_when_it_is_over() {
    let fails = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        if trial.number() == 3 { Err("told to fail")? } else { Ok(trial.number().into()) }
    };
    let asks = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        let layers = trial.int("layers", 1..=3).get()?;
        let width = if layers > 1 { trial.float("net.width", 0.0..=1.0).get()? } else { 0.5 };
        Ok(width * layers as f64)
    };
    let optimizer = branches().unit("sgd").with("adam", group().with("beta", float(0.8..=0.99)));
    let space = group()
        .with("x", float(-5.0..=5.0))
        .with("net", group().with("layers", int(1..=4)))
        .with("optimizer", optimizer);
    let (one, two) = (Place::new(), Place::new());
    let tuners = [one.tuner(fails).space(space.build().unwrap()), two.tuner(asks)];
    for tuner in tuners {
        let (sender, receiver) = std::sync::mpsc::channel();
        let grid = tuner
            .samples(12)
            .sampler(Random)
            .callback(move |event: &StudyEvent<'_>, study: &Machine| {
                if matches!(event, StudyEvent::Ended { .. }) {
                    assert!(study.trials().all(|(trial, _)| study.roster().get(trial).is_none()));
                    study.trials().for_each(|(trial, _)| sender.send(study.config(trial)).unwrap());
                }
            })
            .fit()
            .unwrap();
        let stored: Vec<_> = grid.trials().iter().map(|trial| Some(trial.full.clone())).collect();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), stored);
        assert_eq!(stored.len(), 12);
    }
}

#[test]
fn a_parameter_that_is_asked_as_something_else_fails_its_trial_alone() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| -> Result<f64, Error> {
        let high = if trial.number() == 3 { 2.0 } else { 1.0 };
        trial.float("x", 0.0..=high).get()
    };
    let grid = place.tuner(objective).concurrent(1).samples(6).sampler(Random).fit().unwrap();
    let failed: Vec<u32> = grid.errors().map(|(trial, _)| trial.number).collect();
    assert_eq!(failed, [3]);
}

#[test]
fn trials_that_fail_say_why_and_the_study_goes_on() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        match trial.number() {
            1 => panic!("index out of bounds"),
            2 => Err("the file is cut off")?,
            3 => Ok(f64::NAN),
            4 => {
                trial.report(1, 0.5)?;
                trial.report(2, f64::NAN)?;
                unreachable!("it was ended at its report")
            }
            _ => Ok(1.0),
        }
    };
    let (ending, grid) = place.tuner(objective).samples(8).space(line()).sampler(Random).drive().unwrap();
    assert_eq!(ending, Ending::Done);
    assert_eq!(states(&grid), ["done", "failed", "failed", "failed", "failed", "done", "done", "done"]);
    let why: Vec<&str> =
        grid.trials()[1..5].iter().map(|trial| trial.error.as_deref().unwrap_or_default()).collect();
    assert!(why[0].contains("index out of bounds"), "{why:?}");
    assert!(why[1].contains("the file is cut off"), "{why:?}");
    assert!(why[2].contains("loss is NaN") && why[3].contains("loss is NaN at step 2"), "{why:?}");
}

#[test]
fn who_reports_nothing_has_failed() {
    let place = Place::new();
    let two = |trial: &mut RunningTrial| if trial.number() == 0 { vec![] } else { vec![1.0] };
    let grid = place.tuner(two).space(line()).samples(2).sampler(Random).fit().unwrap();
    assert_eq!(states(&grid), ["failed", "done"]);
    let why = grid.trials()[0].error.as_deref().unwrap();
    assert!(why.contains("0 values") && why.contains("1 objectives"), "{why}");
}

#[test]
fn the_first_failure_can_end_the_study() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| if trial.number() == 4 { f64::NAN } else { 1.0 };
    let tuner =
        place.tuner(objective).concurrent(1).space(line()).samples(100).sampler(Random).fail_fast(true);
    let (ending, grid) = tuner.drive().unwrap();
    assert_eq!((ending, grid.trials().len()), (Ending::Stopped, 5));
}

#[test]
fn successive_halving_runs_few_to_the_end() {
    let place = Place::new();
    let steps = Arc::new(AtomicUsize::new(0));
    let counted = steps.clone();
    let objective = move |trial: &mut RunningTrial| -> Result<f64, Halt> {
        let x = trial.config()["x"].as_f64().unwrap_or(0.0);
        for step in 1..=9 {
            counted.fetch_add(1, Ordering::Relaxed);
            trial.report(step, x.abs() + 1.0 / step as f64)?;
        }
        Ok(x.abs())
    };
    let tuner = place.tuner(objective).space(line()).samples(27).scheduler(Asha::new(1..=9).stopping());
    let grid = tuner.sampler(Random).fit().unwrap();
    let full = grid.trials().iter().filter(|trial| trial.values("loss").len() == 9).count();
    assert!((1..=9).contains(&full), "{full} of 27 ran to the end");
    assert!(steps.load(Ordering::Relaxed) < 27 * 9 / 2);
    // Who had the full resource has completed, though it was told to end; the others were stopped.
    for trial in grid.trials() {
        let state = if trial.values("loss").len() == 9 { "done" } else { "stopped" };
        assert_eq!(trial.state.as_str(), state, "trial {}", trial.number);
    }
}

/// A call that is paused begins again when it is promoted; what it repeats changes nothing.
#[test]
fn promotion_takes_calls_up_again() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        let x = trial.config()["x"].as_f64().unwrap_or(0.0);
        for step in 1..=9 {
            trial.report(step, x.abs() + 1.0 / step as f64)?;
        }
        Ok(x.abs())
    };
    let seen = Arc::new(Mutex::new(0));
    let paused = seen.clone();
    let watch = move |event: &StudyEvent<'_>, _: &Machine| {
        if matches!(event, StudyEvent::Told { input: Input::Paused { .. } }) {
            *paused.lock().unwrap() += 1;
        }
    };
    let tuner = place.tuner(objective).space(line()).samples(18).scheduler(Asha::new(1..=9)).sampler(Random);
    let grid = tuner.callback(watch).fit().unwrap();
    assert!(*seen.lock().unwrap() > 5);
    let full: Vec<_> = grid.trials().iter().filter(|trial| trial.values("loss").len() == 9).collect();
    assert!(!full.is_empty());
    for trial in grid.trials() {
        let steps: Vec<u64> = trial.metrics["loss"].iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "trial {}", trial.number);
    }
}

#[test]
fn stoppers_end_trials_and_studies() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        for step in 1..=50 {
            trial.report(step, 1.0 / step as f64)?;
        }
        Ok(0.0)
    };
    let tuner = place.tuner(objective).space(line()).samples(4).sampler(Random);
    let grid = tuner.stop(StopperConfig::MaxResource(7)).fit().unwrap();
    assert!(grid.trials().iter().all(|trial| trial.values("loss").len() == 7), "{:?}", states(&grid));

    let place = Place::new();
    let tuner = place.tuner(|_: &mut RunningTrial| 1.0).space(line()).samples(1_000_000).sampler(Random);
    let (ending, grid) = tuner.stop(StopperConfig::TimeBudget(0.5)).drive().unwrap();
    assert_eq!(ending, Ending::Stopped);
    assert!(grid.trials().len() < 1_000_000);
}

#[test]
fn a_study_that_is_stopped_goes_on_and_one_that_is_done_can_be_extended() {
    let place = Place::new();
    let tuner = || place.tuner(bowl).space(line()).sampler(Tpe::default()).seed(3).concurrent(1);
    let whole = Place::new();
    let uninterrupted = whole
        .tuner(bowl)
        .space(line())
        .sampler(Tpe::default())
        .seed(3)
        .concurrent(1)
        .samples(40)
        .fit()
        .unwrap();

    let first = tuner().samples(1_000);
    let handle = first.handle();
    let mut asked = false;
    let watch = move |_: &StudyEvent<'_>, study: &Machine| {
        // Asked twice, it would end at once.
        if study.trials().len() == 15 && !std::mem::replace(&mut asked, true) {
            handle.stop();
        }
    };
    let (ending, grid) = first.callback(watch).drive().unwrap();
    assert_eq!(ending, Ending::Interrupted);
    assert!((15..1_000).contains(&grid.trials().len()));
    let known = grid.trials().len();
    // Fewer than there are already is no way back; more are what was asked for.
    let grid = tuner().samples(known as u64).resume(place.study()).fit().unwrap();
    assert_eq!(grid.trials().len(), known);
    let grid = tuner().samples(40.max(known as u64)).resume(place.study()).fit().unwrap();
    for (ours, theirs) in grid.trials().iter().zip(uninterrupted.trials()) {
        assert_eq!((&ours.full, &ours.metrics), (&theirs.full, &theirs.metrics), "trial {}", ours.number);
    }
}

#[test]
fn a_second_driver_is_refused() {
    let place = Place::new();
    let second: Arc<Mutex<Option<Error>>> = Arc::default();
    let (told, folder, storage) = (second.clone(), place.study(), place.storage());
    let watch = move |event: &StudyEvent<'_>, _: &Machine| {
        if matches!(event, StudyEvent::Begun { .. }) {
            let other =
                Tuner::objective(bowl).minimize("loss").space(line()).sampler(Random).storage(&storage);
            *told.lock().unwrap() = other.resume(&folder).fit().err();
        }
    };
    place.tuner(bowl).space(line()).samples(3).sampler(Random).callback(watch).fit().unwrap();
    let refused = second.lock().unwrap().take().expect("it was refused").to_string();
    assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
    let taken = place.tuner(bowl).space(line()).samples(3).sampler(Random).fit().unwrap_err();
    assert!(matches!(taken, Error::StudyExists { .. }), "{taken}");
}

#[test]
fn a_changed_space_is_refused_with_what_differs_unless_it_is_allowed() {
    let place = Place::new();
    let begun = group().with("x", float(-5.0..=5.0)).with("kind", choice(["a", "b"])).build().unwrap();
    place.tuner(bowl).space(begun).samples(12).sampler(Tpe::default()).fit().unwrap();
    let now = || group().with("x", float(-2.0..=5.0)).with("n", int(1..=4)).build().unwrap();
    let resumed = || place.tuner(bowl).space(now()).samples(20).sampler(Tpe::default()).resume(place.study());
    let refused = resumed().fit().unwrap_err();
    let Error::ChangedSpace { diff } = &refused else { panic!("{refused}") };
    assert!(diff.contains("- kind") && diff.contains("~ x") && diff.contains("+ n"), "{diff}");
    let grid = resumed().allow_changed_space(true).fit().unwrap();
    assert_eq!(grid.trials().len(), 20);
    assert!(grid.trials()[12..].iter().all(|trial| trial.full["n"].is_i64()));

    let other = place.tuner(bowl).space(now()).samples(20).sampler(Random).resume(place.study());
    let refused = other.allow_changed_space(true).fit().unwrap_err().to_string();
    assert!(refused.contains("its sampler was"), "{refused}");
}

#[test]
fn a_study_without_an_objective_is_refused() {
    let tuner = Tuner::objective(|_: &mut RunningTrial| 1.0).samples(3);
    assert!(tuner.fit().unwrap_err().to_string().contains("tune.metric"));
}

#[test]
fn a_scheduler_that_compares_reports_has_them_compared() {
    let place = Place::new();
    let objective = |trial: &mut RunningTrial| -> Result<f64, Halt> {
        let bad = f64::from(trial.number() % 2);
        for step in 1..=10 {
            trial.report(step, bad + 1.0 / step as f64)?;
        }
        Ok(bad)
    };
    let tuner = place.tuner(objective).space(line()).samples(20).sampler(Random).concurrent(1);
    let grid = tuner.scheduler(Median::default().startup(3)).fit().unwrap();
    assert!(states(&grid).contains(&"stopped"), "{:?}", states(&grid));
}

#[test]
fn trials_of_calls_get_files_of_their_own_where_that_is_wanted() {
    let place = Place::new();
    let names = |trial: u32| -> Vec<String> {
        let folder = std::fs::read_dir(place.study().join(format!("trials/{trial:05}")));
        let entries = folder.into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    place.tuner(bowl).space(line()).samples(3).sampler(Random).files(true).fit().unwrap();
    for trial in 0..3 {
        let names = names(trial);
        for wanted in ["progress.csv", "result.jsonl", "events.out.tfevents."] {
            assert!(names.iter().any(|name| name.starts_with(wanted)), "{wanted} of {trial}: {names:?}");
        }
    }
}
