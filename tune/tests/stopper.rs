//! Each stopping rule, at the report where it should act and not before.

use std::time::Duration;

use regatta_tune::stopper::{Observation, Stop, Stopper, StopperConfig, StudyPlateau, TrialPlateau};

/// The reports, counted from 0, at which a rule stops something; `loss` is also the metric `m`.
fn stops(config: StopperConfig, reports: &[(u32, u64, f64)]) -> Vec<(usize, char)> {
    let mut stopper = config.build().expect("a good configuration");
    let mut stops = Vec::new();
    for (at, (trial, resource, loss)) in reports.iter().copied().enumerate() {
        let metrics = |name: &str| (name == "m").then_some(loss);
        let elapsed = Duration::from_secs(at as u64);
        match stopper.observe(&Observation { trial, resource, loss, metrics: &metrics, elapsed }) {
            Some(Stop::Trial(_)) => stops.push((at, 't')),
            Some(Stop::Study(_)) => stops.push((at, 's')),
            None => {}
        }
    }
    stops
}

fn losses(losses: &[f64]) -> Vec<(u32, u64, f64)> {
    losses.iter().enumerate().map(|(at, loss)| (0, at as u64 + 1, *loss)).collect()
}

#[test]
fn resources_and_time_are_bounded() {
    let falling = losses(&[5.0, 4.0, 3.0, 2.0]);
    assert_eq!(stops(StopperConfig::MaxResource(3), &falling), [(2, 't'), (3, 't')]);
    assert_eq!(stops(StopperConfig::TimeBudget(2.5), &falling), [(3, 's')]);
    let mut budget = StopperConfig::TimeBudget(2.5).build().expect("good");
    assert_eq!(budget.tick(Duration::from_secs(2)), None);
    assert!(budget.tick(Duration::from_secs(3)).is_some());
}

#[test]
fn thresholds_know_up_from_down_and_the_loss_from_a_metric() {
    let rule = |metric: &str, at_least, at_most| StopperConfig::Threshold {
        metric: metric.into(),
        at_least,
        at_most,
    };
    let falling = losses(&[5.0, f64::NAN, 3.0, 2.0]);
    assert_eq!(stops(rule("", None, Some(3.0)), &falling), [(2, 't'), (3, 't')]);
    assert_eq!(stops(rule("m", Some(4.5), None), &falling), [(0, 't')]);
    assert_eq!(stops(rule("unknown", Some(0.0), None), &falling), []);
}

#[test]
fn a_flat_trial_stops_after_its_grace_and_on_its_own_losses() {
    let rule = |grace| StopperConfig::TrialPlateau(TrialPlateau { deviation: 0.01, window: 3, grace });
    let flat = losses(&[1.0, 0.5, 0.5, 0.5, 0.9]);
    assert_eq!(stops(rule(0), &flat), [(3, 't')]);
    assert_eq!(stops(rule(6), &flat), []);
    assert_eq!(stops(rule(0), &losses(&[0.5, f64::NAN, 0.5, 0.5])), []);
    let two: Vec<_> = (0..4).flat_map(|at| [(0, at, 0.5), (1, at, f64::from(at as u32))]).collect();
    assert_eq!(stops(rule(0), &two), [(4, 't')], "the other's losses are not mixed in");
}

#[test]
fn a_flat_study_stops_after_its_patience() {
    let rule = |patience| StopperConfig::StudyPlateau(StudyPlateau { deviation: 0.01, top: 2, patience });
    let reports = [(0, 1, 1.0), (1, 1, 0.5), (2, 1, 0.505), (3, 1, 0.9), (4, 1, 0.1), (5, 1, 0.1)];
    assert_eq!(stops(rule(0), &reports), [(2, 's'), (3, 's'), (5, 's')]);
    assert_eq!(stops(rule(1), &reports), [(3, 's')]);
}

#[test]
fn rules_combine() {
    let resource = || StopperConfig::MaxResource(2);
    let low = || StopperConfig::Threshold { metric: String::new(), at_least: None, at_most: Some(1.0) };
    let time = || StopperConfig::TimeBudget(3.0);
    let reports = losses(&[1.0, 5.0, 1.0, 5.0]);
    assert_eq!(
        stops(StopperConfig::Any(vec![resource(), low(), time()]), &reports),
        [(0, 't'), (1, 't'), (2, 't'), (3, 's')]
    );
    assert_eq!(stops(StopperConfig::All(vec![resource(), low()]), &reports), [(2, 't')]);
    assert_eq!(stops(StopperConfig::All(vec![resource(), time()]), &reports), [(3, 't')]);
    assert_eq!(stops(StopperConfig::All(vec![time(), time()]), &reports), [(3, 's')]);
}

#[test]
fn a_closure_is_a_rule_and_nonsense_is_refused() {
    let mut odd = |seen: &Observation<'_>| (seen.trial % 2 == 1).then(|| Stop::Trial("odd".into()));
    let seen = Observation { trial: 1, resource: 1, loss: 0.0, metrics: &|_| None, elapsed: Duration::ZERO };
    assert_eq!(Stopper::observe(&mut odd, &seen), Some(Stop::Trial("odd".into())));
    for bad in
        [StopperConfig::MaxResource(0), StopperConfig::TimeBudget(-1.0), StopperConfig::Any(Vec::new())]
    {
        assert!(bad.clone().build().is_err(), "{bad:?}");
    }
}
