//! What a site says about its cluster: the image, where pods may go, what they find mounted. It is known to every build, so
//! that one without the engine can say so.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::resource::{Bytes, Resources};

/// How drivers and workers become pods, and how long one waits for what no longer answers:
/// `Kubernetes(image: "registry.example.com/mnist:7")`. All but the image may be left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// The image with the program, for the driver and its workers alike. It needs `/bin/sh`.
    pub image: String,
    /// Where the program is in the image; where it is here if not given.
    pub program: Option<String>,
    /// When the image is pulled: `Always`, `IfNotPresent` or `Never`; Kubernetes' default if not given.
    pub pull_policy: Option<String>,
    /// The secrets to pull it with.
    pub pull_secrets: Vec<String>,
    /// The context of the kubeconfig; the current one if not given. Has no meaning inside the cluster.
    pub context: Option<String>,
    /// The namespace; the context's, or the pod's own, if not given.
    pub namespace: Option<String>,
    /// The service account of drivers, with the rights of the shipped manifest. Workers have none.
    pub service_account: String,
    /// What the driver's pod asks for.
    pub driver: Resources,
    /// What GPUs are called among a node's resources.
    pub gpu: String,
    /// Labels a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Taints that are no hindrance. That of the GPUs is none where GPUs are asked for.
    pub tolerations: Vec<Toleration>,
    /// What is mounted into every pod.
    pub volumes: Vec<Mount>,
    /// The class that says what is preempted for what.
    pub priority_class: Option<String>,
    /// Whose scheduler places the pods; the cluster's default if not given.
    pub scheduler: Option<String>,
    /// Further labels of every pod, as `kueue.x-k8s.io/queue-name`.
    pub labels: BTreeMap<String, String>,
    /// Further annotations of every pod.
    pub annotations: BTreeMap<String, String>,
    /// Whatever else a pod's `spec` shall say, merged into it last.
    pub pod: BTreeMap<String, serde_json::Value>,
    /// Whatever else its container shall say, merged into it last.
    pub container: BTreeMap<String, serde_json::Value>,
    /// The driver's port for its workers; any free one if 0, which a network policy cannot name.
    pub port: u16,
    /// In which form the job is written down where it is only shown. What is submitted are pods.
    pub manifest: Form,
    /// The version of Ray in the image, for what KubeRay is asked to bring up.
    pub ray_version: String,
    /// Whether the cluster makes nodes as they are needed. Then nothing is refused for being too large for those there are.
    pub autoscaled: bool,
    /// How long the job may run; without end if not given.
    pub time_seconds: Option<f64>,
    /// How long one answer of the API server may take.
    pub api_seconds: f64,
    /// How long a killed worker may still be there, beyond its grace, before its node is given up.
    pub kill_seconds: f64,
    /// How long a worker with a place on a node may take to start: its image is pulled in this time.
    pub start_seconds: f64,
    /// How long a gang that found room only in part may hold it; then it lets others go first.
    pub gather_seconds: f64,
}

impl KubernetesConfig {
    /// Kubernetes' defaults in everything, for this image.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    /// Checks what can be without Kubernetes.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, problem: &str| {
            Err(Error::BadRequest { what: format!("engine.Kubernetes.{what}"), problem: problem.into() })
        };
        if self.image.trim().is_empty() {
            return wrong(
                "image",
                "Kubernetes runs nothing but images: put the program into one, and name it",
            );
        }
        for (what, seconds) in [
            ("time_seconds", self.time_seconds.unwrap_or(1.0)),
            ("api_seconds", self.api_seconds),
            ("kill_seconds", self.kill_seconds),
            ("start_seconds", self.start_seconds),
            ("gather_seconds", self.gather_seconds),
        ] {
            if !(seconds > 0.0 && seconds < 1e9) {
                return wrong(what, &format!("{seconds} is no time to wait"));
            }
        }
        Ok(())
    }
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            image: String::new(),
            program: None,
            pull_policy: None,
            pull_secrets: Vec::new(),
            context: None,
            namespace: None,
            service_account: "regatta".into(),
            driver: Resources::none().with_cpu_thousandths(500).with_memory(Bytes::mib(512)),
            gpu: "nvidia.com/gpu".into(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            volumes: Vec::new(),
            priority_class: None,
            scheduler: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            pod: BTreeMap::new(),
            container: BTreeMap::new(),
            port: 0,
            manifest: Form::default(),
            ray_version: "2.60.0".into(),
            autoscaled: false,
            time_seconds: None,
            api_seconds: 30.0,
            kill_seconds: 5.0,
            start_seconds: 600.0,
            gather_seconds: 600.0,
        }
    }
}

/// In which form a job is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Form {
    /// What [`submit`](crate::engine::Engine::submit) makes: the driver, which makes its workers' pods itself.
    #[default]
    Pods,
    /// The gang alone, as one Indexed Job: every pod runs the command, in torchrun's environment. There is no driver, so
    /// nothing is recovered; for programs that find each other by `RANK`, `WORLD_SIZE` and `MASTER_ADDR`.
    IndexedJob,
    /// The same as a JobSet, for queues that want one.
    JobSet,
    /// A Ray cluster that KubeRay brings up for the driver, and takes down with it.
    RayJob,
    /// A Ray cluster for the Ray engine, until it is deleted.
    RayCluster,
}

/// A taint that is no hindrance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Toleration {
    /// Its key; any if not given.
    pub key: Option<String>,
    /// Its value; any if not given.
    pub value: Option<String>,
    /// Its effect; any if not given.
    pub effect: Option<String>,
}

/// Something mounted into every pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where.
    pub path: String,
    /// What.
    pub volume: Volume,
    /// Whether nothing may be written there.
    #[serde(default)]
    pub read_only: bool,
}

/// What can be mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Volume {
    /// A persistent volume claim: for what all pods share, one that many nodes may write.
    Claim(String),
    /// A folder of an NFS server.
    Nfs {
        /// The server.
        server: String,
        /// The folder.
        path: String,
    },
    /// A folder of the node.
    Host(String),
    /// A folder of the pod's own on the node's disk, which goes with it.
    Scratch,
    /// The same in memory, at most so much; at `/dev/shm` for programs that find 64 MiB too small.
    Memory(Bytes),
    /// A secret's keys as files.
    Secret(String),
    /// A config map's keys as files.
    ConfigMap(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_without_an_image_says_so() {
        let error = KubernetesConfig::default().check().unwrap_err().to_string();
        assert!(error.contains("engine.Kubernetes.image"), "{error}");
        let hasty = KubernetesConfig { kill_seconds: -1.0, ..KubernetesConfig::new("image") };
        assert!(hasty.check().unwrap_err().to_string().contains("engine.Kubernetes.kill_seconds"));
        let read: KubernetesConfig = serde_json::from_str(
            r#"{"image": "me/trainer:1", "driver": "cpu: 2", "volumes": [{"path": "/data", "volume": {"Claim": "data"}}]}"#,
        )
        .unwrap();
        assert_eq!(read.driver, Resources::cpus(2));
        assert!(serde_json::from_str::<KubernetesConfig>(r#"{"imag": "x"}"#).is_err());
    }
}
