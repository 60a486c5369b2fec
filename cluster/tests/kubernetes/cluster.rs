//! A whole cluster on this host: an API server, a scheduler, nodes.

use std::sync::Arc;
use std::time::Duration;

use axum::http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::kubelet::{Kubelet, Site};
use super::server::Server;
use super::store::Key;

/// CPUs of every node.
pub(crate) const CPUS: u32 = 2;
/// Who may do everything, as kubelets and administrators.
pub(crate) const ADMIN: &str = "admin-token";
/// Who may do what the manifest gives to users, and to drivers.
pub(crate) const USER: &str = "user-token";
pub(crate) const DRIVER: &str = "driver-token";

pub(crate) struct Cluster {
    // Nodes first, so that nothing is written into a folder that is gone.
    pub(crate) nodes: Vec<Kubelet>,
    admin: Client,
    address: String,
    server: Arc<Server>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// So many nodes, `n1` and on.
    pub(crate) async fn start(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(folder.path()).await;
        let address = format!("http://{}", server.address);
        let admin = client(&address, ADMIN).await;
        let mut cluster = Self { nodes: Vec::new(), admin, address, server, _folder: folder };
        let kubeconfig = cluster._folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text(&cluster.address, DRIVER)).unwrap();
        for name in (1..=nodes).map(|n| format!("n{n}")) {
            let logs = cluster._folder.path().to_owned();
            let site = Site {
                node: name.clone(),
                client: cluster.admin.clone(),
                logs,
                kubeconfig: kubeconfig.clone(),
            };
            cluster.send("POST", "/api/v1/nodes", described(&name)).await.unwrap();
            cluster.nodes.push(Kubelet::start(site));
        }
        cluster
    }

    /// Asks as an administrator.
    async fn send(&self, method: &str, path: &str, body: Value) -> kube::Result<Value> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request =
            Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
        self.admin.request(request).await
    }

    /// The small server, for what only it can be told to do.
    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) async fn with_token(&self, token: &str) -> Client {
        client(&self.address, token).await
    }

    pub(crate) async fn user(&self) -> Client {
        self.with_token(USER).await
    }

    pub(crate) async fn driver(&self) -> Client {
        self.with_token(DRIVER).await
    }

    pub(crate) fn node(&self, name: &str) -> &Kubelet {
        self.nodes.iter().find(|node| node.name() == name).unwrap()
    }

    /// The pods that are there, as the server has them.
    pub(crate) async fn pods(&self) -> Vec<Value> {
        self.objects("pods").await
    }

    pub(crate) async fn objects(&self, kind: &str) -> Vec<Value> {
        let path = format!("/api/v1/namespaces/default/{kind}");
        let mut all = self.send("GET", &path, Value::Null).await.unwrap();
        match all["items"].take() {
            Value::Array(items) => items,
            other => panic!("{other}"),
        }
    }

    /// Deletes as an administrator does, with what grace the object has.
    pub(crate) async fn delete(&self, kind: &str, name: &str) {
        let path = format!("/api/v1/namespaces/default/{kind}/{name}");
        let background = json!({ "propagationPolicy": "Background" });
        self.send("DELETE", &path, background).await.unwrap();
    }

    /// Waits until the objects of a kind are so.
    pub(crate) async fn eventually(&self, what: &str, kind: &str, mut so: impl FnMut(&[Value]) -> bool) {
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !so(&self.objects(kind).await) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if waited.await.is_err() {
            panic!("{what}: it did not come to that; there are {:#?}", self.objects(kind).await);
        }
    }
}

/// What the small server calls a pod.
pub(crate) fn pod(name: &str) -> Key {
    ("pods".into(), "default".into(), name.into())
}

fn described(name: &str) -> Value {
    let room =
        json!({ "cpu": CPUS.to_string(), "memory": "4294967296", "pods": "50", "nvidia.com/gpu": "2" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

/// A kubeconfig for whoever has this token.
fn text(address: &str, token: &str) -> String {
    let cluster = json!({ "server": address });
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "default" } }],
    })
    .to_string()
}

async fn client(address: &str, token: &str) -> Client {
    let kubeconfig: Kubeconfig = serde_json::from_str(&text(address, token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}
