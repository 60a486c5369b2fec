//! A run that is stopped, or that loses its ranks, at any step and goes on from its checkpoint ends with the same bits.

mod common;

use common::{Run, Weights, integers};
use regatta_train::data::{Loader, LoaderConfig, Shard};
use regatta_train::wire::{FromRank, Restore};
use regatta_train::{BoxError, CheckpointConfig, Error, Every, Tracked, TrainContext, metrics};
use serde_json::{Value, json};

const STEPS: u64 = 12;

async fn whole(world: usize) -> Value {
    Run::new(world, integers(STEPS)).play().await.done(0).value.clone()
}

#[tokio::test]
async fn a_stop_at_every_step_resumes_to_the_bit() {
    let expected = whole(2).await;
    for stop in 1..STEPS {
        let mut run = Run::new(2, integers(STEPS));
        run.start.stop.steps = Some(stop);
        let end = run.play().await;
        end.finished();
        assert_eq!(end.done(0).step, stop);
        let mut again = end.run.again(Restore::Newest);
        again.start.stop.steps = None;
        let end = again.play().await;
        for rank in 0..2 {
            assert_eq!(end.done(rank).value, expected, "rank {rank}, stopped at {stop}");
        }
        let restored = end.told(0).find(|told| matches!(told, FromRank::Restored { .. }));
        assert!(
            matches!(restored, Some(FromRank::Restored { checkpoint: Some(_), step, .. }) if *step == stop)
        );
    }
}

/// Rank 1 fails at a step of the first attempt; checkpoints are taken every other step.
fn failing(at: u64) -> impl Fn(&mut TrainContext, Value) -> Result<Value, BoxError> + Send + Sync + 'static {
    move |ctx, _| {
        let weights = Weights::new(100_000);
        let mut state = ctx.state().with("model", weights.clone());
        ctx.restore(&mut state)?;
        while state.step() < STEPS {
            if ctx.attempt() == 1 && ctx.rank() == 1 && state.step() == at {
                return Err("out of luck".into());
            }
            let mut sum = [state.step() as i64 * (ctx.rank() as i64 + 1)];
            ctx.group().all_reduce(&mut sum, regatta_comm::ReduceOp::Sum)?;
            weights.learn(state.step(), sum[0]);
            ctx.step(&state)?;
        }
        Ok(weights.hash().into())
    }
}

#[tokio::test]
async fn a_failure_at_every_step_is_made_good_from_the_last_commit_in_the_background() {
    let expected = whole(2).await;
    for at in 0..STEPS {
        let mut run = Run::new(2, failing(at));
        run.start.checkpoint.every = Every::Steps(2);
        let (run, failed) = run.launch().await.fail().await;
        assert_eq!(failed.root.message, "out of luck", "{failed}");
        let end = run.again(Restore::Newest).play().await;
        assert_eq!(end.done(0).value, expected, "failed at {at}");
    }
}

/// A loop over epochs of data, with a report and a checkpoint at each epoch's end. Its value says all that it saw.
fn epochs(ctx: &mut TrainContext, config: Value) -> Result<Value, BoxError> {
    epochs_until(ctx, config, u64::MAX)
}

/// The same, but it fails right after that many reports.
fn epochs_until(ctx: &mut TrainContext, _: Value, reports: u64) -> Result<Value, BoxError> {
    let shard = Shard { rank: ctx.rank(), world: ctx.world_size(), seed: ctx.seed() };
    let mut data =
        Loader::new((0..50u32).collect::<Vec<_>>(), LoaderConfig::batch_size(4).workers(0), shard)?;
    ctx.follow(&data.position());
    let seen = Tracked::new(Vec::<u32>::new());
    let evaluated = Tracked::new(Vec::<u64>::new());
    let mut state = ctx
        .state()
        .with("seen", seen.clone())
        .with("evaluated", evaluated.clone())
        .with("data", data.position());
    ctx.restore(&mut state)?;
    for epoch in state.epochs(3) {
        for batch in data.epoch(epoch) {
            let mut mine = vec![-1i64; 8];
            for (place, sample) in batch?.into_iter().enumerate() {
                mine[place] = i64::from(sample);
            }
            let mut all = vec![0; 8 * ctx.world_size()];
            ctx.group().all_gather(&mine, &mut all)?;
            let mut all: Vec<u32> = all.into_iter().filter(|&n| n >= 0).map(|n| n as u32).collect();
            all.sort_unstable();
            seen.update(|seen| seen.extend(all));
            ctx.step(&state)?;
        }
        evaluated.update(|evaluated| evaluated.push(epoch));
        ctx.report(metrics! { epoch }).checkpoint(&state)?;
        if epoch + 1 == reports {
            return Err("lost after the report".into());
        }
    }
    Ok(json!([seen.get(), evaluated.get()]))
}

fn counted(value: &Value) -> Vec<u64> {
    let mut count = vec![0; 50];
    value[0].as_array().unwrap().iter().for_each(|n| count[n.as_u64().unwrap() as usize] += 1);
    count
}

#[tokio::test]
async fn a_resume_in_the_middle_of_an_epoch_or_at_its_end_repeats_and_leaves_out_nothing() {
    let end = Run::new(2, epochs).play().await;
    let expected = end.done(0).value.clone();
    let steps = end.done(0).step;
    assert_eq!(counted(&expected), vec![3; 50]);
    for stop in 1..=steps {
        let mut run = Run::new(2, epochs);
        run.start.stop.steps = Some(stop);
        let end = run.play().await;
        assert_eq!(end.done(0).step, stop);
        let mut again = end.run.again(Restore::Newest);
        again.start.stop.steps = None;
        let end = again.play().await;
        assert_eq!(end.done(0).value, expected, "stopped at {stop}");
    }
}

#[tokio::test]
async fn an_epoch_whose_report_brought_a_checkpoint_is_neither_trained_nor_evaluated_again() {
    for lost in 1..=2u64 {
        // The report brings the checkpoint with which the run is lost.
        let mut run = Run::new(2, move |ctx, config| {
            let first = ctx.attempt() == 1;
            epochs_until(ctx, config, if first { lost } else { u64::MAX })
        });
        run.start.checkpoint.r#async = false;
        let (run, failure) = run.launch().await.fail().await;
        assert_eq!(failure.root.message, "lost after the report");
        let end = run.again(Restore::Newest).play().await;
        let value = &end.done(0).value;
        assert_eq!(counted(value), vec![3; 50]);
        assert_eq!(value[1], json!([0, 1, 2]));
    }
}

#[tokio::test]
async fn another_number_of_ranks_goes_on_with_the_same_data() {
    for (before, after) in [(1, 3), (3, 2), (2, 1)] {
        let mut run = Run::new(before, epochs);
        run.start.stop.steps = Some(5);
        let end = run.play().await;
        let mut again = end.run.again(Restore::Newest);
        again.world = after;
        again.start.stop.steps = None;
        let end = again.play().await;
        end.finished();
        assert_eq!(counted(&end.done(0).value), vec![3; 50], "{before} ranks, then {after}");
    }
}

#[tokio::test]
async fn a_stop_while_a_save_is_under_way_waits_for_both() {
    let expected = whole(2).await;
    let mut run = Run::new(2, integers(STEPS));
    // The save of step 6 is in the background when the stop at step 7 comes.
    run.start.checkpoint.every = Every::Steps(6);
    run.start.stop.steps = Some(7);
    let end = run.play().await;
    assert_eq!(end.commits().iter().map(|commit| commit.step).collect::<Vec<_>>(), [6, 7]);
    let mut again = end.run.again(Restore::Newest);
    again.start.stop.steps = None;
    assert_eq!(again.play().await.done(0).value, expected);
}

#[tokio::test]
async fn a_damaged_checkpoint_is_passed_over_and_named() {
    let expected = whole(2).await;
    let mut run = Run::new(2, integers(STEPS));
    run.start.checkpoint =
        CheckpointConfig { every: Every::Steps(3), r#async: false, ..CheckpointConfig::default() };
    run.start.stop.steps = Some(6);
    let end = run.play().await;
    let newest = end.done(0).checkpoint.clone().unwrap();
    let shard = end.run.folder().join("checkpoints").join(&newest).join("shard-00000-of-00002.safetensors");
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let mut again = end.run.again(Restore::Newest);
    again.start.stop.steps = None;
    let end = again.play().await;
    assert_eq!(end.done(0).value, expected);
    let restored = end.told(0).find_map(|told| match told {
        FromRank::Restored { step, damaged, .. } => Some((*step, damaged.clone())),
        _ => None,
    });
    let (step, damaged) = restored.unwrap();
    assert_eq!(step, 3);
    assert!(damaged[0].contains(&newest), "{damaged:?}");
}

#[tokio::test]
async fn a_damaged_checkpoint_that_was_named_is_refused_by_all_ranks_before_anything_is_loaded() {
    let mut run = Run::new(2, |ctx, _| {
        let weights = Weights::new(100_000);
        let mut state = ctx.state().with("model", weights.clone());
        let before = weights.hash();
        match ctx.restore(&mut state) {
            Err(error) => Err(format!("{error}; untouched: {}", weights.hash() == before).into()),
            Ok(_) => Ok(ctx.report(metrics! { x: 1 }).checkpoint(&state).map(|()| Value::Null)?),
        }
    });
    run.start.checkpoint.r#async = false;
    let end = run.play().await;
    let name = end.done(0).checkpoint.clone().unwrap();
    // One rank verifies it; the other hears of it.
    let shard = end.run.folder().join(format!("checkpoints/{name}/shard-00001-of-00002.safetensors"));
    let mut bytes = std::fs::read(&shard).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes).unwrap();
    let failure = end.run.again(Restore::Named(name.clone())).play().await.failed();
    let message = &failure.root.message;
    assert!(message.contains(&name) && message.contains("CRC32C"), "{message}");
    assert!(message.ends_with("untouched: true"), "{message}");
}

#[tokio::test]
async fn a_checkpoint_of_another_run_can_be_the_beginning() {
    let mut run = Run::new(1, integers(STEPS));
    run.start.stop.steps = Some(4);
    let end = run.play().await;
    let from = Restore::From {
        storage: end.run.start.storage.clone(),
        checkpoint: end.done(0).checkpoint.clone().unwrap(),
        iteration: 0,
    };
    let mut clone = Run::new(1, integers(STEPS));
    clone.start.restore = from;
    let clone = clone.play().await;
    assert_eq!(clone.done(0).value, whole(1).await);
}

#[tokio::test]
async fn infinities_and_nan_come_back() {
    let run = Run::new(1, |ctx, _| {
        let best = Tracked::new((f64::INFINITY, f64::NAN, 0.1f64));
        let mut state = ctx.state().with("best", best.clone());
        if ctx.restore(&mut state)?.is_none() {
            best.update(|best| best.2 = 0.3);
            ctx.report(metrics! { x: 1 }).checkpoint(&state)?;
        }
        let (a, b, c) = best.get();
        Ok(json!([a.is_infinite(), b.is_nan(), c]))
    });
    let end = run.play().await;
    end.finished();
    let end = end.run.again(Restore::Newest).play().await;
    assert_eq!(end.done(0).value, json!([true, true, 0.3]));
}

#[tokio::test]
async fn who_has_a_successor_stops_saving() {
    let mut run = Run::new(1, |ctx, _| {
        let mut state = ctx.state().with("x", Tracked::new(1));
        ctx.restore(&mut state)?;
        // A successor enters.
        let storage = ctx.folder().to_str().unwrap();
        let checkpoints = regatta_checkpoint::store::open(storage)?;
        let config = regatta_checkpoint::SaverConfig { generation: Some(9), ..Default::default() };
        drop(config.build(checkpoints, std::sync::Arc::new(regatta_checkpoint::Solo))?);
        match ctx.save(&state) {
            Err(Error::Checkpoint(regatta_checkpoint::Error::Fenced { current: 9, .. })) => Ok(true.into()),
            other => Ok(format!("{other:?}").into()),
        }
    });
    run.start.checkpoint.r#async = false;
    assert_eq!(run.play().await.done(0).value, json!(true));
}

fn mount(arguments: &[&str]) -> bool {
    let program = if arguments.len() > 2 { "mount" } else { "umount" };
    std::process::Command::new(program).args(arguments).status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_full_disk_costs_checkpoints_and_not_the_run_but_a_stop_needs_its_own() {
    let disk = tempfile::tempdir().unwrap();
    let path = disk.path().to_str().unwrap().to_owned();
    if !mount(&["-t", "tmpfs", "-o", "size=3m", "tmpfs", &path]) {
        eprintln!("skipped: a tmpfs cannot be mounted here");
        return;
    }
    let full = |stop: Option<u64>| {
        let mut run = Run::new(2, |ctx, _| {
            let weights = Weights::new(1 << 20);
            let mut state = ctx.state().with("model", weights.clone());
            ctx.restore(&mut state)?;
            for step in 1..=6 {
                weights.learn(step, 1);
                ctx.step(&state)?;
            }
            Ok(weights.hash().into())
        });
        run.start.storage.clone_from(&path);
        run.start.checkpoint =
            CheckpointConfig { every: Every::Steps(1), r#async: false, ..Default::default() };
        run.start.stop.steps = stop;
        run
    };
    let end = full(None).play().await;
    let mut stopping = full(Some(5));
    stopping.start.generation = 2;
    let stopped = stopping.play().await.failed();
    let left = std::fs::read_dir(disk.path().join("checkpoints")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(mount(&["-l", &path]));
    end.finished();
    let commits = end.commits();
    let good: Vec<u64> =
        commits.iter().filter(|commit| commit.error.is_none()).map(|commit| commit.step).collect();
    assert_eq!((commits.len(), &good[..]), (6, &[1, 2][..]), "{commits:?}");
    let error = commits[3].error.as_ref().unwrap();
    assert!(error.contains("space"), "{error}");
    assert_eq!(end.done(0).checkpoint.as_deref(), Some(&*commits[1].name));
    assert_eq!(left.iter().filter(|name| name.starts_with("step-")).count(), 2, "{left:?}");
    let message = &stopped.root.message;
    assert!(
        message.contains("the checkpoint that the stop asks for") && message.contains("space"),
        "{message}"
    );
}

/// A component that breaks.
struct Broken;

impl regatta_train::Stateful for Broken {
    fn values(&self) -> regatta_train::Result<Value> {
        Err(Error::other("look at the data", "the loop failed at sample 7"))
    }

    fn load(&mut self, _: &dyn regatta_train::SavedPart) -> regatta_train::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_component_that_cannot_be_saved_ends_the_run_and_a_save_that_failed_costs_no_later_one() {
    let run = Run::new(2, |ctx, _| {
        let state = ctx.state().with("data", Broken);
        ctx.report(metrics! { x: 1 }).checkpoint(&state)?;
        Ok(Value::Null)
    });
    let message = run.play().await.failed().root.message;
    assert!(message.contains("the loop failed at sample 7"), "{message}");

    let mut run = Run::new(1, |ctx, _| {
        let mut state = ctx.state().with("x", Tracked::new(1));
        ctx.restore(&mut state)?;
        let (there, away) = (ctx.folder().join("checkpoints"), ctx.folder().join("away"));
        for step in 1..=3 {
            // The storage is gone for the first two steps.
            match step {
                1 => {
                    std::fs::rename(&there, &away)?;
                    std::fs::write(&there, "in the way")?;
                }
                3 => {
                    std::fs::remove_file(&there)?;
                    std::fs::rename(&away, &there)?;
                }
                _ => {}
            }
            ctx.step(&state)?;
        }
        Ok(Value::Null)
    });
    run.start.checkpoint.every = Every::Steps(1);
    // Each save ends before the next step, as the storage comes back for the third.
    run.start.checkpoint.r#async = false;
    let end = run.play().await;
    end.finished();
    let failed: Vec<bool> = end.commits().iter().map(|commit| commit.error.is_some()).collect();
    assert_eq!(failed, [true, true, false], "{:?}", end.commits());
}
