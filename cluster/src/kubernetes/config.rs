//! What a site says about its cluster: the image, where pods may go, what they find mounted.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::resource::{Bytes, Milli, Resources};

/// How drivers and workers become pods, and how long one waits for what no longer answers.
///
/// The same in a configuration file, where everything but the image may be left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesConfig {
    /// The image with the program, for the driver and its workers alike. It needs `/bin/sh`.
    pub image: String,
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
    /// The version of Ray in the image, for what KubeRay is asked to bring up.
    pub ray_version: String,
    /// Whether the cluster makes nodes as they are needed. Then nothing is refused for being too large for those there are.
    pub autoscaled: bool,
    /// Seconds for one answer of the API server.
    pub patience_s: u64,
    /// Seconds a killed worker may still be there, beyond its grace, before its node is given up.
    pub kill_patience_s: u64,
    /// Seconds from a worker's place on a node to its first line: its image is pulled in this time.
    pub start_patience_s: u64,
    /// Seconds for which a gang that found room only in part may hold it; then it lets others go first.
    pub gather_s: u64,
}

impl KubernetesConfig {
    /// Kubernetes' defaults in everything, for this image.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), ..Self::default() }
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience_s)
    }

    pub(super) fn kill_patience(&self) -> Duration {
        Duration::from_secs(self.kill_patience_s)
    }

    pub(super) fn start_patience(&self) -> Duration {
        Duration::from_secs(self.start_patience_s)
    }

    pub(super) fn gather(&self) -> Duration {
        Duration::from_secs(self.gather_s)
    }

    /// Refuses what no API server would take.
    pub(super) fn check(&self) -> Result<()> {
        if self.image.trim().is_empty() {
            let problem = "it names no `image`: Kubernetes runs nothing but images, so put the program into one";
            return Err(Error::BadRequest {
                what: "the Kubernetes configuration".into(),
                problem: problem.into(),
            });
        }
        Ok(())
    }
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        Self {
            image: String::new(),
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
            ray_version: "2.60.0".into(),
            autoscaled: false,
            patience_s: 30,
            kill_patience_s: 5,
            start_patience_s: 600,
            gather_s: 600,
        }
    }
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

/// What a container asks for, by Kubernetes' names and in its quantities.
pub(super) fn quantities(config: &KubernetesConfig, wanted: &Resources) -> Result<BTreeMap<String, String>> {
    let refuse = |problem: String| {
        Err(Error::BadRequest { what: format!("{{{wanted}}} for a pod of Kubernetes"), problem })
    };
    let mut found = BTreeMap::new();
    if !wanted.cpu.is_zero() {
        found.insert("cpu".to_owned(), milli(wanted.cpu));
    }
    if wanted.memory.0 > 0 {
        found.insert("memory".to_owned(), wanted.memory.0.to_string());
    }
    if !wanted.gpu.fraction().is_zero() {
        return refuse("it gives GPUs as wholes only; ask for a whole one".into());
    }
    if !wanted.gpu.is_zero() {
        found.insert(config.gpu.clone(), wanted.gpu.units().to_string());
    }
    for (name, amount) in wanted.customs() {
        if !name.contains('/') || !amount.fraction().is_zero() {
            let problem =
                format!("`{name}` has to be whole, and named as nodes name it, as in `example.com/{name}`");
            return refuse(problem);
        }
        found.insert(name.to_owned(), amount.units().to_string());
    }
    Ok(found)
}

fn milli(amount: Milli) -> String {
    if amount.fraction().is_zero() {
        amount.units().to_string()
    } else {
        format!("{}m", amount.thousandths())
    }
}

/// A quantity of Kubernetes in thousandths, rounded down: `1900m`, `2`, `16Gi`, `0.5`, `3e3`.
pub(super) fn thousandths(quantity: &str) -> Option<u128> {
    const SUFFIXES: [(&str, u128); 14] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("m", 0),
        ("", 1),
    ];
    let quantity = quantity.trim();
    let (number, unit) =
        SUFFIXES.iter().find_map(|(suffix, unit)| Some((quantity.strip_suffix(suffix)?, *unit)))?;
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<u32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits: u128 = format!("{whole}{fraction:0<3.3}").parse().ok()?;
    let scaled = digits.checked_mul(10u128.checked_pow(exponent)?)?;
    if unit == 0 { Some(scaled / 1000) } else { scaled.checked_mul(unit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("2", 2_000),
            ("1900m", 1_900),
            ("0.5", 500),
            ("1Ki", 1_024_000),
            ("16384Mi", 16_384 * 1_048_576 * 1_000),
            ("3e3", 3_000_000),
            ("1k", 1_000_000),
            ("1.5Gi", 1_610_612_736_000),
        ] {
            assert_eq!(thousandths(text), Some(expected), "{text}");
        }
        assert_eq!(thousandths("lots"), None);
        assert_eq!(thousandths(""), None);
    }

    #[test]
    fn a_pod_asks_in_the_names_of_its_cluster() {
        let config = KubernetesConfig { gpu: "amd.com/gpu".into(), ..KubernetesConfig::new("image") };
        let ask = |text: &str| quantities(&config, &text.parse().unwrap());
        let wanted = ask("cpu: 1.5, gpu: 2, memory: 1GiB, example.com/nic: 1").unwrap();
        let wanted: Vec<_> = wanted.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
        assert_eq!(wanted, ["amd.com/gpu=2", "cpu=1500m", "example.com/nic=1", "memory=1073741824"]);
        assert!(ask("gpu: 0.5").unwrap_err().to_string().contains("whole"));
        assert!(ask("license: 1").unwrap_err().to_string().contains("example.com/license"));
    }

    #[test]
    fn a_configuration_without_an_image_says_so() {
        let error = KubernetesConfig::default().check().unwrap_err().to_string();
        assert!(error.contains("`image`"), "{error}");
        let read: KubernetesConfig = serde_json::from_str(
            r#"{"image": "me/trainer:1", "driver": "cpu: 2", "volumes": [{"path": "/data", "volume": {"Claim": "data"}}]}"#,
        )
        .unwrap();
        assert_eq!(read.driver, Resources::cpus(2));
        assert!(serde_json::from_str::<KubernetesConfig>(r#"{"imag": "x"}"#).is_err());
    }
}
