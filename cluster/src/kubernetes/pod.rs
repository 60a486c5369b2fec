//! The objects that go to the API server, as they are written: the job's service, its secret, the pods.
//!
//! A headless **service** of the job's name is the job's record: it makes submitting idempotent, holds its labels, and owns
//! the driver's pod. It gives every pod a name in the cluster's DNS besides. The driver's pod owns its workers' pods, so that
//! deleting the service, or the driver, deletes everything under it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::config::{KubernetesConfig, Volume};
use super::quantity::quantities;
use super::script;
use crate::engine::{JobId, JobSpec};
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::request::GangRequest;
use crate::resource::Resources;

/// The labels by which everything of a job is found.
pub(super) const MANAGED: (&str, &str) = ("app.kubernetes.io/managed-by", "regatta");
pub(super) const JOB: &str = "regatta/job";
pub(super) const ROLE: &str = "regatta/role";
pub(super) const GANG: &str = "regatta/gang";
pub(super) const SPAWNER: &str = "regatta/spawner";
/// Annotations.
pub(super) const LABELS: &str = "regatta/labels";
pub(super) const CANCELLED: &str = "regatta/cancelled";
pub(super) const PLACED: &str = "regatta/placed";
/// What containers are called.
pub(super) const CONTAINER: &str = "regatta";
/// Where nodes' names stand among their labels, which for affinities is what a host is.
const HOST: &str = "kubernetes.io/hostname";

/// What a driver's pod finds in its environment about itself.
pub(super) const POD: &str = "REGATTA_POD";
pub(super) const POD_UID: &str = "REGATTA_POD_UID";
pub(super) const POD_IP: &str = "REGATTA_POD_IP";
pub(super) const NAMESPACE: &str = "REGATTA_NAMESPACE";
pub(super) const JOB_ID: &str = "REGATTA_JOB";
/// The address that other ranks dial.
const HOST_ADDR: &str = "REGATTA_HOST_ADDR";
/// The variable that holds what a worker's shell does.
pub(super) const STEP: &str = "REGATTA_STEP";

/// Who owns an object: what it is, its name, its unique id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) uid: String,
}

impl Owner {
    pub(super) fn reference(&self) -> Value {
        json!([{ "apiVersion": "v1", "kind": self.kind, "name": self.name, "uid": self.uid }])
    }
}

/// Labels of everything of a job, with this role.
pub(super) fn labels(job: &str, role: &str) -> Value {
    json!({ MANAGED.0: MANAGED.1, JOB: job, ROLE: role })
}

/// The record of a job, and the name of its pods in the DNS.
pub(super) fn service(spec: &JobSpec) -> Result<Value> {
    // Names in the DNS begin with a letter, on clusters that are not new.
    if !spec.id.as_str().starts_with(|first: char| first.is_ascii_lowercase()) {
        let problem = "on Kubernetes it begins with a letter, since it becomes a name in the DNS".to_owned();
        return Err(Error::BadRequest { what: format!("the job name `{}`", spec.id), problem });
    }
    let given = serde_json::to_string(&spec.labels).unwrap_or_default();
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": spec.id.as_str(),
            "labels": labels(spec.id.as_str(), "job"),
            "annotations": { LABELS: given },
        },
        "spec": { "clusterIP": "None", "publishNotReadyAddresses": true, "selector": { JOB: spec.id.as_str() } },
    }))
}

/// A secret with these texts.
pub(super) fn secret(
    name: &str,
    job: &str,
    owner: Option<&Owner>,
    texts: &BTreeMap<String, String>,
) -> Value {
    let mut secret = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name, "labels": labels(job, "variables") },
        "stringData": texts,
    });
    if let Some(owner) = owner {
        secret["metadata"]["ownerReferences"] = owner.reference();
    }
    secret
}

/// The driver's pod.
pub(super) fn driver(config: &KubernetesConfig, spec: &JobSpec, owner: Option<&Owner>) -> Result<Value> {
    let notice = spec.notice.as_secs().max(1);
    let (command, id) = (&spec.command, spec.id.as_str());
    let mut words =
        vec!["/bin/sh".to_owned(), "-c".to_owned(), script::INIT.to_owned(), "regatta".to_owned()];
    words.extend(self::words(config, spec)?);
    let mut container = json!({
        "command": words,
        "env": own([(POD, "metadata.name"), (POD_UID, "metadata.uid"), (POD_IP, "status.podIP"), (NAMESPACE, "metadata.namespace")]),
        "envFrom": [{ "secretRef": { "name": id } }],
    });
    push(&mut container["env"], json!({ "name": JOB_ID, "value": id }));
    if let Some(cwd) = &command.cwd {
        container["workingDir"] = text("the driver's folder", cwd.as_os_str())?.into();
    }
    let mut details = json!({
        "serviceAccountName": config.service_account,
        "terminationGracePeriodSeconds": notice,
        "affinity": affinity(&GangRequest { placement: Placement::Spread, ..spec.room.clone() }, None, None),
    });
    if let Some(limit) = time_limit(config, spec) {
        details["activeDeadlineSeconds"] = limit.saturating_sub(notice).max(1).into();
    }
    let made = Made { name: id, job: id, role: "driver", resources: &config.driver, owner };
    pod(config, &made, container, details)
}

/// The words of the driver's command, in its image.
pub(super) fn words(config: &KubernetesConfig, spec: &JobSpec) -> Result<Vec<String>> {
    let program = match &config.program {
        Some(program) => program.clone(),
        None => text("the driver's program", &spec.command.program)?,
    };
    let args = spec.command.args.iter().map(|word| text("an argument of the driver", word));
    std::iter::once(Ok(program)).chain(args).collect()
}

/// How many seconds the job may run, if not as long as it likes.
pub(super) fn time_limit(config: &KubernetesConfig, spec: &JobSpec) -> Option<u64> {
    let limit = spec.time_limit.or(config.time_seconds.map(super::seconds))?;
    Some(limit.as_secs().max(1))
}

/// What a spawner's pods have in common.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) job: String,
    /// Told apart from every other spawner's.
    pub(super) mark: String,
    pub(super) owner: Option<Owner>,
}

/// One pod of a gang.
pub(super) struct WorkerPod<'a> {
    pub(super) name: &'a str,
    pub(super) gang: &'a str,
    pub(super) request: &'a GangRequest,
    /// The node it has to go to, where its gang stood before.
    pub(super) node: Option<&'a str>,
}

/// A worker's pod. It waits on its node for its secret, which says what it runs: until then it holds its place.
pub(super) fn worker(config: &KubernetesConfig, place: &Place, worker: &WorkerPod<'_>) -> Result<Value> {
    let WorkerPod { name, gang, request, node } = *worker;
    let mut container = json!({
        "command": ["/bin/sh", "-c", script::WAIT],
        "env": own([(HOST_ADDR, "status.podIP")]),
    });
    let step = json!({ "name": STEP, "valueFrom": { "secretKeyRef": { "name": name, "key": "step" } } });
    push(&mut container["env"], step);
    let mut details = json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": 30,
        "affinity": affinity(request, Some(gang), node),
    });
    if request.per_worker.gpu.units() > 0 {
        details["tolerations"] = json!([{ "key": config.gpu, "operator": "Exists", "effect": "NoSchedule" }]);
    }
    let made = Made {
        name,
        job: &place.job,
        role: "worker",
        resources: &request.per_worker,
        owner: place.owner.as_ref(),
    };
    let mut pod = pod(config, &made, container, details)?;
    pod["metadata"]["labels"][GANG] = gang.into();
    pod["metadata"]["labels"][SPAWNER] = place.mark.clone().into();
    Ok(pod)
}

/// What every pod is told apart by.
struct Made<'a> {
    name: &'a str,
    job: &'a str,
    role: &'a str,
    resources: &'a Resources,
    owner: Option<&'a Owner>,
}

fn pod(config: &KubernetesConfig, made: &Made<'_>, container: Value, details: Value) -> Result<Value> {
    let resources = quantities(config, made.resources)?;
    let mut whole = json!({
        "name": CONTAINER,
        "image": config.image,
        "resources": { "requests": resources, "limits": resources },
        // An error that the shell writes is found in the status, whatever became of the log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(config),
    });
    put(&mut whole, "imagePullPolicy", config.pull_policy.as_ref());
    merge(&mut whole, container);
    merge(&mut whole, overlay(&config.container));
    let mut spec = json!({
        // What ended has ended: a new attempt is a new pod.
        "restartPolicy": "Never",
        "hostname": hostname(made.name),
        "subdomain": made.job,
        "enableServiceLinks": false,
        "volumes": volumes(config),
        "containers": [whole],
    });
    put(&mut spec, "priorityClassName", config.priority_class.as_ref());
    put(&mut spec, "schedulerName", config.scheduler.as_ref());
    if !config.node_selector.is_empty() {
        spec["nodeSelector"] = json!(config.node_selector);
    }
    if !config.pull_secrets.is_empty() {
        spec["imagePullSecrets"] = config.pull_secrets.iter().map(|name| json!({ "name": name })).collect();
    }
    merge(&mut spec, details);
    for toleration in &config.tolerations {
        push(&mut spec["tolerations"], tolerates(toleration));
    }
    merge(&mut spec, overlay(&config.pod));
    let mut metadata =
        json!({ "name": made.name, "labels": config.labels, "annotations": config.annotations });
    merge(&mut metadata["labels"], labels(made.job, made.role));
    // A node that is to be saved must not cost a run.
    let safe = metadata["annotations"].get("cluster-autoscaler.kubernetes.io/safe-to-evict").is_some();
    if !safe {
        metadata["annotations"]["cluster-autoscaler.kubernetes.io/safe-to-evict"] = "false".into();
    }
    if let Some(owner) = made.owner {
        metadata["ownerReferences"] = owner.reference();
    }
    Ok(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }))
}

/// A pod's name in the DNS: at most 63 bytes, the end of which tell it apart.
pub(super) fn hostname(name: &str) -> &str {
    let tail = &name[name.len().saturating_sub(63)..];
    tail.trim_start_matches('-')
}

/// Which nodes a gang's pods may stand on, and how they stand to each other.
fn affinity(request: &GangRequest, gang: Option<&str>, node: Option<&str>) -> Value {
    let field = |operator: &str, node: &str| json!({ "key": "metadata.name", "operator": operator, "values": [node] });
    let mut fields: Vec<Value> = request.excluded.iter().map(|node| field("NotIn", node)).collect();
    fields.extend(node.map(|node| field("In", node)));
    let mut affinity = json!({});
    if !fields.is_empty() {
        affinity["nodeAffinity"] = json!({
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchFields": fields }] }
        });
    }
    let Some(gang) = gang.filter(|_| request.max_workers > 1) else { return affinity };
    let others = json!({ "labelSelector": { "matchLabels": { GANG: gang } }, "topologyKey": HOST });
    let wish = json!([{ "weight": 100, "podAffinityTerm": others }]);
    match request.placement {
        Placement::Pack => {
            affinity["podAffinity"] = json!({ "preferredDuringSchedulingIgnoredDuringExecution": wish });
        }
        Placement::Spread => {
            affinity["podAntiAffinity"] = json!({ "preferredDuringSchedulingIgnoredDuringExecution": wish });
        }
        Placement::StrictPack => {
            affinity["podAffinity"] = json!({ "requiredDuringSchedulingIgnoredDuringExecution": [others] });
        }
        Placement::StrictSpread => {
            affinity["podAntiAffinity"] =
                json!({ "requiredDuringSchedulingIgnoredDuringExecution": [others] });
        }
    }
    affinity
}

fn tolerates(toleration: &super::config::Toleration) -> Value {
    let mut value = json!({ "operator": if toleration.value.is_some() { "Equal" } else { "Exists" } });
    put(&mut value, "key", toleration.key.as_ref());
    put(&mut value, "value", toleration.value.as_ref());
    put(&mut value, "effect", toleration.effect.as_ref());
    value
}

fn volumes(config: &KubernetesConfig) -> Value {
    let volume = |(at, mount): (usize, &super::config::Mount)| {
        let mut volume = match &mount.volume {
            Volume::Claim(name) => json!({ "persistentVolumeClaim": { "claimName": name } }),
            Volume::Nfs { server, path } => json!({ "nfs": { "server": server, "path": path } }),
            Volume::Host(path) => json!({ "hostPath": { "path": path } }),
            Volume::Scratch => json!({ "emptyDir": {} }),
            Volume::Memory(most) => {
                json!({ "emptyDir": { "medium": "Memory", "sizeLimit": most.0.to_string() } })
            }
            Volume::Secret(name) => json!({ "secret": { "secretName": name } }),
            Volume::ConfigMap(name) => json!({ "configMap": { "name": name } }),
        };
        volume["name"] = format!("volume-{at}").into();
        volume
    };
    config.volumes.iter().enumerate().map(volume).collect()
}

fn mounts(config: &KubernetesConfig) -> Value {
    let mount = |(at, mount): (usize, &super::config::Mount)| json!({ "name": format!("volume-{at}"), "mountPath": mount.path, "readOnly": mount.read_only });
    config.volumes.iter().enumerate().map(mount).collect()
}

/// Variables that the pod's own fields give.
fn own<const N: usize>(fields: [(&str, &str); N]) -> Value {
    fields
        .map(|(name, path)| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } }))
        .into_iter()
        .collect()
}

/// A text as Kubernetes takes it.
pub(super) fn text(what: &str, text: &std::ffi::OsStr) -> Result<String> {
    text.to_str().map(str::to_owned).ok_or_else(|| Error::BadRequest {
        what: format!("{what} ({text:?})"),
        problem: "Kubernetes takes nothing that is not UTF-8".into(),
    })
}

/// The variables of a driver: those of its command. What the submitting machine has in its own is of no use in an image.
pub(super) fn variables(spec: &JobSpec) -> Result<BTreeMap<String, String>> {
    let variables = spec.command.env.iter();
    variables.map(|(name, value)| Ok((name.clone(), text(&format!("the variable {name}"), value)?))).collect()
}

pub(super) fn selector(pairs: &[(&str, &str)]) -> String {
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

/// Selects these jobs.
pub(super) fn among(jobs: &[JobId], role: &str) -> String {
    let names: Vec<&str> = jobs.iter().map(JobId::as_str).collect();
    format!("{JOB} in ({}),{ROLE}={role}", names.join(","))
}

fn overlay(extra: &BTreeMap<String, Value>) -> Value {
    Value::Object(extra.clone().into_iter().collect())
}

fn put(value: &mut Value, name: &str, text: Option<&String>) {
    if let Some(text) = text {
        value[name] = text.as_str().into();
    }
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        other => *other = json!([item]),
    }
}

/// Lays one value over another: maps are joined, everything else is replaced.
pub(super) fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                merge(under.entry(name).or_insert_with(|| Value::Object(Map::new())), value);
            }
        }
        (under, over) => *under = over,
    }
}
