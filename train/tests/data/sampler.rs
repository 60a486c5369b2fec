//! Each sample once an epoch, on any number of ranks, stopped and resumed anywhere.

use proptest::prelude::*;
use regatta_train::data::{Error, Mode, Order, Sampler};

/// A mean over each rank's part, multiplied by its weight and averaged over ranks.
fn weighted_mean(world: u64, parts: &[(Vec<u64>, f64)]) -> f64 {
    let value = |sample: u64| (sample * 7919 % 1000) as f64;
    let of = |(part, weight): &(Vec<u64>, f64)| {
        weight * part.iter().map(|&sample| value(sample)).sum::<f64>() / part.len() as f64
    };
    parts.iter().map(of).sum::<f64>() / world as f64
}

/// Goes through global steps from a position, at most `steps` of them: the samples that count, and the new position.
fn run(len: u64, world: u64, global_batch: u64, from: u64, steps: u64) -> (Vec<u64>, u64) {
    let order = Order::shuffled(len, 5, 9);
    let of = |rank| Sampler { len, global_batch, world, rank, mode: Mode::Exact };
    let (mut seen, mut at) = (Vec::new(), from);
    for step in 0..steps.min(of(0).steps(from)) {
        let shares: Vec<_> =
            (0..world).map(|rank| of(rank).share(from, step).expect("a share each")).collect();
        let parts: Vec<(Vec<u64>, f64)> = shares
            .iter()
            .map(|share| (share.positions.clone().map(|position| order.at(position)).collect(), share.weight))
            .collect();
        let counted: Vec<u64> =
            parts.iter().filter(|(_, weight)| *weight > 0.0).flat_map(|(part, _)| part.clone()).collect();
        let (most, least) = (parts.iter().map(|p| p.0.len()).max(), parts.iter().map(|p| p.0.len()).min());
        assert!(most.unwrap() - least.unwrap() <= 1 && least.unwrap() > 0, "split unevenly: {parts:?}");
        assert!(most.unwrap() as u64 <= global_batch.div_ceil(world) + 1);
        let whole = weighted_mean(1, &[(counted.clone(), 1.0)]);
        assert!((weighted_mean(world, &parts) - whole).abs() < 1e-9 * whole.max(1.0), "{parts:?}");
        at += counted.len() as u64;
        assert!(shares.iter().all(|share| share.consumed == at));
        seen.extend(counted);
    }
    assert!(of(0).share(from, of(0).steps(from)).is_none());
    (seen, at)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn each_sample_counts_once_however_often_the_world_changes(
        len in 16u64..600,
        legs in prop::collection::vec((1u64..9, 1u64..40, 0u64..12), 1..5),
    ) {
        let (mut seen, mut at) = (Vec::new(), 0);
        for (leg, &(world, each, steps)) in legs.iter().enumerate() {
            let steps = if leg + 1 == legs.len() { u64::MAX } else { steps };
            // Every other leg by a global batch that the world need not divide.
            let global_batch = if leg % 2 == 0 { world * each } else { world + each };
            let (part, reached) = run(len, world, global_batch, at, steps);
            seen.extend(part);
            at = reached;
        }
        // The global order is the same whatever the legs were.
        let order = Order::shuffled(len, 5, 9);
        let expected: Vec<u64> = (0..len).map(|position| order.at(position)).collect();
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn the_other_modes_give_full_batches_only(
        len in 40u64..600, world in 1u64..5, each in 1u64..10, from in 0u64..40, pad in any::<bool>(),
    ) {
        let mode = if pad { Mode::Pad } else { Mode::DropLast };
        let global_batch = world * each;
        let of = |rank| Sampler { len, global_batch, world, rank, mode };
        let mut positions = Vec::new();
        for step in 0..of(0).steps(from) {
            for rank in 0..world {
                let share = of(rank).share(from, step).unwrap();
                prop_assert_eq!(share.positions.end - share.positions.start, each);
                prop_assert_eq!(share.weight, 1.0);
                prop_assert!(share.consumed <= len);
                positions.extend(share.positions);
            }
        }
        let full = (len - from) / global_batch * global_batch;
        let rest = len - from - full;
        let end = from + full + if pad && rest > 0 { global_batch } else { 0 };
        prop_assert_eq!(positions, (from..end).collect::<Vec<_>>());
    }
}

#[test]
fn a_rest_too_small_for_the_ranks_joins_the_batch_before() {
    let of = |rank| Sampler { len: 18, global_batch: 8, world: 4, rank, mode: Mode::Exact };
    assert_eq!(of(0).steps(0), 2);
    let counts =
        |step| (0..4).map(|rank| of(rank).share(0, step).unwrap().positions.count()).collect::<Vec<_>>();
    assert_eq!((counts(0), counts(1)), (vec![2, 2, 2, 2], vec![3, 3, 2, 2]));
    assert_eq!(of(0).share(0, 1).unwrap().weight, 3.0 * 4.0 / 10.0);
    assert_eq!(of(0).share(0, 0).unwrap().weight, 1.0);
}

#[test]
fn ranks_without_a_sample_keep_in_step_without_weight() {
    // 3 of 10 samples are left when 4 ranks take over.
    let of = |rank| Sampler { len: 10, global_batch: 8, world: 4, rank, mode: Mode::Exact };
    let shares: Vec<_> = (0..4).map(|rank| of(rank).share(7, 0).unwrap()).collect();
    let weights: Vec<_> = shares.iter().map(|share| share.weight).collect();
    assert_eq!(weights, [4.0 / 3.0, 4.0 / 3.0, 4.0 / 3.0, 0.0]);
    assert!(shares.iter().all(|share| share.positions.clone().count() == 1 && share.consumed == 10));
    assert_eq!(of(0).steps(7), 1);
    assert_eq!(of(0).steps(10), 0);
}

#[test]
fn what_cannot_work_is_said_at_once() {
    let refused = |len, global_batch, world, mode| {
        let error = Sampler { len, global_batch, world, rank: 0, mode }.check().unwrap_err();
        assert!(matches!(error, Error::Config { .. }));
        error.to_string()
    };
    let text = refused(3, 8, 4, Mode::Exact);
    assert!(
        text.contains("its 3 samples are fewer than the 4 ranks") && text.contains("fewer workers"),
        "{text}"
    );
    let text = refused(7, 8, 4, Mode::DropLast);
    assert!(text.contains("its 7 samples are fewer than the 8 samples of one global batch"), "{text}");
    assert!(refused(0, 8, 4, Mode::Pad).contains("it has no samples"));
    assert!(refused(100, 3, 4, Mode::Exact).contains("fewer than the 4 ranks"));
    let stranger = Sampler { len: 9, global_batch: 4, world: 2, rank: 2, mode: Mode::Exact };
    assert!(stranger.check().unwrap_err().to_string().contains("rank 2 is none of 2"));
}
