//! What a sampler sees of trials that a scheduler cuts short, and what it makes of it.

use std::borrow::Cow;

use regatta_tune::sampler::{Ask, End, History, Judge, Random, Sampler, Told, Tpe};
use regatta_tune::scheduler::{
    Asha, Config, Event, Fifo, HyperBand, Referee, Report, Scheduler, SchedulerConfig, State,
};
use regatta_tune::sim::{Faults, Simulation, Step, Workload};
use regatta_tune::space::{Point, Space, float, group};

fn build(config: impl Into<SchedulerConfig>) -> Box<dyn Scheduler> {
    config.into().build(None).expect("a good configuration")
}

fn at(x: f64) -> Point {
    let mut point = Point::empty(1);
    point.set(0, Some(x));
    point
}

/// Six trials of which each reports once, and trial 5 goes on to the next rung.
fn six() -> (Referee, History) {
    let mut referee = Referee::new(build(Asha::new(1..=9)), 0);
    let mut history = History::new();
    for trial in 0..6u32 {
        history.start(u64::from(trial), at(f64::from(trial)), 7);
        referee.handle(Event::Created { trial, config: Config::default().into() }).unwrap();
        referee.handle(Event::Started { trial }).unwrap();
    }
    for (trial, value) in [(0, 3.0), (1, 1.0), (2, f64::NAN), (3, 2.0), (4, 4.0)] {
        referee.handle(Event::Reported(Report { trial, resource: 1, value })).unwrap();
    }
    (referee, history)
}

#[test]
fn trials_that_are_not_over_count_by_their_rank() {
    let (referee, history) = six();
    let judged = history.judged_by(referee.scheduler());
    let seen: Vec<u64> = judged.told().iter().map(|t| t.number).collect();
    assert_eq!(seen, [0, 1, 2, 3, 4]);
    assert_eq!(judged.running().keys().copied().collect::<Vec<u64>>(), [5], "it has not come to a rung");
    assert!(judged.told().iter().all(|t| t.end == End::Complete && t.note == 7 && t.loss().is_finite()));
    let mut best: Vec<&Told> = judged.told().iter().collect();
    best.sort_by(|a, b| a.loss().total_cmp(&b.loss()));
    assert_eq!(best.iter().map(|t| t.number).collect::<Vec<u64>>(), [1, 3, 0, 4, 2]);
    assert_eq!(best[2].loss(), 0.0, "the one in the middle");
    assert_eq!(best[0].point, at(1.0));
}

#[test]
fn failures_and_other_studies_keep_their_place() {
    let (referee, mut history) = six();
    let mut failed = Told::complete(1, at(1.0), vec![]);
    failed.end = End::Failed;
    history.tell(failed);
    history.tell(Told::complete(100, at(9.0), vec![0.5]));
    history.tell(Told::complete(101, at(9.0), vec![0.7]));
    let judged = history.judged_by(referee.scheduler());
    let of = |number| judged.told().iter().find(|t| t.number == number).expect("told");
    assert_eq!(of(1).end, End::Failed);
    assert!(of(100).loss() < of(101).loss());
    assert_eq!(judged.told().len(), 7);
}

#[test]
fn without_rungs_nothing_is_changed() {
    let (_, history) = six();
    assert!(matches!(history.judged_by(&*build(Fifo::default())), Cow::Borrowed(_)));
    assert!(matches!(history.judged_by(&*build(Asha::new(1..=9))), Cow::Borrowed(_)));
}

/// A training whose loss falls towards how far `x` and `y` are from where they should be.
struct Bowl;

impl Workload for Bowl {
    type State = ();

    fn begin(&self, _: u32, _: &Config) {}

    fn step(&self, (): &mut (), config: &Config, resource: u64) -> Step {
        let at = |name: &str| config[name].as_f64().unwrap();
        let end = (at("x") - 0.7).powi(2) + (at("y") - 0.2).powi(2);
        Step { value: end + 1.0 / resource as f64, seconds: 1.0 }
    }

    fn horizon(&self) -> u64 {
        27
    }
}

#[test]
fn a_sampler_learns_under_every_ladder() {
    let space: Space =
        group().with("x", float(0.0..=1.0)).with("y", float(0.0..=1.0)).build().expect("a space");
    let found = |config: &SchedulerConfig, tpe: bool| {
        let mut regrets: Vec<f64> = (0..9)
            .map(|seed| {
                let sampler: Box<dyn Sampler> = if tpe { Box::<Tpe>::default() } else { Box::new(Random) };
                let study = Simulation::new(Bowl).seed(seed).slots(4).budget(27 * 12);
                let outcome =
                    study.search(build(config.clone()), sampler, &space, u32::MAX).expect("it ends");
                outcome.best().expect("a report").value - 1.0 / 27.0
            })
            .collect();
        regrets.sort_by(f64::total_cmp);
        regrets[4]
    };
    let ladders: [SchedulerConfig; 3] =
        [Asha::new(1..=27).into(), Asha::new(1..=27).stopping().into(), HyperBand::new(1..=27).into()];
    for config in ladders {
        let (tpe, random) = (found(&config, true), found(&config, false));
        assert!(tpe < 0.5 * random, "{config:?}: {tpe} {random}");
    }
}

/// What is kept between suggestions changes none of them: neither the judge nor the sampler is told anything but what a
/// fresh one would be, while trials come to rungs, are stopped and end in any order.
#[test]
fn a_judge_and_a_sampler_may_be_kept() {
    let space: Space =
        group().with("x", float(0.0..=1.0)).with("y", float(0.0..=1.0)).build().expect("a space");
    let ladders: [SchedulerConfig; 2] = [Asha::new(1..=27).into(), Asha::new(1..=27).stopping().into()];
    for config in ladders {
        let (mut judge, mut kept, mut history) = (Judge::default(), Tpe::default(), History::new());
        let study =
            Simulation::new(Bowl).seed(3).slots(5).faults(Faults { jitter: 0.5, ..Faults::default() });
        let outcome = study.run(build(config), |ask| {
            if ask.trial == 120 {
                return None;
            }
            let number = u64::from(ask.trial);
            let over: Vec<u64> = history.running().keys().copied().collect();
            for number in over.into_iter().filter(|n| ask.roster.state(*n as u32) == State::Ended) {
                let point = history.running()[&number].point.clone();
                history.tell(Told::complete(number, point, vec![number as f64]));
            }
            let fresh = history.judged_by(ask.scheduler).into_owned();
            let judged = judge.look(&history, ask.scheduler);
            assert_eq!((judged.told(), judged.running()), (fresh.told(), fresh.running()));
            let asked = Ask { space: &space, history: judged, number, seed: 1 };
            let suggestion = kept.suggest(&asked).unwrap();
            assert_eq!(suggestion, Tpe::default().suggest(&asked).unwrap(), "trial {number}");
            let values = space.values(&suggestion.point);
            history.start(number, suggestion.point.clone(), suggestion.note);
            Some(values.map(|(path, value)| (path.to_owned(), value)).collect())
        });
        let outcome = outcome.expect("it ends");
        assert!(history.told().len() > 10, "{} of {} are over", history.told().len(), outcome.trials.len());
    }
}
