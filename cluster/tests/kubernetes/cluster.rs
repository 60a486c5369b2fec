//! A whole cluster on this host: an API server, a scheduler, nodes.
//!
//! Where `REGATTA_TEST_KUBERNETES` names the address of a real API server, as `cargo xtask test-engines kubernetes` sets it
//! up, that one is used, with its own scheduler and rights; the nodes are those of these tests either way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use regatta_cluster::kubernetes::MANIFEST;
use serde_json::{Value, json};

use super::kubelet::{Kubelet, Site};
use super::server::Server;
use super::store::Key;

/// CPUs of every node.
pub(crate) const CPUS: u32 = 2;
/// Who may do everything, as kubelets and administrators.
pub(crate) const ADMIN: &str = "admin-token";
/// Who may do what the manifest gives to users, and to drivers. To a real server they are users of these names.
pub(crate) const USER: &str = "user-token";
pub(crate) const DRIVER: &str = "driver-token";
/// The address of a real API server.
const REAL: &str = "REGATTA_TEST_KUBERNETES";

pub(crate) struct Cluster {
    // Nodes first, so that nothing is written into a folder that is gone.
    pub(crate) nodes: Vec<Kubelet>,
    admin: Client,
    address: String,
    namespace: String,
    server: Option<Arc<Server>>,
    _folder: tempfile::TempDir,
}

/// Whether tests have a real API server; what only the small one can be told to do is then left out.
pub(crate) fn is_real() -> bool {
    std::env::var_os(REAL).is_some()
}

impl Cluster {
    /// So many nodes, `n1` and on.
    pub(crate) async fn start(nodes: usize) -> Self {
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let folder = tempfile::tempdir().unwrap();
        let (address, namespace, server) = match std::env::var(REAL) {
            Ok(address) => {
                let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
                (address, format!("test-{}-{number}", std::process::id()), None)
            }
            Err(_) => {
                let server = Server::start(folder.path()).await;
                (format!("http://{}", server.address), "default".to_owned(), Some(server))
            }
        };
        let admin = client(&address, &namespace, ADMIN).await;
        let nothing = Vec::new();
        let mut cluster = Self { nodes: nothing, admin, address, namespace, server, _folder: folder };
        if is_real() {
            cluster.prepare().await;
        }
        let kubeconfig = cluster._folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, text(&cluster.address, &cluster.namespace, DRIVER)).unwrap();
        for name in (1..=nodes).map(|n| format!("n{n}")) {
            let logs = cluster._folder.path().to_owned();
            let site = Site {
                node: name.clone(),
                client: cluster.admin.clone(),
                logs,
                kubeconfig: kubeconfig.clone(),
            };
            let port = if is_real() { site.serve_logs().await } else { 0 };
            let node = described(&name, port);
            let status = json!({ "status": node["status"].clone() });
            cluster.send("POST", "/api/v1/nodes", node).await.unwrap();
            cluster.send("PATCH", &format!("/api/v1/nodes/{name}/status"), status).await.unwrap();
            cluster.nodes.push(Kubelet::start(site));
        }
        cluster
    }

    /// Takes away what earlier tests left, makes a namespace, and gives the manifest's rights there.
    async fn prepare(&self) {
        for kind in ["pods", "nodes"] {
            let all = self.send("GET", &format!("/api/v1/{kind}"), Value::Null).await.unwrap();
            for object in all["items"].as_array().unwrap() {
                let (ns, name) =
                    (&object["metadata"]["namespace"], object["metadata"]["name"].as_str().unwrap());
                let place = ns.as_str().map_or_else(String::new, |ns| format!("namespaces/{ns}/"));
                let now = json!({ "gracePeriodSeconds": 0 });
                let _ = self.send("DELETE", &format!("/api/v1/{place}{kind}/{name}"), now).await;
            }
        }
        let namespace = json!({ "metadata": { "name": self.namespace } });
        self.send("POST", "/api/v1/namespaces", namespace).await.unwrap();
        let at = "/apis/rbac.authorization.k8s.io/v1";
        for document in MANIFEST.split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            match object["kind"].as_str().unwrap() {
                "Role" => {
                    let user = if name == "regatta-driver" { DRIVER } else { USER };
                    let binding = bind("RoleBinding", "Role", &name, &[user]);
                    self.send("POST", &format!("{at}/namespaces/{}/roles", self.namespace), object)
                        .await
                        .unwrap();
                    self.send("POST", &format!("{at}/namespaces/{}/rolebindings", self.namespace), binding)
                        .await
                        .unwrap();
                }
                "ClusterRole" => {
                    let binding = bind("ClusterRoleBinding", "ClusterRole", &name, &[USER, DRIVER]);
                    let _ = self.send("POST", &format!("{at}/clusterroles"), object).await;
                    let _ = self.send("POST", &format!("{at}/clusterrolebindings"), binding).await;
                }
                _ => {}
            }
        }
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
        self.server.as_ref().expect("the tests' own server")
    }

    pub(crate) async fn with_token(&self, token: &str) -> Client {
        client(&self.address, &self.namespace, token).await
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
        let path = format!("/api/v1/namespaces/{}/{kind}", self.namespace);
        let mut all = self.send("GET", &path, Value::Null).await.unwrap();
        match all["items"].take() {
            Value::Array(items) => items,
            other => panic!("{other}"),
        }
    }

    /// Deletes as an administrator does, with what grace the object has.
    pub(crate) async fn delete(&self, kind: &str, name: &str) {
        let path = format!("/api/v1/namespaces/{}/{kind}/{name}", self.namespace);
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

fn bind(kind: &str, to: &str, name: &str, users: &[&str]) -> Value {
    let group = "rbac.authorization.k8s.io";
    let subjects: Vec<Value> =
        users.iter().map(|user| json!({ "apiGroup": group, "kind": "User", "name": user })).collect();
    json!({
        "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": { "name": name },
        "roleRef": { "apiGroup": group, "kind": to, "name": name }, "subjects": subjects,
    })
}

/// What the small server calls a pod.
pub(crate) fn pod(name: &str) -> Key {
    ("pods".into(), "default".into(), name.into())
}

fn described(name: &str, port: u16) -> Value {
    let room =
        json!({ "cpu": CPUS.to_string(), "memory": "4294967296", "pods": "50", "nvidia.com/gpu": "2" });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "status": {
            "capacity": room, "allocatable": room,
            "conditions": [{ "type": "Ready", "status": "True" }],
            "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        },
    })
}

/// A kubeconfig for whoever has this token.
fn text(address: &str, namespace: &str, token: &str) -> String {
    let cluster = match address.starts_with("https") {
        true => json!({ "server": address, "insecure-skip-tls-verify": true }),
        false => json!({ "server": address }),
    };
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": cluster }],
        "users": [{ "name": "test", "user": { "token": token } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": namespace } }],
    })
    .to_string()
}

async fn client(address: &str, namespace: &str, token: &str) -> Client {
    let kubeconfig: Kubeconfig = serde_json::from_str(&text(address, namespace, token)).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}
