//! Samples that come one after another.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use proptest::prelude::*;
use regatta_train::data::{Error, Loader, LoaderConfig, Mode, Shard, Stream, stream};

use crate::step;

fn numbers(len: u64) -> impl Stream<Batch = Vec<usize>> {
    stream(move |epoch| Ok((0..len).map(move |item| Ok((epoch * 1000 + item) as usize))))
}

fn loaders(len: u64, world: usize, each: usize) -> Vec<Loader<Vec<usize>>> {
    let config = LoaderConfig::batch_size(each).workers(each % 2);
    let of =
        |rank| Loader::from_stream(numbers(len), config.clone(), Shard { rank, world, seed: 0 }).unwrap();
    (0..world).map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    #[test]
    fn each_item_counts_once_over_a_change_of_world(
        len in 8u64..80, first in (1usize..5, 1usize..6), second in (1usize..5, 1usize..6), steps in 0usize..6,
    ) {
        let mut seen = Vec::new();
        let mut collect = |loaders: &mut [Loader<Vec<usize>>], steps: usize| {
            let positions: Vec<_> = loaders.iter().map(Loader::position).collect();
            let mut epochs: Vec<_> = loaders.iter_mut().map(|loader| loader.epoch(0)).collect();
            for _ in 0..steps {
                let Some(batches) = step(&mut epochs) else { break };
                let weights: f64 = positions.iter().map(|position| position.weight().get()).sum();
                assert!((weights - positions.len() as f64).abs() < 1e-9);
                for (batch, position) in batches.iter().zip(&positions) {
                    assert!(!batch.is_empty());
                    if position.weight().get() > 0.0 {
                        seen.extend(batch.iter().copied());
                    }
                }
            }
            positions[0].cursor().unwrap()
        };
        let saved = collect(&mut loaders(len, first.0, first.1), steps);
        let mut after = loaders(len, second.0, second.1);
        after.iter().for_each(|loader| loader.position().seek(&saved).unwrap());
        let begin = saved.consumed;
        if !saved.done {
            collect(&mut after, usize::MAX);
        }
        let before = begin as usize;
        prop_assert_eq!(seen.iter().take(before).max().copied(), before.checked_sub(1));
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..len as usize).collect::<Vec<_>>());
    }
}

#[test]
fn ranks_take_turns() {
    let mut loaders = loaders(10, 2, 2);
    let mut epochs: Vec<_> = loaders.iter_mut().map(|loader| loader.epoch(3)).collect();
    assert_eq!(step(&mut epochs).unwrap(), [[3000, 3002], [3001, 3003]]);
    step(&mut epochs).unwrap();
    assert_eq!(step(&mut epochs).unwrap(), [[3008], [3009]]);
    assert!(step(&mut epochs).is_none());
}

#[test]
fn drop_last_leaves_the_rest_out() {
    let config = LoaderConfig::batch_size(4).mode(Mode::DropLast);
    let mut loader = Loader::from_stream(numbers(11), config, Shard::whole(0)).unwrap();
    assert_eq!(loader.epoch(0).map(|batch| batch.unwrap().len()).collect::<Vec<_>>(), [4, 4]);
    assert_eq!(loader.len_batches(), None);
}

#[test]
fn a_resume_skips_through_nth() {
    struct Counting(Arc<AtomicU64>, u64);
    impl Iterator for Counting {
        type Item = Result<u64, regatta_train::BoxError>;
        fn next(&mut self) -> Option<Self::Item> {
            self.0.fetch_add(1, Relaxed);
            self.1 += 1;
            (self.1 <= 1_000_000).then(|| Ok(self.1 - 1))
        }
        fn nth(&mut self, skipped: usize) -> Option<Self::Item> {
            self.1 += skipped as u64;
            self.next()
        }
    }
    let reads = Arc::new(AtomicU64::new(0));
    let counter = reads.clone();
    let source = stream(move |_| Ok(Counting(counter.clone(), 0)));
    let mut loader =
        Loader::from_stream(source, LoaderConfig::batch_size(10).workers(0), Shard::whole(0)).unwrap();
    let mut saved = loader.position().cursor().unwrap();
    saved.consumed = 900_000;
    loader.position().seek(&saved).unwrap();
    assert_eq!(loader.epoch(0).next().unwrap().unwrap()[0], 900_000);
    assert!(reads.load(Relaxed) < 20);
}

#[test]
fn streams_that_fail_or_shrink_say_so() {
    let config = || LoaderConfig::batch_size(4);
    let broken =
        stream(|_| Ok((0..9).map(|item| if item == 6 { Err("torn page".into()) } else { Ok(item) })));
    let mut loader = Loader::from_stream(broken, config(), Shard::whole(0)).unwrap();
    let error = loader.epoch(0).find_map(Result::err).unwrap().to_string();
    assert_eq!(error, "the dataset failed in item 6 of the stream: torn page");

    let closed = stream(|epoch| match epoch {
        0 => Ok(0..1u8).map(|range| range.map(Ok)),
        _ => Err("the server is away".into()),
    });
    let mut loader = Loader::from_stream(closed, config(), Shard::whole(0)).unwrap();
    assert!(loader.epoch(1).next().unwrap().unwrap_err().to_string().contains("the server is away"));

    let mut loader = Loader::from_stream(numbers(20), config(), Shard::whole(0)).unwrap();
    let mut saved = loader.position().cursor().unwrap();
    saved.consumed = 21;
    loader.position().seek(&saved).unwrap();
    let error = loader.epoch(0).next().unwrap().unwrap_err();
    assert!(matches!(&error, Error::Changed(why) if why.contains("ends before item 21")), "{error}");

    let mut few = Loader::from_stream(numbers(2), config(), Shard { rank: 0, world: 3, seed: 0 }).unwrap();
    let error = few.epoch(0).next().unwrap().unwrap_err().to_string();
    assert!(error.contains("2 items are fewer than the 3 ranks"), "{error}");
}

#[test]
fn what_a_stream_cannot_do_is_refused() {
    let refused = |config, world| {
        let shard = Shard { rank: 0, world, seed: 0 };
        Loader::from_stream(numbers(9), config, shard).unwrap_err().to_string()
    };
    assert!(refused(LoaderConfig::batch_size(2).mode(Mode::Pad), 1).contains("cannot be padded"));
    assert!(refused(LoaderConfig::global_batch_size(5), 2).contains("do not divide"));
}
