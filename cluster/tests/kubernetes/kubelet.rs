//! A node: takes the pods that are bound to it from the API server and runs each one's container as a process of this host.
//!
//! It does what a real one does where the engine depends on it: a container waits for its secrets and is looked at again
//! when its pod changes; SIGTERM goes to the first process alone, SIGKILL to all; deadlines keep the pod, deletions do not.

use std::collections::{BTreeMap, HashMap};
use std::fs::OpenOptions;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Path, RawQuery};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::core::v1::{EnvVar, Pod, Secret};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::logs::{follow, serve};
use super::real;

/// How often a node asks for its pods, if nothing happens on it.
const TICK: Duration = Duration::from_millis(40);
/// The same where a real API server has to answer.
const REAL_TICK: Duration = Duration::from_millis(200);
/// How often a node says that it is well.
const BEAT: Duration = Duration::from_secs(4);
/// When a container that could not be made is made anew, if its pod does not change.
const AGAIN: Duration = Duration::from_secs(10);

/// Where a node is and what it has.
pub(crate) struct Site {
    pub(crate) node: String,
    pub(crate) client: Client,
    /// Where the logs of containers lie.
    pub(crate) logs: PathBuf,
    /// How a driver on it reaches the API server.
    pub(crate) kubeconfig: PathBuf,
    /// The API server is a real one: it asks nodes for logs and for signs of life.
    pub(crate) real: bool,
}

pub(crate) struct Kubelet {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    /// Where the API server asks for logs.
    served: Option<JoinHandle<()>>,
}

struct Shared {
    site: Site,
    containers: Mutex<HashMap<String, Container>>,
    wake: Notify,
    /// Nothing more is heard of it.
    dead: AtomicBool,
}

type Labels = Option<BTreeMap<String, String>>;

#[derive(Default)]
struct Container {
    /// Its pod's name.
    pod: String,
    pid: Option<Pid>,
    exit: Option<i32>,
    since: Option<Instant>,
    /// When it is killed, having been told.
    ends: Option<Instant>,
    overdue: bool,
    /// The labels its pod had when it could not be made, and when that was.
    refused: Option<(Labels, Instant)>,
}

impl Kubelet {
    /// Makes itself known, with so many CPUs, and tends what it is given.
    pub(crate) async fn start(site: Site, cpus: u32) -> Self {
        let (containers, wake, dead) = (Mutex::default(), Notify::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { site, containers, wake, dead });
        let mut node = described(&shared.site.node, cpus);
        let (mut tasks, mut serves) = (Vec::new(), None);
        if shared.site.real {
            let of = shared.clone();
            let routes = Router::new().route(
                "/containerLogs/{namespace}/{pod}/{container}",
                axum::routing::get(async move |Path(path), RawQuery(query)| of.log(path, query)),
            );
            let (port, served) = serve(routes).await;
            node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "127.0.0.1" }]);
            node["status"]["daemonEndpoints"] = json!({ "kubeletEndpoint": { "Port": port } });
            serves = Some(served);
        }
        real::send(&shared.site.client, "POST", "/api/v1/nodes", node).await.unwrap();
        if shared.site.real {
            tasks.push(tokio::spawn(shared.clone().live()));
        }
        tasks.push(tokio::spawn(shared.clone().run()));
        Self { shared, tasks, served: serves }
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.site.node
    }

    fn all(&self, signal: Signal) {
        for container in self.shared.containers.lock().unwrap().values() {
            if let Some(pid) = container.pid {
                kill_process_group(pid, signal).ok();
            }
        }
    }

    /// It serves no logs any more.
    pub(crate) fn mute(&self) {
        self.served.iter().for_each(JoinHandle::abort);
    }

    fn end(&self) {
        self.mute();
        self.shared.dead.store(true, Ordering::Relaxed);
        self.tasks.iter().for_each(JoinHandle::abort);
    }

    /// The power goes.
    pub(crate) fn kill(&self) {
        self.end();
        self.all(Signal::KILL);
    }

    /// Everything stands still, and every connection stays open.
    pub(crate) fn stop(&self) {
        self.end();
        self.all(Signal::STOP);
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Shared {
    async fn run(self: Arc<Self>) {
        let pods: Api<Pod> = Api::all(self.site.client.clone());
        // What the API server remembers will do: a real one would have to ask its store.
        let mine = ListParams::default().fields(&format!("spec.nodeName={}", self.site.node)).match_any();
        let tick = if self.site.real { REAL_TICK } else { TICK };
        loop {
            if let Ok(list) = pods.list(&mine).await {
                for pod in list.items {
                    self.clone().tend(&pod).await;
                }
            }
            let _ = tokio::time::timeout(tick, self.wake.notified()).await;
        }
    }

    /// Says every few seconds that it is well.
    async fn live(self: Arc<Self>) {
        loop {
            let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            let well = json!({ "status": { "conditions": [
                { "type": "Ready", "status": "True", "reason": "Well", "lastHeartbeatTime": now },
            ] } });
            let path = format!("/api/v1/nodes/{}/status", self.site.node);
            let _ = real::send(&self.site.client, "PATCH", &path, well).await;
            tokio::time::sleep(BEAT).await;
        }
    }

    /// What a container wrote, as the API server asks for it.
    fn log(self: &Arc<Self>, (_, pod, _): (String, String, String), query: Option<String>) -> Response {
        let path = self.site.logs.join(&pod);
        if !path.exists() {
            return (StatusCode::NOT_FOUND, "it has not begun").into_response();
        }
        let follows = query.is_some_and(|query| query.split('&').any(|part| part == "follow=true"));
        let node = self.clone();
        let over = move || {
            let all = node.containers.lock().unwrap();
            let of_pod = all.values().find(|container| container.pod == pod);
            // One that lost its power does not say so.
            !node.dead.load(Ordering::Relaxed) && of_pod.is_none_or(|container| container.exit.is_some())
        };
        follow(path, follows, over).into_response()
    }

    async fn tend(self: Arc<Self>, pod: &Pod) {
        let uid = pod.metadata.uid.clone().unwrap();
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let spec = pod.spec.as_ref().unwrap();
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let (runs, exit) = {
            let mut all = self.containers.lock().unwrap();
            let container = all.entry(uid.clone()).or_default();
            (container.pid.is_some() && container.exit.is_none(), container.exit)
        };
        let grace = match leaving {
            true => pod.metadata.deletion_grace_period_seconds,
            false => spec.termination_grace_period_seconds,
        };
        let grace = Duration::from_secs(grace.unwrap_or(30) as u64);
        if runs {
            let deadline = spec.active_deadline_seconds.map(|seconds| Duration::from_secs(seconds as u64));
            self.end_if_due(&uid, leaving, deadline, grace);
            return;
        }
        if let Some(code) = exit.filter(|_| phase != "Succeeded" && phase != "Failed") {
            self.tell_end(pod, &uid, code).await;
        }
        if leaving {
            let now = DeleteParams::default().grace_period(0);
            let _ = self.pods(pod).delete(&name(pod), &now).await;
            self.containers.lock().unwrap().remove(&uid);
        } else if exit.is_none() && phase == "Pending" {
            self.begin(pod, &uid).await;
        }
    }

    fn pods(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.site.client.clone(), pod.metadata.namespace.as_deref().unwrap())
    }

    /// Tells a container to end when its pod is to go or its time is up, and kills it after its grace.
    fn end_if_due(&self, uid: &str, leaving: bool, deadline: Option<Duration>, grace: Duration) {
        let mut all = self.containers.lock().unwrap();
        let Some(container) = all.get_mut(uid) else { return };
        let (Some(pid), Some(since)) = (container.pid, container.since) else { return };
        let overdue = deadline.is_some_and(|deadline| since.elapsed() >= deadline);
        if !leaving && !overdue {
            return;
        }
        container.overdue |= overdue;
        let told = container.ends.is_some();
        let ends = container.ends.map_or(Instant::now() + grace, |ends| ends.min(Instant::now() + grace));
        container.ends = Some(ends);
        if !told {
            kill_process(pid, Signal::TERM).ok();
        }
        if ends <= Instant::now() {
            kill_process_group(pid, Signal::KILL).ok();
        }
    }

    async fn begin(self: &Arc<Self>, pod: &Pod, uid: &str) {
        let labels = pod.metadata.labels.clone();
        let refused =
            self.containers.lock().unwrap().get(uid).and_then(|container| container.refused.clone());
        if refused.is_some_and(|(at, when)| at == labels && when.elapsed() < AGAIN) {
            return;
        }
        let image = pod.spec.as_ref().unwrap().containers[0].image.clone().unwrap_or_default();
        let made = match image.starts_with("missing/") {
            true => Err(("ImagePullBackOff", format!("Back-off pulling image \"{image}\": not found"))),
            false => self.variables(pod).await.map_err(|why| ("CreateContainerConfigError", why)),
        };
        match made {
            Ok(variables) => self.run_container(pod, uid, variables).await,
            Err((reason, message)) => {
                let state = json!({ "waiting": { "reason": reason, "message": message } });
                self.tell(pod, json!({ "containerStatuses": [status(pod, &state)] })).await;
                let mut all = self.containers.lock().unwrap();
                all.entry(uid.to_owned()).or_default().refused = Some((labels, Instant::now()));
            }
        }
    }

    async fn variables(&self, pod: &Pod) -> Result<BTreeMap<String, String>, String> {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let secrets: Api<Secret> =
            Api::namespaced(self.site.client.clone(), pod.metadata.namespace.as_deref().unwrap());
        let read = async |name: &str| {
            let secret = secrets.get(name).await.map_err(|_| format!("secret \"{name}\" not found"))?;
            let data = secret.data.unwrap_or_default().into_iter();
            let data = data.map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()));
            Ok::<BTreeMap<_, _>, String>(
                secret.string_data.unwrap_or_default().into_iter().chain(data).collect(),
            )
        };
        let mut variables = BTreeMap::from([
            ("PATH".to_owned(), std::env::var("PATH").unwrap_or_default()),
            ("KUBERNETES_SERVICE_HOST".to_owned(), "127.0.0.1".to_owned()),
        ]);
        let spec = pod.spec.as_ref().unwrap();
        if spec.service_account_name.is_some() && spec.automount_service_account_token != Some(false) {
            variables.insert("KUBECONFIG".into(), self.site.kubeconfig.display().to_string());
        }
        if let Ok(folder) = std::env::var(real::FOLDER) {
            variables.insert(real::FOLDER.into(), folder);
        }
        for source in container.env_from.iter().flatten() {
            variables.extend(read(&source.secret_ref.as_ref().unwrap().name).await?);
        }
        for EnvVar { name, value, value_from } in container.env.iter().flatten() {
            let source = value_from.as_ref();
            let field =
                source.and_then(|source| source.field_ref.as_ref()).map(|field| field.field_path.as_str());
            let value = match (field, source.and_then(|source| source.secret_key_ref.as_ref())) {
                (Some("metadata.name"), _) => pod.metadata.name.clone().unwrap(),
                (Some("metadata.uid"), _) => pod.metadata.uid.clone().unwrap(),
                (Some("metadata.namespace"), _) => pod.metadata.namespace.clone().unwrap(),
                (Some("status.podIP"), _) => "127.0.0.1".to_owned(),
                (Some(other), _) => panic!("a field that no node knows: {other}"),
                (None, Some(key)) => read(&key.name).await?.remove(&key.key).ok_or("no such key")?,
                (None, None) => value.clone().unwrap_or_default(),
            };
            variables.insert(name.clone(), value);
        }
        Ok(variables)
    }

    async fn run_container(self: &Arc<Self>, pod: &Pod, uid: &str, variables: BTreeMap<String, String>) {
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let words = container.command.clone().unwrap();
        let of_pod = name(pod);
        let log = OpenOptions::new().create(true).append(true).open(self.site.logs.join(&of_pod)).unwrap();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().envs(variables).process_group(0);
        command.current_dir(container.working_dir.clone().unwrap_or_else(|| "/".into()));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let pid = Pid::from_child(&child);
        {
            let mut all = self.containers.lock().unwrap();
            let container = all.entry(uid.to_owned()).or_default();
            (container.pid, container.since) = (Some(pid), Some(Instant::now()));
            container.pod.clone_from(&of_pod);
        }
        let (shared, uid) = (self.clone(), uid.to_owned());
        std::thread::spawn(move || {
            let ended = child.wait().unwrap();
            // With the first process of a container go all others.
            kill_process_group(pid, Signal::KILL).ok();
            let code = ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0));
            if let Some(container) = shared.containers.lock().unwrap().get_mut(&uid) {
                container.exit = Some(code);
            }
            shared.wake.notify_one();
        });
        let state = json!({ "running": { "startedAt": "2026-01-01T00:00:00Z" } });
        self.tell(
            pod,
            json!({ "phase": "Running", "podIP": "127.0.0.1", "containerStatuses": [status(pod, &state)] }),
        )
        .await;
    }

    async fn tell_end(&self, pod: &Pod, uid: &str, code: i32) {
        let overdue = self.containers.lock().unwrap().get(uid).is_some_and(|container| container.overdue);
        let log = std::fs::read(self.site.logs.join(name(pod))).unwrap_or_default();
        let tail = String::from_utf8_lossy(&log[log.len().saturating_sub(2048)..]).into_owned();
        let tail = if code == 0 { String::new() } else { tail };
        let reason = if code == 0 { "Completed" } else { "Error" };
        let ended = json!({ "terminated": { "exitCode": code, "reason": reason, "message": tail } });
        let phase = if code == 0 && !overdue { "Succeeded" } else { "Failed" };
        let mut new = json!({ "phase": phase, "containerStatuses": [status(pod, &ended)] });
        if overdue {
            new["reason"] = "DeadlineExceeded".into();
        }
        self.tell(pod, new).await;
    }

    async fn tell(&self, pod: &Pod, status: Value) -> Option<Pod> {
        let patch = json!({ "status": status });
        self.pods(pod).patch_status(&name(pod), &PatchParams::default(), &Patch::Merge(&patch)).await.ok()
    }
}

fn described(name: &str, cpus: u32) -> Value {
    let room =
        json!({ "cpu": cpus.to_string(), "memory": "4294967296", "pods": "50", "nvidia.com/gpu": "2" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap()
}

fn status(pod: &Pod, state: &Value) -> Value {
    let container = &pod.spec.as_ref().unwrap().containers[0];
    json!({ "name": container.name, "image": container.image, "imageID": "", "ready": true, "restartCount": 0, "state": state })
}
