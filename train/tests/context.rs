//! What a training function can do, on ranks that are threads: report, agree, save, stop, resume; and how its failures are told.

mod common;

use common::{Run, integers};
use regatta_cluster::CauseKind;
use regatta_train::wire::{FromRank, Restore};
use regatta_train::{CheckpointConfig, Error, Every, StopReason, Tracked, metrics};

#[tokio::test]
async fn reports_are_numbered_and_ranks_leave_out_what_only_rank_0_counts_for() {
    let run = Run::new(2, |ctx, _| {
        for step in 1..=3u64 {
            let loss = regatta_train::metrics::mean(ctx.rank() as f64);
            ctx.report(metrics! { step, loss: loss }).send()?;
        }
        Ok(serde_json::json!(ctx.world_size()))
    });
    let end = run.play().await;
    end.finished();
    for rank in 0..2u32 {
        let reports: Vec<_> = end
            .told(rank)
            .filter_map(|told| match told {
                FromRank::Report(report) => Some(report),
                _ => None,
            })
            .collect();
        assert_eq!(reports.iter().map(|report| report.index).collect::<Vec<_>>(), [1, 2, 3]);
        let names: Vec<&str> = reports[0].metrics.iter().map(|(name, ..)| &**name).collect();
        assert_eq!(names, if rank == 0 { vec!["step", "loss"] } else { vec!["loss"] });
    }
    assert_eq!(end.done(0).value, serde_json::json!(2));
    assert_eq!(end.done(1).stopped, None);
}

#[tokio::test]
async fn ranks_exchange_values() {
    let run = Run::new(3, |ctx, _| {
        ctx.barrier()?;
        let word = ctx.broadcast(format!("from {}", ctx.rank()))?;
        Ok(word.into())
    });
    let end = run.play().await;
    assert!((0..3).all(|rank| end.done(rank).value == "from 0"));
}

#[tokio::test]
async fn a_stop_is_taken_at_the_same_step_on_all_ranks_and_its_checkpoint_is_committed() {
    let run = Run::new(3, integers(u64::MAX));
    let mut playing = run.launch().await;
    playing.until_progress(20).await;
    playing.stop(StopReason::User);
    let end = playing.end().await;
    end.finished();
    let step = end.done(0).step;
    for rank in 0..3 {
        let done = end.done(rank);
        assert_eq!((done.step, &done.stopped), (step, &Some(StopReason::User)));
        assert_eq!(done.checkpoint, end.done(0).checkpoint);
    }
    let committed = end.commits();
    assert_eq!(committed.len(), 1, "{committed:?}");
    assert_eq!((committed[0].step, Some(&committed[0].name)), (step, end.done(0).checkpoint.as_ref()));
    assert!(committed[0].bytes > 0 && committed[0].error.is_none());
}

#[tokio::test]
async fn a_limit_of_steps_is_exact() {
    let mut run = Run::new(2, integers(u64::MAX));
    run.start.stop.steps = Some(7);
    let end = run.play().await;
    assert!((0..2).all(|rank| end.done(rank).step == 7));
    assert_eq!(end.done(1).stopped, Some(StopReason::Reached("7 steps".into())));
}

#[tokio::test]
async fn a_limit_of_time_stops_all_ranks_at_one_step() {
    let mut run = Run::new(2, integers(u64::MAX));
    run.start.stop.seconds = Some(100.0);
    run.start.spent_seconds = 99.99;
    let end = run.play().await;
    assert_eq!(end.done(0).step, end.done(1).step);
    assert_eq!(end.done(1).stopped, Some(StopReason::Reached("100 seconds".into())));
}

#[tokio::test]
async fn where_there_are_no_steps_reports_end_the_loop() {
    let run = Run::new(2, |ctx, _| {
        loop {
            ctx.report(metrics! { x: 1.0 }).send()?;
        }
    });
    let mut playing = run.launch().await;
    playing.until(|told| matches!(told, FromRank::Report(report) if report.index >= 3)).await;
    playing.stop(StopReason::Scheduler);
    let end = playing.end().await;
    end.finished();
    assert!((0..2).all(|rank| end.done(rank).stopped == Some(StopReason::Scheduler)));
    assert_eq!(end.done(0).checkpoint, None);
}

#[tokio::test]
async fn saves_come_by_steps_with_the_metrics_of_all_ranks_and_by_request() {
    let mut run = Run::new(2, |ctx, _| {
        let sum = Tracked::new(0u64);
        let mut state = ctx.state().with("sum", sum.clone());
        ctx.restore(&mut state)?;
        for step in 1..=9u64 {
            sum.update(|sum| *sum += step);
            let loss = regatta_train::metrics::mean(step as f64 + ctx.rank() as f64);
            ctx.report(metrics! { loss: loss, nan: f64::NAN }).send()?;
            ctx.step(&state)?;
        }
        Ok(sum.get().into())
    });
    run.start.checkpoint = CheckpointConfig { every: Every::Steps(4), r#async: false, ..Default::default() };
    let end = run.play().await;
    end.finished();
    let commits = end.commits();
    assert_eq!(commits.iter().map(|commit| commit.step).collect::<Vec<_>>(), [4, 8]);
    assert_eq!(commits[1].metrics.get("loss"), Some(8.5));
    assert_eq!(end.done(1).checkpoint.as_deref(), Some(&*commits[1].name));
}

#[tokio::test]
async fn retention_is_told_with_the_commit() {
    let mut run = Run::new(1, integers(10));
    run.start.checkpoint =
        CheckpointConfig { every: Every::Steps(2), keep: Some(2), r#async: false, ..Default::default() };
    let end = run.play().await;
    let commits = end.commits();
    let removed: Vec<&String> = commits.iter().flat_map(|commit| &commit.removed).collect();
    assert_eq!(removed, commits[..commits.len() - 2].iter().map(|commit| &commit.name).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_error_a_panic_and_a_lost_peer_are_told_apart() {
    let run = Run::new(3, |ctx, _| {
        ctx.barrier()?;
        if ctx.rank() == 1 {
            return Err(Error::io("open the data", std::io::Error::other("no such luck")).into());
        }
        loop {
            ctx.barrier()?;
        }
    });
    let failure = run.play().await.failed();
    assert_eq!((failure.root.rank, &failure.root.kind), (1, &CauseKind::Error));
    assert_eq!(failure.root.message, "open the data: no such luck");
    assert_eq!(failure.others.len(), 2);
    assert!(failure.others.iter().all(|cause| cause.kind == CauseKind::PeerLost { peer: 1 }), "{failure}");

    let run = Run::new(2, |ctx, _| {
        ctx.barrier()?;
        assert!(ctx.rank() == 0, "rank {} is not to be here", ctx.rank());
        loop {
            ctx.barrier()?;
        }
    });
    let failure = run.play().await.failed();
    assert_eq!(failure.root.rank, 1);
    let message = &failure.root.message;
    assert!(message.starts_with("panicked at ") && message.contains("context.rs:"), "{message}");
    assert!(message.ends_with("rank 1 is not to be here"), "{message}");
}

#[tokio::test]
async fn what_hides_in_another_crates_error_is_still_known_for_what_it_is() {
    // As some wrappers do, this one keeps nothing of an error but its words.
    fn hide(error: Error) -> regatta_train::BoxError {
        error.to_string().into()
    }
    let run = Run::new(2, |ctx, _| {
        let state = ctx.state();
        loop {
            if ctx.rank() == 1 && ctx.attempt() == 2 {
                return Err("rank 1 has had enough".into());
            }
            ctx.step(&state).map_err(hide)?;
        }
    });
    let mut stopped = run.launch().await;
    stopped.until_progress(3).await;
    stopped.stop(StopReason::Preempted);
    let end = stopped.end().await;
    end.finished();
    assert_eq!(end.done(0).stopped, Some(StopReason::Preempted));

    let mut again = end.run;
    again.start.attempt = 2;
    again.start.generation = 2;
    let failure = again.play().await.failed();
    assert_eq!(failure.root.message, "rank 1 has had enough");
    assert_eq!(failure.others[0].kind, CauseKind::PeerLost { peer: 1 });
}

#[tokio::test]
async fn components_that_do_not_fit_are_all_listed() {
    let run = Run::new(1, |ctx, config| {
        let old = config["old"].as_bool().unwrap();
        let mut state = ctx.state().with("both", Tracked::new(1u64));
        state =
            if old { state.with("gone", Tracked::new(2u64)) } else { state.with("new", Tracked::new(3u64)) };
        if !old {
            state = state.with("changed", Tracked::new("text".to_owned()));
        } else {
            state = state.with("changed", Tracked::new(5u64));
        }
        ctx.restore(&mut state)?;
        ctx.report(metrics! { x: 1.0 }).checkpoint(&state)?;
        Ok(serde_json::Value::Null)
    });
    let mut run = run;
    run.start.config = serde_json::json!({ "old": true });
    let end = run.play().await;
    end.finished();
    let mut run = end.run.again(Restore::Newest);
    run.start.config = serde_json::json!({ "old": false });
    let message = run.play().await.failed().root.message;
    for part in ["does not fit", "component `gone`", "no component `new`", "component `changed`"] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[tokio::test]
async fn a_report_costs_the_step_a_push_to_a_queue() {
    let run = Run::new(1, |ctx, _| {
        let began = std::time::Instant::now();
        for step in 0..1000u64 {
            ctx.report(metrics! { step, loss: 0.5, accuracy: 0.25 }).send()?;
        }
        Ok((began.elapsed().as_secs_f64() / 1000.0).into())
    });
    let seconds = run.play().await.done(0).value.as_f64().unwrap();
    assert!(seconds < 1e-3, "a report takes {seconds} s");
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_is_saved() {
    let run = Run::new(1, |ctx, _| {
        let mut state = ctx.state().with("a", Tracked::new(1u8)).with("a", Tracked::new(2u8));
        ctx.restore(&mut state)?;
        ctx.save(&state)?;
        Ok(serde_json::Value::Null)
    });
    let message = run.play().await.failed().root.message;
    assert!(message.contains("state.a") && message.contains("two components"), "{message}");
}
