//! A job as a manifest, to be looked at, kept, or applied by whoever may: nothing here talks to a cluster.
//!
//! Values of variables are not in it: where [`HIDDEN`] stands, whoever applies it puts them in.

use serde_json::{Value, json};

use super::config::{Form, KubernetesConfig};
use super::engine::objects;
use super::pod::{self, Place, merge};
use super::script;
use crate::engine::JobSpec;
use crate::engine::shell;
use crate::error::{Error, Result};
use crate::request::GangRequest;

/// Stands for the value of a variable.
pub const HIDDEN: &str = "(hidden)";
/// The port at which the first of a gang without a driver listens.
const MASTER_PORT: u16 = 29_500;
/// How long what has ended is kept, so that its log can be read.
const KEPT: u64 = 24 * 3600;

/// The job in this form, as YAML: one document an object.
pub fn render(config: &KubernetesConfig, spec: &JobSpec, form: Form) -> Result<String> {
    config.check()?;
    let mut all = match form {
        Form::Pods => objects(config, spec)?,
        Form::IndexedJob | Form::JobSet if spec.gangs > 1 => {
            let problem =
                "it is one gang without a driver, and a study has several: take `Pods` or `RayJob`".into();
            return Err(Error::BadRequest {
                what: format!("the manifest {form:?} of job `{}`", spec.id),
                problem,
            });
        }
        Form::IndexedJob | Form::JobSet => gang(config, spec, form)?,
        Form::RayJob | Form::RayCluster => ray(config, spec, form)?,
    };
    let mut text = String::new();
    for object in &mut all {
        if let Some(namespace) = &config.namespace {
            object["metadata"]["namespace"] = namespace.as_str().into();
        }
        let yaml = serde_saphyr::to_string(object).map_err(|error| Error::Engine {
            engine: super::ENGINE,
            what: "writing the manifest".into(),
            reason: error.to_string(),
            advice: String::new(),
        })?;
        text.push_str("---\n");
        text.push_str(yaml.trim_start_matches("---\n"));
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    Ok(text)
}

/// The gang as one object, with its service and its secret.
fn gang(config: &KubernetesConfig, spec: &JobSpec, form: Form) -> Result<Vec<Value>> {
    let (id, workers) = (spec.id.as_str(), spec.room.max_workers);
    let mut template = template(config, spec, &spec.room)?;
    // JobSet names a pod by its job, which it names itself.
    let job = if form == Form::JobSet { format!("{id}-workers-0") } else { id.to_owned() };
    let container = &mut template["spec"]["containers"][0];
    let mut command =
        vec!["/bin/sh".to_owned(), "-c".to_owned(), script::INIT.to_owned(), "regatta".to_owned()];
    command.extend(pod::words(config, spec)?);
    let index = json!({ "fieldRef": { "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']" } });
    container["command"] = command.into();
    container["env"] = json!([
        { "name": "RANK", "valueFrom": index },
        { "name": "LOCAL_RANK", "value": "0" },
        { "name": "WORLD_SIZE", "value": workers.to_string() },
        { "name": "LOCAL_WORLD_SIZE", "value": "1" },
        { "name": "MASTER_ADDR", "value": format!("{job}-0.{id}") },
        { "name": "MASTER_PORT", "value": MASTER_PORT.to_string() },
    ]);
    container["envFrom"] = json!([{ "secretRef": { "name": id } }]);
    template["spec"]["subdomain"] = id.into();
    let mut one = json!({
        "completionMode": "Indexed",
        "completions": workers,
        "parallelism": workers,
        // One that fails is the gang's failure.
        "backoffLimit": 0,
        "template": template,
    });
    if let Some(limit) = pod::time_limit(config, spec) {
        one["activeDeadlineSeconds"] = limit.into();
    }
    let metadata = json!({ "name": id, "labels": labels(config, spec) });
    let whole = match form {
        Form::JobSet => json!({
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": {
                "network": { "enableDNSHostnames": true, "subdomain": id },
                "failurePolicy": { "maxRestarts": 0 },
                "ttlSecondsAfterFinished": KEPT,
                "replicatedJobs": [{ "name": "workers", "replicas": 1, "template": { "spec": one } }],
            },
        }),
        _ => {
            one["ttlSecondsAfterFinished"] = KEPT.into();
            json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": one })
        }
    };
    let mut objects = objects(config, spec)?;
    objects.truncate(2);
    if form == Form::JobSet {
        // It makes the service of its pods itself.
        objects.remove(0);
    }
    objects.push(whole);
    Ok(objects)
}

fn labels(config: &KubernetesConfig, spec: &JobSpec) -> Value {
    let mut labels = json!(config.labels);
    merge(&mut labels, pod::labels(spec.id.as_str(), "job"));
    labels
}

/// A worker's pod without what only a driver knows.
fn template(config: &KubernetesConfig, spec: &JobSpec, room: &GangRequest) -> Result<Value> {
    let id = spec.id.as_str();
    let place = Place { job: id.to_owned(), mark: String::new(), owner: None };
    let mut pod =
        pod::worker(config, &place, &pod::WorkerPod { name: id, gang: id, request: room, node: None })?;
    let mut template = json!({ "metadata": pod["metadata"].take(), "spec": pod["spec"].take() });
    if let Some(metadata) = template["metadata"].as_object_mut() {
        metadata.remove("name");
        metadata["labels"].as_object_mut().and_then(|labels| labels.remove(pod::SPAWNER));
    }
    // Its own owner names it.
    template["spec"].as_object_mut().and_then(|spec| spec.remove("hostname"));
    Ok(template)
}

/// A Ray cluster, and the driver as its job.
fn ray(config: &KubernetesConfig, spec: &JobSpec, form: Form) -> Result<Vec<Value>> {
    let id = spec.id.as_str();
    let environment = json!([{ "secretRef": { "name": id } }]);
    let group = |resources, role: &str| -> Result<Value> {
        let room = GangRequest { per_worker: resources, max_workers: 1, ..spec.room.clone() };
        let mut template = template(config, spec, &room)?;
        let container = &mut template["spec"]["containers"][0];
        for name in ["command", "env"] {
            container.as_object_mut().and_then(|container| container.remove(name));
        }
        container["name"] = format!("ray-{role}").into();
        container["envFrom"] = environment.clone();
        // What KubeRay says itself, and a token that its autoscaler needs.
        for name in ["subdomain", "restartPolicy", "automountServiceAccountToken"] {
            template["spec"].as_object_mut().and_then(|spec| spec.remove(name));
        }
        Ok(template)
    };
    let mut head = group(config.driver.clone(), "head")?;
    head["spec"]["containers"][0]["ports"] = json!([
        { "containerPort": 6379, "name": "gcs" },
        { "containerPort": 8265, "name": "dashboard" },
        { "containerPort": 10001, "name": "client" },
    ]);
    let room = &spec.room;
    let most = room.max_workers * spec.gangs.max(1) + spec.spare_nodes;
    let cluster = json!({
        "rayVersion": config.ray_version,
        "enableInTreeAutoscaling": room.min_workers != most,
        // The head holds the driver, and no worker.
        "headGroupSpec": { "rayStartParams": { "num-cpus": "0", "dashboard-host": "0.0.0.0" }, "template": head },
        "workerGroupSpecs": [{
            "groupName": "workers",
            "replicas": most,
            "minReplicas": room.min_workers,
            "maxReplicas": most,
            "rayStartParams": {},
            "template": group(room.per_worker.clone(), "worker")?,
        }],
    });
    let metadata = json!({ "name": id, "labels": labels(config, spec) });
    let whole = match form {
        Form::RayCluster => {
            json!({ "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata, "spec": cluster })
        }
        _ => {
            let words = pod::words(config, spec)?;
            let line = shell::words(words.iter().map(std::ffi::OsStr::new));
            let mut job = json!({
                "entrypoint": pod::text("the driver's command", &line)?,
                "entrypointNumCpus": 0,
                "submissionMode": "HTTPMode",
                "jobId": id,
                "metadata": spec.labels,
                // Brought up for it, and down with it, whether it succeeds or fails.
                "shutdownAfterJobFinishes": true,
                "ttlSecondsAfterFinished": 60,
                "backoffLimit": 0,
                "rayClusterSpec": cluster,
            });
            if let Some(limit) = pod::time_limit(config, spec) {
                job["activeDeadlineSeconds"] = limit.into();
            }
            json!({ "apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": job })
        }
    };
    let mut objects = objects(config, spec)?;
    objects.truncate(2);
    // KubeRay makes its services itself.
    objects.remove(0);
    objects.push(whole);
    Ok(objects)
}
