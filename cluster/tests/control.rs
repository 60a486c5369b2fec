//! The control plane over real sockets: joining, reporting, refusing, failing, ending. The workers live in this process;
//! the deadlines are those of `support::timing`.

mod support;

use std::time::Duration;

use regatta_cluster::gang::state::Event;
use regatta_cluster::*;
use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gang_joins_works_finishes_and_is_started_again() {
    let mut crew = running(2).await;
    for generation in 1..=3 {
        for (rank, worker) in crew.workers.iter().enumerate() {
            assert_eq!(worker.generation(), generation);
            worker.report(7, vec![rank as u8]).unwrap();
            worker.finished(b"result".to_vec()).unwrap();
        }
        let mut bodies = Vec::new();
        until(&mut crew.gang, "the end", |event| match event {
            GangEvent::Message(message) => {
                assert_eq!(message.generation, generation);
                bodies.push((message.rank, message.body.clone()));
                None
            }
            GangEvent::Happened(Event::Finished { generation: ended }) => {
                assert_eq!(*ended, generation);
                Some(())
            }
            _ => None,
        })
        .await;
        bodies.sort_by_key(|(rank, _)| *rank);
        let report = |rank| (u32::from(rank), MessageBody::Report { step: 7, payload: vec![rank] });
        let finished = |rank| (rank, MessageBody::Finished { payload: b"result".to_vec() });
        assert_eq!(bodies, [report(0), finished(0), report(1), finished(1)]);
        crew.gang.start(Begin::default()).unwrap();
        for worker in &crew.workers {
            let Command::Assign(assignment) = command(worker).await else { panic!("expected assign") };
            assert_eq!(assignment.generation, generation + 1);
            assert!(matches!(command(worker).await, Command::Start { .. }));
            assert!(worker.is_over(generation) && !worker.is_over(generation + 1));
        }
    }
    let calls = crew.spawner.clone();
    crew.gang.stop(Duration::ZERO).await.unwrap();
    assert_eq!(calls.calls(), ["launch 1", "kill", "release"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_and_neighbours_are_told() {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let (spawner, mut launches) = FakeSpawner::new();
    let gang = Gang::launch(&control, spawner, spec(3)).await.unwrap();
    let launched = launches.recv().await.unwrap();
    let workers: Vec<_> = (0..3).map(|slot| Worker::connect(launched.worker(slot)).unwrap()).collect();
    for (rank, worker) in workers.iter().enumerate() {
        let assignment = assigned(worker).await;
        assert_eq!((assignment.rank, assignment.world), (rank as u32, 3));
        assert_eq!((assignment.local_rank, assignment.local_world), (rank as u32, 3));
        assert_eq!(assignment.run, "test");
        assert_eq!(launched.launch.slot_env[rank]["RANK"], rank.to_string().as_str());
        assert_eq!(launched.launch.slot_env[rank]["WORLD_SIZE"], "3");
    }
    drop(gang);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_token_is_refused_and_disturbs_nothing() {
    let mut crew = running(1).await;
    let mut config = crew.launched.worker(0);
    config.token = Token::random();
    let thief = Worker::connect(config).unwrap();
    let error = thief.next(PATIENCE).unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("token")), "{error}");
    still_works(&mut crew).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stolen_slot_is_refused_and_disturbs_nothing() {
    let mut crew = running(1).await;
    let thief = Worker::connect(crew.launched.worker(0)).unwrap();
    let error = thief.next(PATIENCE).unwrap_err();
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("taken")), "{error}");
    still_works(&mut crew).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_attempt_gang_or_slot_is_refused_and_disturbs_nothing() {
    let mut crew = running(1).await;
    let honest = crew.launched.worker(0);
    for (gang, slot, attempt, why) in [
        (honest.gang, 0, 0, "attempt"),
        (honest.gang, 0, 2, "attempt"),
        (honest.gang + 1, 0, 1, "no such gang"),
        (honest.gang, 9, 1, "no such slot"),
    ] {
        let caller = Worker::connect(WorkerConfig { gang, slot, attempt, ..honest.clone() }).unwrap();
        let error = caller.next(PATIENCE).unwrap_err();
        assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains(why)), "{error}");
    }
    still_works(&mut crew).await;
}

async fn still_works(crew: &mut Crew) {
    crew.workers[0].report(1, b"still here".to_vec()).unwrap();
    let mut changes = 0;
    let message = until(&mut crew.gang, "the report", |event| match event {
        GangEvent::Message(message) => Some(message.clone()),
        GangEvent::Happened(_) => {
            changes += 1;
            None
        }
        _ => None,
    })
    .await;
    assert_eq!(changes, 0, "a refused call changed the gang");
    assert_eq!(message.body, MessageBody::Report { step: 1, payload: b"still here".to_vec() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_never_calls_home_fails_the_gang_at_its_deadline() {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let (spawner, mut launches) = FakeSpawner::new();
    let timing = Timing { start: Duration::from_millis(500), ..timing() };
    let mut gang = Gang::launch(&control, spawner, spec(2).timing(timing)).await.unwrap();
    let launched = launches.recv().await.unwrap();
    let _present = Worker::connect(launched.worker(0)).unwrap();
    let began = std::time::Instant::now();
    let error = gang.joined(drop).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let Error::Gang(failure) = error else { panic!("{error}") };
    assert_eq!(failure.root.rank, 1);
    assert!(matches!(failure.root.kind, CauseKind::NeverCalledHome { .. }), "{failure}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_cause_is_found_behind_its_consequence() {
    let mut crew = running(3).await;
    crew.workers[1].log("about to crash");
    until(&mut crew.gang, "the line", |event| matches!(event, GangEvent::Log(_)).then_some(())).await;
    // The survivor is quicker than the spawner.
    crew.workers[0].failed("all_reduce: peer is gone", Some(1)).unwrap();
    until(&mut crew.gang, "a cause", |event| {
        matches!(event, GangEvent::Happened(Event::MemberFailed(_))).then_some(())
    })
    .await;
    drop(crew.workers.remove(1));
    crew.launched.exits(1, None, Some(11));
    let failure = failure(&mut crew.gang).await.of("trial 3").of("the study");
    assert_eq!((failure.root.rank, &failure.root.kind), (1, &CauseKind::Killed { signal: 11 }));
    assert!(failure.others.iter().all(|cause| cause.kind == CauseKind::PeerLost { peer: 1 }));
    let text = failure.to_string();
    assert!(text.starts_with("the study failed, because:\ntrial 3 failed, because:\n"), "{text}");
    assert!(text.contains("| about to crash"), "{text}");
    assert!(
        text.contains("root cause: rank 1 (slot 1, attempt 1) was killed by signal 11 (SIGSEGV"),
        "{text}"
    );
    // The one that had not noticed by itself was told.
    assert!(matches!(command(&crew.workers[1]).await, Command::Abort { generation: 1, .. }));
    assert!(crew.workers[1].is_over(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_words_count_although_the_exit_is_known_first() {
    let mut crew = running(1).await;
    let worker = crew.workers.remove(0);
    crew.launched.exits(0, Some(1), None);
    worker.failed("the loss is NaN at step 212", None).unwrap();
    let failure = failure(&mut crew.gang).await;
    assert_eq!(failure.root.kind, CauseKind::Error);
    assert_eq!(failure.root.message, "the loss is NaN at step 212");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_gang_is_launched_again_and_its_zombies_are_fenced() {
    let mut crew = running(2).await;
    crew.workers[0].failed("boom", None).unwrap();
    failure(&mut crew.gang).await;
    // A zombie of generation 1 reports into the void.
    crew.workers[1].report(99, b"zombie".to_vec()).unwrap();
    crew.gang.relaunch().unwrap();
    let launched = crew.launches.recv().await.unwrap();
    assert_eq!(launched.launch.attempt, 2);
    let again = [ready(launched.worker(0)), ready(launched.worker(1))];
    let [first, second] = again;
    let (first, second) = tokio::join!(first, second);
    crew.gang.joined(|event| assert!(!matches!(event, GangEvent::Message(_)), "{event:?}")).await.unwrap();
    assert_eq!((first.generation(), second.generation()), (2, 2));
    let error = loop {
        if let Err(error) = crew.workers[1].next(PATIENCE) {
            break error;
        }
    };
    assert!(matches!(&error, Error::Refused { reason, .. } if reason.contains("attempt 2")), "{error}");
    assert!(crew.workers[1].report(100, Vec::new()).is_err(), "a fenced worker cannot report");
    first.report(1, b"new".to_vec()).unwrap();
    let message = message(&mut crew.gang).await;
    assert_eq!((message.attempt, message.generation), (2, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reporting_never_waits_and_is_bounded_and_loses_nothing() {
    let mut crew = running(1).await;
    let worker = &crew.workers[0];
    let began = std::time::Instant::now();
    let mut accepted = 0u64;
    let full = loop {
        match worker.report(accepted, vec![0; 1000]) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert!(began.elapsed() < Duration::from_secs(10), "reporting waited: {:?}", began.elapsed());
    assert!(matches!(full, Error::OutboxFull { .. }), "{full}");
    let mut next = 0;
    while next < accepted {
        let message = message(&mut crew.gang).await;
        assert!(matches!(message.body, MessageBody::Report { step, .. } if step == next), "{message:?}");
        crew.gang.acknowledge(&message).unwrap();
        next += 1;
    }
    let worker = crew.workers.remove(0);
    tokio::task::spawn_blocking(move || worker.close(PATIENCE)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_arrive_in_order() {
    let crew = running(1).await;
    for number in 0..500u32 {
        crew.gang.decide(0, 1, number.to_le_bytes().to_vec()).unwrap();
    }
    for number in 0..500u32 {
        let expected = Command::Decide { generation: 1, payload: number.to_le_bytes().to_vec() };
        assert_eq!(command(&crew.workers[0]).await, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_gives_the_grace_and_hears_the_last_report() {
    let mut crew = running(1).await;
    crew.gang.begin_stop(Duration::from_secs(20)).unwrap();
    assert!(matches!(command(&crew.workers[0]).await, Command::Stop { .. }));
    crew.workers[0].report(3, b"last".to_vec()).unwrap();
    let last = message(&mut crew.gang).await;
    crew.gang.acknowledge(&last).unwrap();
    crew.workers[0].finished(Vec::new()).unwrap();
    drop(crew.workers.remove(0));
    crew.launched.exits(0, Some(75), None);
    until(&mut crew.gang, "the end", |event| {
        assert!(event.failure().is_none());
        matches!(event, GangEvent::Happened(Event::Stopped)).then_some(())
    })
    .await;
    let calls = crew.spawner.clone();
    crew.gang.stop(Duration::ZERO).await.unwrap();
    assert_eq!(calls.calls(), ["launch 1", "release"], "it ended within the grace");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_gang_ends_its_workers_and_gives_back_its_seats() {
    let crew = running(1).await;
    drop(crew.gang);
    let calls = crew.spawner.clone();
    let released = async {
        while !calls.calls().contains(&"release".to_owned()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, released).await.expect("released");
    let error = loop {
        if let Err(error) = crew.workers[0].next(PATIENCE) {
            break error;
        }
    };
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_is_gone_ends_the_lease() {
    let timing = Timing { lease: Duration::from_millis(800), ..timing() };
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let crew = running_on(control, spec(1).timing(timing)).await;
    let Crew { control, gang, workers, .. } = crew;
    // A port that is closed while the gang's task lives on: nothing answers any more.
    drop(control);
    drop(gang);
    let error = loop {
        if let Err(error) = workers[0].next(PATIENCE) {
            break error;
        }
    };
    let gone = matches!(error, Error::ControllerLost { .. } | Error::Refused { .. });
    assert!(gone && workers[0].is_over(u64::MAX - 1), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_are_shown_once_and_counted() {
    let mut crew = running(2).await;
    for worker in &crew.workers {
        for _ in 0..50 {
            worker.log("the same warning");
        }
    }
    crew.workers[0].log("something else");
    let mut shown = Vec::new();
    until(&mut crew.gang, "the other line", |event| {
        if let GangEvent::Log(line) = event {
            shown.push(line.text.clone());
        }
        shown.iter().any(|line| line == "something else").then_some(())
    })
    .await;
    assert_eq!(shown.iter().filter(|line| *line == "the same warning").count(), 1);
}
