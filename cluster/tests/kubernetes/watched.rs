//! Whole jobs: submitted, followed, broken, cancelled.

use std::time::{Duration, Instant};

use regatta_cluster::engine::{Engine, JobSpec, JobState, conformance};
use regatta_cluster::kubernetes::KubernetesEngine;
use regatta_cluster::{GangRequest, Placement, Reason, Resources, WorkerCommand};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Test;
use super::cluster::Cluster;
use super::drill::{GANG, ROLE, SECRET, config, now};
use super::kubelet::Kubelet;

const PATIENCE: Duration = Duration::from_secs(100);
/// From a failure to the first step of the new gang, with a heartbeat deadline of three seconds.
const RECOVERED: Duration = Duration::from_secs(10);

pub(crate) const ALL: [(&str, Test); 10] = [
    ("the_spawner_conforms_with_the_rights_of_the_manifest", || Box::pin(spawner_conforms())),
    ("a_killed_worker_is_replaced", || Box::pin(worker_killed())),
    ("a_killed_node_is_replaced", || Box::pin(node_fails(Kubelet::kill))),
    ("a_node_that_hangs_is_replaced", || Box::pin(node_fails(Kubelet::stop))),
    ("a_server_that_is_away_for_a_while_harms_nobody", || Box::pin(server_away())),
    ("a_killed_driver_takes_its_workers_with_it", || Box::pin(driver_killed())),
    ("cancelling_leaves_nothing_behind", || Box::pin(cancelled())),
    ("a_job_whose_service_is_deleted_is_gone_with_all_it_had", || Box::pin(deleted())),
    ("secrets_stand_in_secrets_alone", || Box::pin(secrets())),
    ("the_first_line_comes_soon", || Box::pin(first_line())),
];

/// This program in another role.
fn job(role: &str, gang: &str) -> JobSpec {
    let mut spec = conformance::job("");
    let command = WorkerCommand::myself().unwrap().env(ROLE, role).env(GANG, gang);
    spec.command = command.env("SECRET", SECRET);
    spec.room = GangRequest::new("test", 1, Resources::cpus(1)).placement(Placement::Spread);
    spec
}

/// Follows a driver's log.
struct Watched {
    cluster: Cluster,
    engine: KubernetesEngine,
    spec: JobSpec,
    from: u64,
    log: String,
}

impl Watched {
    async fn submit(nodes: usize, spec: JobSpec) -> Self {
        let cluster = Cluster::start(nodes).await;
        let engine = KubernetesEngine::with_client(config(), cluster.user().await);
        conformance::submit(&engine, &spec).await;
        Self { cluster, engine, spec, from: 0, log: String::new() }
    }

    /// Waits for a line that begins so, and returns what follows there.
    async fn line(&mut self, start: &str) -> String {
        let since = Instant::now();
        loop {
            let whole = self.log.rfind('\n').map_or("", |end| &self.log[..end]);
            if let Some(line) = whole.lines().find_map(|line| line.strip_prefix(start)) {
                return line.to_owned();
            }
            assert!(since.elapsed() < PATIENCE, "`{start}` was awaited; the log is\n{}", self.log);
            let part = self.engine.logs(&self.spec.id, self.from, Duration::from_secs(1)).await.unwrap();
            assert!(!part.end, "`{start}` was awaited, the job is over; the log is\n{}", self.log);
            self.from = part.next;
            self.log.push_str(&String::from_utf8_lossy(&part.bytes));
        }
    }

    /// The node and the process of a rank.
    async fn rank(&mut self, rank: usize, attempt: u32) -> (String, Pid) {
        let line = self.line(&format!("rank {rank} of {attempt} on ")).await;
        let (node, pid) = line.split_once(' ').unwrap();
        (node.to_owned(), Pid::from_raw(pid.parse().unwrap()).unwrap())
    }

    /// How long after this moment the attempt stepped.
    async fn recovered(&mut self, attempt: u32, since: u128) -> Duration {
        let at: u128 = self.line(&format!("stepping {attempt} at ")).await.parse().unwrap();
        let took = Duration::from_millis((at - since) as u64);
        let failed = self.line(&format!("failed {} at ", attempt - 1)).await;
        eprintln!("a new gang stepped after {took:?}; failed at {failed}");
        took
    }
}

fn alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

async fn gone(cluster: &Cluster, pids: &[Pid]) {
    cluster.eventually("the workers' end", "pods", |_| !pids.iter().any(|pid| alive(*pid))).await;
}

async fn spawner_conforms() {
    let mut watched = Watched::submit(2, job("conform", "2 1 pack")).await;
    watched.line("it conforms").await;
    assert_eq!(conformance::ended(&watched.engine, &watched.spec.id).await, Reason::Succeeded);
    // It gave back all it had.
    let left = watched.cluster.pods().await;
    assert_eq!(left.len(), 1, "{left:#?}");
}

async fn worker_killed() {
    let mut watched = Watched::submit(2, job("driver", "2 1 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let (node, pid) = watched.rank(1, 1).await;
    let since = now();
    kill_process(pid, Signal::KILL).unwrap();
    let took = watched.recovered(2, since).await;
    let failed = watched.line("failed 1 at ").await;
    assert!(
        failed.contains(&format!("on {node}: rank 1 (slot 1, attempt 1) was killed by signal 9")),
        "{failed}"
    );
    assert!(took < RECOVERED, "{took:?}");
}

async fn node_fails(how: fn(&Kubelet)) {
    let mut watched = Watched::submit(3, job("driver", "2 2 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let driver =
        watched.engine.describe(std::slice::from_ref(&watched.spec.id)).await.unwrap()[0].nodes.clone();
    let mut victim = watched.rank(1, 1).await.0;
    if victim == driver {
        victim = watched.rank(0, 1).await.0;
    }
    assert_ne!(victim, driver);
    let since = now();
    how(watched.cluster.node(&victim));
    let took = watched.recovered(2, since).await;
    assert_ne!(watched.rank(0, 2).await.0, victim);
    assert_ne!(watched.rank(1, 2).await.0, victim);
    assert!(took < RECOVERED, "{took:?}");
    // The node never says a word, and still nothing of the first gang stays in the cluster's books.
    let elsewhere = |pods: &[Value]| pods.iter().all(|pod| pod["spec"]["nodeName"] != victim.as_str());
    watched.cluster.eventually("the dead pod's end", "pods", elsewhere).await;
}

/// Neither drivers nor workers need the API server while they run.
async fn server_away() {
    let mut watched = Watched::submit(2, job("driver", "2 1 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let (node, pid) = watched.rank(1, 1).await;
    watched.cluster.away(true);
    // Longer than heartbeats may stay away.
    tokio::time::sleep(Duration::from_secs(8)).await;
    watched.cluster.away(false);
    assert!(alive(pid));
    let since = now();
    kill_process(pid, Signal::KILL).unwrap();
    let took = watched.recovered(2, since).await;
    let failed = watched.line("failed 1 at ").await;
    assert!(
        failed.contains(&format!("on {node}: rank 1 (slot 1, attempt 1) was killed by signal 9")),
        "{failed}"
    );
    assert!(took < RECOVERED, "{took:?}");
}

async fn driver_killed() {
    let mut watched = Watched::submit(2, job("driver", "2 1 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let ranks = [watched.rank(0, 1).await.1, watched.rank(1, 1).await.1];
    let driver = watched.line("driver ").await.parse().unwrap();
    kill_process(Pid::from_raw(driver).unwrap(), Signal::KILL).unwrap();
    let reason = conformance::ended(&watched.engine, &watched.spec.id).await;
    assert_eq!(reason, Reason::UserError { code: 137 });
    gone(&watched.cluster, &ranks).await;
    // Whoever asked has taken their pods away.
    watched.cluster.eventually("no worker's pod", "pods", |pods| pods.len() == 1).await;
}

async fn cancelled() {
    let mut watched = Watched::submit(2, job("driver", "2 1 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let ranks = [watched.rank(0, 1).await.1, watched.rank(1, 1).await.1];
    let other = KubernetesEngine::with_client(config(), watched.cluster.user().await);
    let status = other.cancel(&watched.spec.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(status.state, JobState::Ended(Reason::Cancelled), "{status:?}");
    gone(&watched.cluster, &ranks).await;
}

async fn deleted() {
    let mut watched = Watched::submit(2, job("driver", "2 1 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let ranks = [watched.rank(0, 1).await.1, watched.rank(1, 1).await.1];
    watched.cluster.delete("services", watched.spec.id.as_str()).await;
    gone(&watched.cluster, &ranks).await;
    for kind in ["pods", "services"] {
        watched.cluster.eventually("an empty namespace", kind, <[Value]>::is_empty).await;
    }
    let id = watched.spec.id.to_string();
    let not_its =
        |all: &[Value]| all.iter().all(|one| one["metadata"]["labels"]["regatta/job"] != id.as_str());
    watched.cluster.eventually("no secrets of it", "secrets", not_its).await;
}

async fn secrets() {
    let mut watched = Watched::submit(2, job("driver", "2 1 strict_spread")).await;
    watched.line("stepping 1 at ").await;
    let (_, pid) = watched.rank(1, 1).await;
    let own = std::fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap();
    assert!(String::from_utf8_lossy(&own).contains(SECRET), "the worker has what it was given");
    for kind in ["pods", "services"] {
        let shown = serde_json::to_string(&watched.cluster.objects(kind).await).unwrap();
        assert!(!shown.is_empty() && !shown.contains(SECRET) && !shown.contains("REGATTA_TOKEN"), "{shown}");
    }
    let kept = serde_json::to_string(&watched.cluster.objects("secrets").await).unwrap();
    // As it was given, or in base64.
    assert!(kept.contains(SECRET) || kept.contains("YS1zZWNyZXQtdGhhdC1ub2JvZHktbWF5LXNlZQ"), "{kept}");
}

/// From submitting to the first worker's first step.
async fn first_line() {
    let since = now();
    let mut watched = Watched::submit(2, job("driver", "2 1 spread")).await;
    let at: u128 = watched.line("stepping 1 at ").await.parse().unwrap();
    eprintln!(
        "the workers stepped {:?} after the job was submitted",
        Duration::from_millis((at - since) as u64)
    );
    assert!(at - since < 10_000, "{}", at - since);
}
