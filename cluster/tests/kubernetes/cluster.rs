//! A whole cluster on this host: a server, a scheduler, nodes.

use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Config};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};

use super::kubelet::Kubelet;
use super::server::{ADMIN, DRIVER, Server, USER};
use super::store::{Key, Selector};

/// CPUs of every node.
pub(crate) const CPUS: u32 = 2;

pub(crate) struct Cluster {
    // Nodes first, so that nothing is written into a folder that is gone.
    pub(crate) nodes: Vec<Kubelet>,
    pub(crate) server: Arc<Server>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// So many nodes, `n1` and on.
    pub(crate) async fn start(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path()).await;
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, server.kubeconfig(DRIVER)).unwrap();
        let admin = client(&server, ADMIN).await;
        let mut cluster = Self { nodes: Vec::new(), server, _folder: folder };
        for name in (1..=nodes).map(|n| format!("n{n}")) {
            cluster.server.with(|store| store.create(node(&name), described(&name)));
            let logs = cluster.server.logs.clone();
            cluster.nodes.push(Kubelet::start(&name, admin.clone(), logs, kubeconfig.clone()));
        }
        cluster
    }

    pub(crate) async fn user(&self) -> Client {
        client(&self.server, USER).await
    }

    pub(crate) async fn driver(&self) -> Client {
        client(&self.server, DRIVER).await
    }

    pub(crate) fn node(&self, name: &str) -> &Kubelet {
        self.nodes.iter().find(|node| node.name == name).unwrap()
    }

    /// The pods that are there, as the server has them.
    pub(crate) fn pods(&self) -> Vec<Value> {
        self.objects("pods")
    }

    pub(crate) fn objects(&self, kind: &str) -> Vec<Value> {
        self.server.with(|store| store.list(kind, None, &Selector::default()))
    }

    /// Waits until the server has it so.
    pub(crate) async fn eventually(&self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !so(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(waited.await.is_ok(), "{what}: it did not come to that; the pods are {:#?}", self.pods());
    }
}

pub(crate) fn pod(name: &str) -> Key {
    ("pods".into(), "default".into(), name.into())
}

fn node(name: &str) -> Key {
    ("nodes".into(), String::new(), name.into())
}

fn described(name: &str) -> Value {
    let room = json!({ "cpu": CPUS.to_string(), "memory": "4294967296", "nvidia.com/gpu": "2" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": { "allocatable": room, "conditions": [{ "type": "Ready", "status": "True" }] },
    })
}

pub(crate) async fn client(server: &Server, token: &str) -> Client {
    let kubeconfig: Kubeconfig = serde_json::from_str(&server.kubeconfig(token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}
