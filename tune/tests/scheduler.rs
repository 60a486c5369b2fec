//! Every scheduler on thousands of histories, and what each is for.

use std::sync::Arc;

use regatta_tune::scheduler::conformance::{self, Line};
use regatta_tune::scheduler::{
    Asha, Fifo, HyperBand, Median, Pb2, Pbt, Resizing, Scheduler, SchedulerConfig, Wilcoxon,
};

fn build(config: impl Into<SchedulerConfig>) -> Box<dyn Scheduler> {
    config.into().build(Some(Arc::new(Line::default()))).expect("a good configuration")
}

#[test]
fn fifo_conforms() {
    conformance::all(|| build(Fifo::default()), 0..300);
}

#[test]
fn asha_conforms() {
    conformance::all(|| build(Asha::new(1..=27)), 0..1000);
    conformance::all(|| build(Asha::new(2..=30).eta(2).brackets(3)), 1000..1600);
}

#[test]
fn stopping_asha_conforms() {
    conformance::all(|| build(Asha::new(1..=27).stopping()), 0..300);
}

#[test]
fn hyper_band_conforms() {
    conformance::all(|| build(HyperBand::new(1..=27)), 0..1000);
    conformance::all(|| build(SchedulerConfig::Bohb(HyperBand::new(2..=20).eta(2))), 1000..1300);
}

#[test]
fn median_and_wilcoxon_conform() {
    conformance::all(|| build(Median::default().startup(3)), 0..300);
    conformance::all(|| build(Wilcoxon::default()), 300..600);
}

#[test]
fn pbt_conforms() {
    conformance::all(|| build(Pbt::new(8, 3)), 0..600);
    conformance::all(|| build(Pbt::new(12, 2).max(25).burn_in(5).synchronous()), 600..1200);
}

#[test]
fn pb2_conforms() {
    conformance::all(|| build(Pb2::new(6, 5)), 0..40);
}

#[test]
fn resizing_conforms() {
    conformance::all(|| build(Resizing::new(Asha::new(1..=27), 8)), 0..300);
    conformance::all(|| build(Resizing::new(Pbt::new(6, 3), 8).per_trial(2, 4)), 300..600);
}
