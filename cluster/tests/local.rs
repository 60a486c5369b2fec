//! The local spawner against real processes: conformance, what workers are given, and how they are ended.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regatta_cluster::conformance::{self, acquire, exits, line, sh, to_the_end};
use regatta_cluster::local::{LocalConfig, LocalNode, LocalSpawner, Pinning};
use regatta_cluster::{
    Bytes, Error, GangRequest, Launch, Placement, Reason, Resources, Spawner, WorkerCommand, WorkerEvent,
};

fn node(name: &str, resources: &str) -> LocalNode {
    LocalNode::simulated(name, resources.parse().unwrap())
}

fn config(nodes: Vec<LocalNode>) -> LocalConfig {
    LocalConfig { nodes, pinning: Pinning::Never, ..LocalConfig::default() }
}

fn spawner(nodes: &[(&str, &str)]) -> LocalSpawner {
    LocalSpawner::new(config(nodes.iter().map(|(name, resources)| node(name, resources)).collect())).unwrap()
}

fn state(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).ok()?;
    stat[stat.rfind(')')? + 1..].trim_start().chars().next()
}

fn alive(pid: &str) -> bool {
    state(pid).is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

async fn run(spawner: &LocalSpawner, request: GangRequest, launch: Launch) -> Vec<WorkerEvent> {
    let lease = spawner.acquire(request).await.unwrap();
    let seen = to_the_end(&mut spawner.launch(lease.id, launch).await.unwrap()).await;
    spawner.release(lease.id).await.unwrap();
    seen
}

fn lines(events: &[WorkerEvent]) -> BTreeMap<usize, Vec<&str>> {
    let mut lines: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
    for event in events {
        if let WorkerEvent::Line { slot, text, .. } = event {
            lines.entry(*slot).or_default().push(text);
        }
    }
    lines
}

#[tokio::test]
async fn conforms_on_one_node() {
    conformance::all(&spawner(&[("here", "cpu: 2")])).await;
}

#[tokio::test]
async fn conforms_on_three_simulated_nodes() {
    conformance::all(&spawner(&[("a", "cpu: 2"), ("b", "cpu: 1"), ("c", "cpu: 1, gpu: 2")])).await;
}

#[tokio::test]
async fn a_worker_sees_its_gpus_its_threads_and_nothing_else() {
    let mut gpus = node("gpus", "cpu: 8, gpu: 4");
    gpus.gpu_ids = ["3", "GPU-aa", "5", "7"].map(str::to_owned).to_vec();
    let spawner = LocalSpawner::new(config(vec![gpus])).unwrap();
    let say =
        || Launch::new(sh("echo $CUDA_VISIBLE_DEVICES/$OMP_NUM_THREADS/$RAYON_NUM_THREADS/$REGATTA_NODE"));
    let two = GangRequest::new("g", 2, "cpu: 2, gpu: 2".parse().unwrap());
    let seen = run(&spawner, two, say()).await;
    assert_eq!(lines(&seen), BTreeMap::from([(0, vec!["3,GPU-aa/2/2/gpus"]), (1, vec!["5,7/2/2/gpus"])]));
    let halves = GangRequest::new("g", 3, "cpu: 0.5, gpu: 0.5".parse().unwrap());
    let seen = run(&spawner, halves, say()).await;
    let halves = [(0, vec!["3/1/1/gpus"]), (1, vec!["3/1/1/gpus"]), (2, vec!["GPU-aa/1/1/gpus"])];
    assert_eq!(lines(&seen), BTreeMap::from(halves));
    let none = GangRequest::new("g", 1, Resources::cpus(1));
    let seen = run(&spawner, none, say()).await;
    assert_eq!(lines(&seen)[&0], ["/1/1/gpus"]);
}

#[tokio::test]
async fn where_memory_runs_out_the_kernel_chooses_a_worker_not_the_driver() {
    let spawner = spawner(&[("here", "cpu: 1")]);
    let request = GangRequest::new("g", 1, Resources::cpus(1));
    let seen = run(&spawner, request, Launch::new(sh("cat /proc/self/oom_score_adj"))).await;
    assert_eq!(lines(&seen)[&0], ["500"]);
}

#[tokio::test]
async fn a_worker_stays_on_its_cpus() {
    let host = LocalNode::this_host();
    let workers = host.cpu_ids.len().min(4);
    let config = LocalConfig { pinning: Pinning::Always, ..config(vec![host.clone()]) };
    let spawner = LocalSpawner::new(config).unwrap();
    let request = GangRequest::new("g", workers, Resources::cpus(1));
    let seen = run(&spawner, request, Launch::new(sh("grep Cpus_allowed_list /proc/self/status"))).await;
    for (slot, said) in lines(&seen) {
        assert_eq!(said, [format!("Cpus_allowed_list:\t{}", host.cpu_ids[slot])]);
    }
}

#[tokio::test]
async fn logs_are_whole_and_one_file_a_worker() {
    let folder = tempfile::tempdir().unwrap();
    let spawner = spawner(&[("here", "cpu: 2")]);
    let script =
        "i=0; while [ $i -lt 500 ]; do echo $REGATTA_SLOT:$i; i=$((i+1)); done; echo error >&2; exit 3";
    let launch = Launch::new(sh(script)).attempt(2).logs(folder.path());
    let seen = run(&spawner, GangRequest::new("g", 2, Resources::cpus(1)), launch).await;
    for (slot, exit) in exits(&seen) {
        let log = std::fs::read_to_string(folder.path().join(format!("attempt_2/rank_{slot}.log"))).unwrap();
        assert_eq!(log.lines().count(), 501);
        assert!(log.lines().any(|line| line == format!("{slot}:499")));
        assert_eq!(exit.reason, Reason::UserError { code: 3 });
        assert!(exit.tail.len() <= 100 && exit.tail.contains(&"error".to_owned()));
    }
}

#[tokio::test]
async fn a_chatty_worker_waits_for_no_reader_and_its_log_has_all() {
    let folder = tempfile::tempdir().unwrap();
    let spawner = spawner(&[("here", "cpu: 1")]);
    let lease = acquire(&spawner, 1).await;
    let command = sh("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; echo done > \"$DONE\"")
        .env("DONE", folder.path().join("done"));
    let mut events = spawner.launch(lease.id, Launch::new(command).logs(folder.path())).await.unwrap();
    until("the worker wrote all without a reader", || folder.path().join("done").exists()).await;
    let seen = to_the_end(&mut events).await;
    let dropped: u64 = seen
        .iter()
        .map(|event| if let WorkerEvent::Line { dropped, .. } = event { *dropped } else { 0 })
        .sum();
    assert!(seen.len() < 20_000 && exits(&seen).len() == 1, "{} events, {dropped} dropped", seen.len());
    let log = std::fs::read_to_string(folder.path().join("attempt_1/rank_0.log")).unwrap();
    assert_eq!(log.lines().count(), 20_000);
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within 30 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn grandchildren_go_with_their_worker_even_as_daemons() {
    let spawner = spawner(&[("here", "cpu: 1")]);
    // One in the group, one that ignores SIGTERM, one in a session of its own.
    let family = "sleep 1000 & echo kid $!; (trap '' TERM; exec sleep 1000) & echo kid $!; \
                  setsid sh -c 'echo kid $$; exec sleep 1000' & sleep 0.2; echo ready";
    for (end, then) in [("exits", "exit 0"), ("is killed", "sleep 1000")] {
        let lease = acquire(&spawner, 1).await;
        let launch = Launch::new(sh(&format!("{family}; {then}")));
        let mut events = spawner.launch(lease.id, launch).await.unwrap();
        let mut kids = Vec::new();
        for _ in 0..3 {
            kids.push(line(&mut events, "kid ").await);
        }
        if end == "is killed" {
            line(&mut events, "ready").await;
            assert!(kids.iter().all(|kid| alive(kid)), "they should live until their worker is killed");
            spawner.kill(lease.id, Duration::ZERO).await.unwrap();
        }
        to_the_end(&mut events).await;
        assert!(!kids.iter().any(|kid| alive(kid)), "left behind where the worker {end}: {kids:?}");
        spawner.release(lease.id).await.unwrap();
    }
}

/// What carries no mark is found by its control group, where there are any.
#[tokio::test]
async fn a_daemon_without_its_environment_is_found_by_its_control_group() {
    let spawner = spawner(&[("here", "cpu: 1")]);
    let lease = acquire(&spawner, 1).await;
    let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); sleep 0.01; \
                  if grep -q regatta- /proc/self/cgroup; then echo grouped; break; fi; done; \
                  setsid env -i /bin/sh -c 'echo kid $$; exec sleep 20' & wait";
    let mut events = spawner.launch(lease.id, Launch::new(sh(script))).await.unwrap();
    let (mut kid, mut grouped) = (None, false);
    while kid.is_none() {
        match events.next().await.expect("it runs") {
            WorkerEvent::Line { text, .. } if text.starts_with("kid ") => kid = Some(text[4..].to_owned()),
            WorkerEvent::Line { text, .. } => grouped |= text == "grouped",
            _ => {}
        }
    }
    if !grouped {
        eprintln!("skipped: no control group can be made here");
        spawner.kill(lease.id, Duration::ZERO).await.unwrap();
        return;
    }
    let kid = kid.unwrap();
    assert!(alive(&kid));
    spawner.release(lease.id).await.unwrap();
    assert!(!alive(&kid));
}

#[tokio::test]
async fn a_worker_over_its_memory_is_ended_and_told_why() {
    let spawner = spawner(&[("here", "cpu: 1, memory: 4GiB")]);
    let request = GangRequest::new("hog", 1, "cpu: 1, memory: 64MiB".parse().unwrap());
    // In a child of the worker: what it starts counts too.
    let hog = Launch::new(sh("head -c 1G /dev/zero | tail | sleep 1000; exit 0"));
    let start = Instant::now();
    let seen = run(&spawner, request.clone(), hog).await;
    let exit = &exits(&seen)[0].1;
    let Reason::OutOfMemory { limit, used } = exit.reason else { panic!("{exit:?}") };
    assert!(limit == Bytes::mib(64) && used > limit);
    assert!(
        exit.to_string().contains("64MiB") && exit.to_string().contains("ask for more `memory`"),
        "{exit}"
    );
    assert!(start.elapsed() < Duration::from_secs(20));
    let modest = run(&spawner, request, Launch::new(sh("sleep 0.3; exit 0"))).await;
    assert_eq!(exits(&modest)[0].1.reason, Reason::Succeeded);
}

#[tokio::test]
async fn a_stopped_worker_is_ended_too() {
    let spawner = spawner(&[("here", "cpu: 1")]);
    let lease = acquire(&spawner, 1).await;
    let mut events = spawner.launch(lease.id, Launch::new(sh("echo pid $$; kill -STOP $$"))).await.unwrap();
    let pid = line(&mut events, "pid ").await;
    until("it has stopped", || state(&pid) == Some('T')).await;
    spawner.kill(lease.id, Duration::from_millis(50)).await.unwrap();
    assert_eq!(exits(&to_the_end(&mut events).await)[0].1.signal, Some(9));
    spawner.release(lease.id).await.unwrap();
}

#[tokio::test]
async fn when_the_spawning_thread_goes_its_workers_are_lost_and_launching_says_so() {
    let spawner = spawner(&[("here", "cpu: 2")]);
    let lease = acquire(&spawner, 2).await;
    let mut events = spawner
        .launch(
            lease.id,
            Launch::new(sh("sleep 1000 & echo kid $!; trap '' TERM; while :; do sleep 1; done")),
        )
        .await
        .unwrap();
    let kids = [line(&mut events, "kid ").await, line(&mut events, "kid ").await];
    spawner.end_spawning_thread();
    let seen = to_the_end(&mut events).await;
    let lost =
        |event: &WorkerEvent| matches!(event, WorkerEvent::Lost { cause, .. } if cause.contains("thread"));
    assert_eq!(seen.iter().filter(|event| lost(event)).count(), 2, "{seen:?}");
    assert!(!kids.iter().any(|kid| alive(kid)));
    let error = spawner.launch(lease.id, Launch::new(sh("exit 0"))).await.unwrap_err();
    assert!(matches!(error, Error::SpawnerGone { .. }), "{error}");
    spawner.release(lease.id).await.unwrap();
}

#[tokio::test]
async fn a_failed_node_loses_its_workers_alone_and_is_avoided() {
    let spawner = spawner(&[("a", "cpu: 1"), ("b", "cpu: 1"), ("c", "cpu: 1")]);
    let request = GangRequest::new("g", 2, Resources::cpus(1)).placement(Placement::StrictSpread);
    let lease = spawner.acquire(request.clone()).await.unwrap();
    let failed = lease.seats[1].node.clone();
    let script = "echo ready; exec sleep 1000";
    let mut events = spawner.launch(lease.id, Launch::new(sh(script))).await.unwrap();
    line(&mut events, "ready").await;
    assert!(spawner.fail_node(&failed) && !spawner.fail_node("nowhere"));
    let end = loop {
        let event = events.next().await.unwrap();
        if event.is_end() {
            break event;
        }
    };
    assert!(matches!(&end, WorkerEvent::Lost { slot: 1, cause } if cause.contains(&failed)), "{end:?}");
    spawner.release(lease.id).await.unwrap();
    let again = spawner.acquire(request.clone().exclude(&failed)).await.unwrap();
    assert!(!again.nodes().contains(&failed.as_str()));
    spawner.release(again.id).await.unwrap();
    let three = GangRequest::new("three", 3, Resources::cpus(1));
    assert!(matches!(spawner.acquire(three.clone()).await, Err(Error::Infeasible(_))));
    assert!(spawner.restore_node(&failed));
    let lease = spawner.acquire(three).await.unwrap();
    spawner.release(lease.id).await.unwrap();
}

#[tokio::test]
async fn idle_workers_do_not_outstay_their_welcome() {
    let quick = LocalConfig {
        idle_for: Duration::from_millis(50),
        max_idle: 1,
        ..config(vec![node("here", "cpu: 2, gpu: 1")])
    };
    let spawner = LocalSpawner::new(quick).unwrap();
    let sleeper = || Launch::new(sh("echo pid $$; exec sleep 1000"));
    let lease = acquire(&spawner, 1).await;
    let mut events = spawner.launch(lease.id, sleeper()).await.unwrap();
    let pid = line(&mut events, "pid ").await;
    assert!(spawner.park(lease.id).await.unwrap());
    until("the idler is ended", || !alive(&pid) && spawner.idle_workers() == 0).await;
    let lease = acquire(&spawner, 2).await;
    let mut events = spawner.launch(lease.id, sleeper()).await.unwrap();
    line(&mut events, "pid ").await;
    assert!(!spawner.park(lease.id).await.unwrap(), "two are more than may idle");
    assert!(to_the_end(&mut events).await.iter().filter(|event| event.is_end()).count() == 2);
}

#[tokio::test]
async fn a_pooled_worker_logs_for_its_new_gang() {
    let folder = tempfile::tempdir().unwrap();
    let spawner = spawner(&[("here", "cpu: 1")]);
    let command = sh("n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.02; done");
    for attempt in 1..=2 {
        let lease = acquire(&spawner, 1).await;
        let launch = Launch::new(command.clone()).attempt(attempt).logs(folder.path());
        let mut events = spawner.launch(lease.id, launch).await.unwrap();
        let Some(WorkerEvent::Started { reused, .. }) = events.next().await else { panic!("it starts") };
        assert_eq!(reused, attempt == 2);
        line(&mut events, "tick ").await;
        assert!(spawner.park(lease.id).await.unwrap());
        let log = folder.path().join(format!("attempt_{attempt}/rank_0.log"));
        assert!(std::fs::read_to_string(log).unwrap().starts_with("tick "));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_gangs_of_one_run_in_order_on_two_cores() {
    let spawner = std::sync::Arc::new(spawner(&[("here", "cpu: 2")]));
    let (done, mut order) = tokio::sync::mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    // Both seats are held until all stand in line, so that the line's order is known.
    let first = acquire(&*spawner, 2).await;
    for i in 0..64u32 {
        let (mine, done) = (spawner.clone(), done.clone());
        let stand = tokio::spawn(async move {
            let request = GangRequest::new(format!("t{i}"), 1, Resources::cpus(1));
            let lease = mine.acquire(request).await.unwrap();
            done.send(i).unwrap();
            let seen = to_the_end(&mut mine.launch(lease.id, Launch::new(sh("exit 0"))).await.unwrap()).await;
            assert_eq!(exits(&seen)[0].1.reason, Reason::Succeeded);
            mine.release(lease.id).await.unwrap();
        });
        tasks.spawn(async move { stand.await.unwrap() });
        until("it stands in line", || spawner.waiting() == i as usize + 1).await;
    }
    spawner.release(first.id).await.unwrap();
    tasks.join_all().await;
    drop(done);
    let mut seen = Vec::new();
    while let Some(i) = order.recv().await {
        seen.push(i);
    }
    // Two run at once, so their tasks may tell of their starts a place apart.
    assert_eq!(seen.len(), 64);
    assert!(seen.iter().enumerate().all(|(at, &i)| at.abs_diff(i as usize) <= 2), "{seen:?}");
}

#[tokio::test]
async fn secrets_of_the_environment_are_not_shown() {
    let command = WorkerCommand::new("x").env("REGATTA_TOKEN", "hunter2");
    let shown = format!("{:?}", Launch::new(command));
    assert!(shown.contains("REGATTA_TOKEN") && !shown.contains("hunter2"));
}
