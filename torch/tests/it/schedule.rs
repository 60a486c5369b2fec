//! Schedules at points that can be worked out by hand, and as they drive an optimiser.

use regatta_torch::Error;
use regatta_torch::optim::{Optimizer, Sgd};
use regatta_torch::schedule::{Schedule, Scheduler, SchedulerState};
use tch::Tensor;

use crate::{F32, alone};

fn close(schedule: &Schedule, points: &[(u64, f64)]) {
    for &(step, want) in points {
        let got = schedule.factor(step);
        assert!((got - want).abs() < 1e-9, "{schedule:?} at {step}: {got}, not {want}");
    }
}

#[test]
fn factors_are_what_the_formulas_say() {
    close(&Schedule::Constant, &[(0, 1.0), (u64::MAX, 1.0)]);
    close(
        &Schedule::step(30, 0.1),
        &[(0, 1.0), (29, 1.0), (30, 0.1), (59, 0.1), (60, 0.01), (u64::MAX, 0.0)],
    );
    let half = 0.5f64.sqrt() / 2.0;
    close(
        &Schedule::cosine(100, 0.0),
        &[(0, 1.0), (25, 0.5 + half), (50, 0.5), (75, 0.5 - half), (100, 0.0), (999, 0.0)],
    );
    close(&Schedule::cosine(10, 0.2), &[(0, 1.0), (5, 0.6), (10, 0.2), (11, 0.2)]);
    close(&Schedule::cosine(10, 0.0).after_warmup(4), &[(0, 0.0), (1, 0.25), (4, 1.0), (9, 0.5), (14, 0.0)]);
    // PyTorch's OneCycleLR(max_lr=1, total_steps=100): the peak is at step 29, the end at 99.
    close(
        &Schedule::one_cycle(100),
        &[(0, 0.04), (29, 1.0), (64, (1.0 + 4e-6) / 2.0), (99, 4e-6), (500, 4e-6)],
    );
}

fn optimizer() -> Sgd {
    let w = Tensor::ones([1], F32).set_requires_grad(true);
    Sgd::from_params(vec![("w".into(), w)], 0.5)
}

#[test]
fn a_scheduler_sets_the_rate_and_resumes() {
    let _alone = alone();
    let schedule = Schedule::cosine(8, 0.0).after_warmup(4);
    let mut opt = optimizer();
    let mut whole = Scheduler::new(schedule.clone(), &mut opt).unwrap();
    let mut rates = vec![opt.lr()];
    for _ in 0..12 {
        whole.step(&mut opt).unwrap();
        rates.push(opt.lr());
    }
    let want: Vec<_> = (0..=12).map(|step| 0.5 * schedule.factor(step)).collect();
    assert_eq!(rates, want);

    let mut opt = optimizer();
    let mut first = Scheduler::new(schedule.clone(), &mut opt).unwrap();
    (0..5).for_each(|_| first.step(&mut opt).unwrap());
    let saved = serde_json::to_string(&first.state()).unwrap();
    let mut opt = optimizer();
    let mut second = Scheduler::new(schedule, &mut opt).unwrap();
    second.load_state(&serde_json::from_str::<SchedulerState>(&saved).unwrap(), &mut opt).unwrap();
    for want in &rates[5..12] {
        assert_eq!(opt.lr(), *want);
        second.step(&mut opt).unwrap();
    }
}

#[test]
fn schedules_are_written_and_read() {
    let schedule = Schedule::one_cycle(10).after_warmup(3);
    let text = serde_json::to_string(&schedule).unwrap();
    assert_eq!(serde_json::from_str::<Schedule>(&text).unwrap(), schedule);
}

#[test]
fn senseless_schedules_are_refused() {
    let _alone = alone();
    for schedule in [Schedule::step(0, 0.1), Schedule::cosine(0, 0.0).after_warmup(3), Schedule::one_cycle(1)]
    {
        let refused = Scheduler::new(schedule, &mut optimizer());
        assert!(matches!(refused, Err(Error::Argument { what: "Schedule", .. })));
    }
}
