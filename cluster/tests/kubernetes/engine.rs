//! The client's side: what becomes of a driver, and what is said where the API server refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::{Client, Config};
use regatta_cluster::engine::{Engine, JobId, JobSpec, JobState, conformance};
use regatta_cluster::kubernetes::{KubernetesConfig, KubernetesEngine};
use regatta_cluster::{Bytes, Error, GangRequest, Reason, Resources};
use serde_json::{Value, json};

use super::Test;
use super::cluster::Cluster;
use super::drill::config;
use super::server::Fault;

pub(crate) const ALL: [(&str, Test); 14] = [
    ("the_engine_conforms", || Box::pin(conforms())),
    ("a_wrong_token_is_refused_and_a_missing_right_is_named", || Box::pin(rights())),
    ("what_no_node_could_hold_is_refused_at_once", || Box::pin(no_node())),
    ("what_waits_for_room_says_so_in_the_schedulers_words", || Box::pin(no_room())),
    ("an_image_that_cannot_be_pulled_is_told", || Box::pin(no_image())),
    ("a_time_limit_is_a_preemption_with_notice", || Box::pin(time_limit())),
    ("a_driver_whose_pod_was_deleted_is_forgotten_and_not_run_again", || Box::pin(deleted())),
    ("refusals_say_what_to_do", || Box::pin(refusals())),
    ("a_client_that_died_while_submitting_is_no_hindrance", || Box::pin(half_submitted())),
    ("an_evicted_driver_was_preempted", || Box::pin(evicted())),
    ("a_driver_whose_node_is_lost_is_lost_with_it", || Box::pin(node_lost())),
    ("a_driver_that_its_node_does_not_end_is_lost_with_it", || Box::pin(overdue())),
    ("a_driver_that_took_too_much_memory_is_told_its_limit", || Box::pin(out_of_memory())),
    ("a_server_that_does_not_answer_is_an_error_in_time", || Box::pin(silence())),
];

const POLITE: &str = "trap 'echo told; exit 75' TERM; echo ready; while :; do sleep 0.05; done";

async fn conforms() {
    let cluster = Cluster::start(1).await;
    conformance::all(Arc::new(KubernetesEngine::with_client(config(), cluster.user().await))).await;
}

async fn started(cluster: &Cluster, spec: &JobSpec) -> KubernetesEngine {
    let engine = KubernetesEngine::with_client(config(), cluster.user().await);
    conformance::submit(&engine, spec).await;
    conformance::logged(&engine, &spec.id, "ready").await;
    engine
}

async fn state(engine: &KubernetesEngine, id: &JobId) -> JobState {
    engine.describe(std::slice::from_ref(id)).await.unwrap()[0].state.clone()
}

/// Waits until a job that is queued says this of why.
async fn waits(engine: &KubernetesEngine, id: &JobId, why: &str) {
    let since = Instant::now();
    loop {
        let state = state(engine, id).await;
        let JobState::Queued(said) = &state else { panic!("{state:?}") };
        if said.contains(why) {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(30), "{said}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn refused(cluster: &Cluster, config: KubernetesConfig, client: Client, spec: &JobSpec) -> Error {
    let since = Instant::now();
    let error = KubernetesEngine::with_client(config, client).submit(spec).await.unwrap_err();
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert!(cluster.pods().await.is_empty());
    error
}

async fn rights() {
    let cluster = Cluster::start(1).await;
    let spec = conformance::job("exit 0");
    let wrong = cluster.with_token("another-token").await;
    let error = refused(&cluster, config(), wrong, &spec).await.to_string();
    assert!(error.contains("Unauthorized") && error.contains("token"), "{error}");
    // A driver may not submit drivers.
    let driver = cluster.driver().await;
    let error = refused(&cluster, config(), driver, &spec).await.to_string();
    assert!(error.contains("cannot create resource \"services\"") && error.contains("auth can-i"), "{error}");
}

async fn no_node() {
    let cluster = Cluster::start(2).await;
    let mut spec = conformance::job("exit 0");
    spec.room = GangRequest::new("huge", 3, Resources::cpus(2));
    let error = refused(&cluster, config(), cluster.user().await, &spec).await;
    assert!(matches!(&error, Error::Infeasible(why) if why.would_fit == 2), "{error}");
    assert!(cluster.objects("services").await.is_empty());
    // Where nodes are made as they are needed, it waits for them.
    let growing = KubernetesConfig { autoscaled: true, ..config() };
    let engine = KubernetesEngine::with_client(growing, cluster.user().await);
    conformance::submit(&engine, &spec).await;
    conformance::ended(&engine, &spec.id).await;
    // What Kubernetes cannot give at all, and what it cannot name.
    spec = conformance::job("exit 0");
    spec.room.per_worker = Resources::none().with_gpu_thousandths(500);
    let error =
        KubernetesEngine::with_client(config(), cluster.user().await).submit(&spec).await.unwrap_err();
    assert!(error.to_string().contains("whole"), "{error}");
    spec.id = JobId::new("7-of-nine").unwrap();
    spec.room.per_worker = Resources::cpus(1);
    let error = engine.submit(&spec).await.unwrap_err();
    assert!(error.to_string().contains("begins with a letter"), "{error}");
}

async fn no_room() {
    let cluster = Cluster::start(1).await;
    let large = KubernetesConfig { driver: Resources::cpus(2), ..config() };
    let engine = KubernetesEngine::with_client(large, cluster.user().await);
    let (first, second) = (conformance::job(POLITE), conformance::job("echo second"));
    conformance::submit(&engine, &first).await;
    conformance::logged(&engine, &first.id, "ready").await;
    conformance::submit(&engine, &second).await;
    waits(&engine, &second.id, "Insufficient cpu").await;
    // One that waits can be cancelled, and then does not run when there is room.
    let third = conformance::job("echo third");
    conformance::submit(&engine, &third).await;
    let cancelled = engine.cancel(&third.id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(cancelled.state, JobState::Ended(Reason::Cancelled));
    engine.cancel(&first.id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(conformance::ended(&engine, &second.id).await, Reason::Succeeded);
    assert!(!engine.submit(&third).await.unwrap().new);
    assert_eq!(state(&engine, &third.id).await, JobState::Ended(Reason::Cancelled));
}

async fn no_image() {
    let cluster = Cluster::start(1).await;
    let wrong = KubernetesConfig { image: "missing/image:1".into(), ..config() };
    let engine = KubernetesEngine::with_client(wrong, cluster.user().await);
    let spec = conformance::job("exit 0");
    conformance::submit(&engine, &spec).await;
    waits(&engine, &spec.id, "missing/image:1").await;
    engine.cancel(&spec.id, Duration::ZERO).await.unwrap();
}

async fn refusals() {
    for (code, message, advice) in [
        (
            403,
            "pods \"x\" is forbidden: exceeded quota: team, requested: cpu=8, limited: cpu=4",
            "resourcequota",
        ),
        (403, "pods \"x\" is forbidden: violates PodSecurity \"restricted:latest\"", "`pod` and `container`"),
        (422, "Pod \"x\" is invalid: spec.priority: Forbidden", "Kubernetes configuration"),
        (404, "namespaces \"here\" not found", "kubectl get namespaces"),
        (500, "etcdserver: request timed out", "etcdserver"),
    ] {
        let cluster = Cluster::start(1).await;
        let Some(server) = cluster.small() else { return real_refusals(&cluster).await };
        server.fault(Fault { method: "POST", path: "/pods", code, message: message.into() });
        let error =
            refused(&cluster, config(), cluster.user().await, &conformance::job("exit 0")).await.to_string();
        assert!(error.contains(message) && error.contains(advice), "{error}");
    }
    let error =
        KubernetesEngine::new(KubernetesConfig::default()).submit(&conformance::job("")).await.unwrap_err();
    assert!(error.to_string().contains("engine.Kubernetes.image"), "{error}");
}

/// The same, of those that a real server can be brought to.
async fn real_refusals(cluster: &Cluster) {
    let spec = conformance::job("exit 0");
    let never = KubernetesConfig { pull_policy: Some("Sometimes".into()), ..config() };
    let error = refused(cluster, never, cluster.user().await, &spec).await.to_string();
    assert!(error.contains("Unsupported value") && error.contains("Kubernetes configuration"), "{error}");
    let nowhere = KubernetesConfig { namespace: Some("nowhere".into()), ..config() };
    let error = refused(cluster, nowhere, cluster.admin().await, &spec).await.to_string();
    assert!(error.contains("\"nowhere\" not found") && error.contains("kubectl get namespaces"), "{error}");
    cluster.no_quota().await;
    let error = refused(cluster, config(), cluster.user().await, &spec).await.to_string();
    assert!(error.contains("exceeded quota: team") && error.contains("resourcequota"), "{error}");
}

async fn half_submitted() {
    let cluster = Cluster::start(1).await;
    let spec = conformance::job("echo once");
    // The service and the secret of a client that got no further.
    let metadata = json!({
        "name": spec.id.as_str(), "labels": { "regatta/job": spec.id.as_str(), "regatta/role": "job" },
        "annotations": { "regatta/labels": "{}" },
    });
    let headless = json!({ "clusterIP": "None" });
    let record = json!({ "metadata": metadata, "spec": headless });
    cluster.create("services", record).await;
    let engine = KubernetesEngine::with_client(config(), cluster.user().await);
    let queued = state(&engine, &spec.id).await;
    assert!(matches!(&queued, JobState::Queued(_)), "{queued:?}");
    conformance::submit(&engine, &spec).await;
    assert_eq!(conformance::log(&engine, &spec.id).await, "once\n");
    // A service of somebody else's is not taken for a job's.
    let other = conformance::job("exit 0");
    let theirs = json!({ "metadata": { "name": other.id.as_str() }, "spec": headless });
    cluster.create("services", theirs).await;
    let error = engine.submit(&other).await.unwrap_err().to_string();
    assert!(error.contains("no job's") && error.contains("another name"), "{error}");
}

async fn time_limit() {
    let cluster = Cluster::start(1).await;
    let mut spec = conformance::job(POLITE);
    (spec.time_limit, spec.notice) = (Some(Duration::from_secs(31)), Duration::from_secs(30));
    let engine = started(&cluster, &spec).await;
    let since = Instant::now();
    assert_eq!(conformance::ended(&engine, &spec.id).await, Reason::Preempted);
    assert!(since.elapsed() < Duration::from_secs(25), "it was told {:?} after its start", since.elapsed());
    assert!(conformance::log(&engine, &spec.id).await.contains("told"));
}

async fn evicted() {
    let cluster = Cluster::start(1).await;
    let spec = conformance::job("echo ready; sleep 1000");
    let engine = started(&cluster, &spec).await;
    let ended =
        json!({ "name": "regatta", "state": { "terminated": { "exitCode": 137, "reason": "Error" } } });
    let why = "The node was low on resource: ephemeral-storage.";
    let failed =
        json!({ "phase": "Failed", "reason": "Evicted", "message": why, "containerStatuses": [ended] });
    cluster.tell(spec.id.as_str(), failed).await;
    let status = engine.describe(std::slice::from_ref(&spec.id)).await.unwrap().remove(0);
    assert_eq!(status.state, JobState::Ended(Reason::Preempted));
    assert!(status.word.contains("Evicted") && status.word.contains("ephemeral-storage"), "{}", status.word);
}

async fn node_lost() {
    let cluster = Cluster::start(1).await;
    let spec = conformance::job("echo ready; sleep 1000");
    let engine = started(&cluster, &spec).await;
    cluster.node("n1").kill();
    // All that the cluster will ever say: the node's own word is missing.
    cluster.delete("pods", spec.id.as_str()).await;
    let why = json!({ "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager" });
    cluster.tell(spec.id.as_str(), json!({ "conditions": [why] })).await;
    assert_eq!(state(&engine, &spec.id).await, JobState::Ended(Reason::NodeLost));
}

/// A cluster before 1.26 says no more of a lost node's pod than that it ought to be gone.
async fn overdue() {
    let cluster = Cluster::start(1).await;
    let spec = conformance::job("echo ready; sleep 1000");
    let engine = started(&cluster, &spec).await;
    cluster.node("n1").kill();
    cluster.delete_within(spec.id.as_str(), 1).await;
    assert_eq!(state(&engine, &spec.id).await, JobState::Running);
    if let Some(server) = cluster.small() {
        // Minutes later.
        let key = ("pods".to_owned(), "default".to_owned(), spec.id.to_string());
        let then = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        server.with(|store| store.patch(&key, then)).unwrap();
    }
    let since = Instant::now();
    let lost = JobState::Ended(Reason::NodeLost);
    while state(&engine, &spec.id).await != lost && since.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(state(&engine, &spec.id).await, lost);
}

async fn out_of_memory() {
    let cluster = Cluster::start(1).await;
    let config = KubernetesConfig { driver: Resources::none().with_memory(Bytes::mib(256)), ..config() };
    let engine = KubernetesEngine::with_client(config, cluster.user().await);
    let spec = conformance::job("echo ready; sleep 1000");
    conformance::submit(&engine, &spec).await;
    conformance::logged(&engine, &spec.id, "ready").await;
    let ended =
        json!({ "name": "regatta", "state": { "terminated": { "exitCode": 137, "reason": "OOMKilled" } } });
    cluster.tell(spec.id.as_str(), json!({ "phase": "Failed", "containerStatuses": [ended] })).await;
    let (limit, used) = (Bytes::mib(256), Bytes::mib(256));
    assert_eq!(state(&engine, &spec.id).await, JobState::Ended(Reason::OutOfMemory { limit, used }));
}

async fn deleted() {
    let cluster = Cluster::start(1).await;
    let spec = conformance::job(POLITE);
    let engine = started(&cluster, &spec).await;
    // As a drain does.
    cluster.delete("pods", spec.id.as_str()).await;
    cluster.eventually("the end of the pod", "pods", <[Value]>::is_empty).await;
    assert_eq!(state(&engine, &spec.id).await, JobState::Forgotten);
    assert!(!engine.submit(&spec).await.unwrap().new);
    assert!(cluster.pods().await.is_empty());
    assert!(engine.logs(&spec.id, 0, Duration::ZERO).await.unwrap().end);
}

async fn silence() {
    // It takes connections, and says nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let client = Client::try_from(Config::new(address)).unwrap();
    let engine = KubernetesEngine::with_client(KubernetesConfig { api_seconds: 1.0, ..config() }, client);
    let error = engine.submit(&conformance::job("exit 0")).await.unwrap_err().to_string();
    assert!(error.contains("no answer within 1s"), "{error}");
    drop(listener);
    let refused = Client::try_from(Config::new("http://127.0.0.1:1".parse().unwrap())).unwrap();
    let engine = KubernetesEngine::with_client(config(), refused);
    let error = engine.submit(&conformance::job("exit 0")).await.unwrap_err().to_string();
    assert!(error.contains("kubectl cluster-info"), "{error}");
}
