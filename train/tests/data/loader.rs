//! The loader as a training loop sees it: ordered, bounded, resumable, and loud when something is wrong.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use regatta_train::data::{Dataset, Error, Loader, LoaderConfig, Mode, Shard, from_fn};

use crate::{ranks, step};

fn all(loader: &mut Loader<Vec<usize>>, epoch: u64) -> Vec<usize> {
    loader.epoch(epoch).flat_map(|batch| batch.unwrap()).collect()
}

#[test]
fn threads_do_not_change_what_comes_or_when() {
    let of = |workers| {
        let slow = from_fn(203, move |index| {
            // Later batches overtake earlier ones.
            thread::sleep(Duration::from_micros((index * 7919 % 5) as u64 * 40));
            Ok::<_, Error>(index)
        });
        let config = LoaderConfig::batch_size(8).workers(workers).prefetch(6);
        let mut loader = Loader::new(slow, config, Shard::whole(3)).unwrap();
        (all(&mut loader, 0), all(&mut loader, 1))
    };
    let (first, second) = of(0);
    assert_ne!(first, second, "each epoch has its own order");
    for workers in [1, 4] {
        assert_eq!(of(workers), (first.clone(), second.clone()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(60) })]

    /// I4: what was handed out before the stop and after it is the epoch, whatever was read ahead.
    #[test]
    fn a_stop_anywhere_and_another_world_lose_no_sample(
        len in 8usize..200, first in (1usize..5, 1usize..9), second in (1usize..5, 1usize..9),
        steps in 0usize..20, workers in 0usize..3,
    ) {
        let config = |each| LoaderConfig::batch_size(each).workers(workers).prefetch(3);
        let mut whole = ranks(len, 1, &config(1));
        let expected = all(&mut whole[0], 1);

        let mut before = ranks(len, first.0, &config(first.1));
        let positions: Vec<_> = before.iter().map(Loader::position).collect();
        let mut seen = Vec::new();
        let mut epochs: Vec<_> = before.iter_mut().map(|loader| loader.epoch(1)).collect();
        for _ in 0..steps {
            let Some(batches) = step(&mut epochs) else { break };
            seen.extend(batches.concat());
        }
        drop(epochs);
        let saved = serde_json::to_string(&positions[0].cursor().unwrap()).unwrap();
        for position in &positions {
            prop_assert_eq!(serde_json::to_string(&position.cursor().unwrap()).unwrap(), saved.clone());
        }
        prop_assert_eq!(&seen[..], &expected[..seen.len()]);

        let saved = serde_json::from_str(&saved).unwrap();
        let mut after = ranks(len, second.0, &config(second.1));
        after.iter().for_each(|loader| loader.position().seek(&saved).unwrap());
        if !saved.done {
            let weights: Vec<_> = after.iter().map(Loader::weight).collect();
            let mut epochs: Vec<_> = after.iter_mut().map(|loader| loader.epoch(1)).collect();
            while let Some(batches) = step(&mut epochs) {
                let counted = batches.into_iter().zip(&weights).filter(|(_, weight)| weight.get() > 0.0);
                seen.extend(counted.flat_map(|(batch, _)| batch));
            }
        }
        prop_assert_eq!(seen, expected);
        // The next epoch is whole again.
        let mut next: Vec<usize> = after.iter_mut().flat_map(|loader| all(loader, 2)).collect();
        next.sort_unstable();
        prop_assert_eq!(next, (0..len).collect::<Vec<_>>());
    }
}

#[test]
fn batches_lengths_and_weights_are_those_of_the_ranks() {
    let mut two = ranks(11, 2, &LoaderConfig::global_batch_size(5).shuffle(false));
    assert_eq!((two[0].len_batches(), two[1].len_batches()), (Some(2), Some(2)));
    let weights: Vec<_> = two.iter().map(Loader::weight).collect();
    assert_eq!(weights[0].get(), 1.0, "before the first batch");
    let mut epochs: Vec<_> = two.iter_mut().map(|loader| loader.epoch(0)).collect();
    assert_eq!(epochs[0].batches_left(), Some(2));
    assert_eq!(step(&mut epochs).unwrap(), [vec![0, 1, 2], vec![3, 4]]);
    assert_eq!((weights[0].get(), weights[1].get()), (6.0 / 5.0, 4.0 / 5.0));
    assert_eq!(step(&mut epochs).unwrap(), [vec![5, 6, 7], vec![8, 9, 10]]);
    assert_eq!((weights[0].get(), weights[1].get()), (1.0, 1.0));
    assert_eq!(epochs[0].batches_left(), Some(0));
    assert!(step(&mut epochs).is_none());
}

#[test]
fn the_position_counts_what_was_handed_out() {
    let mut loader = ranks(10, 1, &LoaderConfig::batch_size(3).workers(2).prefetch(8)).remove(0);
    let position = loader.position();
    let at = || {
        let cursor = position.cursor().unwrap();
        (cursor.epoch, cursor.consumed, cursor.done)
    };
    assert_eq!(at(), (0, 0, false));
    let mut epoch = loader.epoch(4);
    assert_eq!(at(), (4, 0, false));
    for consumed in [3, 6, 9, 10] {
        epoch.next().unwrap().unwrap();
        assert_eq!(at(), (4, consumed, false), "the loop is still in the epoch");
    }
    assert_eq!(position.part(), Some(1.0));
    assert!(epoch.next().is_none());
    assert!(epoch.next().is_none());
    drop(epoch);
    assert_eq!((at(), position.epoch_done(), position.samples()), ((4, 10, true), true, 10));
    // A loop that was left goes on, unless it is declared done.
    loader.epoch(5).next().unwrap().unwrap();
    assert_eq!(loader.epoch(5).count(), 3);
    loader.epoch(6).next().unwrap().unwrap();
    loader.position().finish_epoch();
    assert_eq!(loader.epoch(6).count(), 4);
}

#[test]
fn a_position_in_other_data_is_refused() {
    let of = |len, seed, shuffle| {
        let config = LoaderConfig::batch_size(3).shuffle(shuffle);
        Loader::new((0..len).collect::<Vec<usize>>(), config, Shard::whole(seed)).unwrap().position()
    };
    let saved = of(10, 1, true).cursor().unwrap();
    of(10, 1, true).seek(&saved).unwrap();
    let refused = |position: regatta_train::data::Position| match position.seek(&saved) {
        Err(Error::Changed(why)) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(of(11, 1, true)), "it had 10 samples and has 11");
    assert_eq!(refused(of(10, 2, true)), "it was shuffled by seed 1 and is by 2");
    assert_eq!(refused(of(10, 1, false)), "its order was Shuffled and is Sequential");
    // An order that draws on no seed is the same under any.
    of(10, 2, false).seek(&of(10, 1, false).cursor().unwrap()).unwrap();
}

#[test]
fn a_position_set_in_mid_loop_ends_the_loop() {
    let mut loader = ranks(10, 1, &LoaderConfig::batch_size(2)).remove(0);
    let position = loader.position();
    let saved = position.cursor().unwrap();
    let mut epoch = loader.epoch(0);
    epoch.next().unwrap().unwrap();
    position.seek(&saved).unwrap();
    assert!(matches!(epoch.next(), Some(Err(Error::Moved))));
    assert!(epoch.next().is_none());
    drop(epoch);
    assert_eq!(position.cursor().unwrap(), saved);
    assert_eq!(loader.epoch(0).count(), 5);
}

#[test]
fn what_the_dataset_cannot_give_comes_out_of_the_loop_in_its_place() {
    for workers in [0, 1, 3] {
        let broken = from_fn(40, |index| match index {
            17 => Err("bad checksum"),
            index => Ok(index),
        });
        let config = LoaderConfig::batch_size(4).shuffle(false).workers(workers).prefetch(8);
        let mut loader = Loader::new(broken, config, Shard::whole(0)).unwrap();
        let position = loader.position();
        let mut epoch = loader.epoch(2);
        for _ in 0..4 {
            epoch.next().unwrap().unwrap();
        }
        let error = epoch.next().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "the dataset failed in epoch 2: sample 17: bad checksum");
        assert!(epoch.next().is_none(), "nothing follows");
        drop(epoch);
        // A loop that passed over the error cannot save as if all were well.
        assert!(position.cursor().unwrap_err().to_string().contains("sample 17: bad checksum"));
        // Tried again, it goes on where it was.
        assert!(loader.epoch(2).next().unwrap().is_err());
    }
}

#[test]
fn failures_that_name_no_sample_are_told_with_the_batch() {
    struct Odd;
    impl Dataset for Odd {
        type Batch = ();
        fn len(&self) -> usize {
            12
        }
        fn get_batch(&self, indices: &[usize]) -> Result<(), regatta_train::BoxError> {
            match indices[0] {
                0 => Err("shapes differ".into()),
                _ => panic!("index out of range"),
            }
        }
    }
    let config = LoaderConfig::batch_size(6).shuffle(false);
    let mut loader = Loader::new(Odd, config, Shard::whole(0)).unwrap();
    let error = loader.epoch(0).next().unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the dataset failed in epoch 0, samples 0, 1, 2, 3 and 2 more: shapes differ"
    );
    let mut saved = ranks(12, 1, &LoaderConfig::batch_size(6).shuffle(false))[0].position().cursor().unwrap();
    saved.consumed = 10;
    loader.position().seek(&saved).unwrap();
    let error = loader.epoch(0).next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Panic { .. }));
    assert_eq!(error.to_string(), "the dataset panicked in epoch 0, samples 10, 11: index out of range");
}

/// A dataset that tells when a batch is begun, and waits for a word to go on.
struct Gated {
    begun: Mutex<mpsc::Sender<usize>>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Dataset for Gated {
    type Batch = usize;
    fn len(&self) -> usize {
        100
    }
    fn get_batch(&self, indices: &[usize]) -> Result<usize, regatta_train::BoxError> {
        self.begun.lock().unwrap().send(indices[0])?;
        let _ = self.go.lock().unwrap().recv();
        Ok(indices[0])
    }
}

#[test]
fn it_reads_ahead_as_far_as_it_may_and_no_further() {
    let ((begun, starts), (go, gate)) = (mpsc::channel(), mpsc::channel());
    let dataset = Gated { begun: Mutex::new(begun), go: Mutex::new(gate) };
    let config = LoaderConfig::batch_size(1).shuffle(false).prefetch(3);
    let mut loader = Loader::new(dataset, config, Shard::whole(0)).unwrap();
    let mut epoch = loader.epoch(0);
    let wait = Duration::from_secs(20);
    for index in 0..3 {
        assert_eq!(starts.recv_timeout(wait), Ok(index), "before anything was asked for");
        go.send(()).unwrap();
    }
    // The thread is full: it begins no fourth until the first is taken.
    assert!(starts.recv_timeout(Duration::from_millis(100)).is_err());
    assert_eq!(epoch.next().unwrap().unwrap(), 0);
    assert_eq!(starts.recv_timeout(wait), Ok(3));
    drop(go);
    drop(epoch);
}

/// Counts the threads that have been here and still live.
struct Present(Arc<AtomicUsize>);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

thread_local! {
    static PRESENT: RefCell<Option<Present>> = const { RefCell::new(None) };
}

#[test]
fn leaving_the_loop_ends_the_threads() {
    let (threads, living) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = |count: &Arc<AtomicUsize>| {
        count.fetch_add(1, SeqCst);
        Present(count.clone())
    };
    let (seen, batches) = (threads.clone(), living.clone());
    let values = from_fn(1_000_000, move |_| {
        PRESENT.with_borrow_mut(|present| {
            present.get_or_insert_with(|| counted(&seen));
        });
        Ok::<_, Error>(counted(&batches))
    });
    let config = LoaderConfig::batch_size(2).workers(3).prefetch(16);
    let mut loader = Loader::new(values, config, Shard::whole(0)).unwrap();
    let mut epoch = loader.epoch(0);
    epoch.next().unwrap().unwrap();
    assert!(living.load(SeqCst) > 0);
    // Others may not have begun yet.
    assert!((1..=3).contains(&threads.load(SeqCst)));
    drop(epoch);
    assert_eq!(living.load(SeqCst), 0, "batches that were read ahead are dropped");
    // A thread's own values are dropped before it counts as joined.
    assert_eq!(threads.load(SeqCst), 0, "threads outlive the loop");
}

#[test]
fn a_hung_dataset_is_an_error_and_does_not_hang_the_loop() {
    let ((begun, _starts), (go, gate)) = (mpsc::channel(), mpsc::channel());
    let dataset = Gated { begun: Mutex::new(begun), go: Mutex::new(gate) };
    let config = LoaderConfig::batch_size(1).shuffle(false).timeout_s(1);
    let mut loader = Loader::new(dataset, config, Shard::whole(0)).unwrap();
    let begin = Instant::now();
    let mut epoch = loader.epoch(0);
    let error = epoch.next().unwrap().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("the dataset gave nothing for epoch 0, sample 0 within 1"), "{text}");
    drop(go);
    drop(epoch);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn the_share_of_time_spent_waiting_is_measured() {
    let slow = from_fn(40, |index| {
        thread::sleep(Duration::from_millis(2));
        Ok::<_, Error>(index)
    });
    let mut loader = Loader::new(slow, LoaderConfig::batch_size(4).workers(0), Shard::whole(0)).unwrap();
    let _ = loader.data_wait();
    loader.epoch(0).for_each(|batch| drop(batch.unwrap()));
    let waiting = loader.data_wait();
    assert!(waiting > 0.8 && waiting <= 1.0, "{waiting}");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(loader.data_wait(), 0.0, "since the last look");
}

#[test]
fn settings_are_checked_and_read() {
    let refused = |config: LoaderConfig| {
        Loader::new(vec![0u8; 10], config, Shard { rank: 0, world: 4, seed: 0 }).unwrap_err().to_string()
    };
    assert!(refused(LoaderConfig::default()).contains("batch_size: is missing"));
    assert!(
        refused(LoaderConfig { global_batch_size: Some(8), ..LoaderConfig::batch_size(2) })
            .contains("one of them")
    );
    assert!(refused(LoaderConfig::batch_size(0)).contains("at least 1"));
    assert!(refused(LoaderConfig::global_batch_size(3)).contains("fewer than the 4 ranks"));
    assert!(
        refused(LoaderConfig::batch_size(3).mode(Mode::DropLast)).contains("the dataset: its 10 samples")
    );
    let read: LoaderConfig =
        serde_json::from_str(r#"{"batch_size": 4, "mode": "drop_last", "workers": 2}"#).unwrap();
    assert_eq!(read, LoaderConfig::batch_size(4).mode(Mode::DropLast).workers(2));
    assert!(serde_json::from_str::<LoaderConfig>(r#"{"batchsize": 4}"#).is_err());
}
