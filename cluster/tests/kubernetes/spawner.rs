//! The driver's side: how gangs are placed, and what is said of workers that end otherwise than they should.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use regatta_cluster::conformance::{exits, line, sh, to_the_end};
use regatta_cluster::kubernetes::{KubernetesConfig, KubernetesSpawner};
use regatta_cluster::{
    Error, Events, GangRequest, Launch, Lease, Placement, Reason, Resources, Spawner, WorkerEvent,
};
use serde_json::{Value, json};

use super::Test;
use super::cluster::Cluster;
use super::drill::config;
use super::real::send;
use super::server::Fault;

pub(crate) const ALL: [(&str, Test); 10] = [
    ("a_gang_takes_what_is_free_and_stands_as_it_asked", || Box::pin(placement())),
    ("gangs_that_hold_each_other_up_give_back_what_they_have", || Box::pin(held_up())),
    ("a_quota_is_waited_for_and_named", || Box::pin(quota())),
    ("a_launch_that_cannot_be_says_why_at_once", || Box::pin(launches_that_fail())),
    ("workers_whose_place_is_wanted_were_preempted", || Box::pin(preempted())),
    ("a_worker_whose_pod_vanishes_is_lost", || Box::pin(vanished())),
    ("foreign_programs_are_told_that_a_pod_is_a_host", || Box::pin(foreign())),
    ("news_that_do_not_come_are_read_from_the_list", || Box::pin(news_break())),
    ("a_log_that_cannot_be_read_costs_only_the_log", || Box::pin(no_log())),
    ("a_dropped_spawner_leaves_nothing_behind", || Box::pin(dropped())),
];

const PATIENCE: Duration = Duration::from_secs(60);

async fn spawner(cluster: &Cluster, config: KubernetesConfig) -> KubernetesSpawner {
    KubernetesSpawner::outside(cluster.driver().await, config, "test").await.unwrap()
}

fn gang(workers: usize) -> GangRequest {
    GangRequest::new("gang", workers, Resources::cpus(1)).patience(PATIENCE)
}

async fn launch(spawner: &KubernetesSpawner, lease: &Lease, script: &str) -> Events {
    spawner.launch(lease.id, Launch::new(sh(script))).await.unwrap()
}

/// The pods of a cluster that run, by name.
async fn running(cluster: &Cluster) -> Vec<String> {
    let pods = cluster.pods().await;
    let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running");
    running.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

async fn placement() {
    let cluster = Cluster::start(3).await;
    let spawner = spawner(&cluster, config()).await;
    let apart = spawner.acquire(gang(3).placement(Placement::StrictSpread)).await.unwrap();
    assert_eq!(apart.nodes().len(), 3, "{apart:?}");
    // Three of six CPUs are taken, one on each node.
    let elastic = spawner.acquire(gang(1).workers(1..=6)).await.unwrap();
    assert_eq!(elastic.workers(), 3, "as many as are free, and never waited for: {elastic:?}");
    assert!(cluster.pods().await.len() == 6, "the others are given back");
    spawner.release(elastic.id).await.unwrap();
    spawner.release(apart.id).await.unwrap();
    let together =
        spawner.acquire(gang(2).placement(Placement::StrictPack).exclude("n1").exclude("n3")).await.unwrap();
    assert_eq!(together.nodes(), ["n2"]);
    assert_eq!(together.seats.iter().map(|seat| seat.local_slot).collect::<Vec<_>>(), [0, 1]);
    spawner.release(together.id).await.unwrap();
    let refused = spawner.acquire(gang(3).placement(Placement::StrictPack)).await.unwrap_err();
    assert!(matches!(&refused, Error::Infeasible(why) if why.would_fit == 2), "{refused}");
    let gpus: Resources = "cpu: 1, gpu: 2".parse().unwrap();
    let with_gpus = spawner.acquire(GangRequest::new("gpus", 2, gpus).patience(PATIENCE)).await.unwrap();
    assert_eq!(with_gpus.nodes().len(), 2);
    assert!(with_gpus.seats.iter().all(|seat| seat.gpus == [0, 1]), "{with_gpus:?}");
    let tolerates = cluster.pods().await[0]["spec"]["tolerations"].as_array().unwrap().clone();
    let gpu = json!({ "key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule" });
    assert!(tolerates.contains(&gpu), "{tolerates:?}");
}

async fn held_up() {
    let cluster = Cluster::start(2).await;
    let hasty = KubernetesConfig { gather_seconds: 1.0, ..config() };
    let (one, two) = (spawner(&cluster, hasty.clone()).await, spawner(&cluster, hasty).await);
    let small = one.acquire(gang(1)).await.unwrap();
    // It wants all four, and gets three of them to hold: in vain, for a seat is taken.
    let (all, three) = tokio::join!(one.acquire(gang(4)), async {
        cluster.eventually("a gang in part", "pods", |pods| pods.len() == 5).await;
        let three = two.acquire(gang(3)).await.unwrap();
        two.release(three.id).await.unwrap();
        one.release(small.id).await.unwrap();
        three
    });
    assert_eq!((all.unwrap().workers(), three.workers()), (4, 3));
}

async fn quota() {
    let cluster = Cluster::start(1).await;
    cluster.no_quota().await;
    let spawner = spawner(&cluster, config()).await;
    let error = spawner.acquire(gang(1).patience(Duration::from_secs(1))).await.unwrap_err();
    assert!(
        matches!(&error, Error::NoCapacity { blocked, .. } if blocked.contains("exceeded quota: team")),
        "{error}"
    );
}

async fn launches_that_fail() {
    let cluster = Cluster::start(1).await;
    let wrong = KubernetesConfig { image: "missing/image:2".into(), ..config() };
    let of_nowhere = spawner(&cluster, wrong).await;
    let lease = of_nowhere.acquire(gang(2)).await.unwrap();
    let since = Instant::now();
    let error = of_nowhere.launch(lease.id, Launch::new(sh("exit 0"))).await.unwrap_err().to_string();
    assert!(error.contains("ImagePullBackOff") && error.contains("missing/image:2"), "{error}");
    assert!(since.elapsed() < Duration::from_secs(20), "{:?}", since.elapsed());
    of_nowhere.release(lease.id).await.unwrap();
    assert!(cluster.pods().await.is_empty(), "{:?}", cluster.pods().await);

    let spawner = spawner(&cluster, config()).await;
    let lease = spawner.acquire(gang(1)).await.unwrap();
    let mut command = sh("exit 0");
    command.cwd = Some("/nowhere/at/all".into());
    let error = spawner.launch(lease.id, Launch::new(command)).await.unwrap_err().to_string();
    assert!(error.contains("the folder cannot be entered"), "{error}");
    let long = Launch::new(sh("exit 0").env("LONG", "x".repeat(200_000)));
    let error = spawner.launch(lease.id, long).await.unwrap_err().to_string();
    assert!(error.contains("pass files instead"), "{error}");
    cluster.no_secrets().await;
    let error = spawner.launch(lease.id, Launch::new(sh("exit 0"))).await.unwrap_err().to_string();
    let named =
        error.contains("secrets is forbidden") && error.contains("cannot create resource \"secrets\"");
    assert!(named && error.contains("auth can-i"), "{error}");
}

async fn preempted() {
    let cluster = Cluster::start(1).await;
    let spawner = spawner(&cluster, config()).await;
    let lease = spawner.acquire(gang(2)).await.unwrap();
    let mut events =
        launch(&spawner, &lease, "trap 'echo told; exit 3' TERM; echo ready; while :; do sleep 0.05; done")
            .await;
    line(&mut events, "ready").await;
    line(&mut events, "ready").await;
    let pods = running(&cluster).await;
    // For a pod of a higher priority, and by somebody who says nothing.
    let why = json!({ "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler" });
    cluster.tell(&pods[0], json!({ "conditions": [why] })).await;
    cluster.delete_within(&pods[0], 30).await;
    cluster.delete_within(&pods[1], 30).await;
    let seen = to_the_end(&mut events).await;
    let reasons: Vec<Reason> = exits(&seen).into_iter().map(|(_, exit)| exit.reason).collect();
    assert!(
        reasons.contains(&Reason::Preempted) && reasons.contains(&Reason::UserError { code: 3 }),
        "{seen:?}"
    );
    if cluster.small().is_none() {
        spawner.release(lease.id).await.unwrap();
        by_priority(&cluster, &spawner).await;
    }
}

/// The real scheduler takes places for pods of a higher priority.
async fn by_priority(cluster: &Cluster, low: &KubernetesSpawner) {
    // Of the whole cluster, which may have been used before.
    let name = format!("urgent-{}", std::process::id());
    let class = json!({ "metadata": { "name": name }, "value": 1000, "globalDefault": false });
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses";
    send(&cluster.admin().await, "POST", classes, class).await.unwrap();
    let lease = low.acquire(gang(2)).await.unwrap();
    let mut events = launch(low, &lease, "echo ready; sleep 1000").await;
    line(&mut events, "ready").await;
    line(&mut events, "ready").await;
    let urgent = KubernetesConfig { priority_class: Some(name), ..config() };
    let urgent = spawner(cluster, urgent).await;
    let (seated, seen) = tokio::join!(urgent.acquire(gang(2)), to_the_end(&mut events));
    assert_eq!(seated.unwrap().workers(), 2);
    assert!(exits(&seen).iter().all(|(_, exit)| exit.reason == Reason::Preempted), "{seen:?}");
}

async fn vanished() {
    let cluster = Cluster::start(2).await;
    let spawner = spawner(&cluster, config()).await;
    let lease = spawner.acquire(gang(2).placement(Placement::StrictSpread)).await.unwrap();
    let mut events = launch(&spawner, &lease, "echo ready; sleep 1000").await;
    line(&mut events, "ready").await;
    line(&mut events, "ready").await;
    // Taken out of the books, as the pods of a node that is gone are.
    let node = lease.seats[1].node.clone();
    cluster.node(&node).kill();
    let dead = cluster.pods().await.into_iter().find(|pod| pod["spec"]["nodeName"] == node.as_str()).unwrap();
    let name = dead["metadata"]["name"].as_str().unwrap();
    cluster.delete_within(name, 0).await;
    let lost = loop {
        match events.next().await.unwrap() {
            WorkerEvent::Lost { slot, cause } => break (slot, cause),
            event => assert!(!event.is_end(), "{event:?}"),
        }
    };
    assert!(lost.0 == 1 && lost.1.contains("was deleted") && lost.1.contains(&node), "{lost:?}");
    // One that hangs is given up in time when its end is ordered, and its node is not used again.
    let other = lease.seats[0].node.clone();
    cluster.node(&other).stop();
    let since = Instant::now();
    spawner.kill(lease.id, Duration::ZERO).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    let end = to_the_end(&mut events).await.pop().unwrap();
    assert!(
        matches!(&end, WorkerEvent::Lost { slot: 0, cause } if cause.contains("hangs or is gone")),
        "{end:?}"
    );
    spawner.release(lease.id).await.unwrap();
    assert!(!spawner.nodes().iter().find(|node| node.name == other).unwrap().up);
    assert!(cluster.pods().await.is_empty());
}

async fn foreign() {
    let cluster = Cluster::start(1).await;
    let spawner = spawner(&cluster, config()).await;
    let lease = spawner.acquire(gang(2)).await.unwrap();
    let contract = |rank: usize| {
        let numbers = [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("LOCAL_WORLD_SIZE", 2),
            ("GROUP_RANK", 0),
            ("GROUP_WORLD_SIZE", 1),
        ];
        let mut variables: BTreeMap<String, std::ffi::OsString> =
            numbers.into_iter().map(|(name, number)| (name.to_owned(), number.to_string().into())).collect();
        variables.insert("MASTER_ADDR".into(), "n1".into());
        variables
    };
    let mut order = Launch::new(sh(
        "echo \"$RANK $LOCAL_RANK/$LOCAL_WORLD_SIZE $GROUP_RANK/$GROUP_WORLD_SIZE $MASTER_ADDR $REGATTA_HOST_ADDR ${KUBERNETES_SERVICE_HOST:-none}\"",
    ));
    order.slot_env = vec![contract(0), contract(1)];
    let mut events = spawner.launch(lease.id, order).await.unwrap();
    let seen = to_the_end(&mut events).await;
    let said = |slot: usize| {
        let line = |event: &WorkerEvent| match event {
            WorkerEvent::Line { slot: of, text, .. } if *of == slot => Some(text.clone()),
            _ => None,
        };
        seen.iter().find_map(line).unwrap()
    };
    let first = said(0);
    let master = first.split(' ').nth(3).unwrap().to_owned();
    let (host, service) = master.split_once('.').unwrap();
    assert_eq!(service, "test");
    let hostnames: Vec<_> = cluster.pods().await.iter().map(|pod| pod["spec"]["hostname"].clone()).collect();
    assert!(hostnames.contains(&host.into()), "{master} is none of {hostnames:?}");
    assert_eq!(first, format!("0 0/1 0/2 {master} 127.0.0.1 127.0.0.1"));
    assert_eq!(said(1), format!("1 0/1 1/2 {master} 127.0.0.1 127.0.0.1"));
}

/// A server that gives no news still gives lists.
async fn news_break() {
    let cluster = Cluster::start(1).await;
    let message = "too old resource version".into();
    let server = cluster.small().unwrap();
    server.fault(Fault { method: "GET", path: "watch=true", code: 410, message });
    let spawner = spawner(&cluster, config()).await;
    let lease = spawner.acquire(gang(2)).await.unwrap();
    let seen = to_the_end(&mut launch(&spawner, &lease, "echo ready; exit 7").await).await;
    assert!(exits(&seen).iter().all(|(_, exit)| exit.code == Some(7) && exit.tail == ["ready"]), "{seen:?}");
    spawner.release(lease.id).await.unwrap();
}

async fn no_log() {
    let cluster = Cluster::start(1).await;
    let spawner = spawner(&cluster, config()).await;
    cluster.no_logs();
    let lease = spawner.acquire(gang(1)).await.unwrap();
    // Without it a worker's start is taken from its end, and its exit code from its pod.
    let mut events = launch(&spawner, &lease, "exit 7").await;
    let seen = to_the_end(&mut events).await;
    assert!(matches!(seen.first(), Some(WorkerEvent::Started { .. })), "{seen:?}");
    assert_eq!(exits(&seen)[0].1.reason, Reason::UserError { code: 7 });
}

async fn dropped() {
    let cluster = Cluster::start(1).await;
    let one = spawner(&cluster, config()).await;
    let lease = one.acquire(gang(1)).await.unwrap();
    let mut events = launch(&one, &lease, "echo ready; sleep 1000").await;
    line(&mut events, "ready").await;
    let _waits = one.acquire(gang(1)).await.unwrap();
    drop(one);
    cluster.eventually("no pods", "pods", <[Value]>::is_empty).await;
    cluster.eventually("no secrets", "secrets", <[Value]>::is_empty).await;
}
