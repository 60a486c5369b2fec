//! Populations on the toy problem whose best learning rate depends on how far training is: a schedule beats every constant.

use std::sync::Arc;

use regatta_tune::scheduler::{
    Action, Config, Draw, Pb2, Pbt, PbtReplay, Perturb, Scheduler, SchedulerConfig,
};
use regatta_tune::sim::{Outcome, Simulation, Step, Workload};
use serde_json::Value;

/// Learning rates on a logarithmic scale.
#[derive(Clone, Debug)]
struct Rates;

const LOW: f64 = 1e-4;
const HIGH: f64 = 2e-2;

impl Perturb for Rates {
    fn parameters(&self, _: &Config) -> Vec<String> {
        vec!["lr".to_owned()]
    }

    fn sample(&self, _: &str, quantile: f64) -> Value {
        Value::from((LOW.ln() + quantile * (HIGH / LOW).ln()).exp())
    }

    fn place(&self, _: &str, value: &Value) -> Option<f64> {
        value.as_f64().map(|value| (value / LOW).ln() / (HIGH / LOW).ln())
    }

    fn neighbour(&self, _: &str, value: &Value, factor: f64) -> Value {
        Value::from((value.as_f64().unwrap_or(LOW) * factor).clamp(LOW, HIGH))
    }

    fn settle(&self, config: Config, _: &mut Draw) -> Config {
        config
    }
}

fn rate(config: &Config) -> f64 {
    config["lr"].as_f64().expect("a number")
}

/// Accuracy grows the faster the nearer the rate is to the best one, which rises until half way and falls again; a rate
/// that is more than three times off loses accuracy.
#[derive(Clone, Copy)]
struct Toy {
    horizon: u64,
}

impl Workload for Toy {
    type State = f64;

    fn begin(&self, _: u32, _: &Config) -> f64 {
        0.0
    }

    fn step(&self, accuracy: &mut f64, config: &Config, _: u64) -> Step {
        let way = if *accuracy < 50.0 { *accuracy / 50.0 } else { (100.0 - *accuracy) / 50.0 };
        let best = (0.01 * way).clamp(0.001, 0.01);
        let lr = rate(config);
        let error = lr.max(best) / lr.min(best);
        *accuracy += if error < 3.0 { 1.0 / error } else { -(error - 3.0) * 0.1 };
        *accuracy = accuracy.clamp(0.0, 100.0);
        Step { value: 100.0 - *accuracy, seconds: 1.0 }
    }

    fn horizon(&self) -> u64 {
        self.horizon
    }
}

const MEMBERS: u32 = 8;

fn run(scheduler: Box<dyn Scheduler>, seed: u64, slots: usize) -> Outcome {
    let study = Simulation::new(Toy { horizon: 160 }).seed(seed).slots(slots);
    let source = |trial: u32| {
        Config::from([("lr".into(), Rates.sample("lr", Draw::new(seed, u64::from(trial)).unit()))])
    };
    study.run(scheduler, |ask| (ask.trial < MEMBERS).then(|| source(ask.trial))).expect("it ends")
}

fn build(config: impl Into<SchedulerConfig>) -> Box<dyn Scheduler> {
    config.into().build(Some(Arc::new(Rates))).expect("a good configuration")
}

/// The final loss of the best member, on average over seeds.
fn loss(config: impl Into<SchedulerConfig>, slots: usize, seeds: u64) -> f64 {
    let config = config.into();
    let best = |seed| run(build(config.clone()), seed, slots).best().expect("there are reports").value;
    (0..seeds).map(best).sum::<f64>() / seeds as f64
}

#[test]
fn a_population_finds_the_schedule_that_no_constant_is() {
    // The best of a thousand constants: what no search over constants can beat.
    let constant = |i: u32| {
        let config = Config::from([("lr".into(), Rates.sample("lr", f64::from(i) / 1000.0))]);
        let mut accuracy = 0.0;
        (0..160)
            .map(|epoch| Toy { horizon: 160 }.step(&mut accuracy, &config, epoch).value)
            .fold(f64::INFINITY, f64::min)
    };
    let best_constant = (0..1000).map(constant).fold(f64::INFINITY, f64::min);
    let (pbt, round, few, pb2) = (
        loss(Pbt::new(MEMBERS, 5), 8, 10),
        loss(Pbt::new(MEMBERS, 5).synchronous(), 8, 10),
        loss(Pbt::new(MEMBERS, 5), 3, 10),
        loss(Pb2::new(MEMBERS, 5), 8, 4),
    );
    let text = format!(
        "constant {best_constant:.1}, pbt {pbt:.1}, synchronous {round:.1}, on 3 slots {few:.1}, pb2 {pb2:.1}"
    );
    assert!([pbt, round, few, pb2].iter().all(|loss| *loss < best_constant - 10.0), "{text}");
}

/// The schedule of the best member rises and falls again, as the problem's best rate does; now and then one gets there
/// otherwise.
#[test]
fn the_schedule_follows_the_problem() {
    let schedule = |seed| {
        let outcome = run(build(Pbt::new(MEMBERS, 5)), seed, 8);
        let best = outcome.best().expect("there are reports");
        // A trial that is over still tells how it came to be.
        let legs = PbtReplay::of(outcome.referee.roster(), best.trial).expect("it exists").legs;
        legs.iter().map(|leg| rate(&leg.config)).collect()
    };
    let schedules: Vec<Vec<f64>> = (0..20).map(schedule).collect();
    let bends = |rates: &&Vec<f64>| {
        let peak = rates.iter().copied().fold(0.0, f64::max);
        peak > 1.5 * rates[0] && peak > rates[rates.len() - 1]
    };
    let bent = schedules.iter().filter(bends).count();
    assert!(bent >= 17, "{bent} of 20: {schedules:?}");
}

/// One trial with the schedule of the best member ends where that member did.
#[test]
fn a_schedule_can_be_replayed() {
    for seed in 0..5 {
        let outcome = run(build(Pbt::new(MEMBERS, 5)), seed, 8);
        let best = outcome.best().expect("there are reports");
        let replay = PbtReplay::of(outcome.referee.roster(), best.trial).expect("it exists");
        let first = replay.first().expect("there is one").as_ref().clone();
        let study = Simulation::new(Toy { horizon: best.resource });
        let again =
            study.run(build(replay.clone()), |ask| (ask.trial == 0).then(|| first.clone())).expect("it ends");
        let changes = again.records.iter().flat_map(|record| &record.decisions);
        let changes = changes.filter(|decision| matches!(decision.action, Action::Clone { .. })).count();
        assert_eq!(changes, replay.legs.len() - 1);
        let last = again.trials[&0].reports.last().expect("it reported");
        assert_eq!(*last, (best.resource, best.value), "seed {seed}");
    }
}
