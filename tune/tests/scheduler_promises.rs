//! What the schedulers promise, held against histories and against oracles that know only what was told and answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use regatta_tune::scheduler::conformance::{self, Line};
use regatta_tune::scheduler::{
    Action, Asha, Config, Decision, Event, HyperBand, Median, Misuse, Pbt, Perturb, Referee, Report,
    Resizing, Scheduler, SchedulerConfig, Turn, Wilcoxon,
};
use regatta_tune::sim::{Curves, Outcome, Simulation};

fn build(config: impl Into<SchedulerConfig>) -> Box<dyn Scheduler> {
    config.into().build(Some(Arc::new(Line::default()))).expect("a good configuration")
}

/// Runs a table without faults.
fn table(scheduler: Box<dyn Scheduler>, slots: usize, curves: Vec<Vec<f64>>) -> Outcome {
    let trials = curves.len() as u32;
    let study = Simulation::new(Curves::new(curves)).slots(slots);
    study
        .run(scheduler, |ask| (ask.trial < trials).then(|| Curves::row(ask.trial as usize)))
        .expect("it ends")
}

fn decisions(outcome: &Outcome) -> impl Iterator<Item = &Decision> {
    outcome.records.iter().flat_map(|record| &record.decisions)
}

/// What an onlooker knows of an ASHA study: the results at each rung, and who holds where.
#[derive(Default)]
struct Onlooker {
    rungs: BTreeMap<u64, Vec<(f64, u32)>>,
    next: BTreeMap<u32, usize>,
    held: BTreeMap<u32, u64>,
    deaf: BTreeMap<u32, bool>,
    flying: i64,
}

impl Onlooker {
    /// Whether a trial is among the best third of those that came to a rung.
    fn leads(&self, level: u64, trial: u32) -> bool {
        let mut rung = self.rungs[&level].clone();
        rung.sort_by(|a, b| {
            let key = |v: f64| if v.is_nan() { f64::INFINITY } else { v };
            key(a.0).total_cmp(&key(b.0)).then(a.1.cmp(&b.1))
        });
        rung.iter().take(rung.len() / 3).any(|(_, leader)| *leader == trial)
    }
}

const LEVELS: [u64; 4] = [1, 3, 9, 27];

/// SCH-1. Every trial that goes on beyond a rung is among its best third at that moment, or else nothing else could run and
/// no trial had reached the end.
#[test]
fn asha_promotes_only_the_best_of_a_rung() {
    let (mut promotions, mut last_hopes) = (0, 0);
    for seed in 0..600 {
        let outcome = conformance::history(build(Asha::new(1..=27)), seed).expect("it ends");
        let mut known = Onlooker::default();
        for record in &outcome.records {
            let mut crossed = None;
            if let Event::Reported(Report { trial, resource, value }) = record.event
                && !known.deaf.get(&trial).copied().unwrap_or(true)
            {
                let next = known.next.entry(trial).or_default();
                while *next < LEVELS.len() && resource >= LEVELS[*next] {
                    known.rungs.entry(LEVELS[*next]).or_default().push((value, trial));
                    crossed = Some((trial, LEVELS[*next]));
                    *next += 1;
                }
            }
            match record.event {
                Event::Started { trial } => known.deaf.insert(trial, false),
                Event::Failed { trial } | Event::Finished { trial } => known.deaf.insert(trial, true),
                _ => None,
            };
            known.flying += match &record.event {
                Event::Created { .. } => 1,
                Event::Paused { .. } | Event::Failed { .. } => -1,
                Event::Finished { trial } if !known.held.contains_key(trial) => -1,
                _ => 0,
            };
            for decision in &record.decisions {
                match &decision.action {
                    Action::Continue { trial } => {
                        let Some((_, level)) = crossed.filter(|(crossed, _)| crossed == trial) else {
                            continue;
                        };
                        assert!(known.leads(level, *trial), "history {seed}: {decision} at {level}");
                        promotions += 1;
                    }
                    Action::Pause { trial } | Action::Stop { trial } => {
                        known.deaf.insert(*trial, true);
                        if let Some((_, level)) = crossed.filter(|(crossed, _)| crossed == trial) {
                            known.held.insert(*trial, level);
                        }
                    }
                    Action::Resume { trial, .. } => {
                        let Some(level) = known.held.remove(trial) else { continue };
                        if known.leads(level, *trial) {
                            promotions += 1;
                        } else {
                            last_hopes += 1;
                            assert!(!known.rungs.contains_key(&27), "history {seed}: {decision} at {level}");
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    assert!(promotions > 500 && last_hopes > 10, "the histories hold too little: {promotions}, {last_hopes}");
}

/// A trial that was not good enough when it came goes on once enough others turned out worse.
#[test]
fn asha_promotes_late() {
    let curve = |last: f64| (1..=9).map(|epoch| last + 1.0 / f64::from(epoch)).collect();
    let outcome = table(build(Asha::new(1..=9)), 1, [0.5, 0.1, 0.9, 0.8, 0.7, 0.6].map(curve).to_vec());
    let resumed: Vec<u32> = decisions(&outcome)
        .filter(|decision| {
            matches!(decision.action, Action::Resume { .. }) && decision.reason.starts_with("promoted")
        })
        .filter_map(|decision| decision.action.trial())
        .collect();
    assert_eq!(resumed, [1, 0], "trial 1 after three had come, trial 0 after six");
}

#[test]
fn even_a_study_of_two_brings_one_trial_to_its_end() {
    let curve = |last: f64| vec![last; 9];
    let outcome = table(build(Asha::new(1..=9)), 2, vec![curve(0.5), curve(0.4)]);
    let lengths: Vec<usize> = outcome.trials.values().map(|trial| trial.reports.len()).collect();
    assert_eq!(lengths, [1, 9]);
}

/// The brackets of the paper for R = 27 and eta = 3: 27, 12, 6 and 4 trials, which begin at 1, 3, 9 and 27.
#[test]
fn hyper_band_has_the_brackets_of_the_paper() {
    let curves = (0..49u32).map(|row| vec![f64::from(row * 37 % 49); 27]).collect();
    let outcome = table(build(HyperBand::new(1..=27)), 3, curves);
    let mut reached: BTreeMap<(usize, u64), usize> = BTreeMap::new();
    for (trial, known) in &outcome.trials {
        let bracket = [27, 39, 45, 49].iter().position(|end| trial < end).expect("49 trials");
        let last = known.reports.last().expect("every trial runs").0;
        *reached.entry((bracket, last)).or_default() += 1;
    }
    let expected = [
        ((0, 1), 18),
        ((0, 3), 6),
        ((0, 9), 2),
        ((0, 27), 1),
        ((1, 3), 8),
        ((1, 9), 3),
        ((1, 27), 1),
        ((2, 9), 4),
        ((2, 27), 2),
        ((3, 27), 4),
    ];
    assert_eq!(reached, BTreeMap::from(expected));
}

#[test]
fn rungs_say_who_came_how_far_and_how_well() {
    for scheduler in [build(HyperBand::new(1..=27)), build(Asha::new(1..=27))] {
        let loss = |row: u32| f64::from(row * 37 % 49);
        let curves = (0..27u32).map(|row| vec![loss(row); 27]).collect();
        let outcome = table(scheduler, 3, curves);
        let scheduler = outcome.referee.scheduler();
        let rungs = scheduler.rungs();
        assert_eq!(rungs.len(), 4, "{}", scheduler.name());
        for (level, rung) in LEVELS.iter().zip(&rungs) {
            assert!(rung.windows(2).all(|pair| loss(pair[0]) < loss(pair[1])), "{rung:?}");
            let came = |trial: &u32| outcome.trials[trial].reports.iter().any(|(at, _)| at == level);
            assert!(rung.iter().all(came), "{}", scheduler.name());
        }
        assert_eq!(rungs.iter().flatten().filter(|trial| **trial == 0).count(), rungs.len(), "the best");
    }
}

#[test]
fn a_loss_that_is_not_a_number_is_never_promoted() {
    for config in [
        SchedulerConfig::from(Asha::new(1..=9)),
        HyperBand::new(1..=9).into(),
        Asha::new(1..=9).stopping().into(),
    ] {
        let mut curves = vec![vec![f64::NAN; 9]; 8];
        curves.push(vec![1e30; 9]);
        let outcome = table(build(config), 2, curves);
        let longest = outcome.trials.iter().max_by_key(|(_, trial)| trial.reports.len());
        assert_eq!(longest.map(|(trial, known)| (*trial, known.reports.len())), Some((8, 9)));
        assert_eq!(outcome.trials.values().filter(|trial| trial.reports.len() > 1).count(), 1);
    }
}

#[test]
fn the_median_rule_stops_the_worse_half_after_its_grace() {
    let curves = (0..10u32).map(|row| vec![f64::from(row); 6]).collect();
    let outcome = table(build(Median::default().startup(4).grace(2)), 1, curves);
    let lengths: Vec<usize> = outcome.trials.values().map(|trial| trial.reports.len()).collect();
    assert_eq!(
        lengths,
        [6, 6, 6, 6, 3, 3, 3, 3, 3, 3],
        "four to compare with, and then none better than the median"
    );
    let falling = (0..10u32).map(|row| vec![f64::from(10 - row); 6]).collect();
    let outcome = table(build(Median::default().startup(4).grace(2)), 1, falling);
    assert!(
        outcome.trials.values().all(|trial| trial.reports.len() == 6),
        "each is better than all before it"
    );
}

#[test]
fn the_signed_rank_test_stops_what_is_worse_on_the_same_measurements() {
    let measured = |shift: f64| (0..20).map(|fold| f64::from(fold * 7 % 5) + shift).collect::<Vec<f64>>();
    let outcome = table(build(Wilcoxon::default()), 1, vec![measured(0.0), measured(0.3), measured(-0.3)]);
    let lengths: Vec<usize> = outcome.trials.values().map(|trial| trial.reports.len()).collect();
    // Four of four have a probability of 1/16.
    assert_eq!(lengths, [20, 4, 20]);
}

#[test]
fn the_last_trials_get_the_workers_that_would_be_idle() {
    let curves = vec![vec![1.0; 4], vec![1.0; 20]];
    let outcome = table(build(Resizing::new(SchedulerConfig::default(), 8)), 8, curves);
    let sizes: Vec<(u32, u32)> = decisions(&outcome)
        .filter_map(|decision| match decision.action {
            Action::Resize { trial, workers } => Some((trial, workers)),
            _ => None,
        })
        .collect();
    assert_eq!(sizes, [(0, 4), (1, 4), (1, 8)]);
}

/// SCH-2 is checked by the simulation itself, which deletes what is not pinned. Here: there are clones, and no
/// configuration leaves the space.
#[test]
fn populations_clone_and_stay_in_the_space() {
    let line = Line { low: 0.3, high: 0.6 };
    let mut clones = 0;
    for (seed, config) in
        (0..200).flat_map(|seed| [(seed, Pbt::new(8, 3)), (seed, Pbt::new(8, 3).synchronous())])
    {
        let scheduler =
            SchedulerConfig::from(config.max(30)).build(Some(Arc::new(line.clone()))).expect("good");
        let outcome = conformance::history(scheduler, seed).expect("it ends");
        for decision in decisions(&outcome) {
            if let Action::Clone { trial, donor, checkpoint, config } = &decision.action {
                clones += 1;
                assert_ne!(trial, donor);
                assert!(checkpoint.resource > 0);
                let x = line.place("x", &config["x"]).expect("a number");
                assert!((-1e-9..=1.0 + 1e-9).contains(&x), "{config:?} of {decision}");
            }
        }
    }
    assert!(clones > 500, "the histories hold too few clones: {clones}");
}

/// A scheduler of a user's own that breaks a rule.
#[derive(Debug)]
struct Rogue(fn(&mut Turn<'_>));

impl Scheduler for Rogue {
    fn name(&self) -> &'static str {
        "rogue"
    }

    fn slot(&mut self, turn: &mut Turn<'_>) {
        if turn.roster().is_empty() {
            turn.start_new("the first");
        } else {
            (self.0)(turn);
        }
    }
}

#[test]
fn illegal_decisions_are_refused_and_name_their_scheduler() {
    let refused = |wish: fn(&mut Turn<'_>)| {
        let mut referee = Referee::new(Box::new(Rogue(wish)), 0);
        referee.handle(Event::Slot).expect("the first");
        referee
            .handle(Event::Created { trial: 0, config: Arc::new(Config::new()) })
            .expect("it was asked for");
        referee.handle(Event::Started { trial: 0 }).expect("it was created");
        referee.handle(Event::Slot).expect_err("it is illegal").to_string()
    };
    let says = |text: String, what: &str| assert!(text.contains("`rogue`") && text.contains(what), "{text}");
    says(refused(|turn| turn.resume(0, "")), "to resume trial 0, but it is not paused");
    says(refused(|turn| turn.clone(0, 0, Arc::new(Config::new()), "")), "without a checkpoint");
    says(refused(|turn| turn.stop(7, "")), "to stop trial 7, but it is over");
    says(refused(|turn| turn.resize(0, 2, "")), "it never took a checkpoint");
    let twice = |turn: &mut Turn<'_>| {
        turn.start_new("");
        turn.start_new("");
    };
    says(refused(twice), "no slot is on offer");
}

/// SCH-3 even for a scheduler that forgets its paused trials.
#[test]
fn a_scheduler_without_a_plan_does_not_strand_the_study() {
    let mut referee = Referee::new(Box::new(Rogue(|_| {})), 0);
    referee.handle(Event::Slot).expect("the first");
    referee.handle(Event::Created { trial: 0, config: Arc::new(Config::new()) }).expect("it was asked for");
    referee.handle(Event::Started { trial: 0 }).expect("it was created");
    referee.handle(Event::Paused { trial: 0, checkpoint: None }).expect("it may");
    let decisions = referee.handle(Event::Slot).expect("it is rescued");
    assert_eq!(decisions[0].action, Action::Resume { trial: 0, checkpoint: None });
    assert_eq!(referee.rescues(), 1);
}

#[test]
fn events_out_of_order_are_refused() {
    let mut referee = Referee::new(build(Asha::new(1..=9)), 0);
    let early = referee.handle(Event::Reported(Report { trial: 3, resource: 1, value: 0.0 }));
    assert_eq!(
        early,
        Err(Misuse::OutOfOrder { event: "reported", trial: 3, why: "which was never created" })
    );
    let created = || Event::Created { trial: 3, config: Arc::new(Config::new()) };
    referee.handle(created()).expect("the first time");
    assert!(matches!(referee.handle(created()), Err(Misuse::OutOfOrder { .. })));
}

#[test]
fn events_are_plain_data_whatever_their_numbers() {
    for value in [0.5, -0.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let event = Event::Reported(Report { trial: 1, resource: 2, value });
        let text = serde_json::to_string(&event).expect("plain data");
        assert_eq!(serde_json::from_str::<Event>(&text).expect("it was written"), event, "{text}");
    }
    let created = Event::Created { trial: 1, config: Arc::new(Curves::row(4)) };
    let text = serde_json::to_string(&created).expect("plain data");
    assert_eq!(serde_json::from_str::<Event>(&text).expect("it was written"), created);
}

#[test]
fn bad_settings_are_refused_by_name() {
    let refused = |config: SchedulerConfig| config.build(None).expect_err("it is bad").to_string();
    assert_eq!(refused(Asha::new(0..=9).into()), "`asha.min` must be at least 1");
    assert_eq!(refused(Asha::new(1..=9).eta(1).into()), "`asha.eta` must be at least 2");
    assert_eq!(
        refused(Asha::new(1..=9).brackets(4).into()),
        "`asha.brackets` must be at least 1 and at most the number of rungs"
    );
    assert_eq!(refused(Pbt::default().into()), "`pbt` changes configurations and needs a space");
    assert_eq!(refused(Wilcoxon::default().p(1.0).into()), "`wilcoxon.p` must be between 0 and 1");
    let nested = Resizing::new(HyperBand { min: 9, max: 1, eta: 3 }, 4);
    assert_eq!(refused(nested.into()), "`hyper_band.max` must not be less than hyper_band.min");
}
