//! A whole cluster on this host: an API server, a scheduler, nodes.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use serde_json::{Value, json};

use super::kubelet::{Kubelet, Site};
use super::real::{self, Access, send};
use super::server::{Fault, Server};

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
    access: Access,
    admin: Client,
    /// None where the API server is a real one.
    server: Option<Arc<Server>>,
    _folder: tempfile::TempDir,
}

impl Cluster {
    /// So many nodes, `n1` and on; of the real API server that the environment names, else of a small one.
    pub(crate) async fn start(nodes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (server, access) = match real::folder() {
            Some(at) => (None, real::open(&at).await),
            None => {
                let server = Server::start(folder.path()).await;
                let access = Access {
                    address: format!("http://{}", server.address),
                    authority: None,
                    namespace: "default".into(),
                    tokens: [ADMIN, USER, DRIVER].map(str::to_owned),
                };
                (Some(server), access)
            }
        };
        let admin = access.client(&access.tokens[0]).await;
        let kubeconfig = folder.path().join("kubeconfig");
        std::fs::write(&kubeconfig, access.kubeconfig(&access.tokens[2])).unwrap();
        let mut cluster = Self { nodes: Vec::new(), access, admin, server, _folder: folder };
        for node in (1..=nodes).map(|n| format!("n{n}")) {
            let (client, logs) = (cluster.admin.clone(), cluster._folder.path().to_owned());
            let (kubeconfig, real) = (kubeconfig.clone(), cluster.server.is_none());
            let site = Site { node, client, logs, kubeconfig, real };
            cluster.nodes.push(Kubelet::start(site, CPUS).await);
        }
        if cluster.server.is_none() {
            real::ready(&cluster.admin, nodes).await;
        }
        cluster
    }

    /// Asks as an administrator, for what stands in the namespace.
    async fn send(&self, method: &str, path: &str, body: Value) -> kube::Result<Value> {
        let path = format!("/api/v1/namespaces/{}/{path}", self.access.namespace);
        send(&self.admin, method, &path, body).await
    }

    /// The small server, for what only it can be told to do; none where the server is a real one.
    pub(crate) fn small(&self) -> Option<&Server> {
        self.server.as_deref()
    }

    pub(crate) async fn with_token(&self, token: &str) -> Client {
        self.access.client(token).await
    }

    pub(crate) async fn admin(&self) -> Client {
        self.with_token(&self.access.tokens[0]).await
    }

    pub(crate) async fn user(&self) -> Client {
        self.with_token(&self.access.tokens[1]).await
    }

    pub(crate) async fn driver(&self) -> Client {
        self.with_token(&self.access.tokens[2]).await
    }

    pub(crate) fn node(&self, name: &str) -> &Kubelet {
        self.nodes.iter().find(|node| node.name() == name).unwrap()
    }

    /// The pods that are there, as the server has them.
    pub(crate) async fn pods(&self) -> Vec<Value> {
        self.objects("pods").await
    }

    /// Those that anybody made: service accounts' tokens, which the cluster makes itself, are not counted.
    pub(crate) async fn objects(&self, kind: &str) -> Vec<Value> {
        let mut all = self.send("GET", kind, Value::Null).await.unwrap();
        match all["items"].take() {
            Value::Array(mut items) => {
                items.retain(|item| item["type"] != "kubernetes.io/service-account-token");
                items
            }
            other => panic!("{other}"),
        }
    }

    /// Makes an object as an administrator.
    pub(crate) async fn create(&self, kind: &str, object: Value) {
        self.send("POST", kind, object).await.unwrap();
    }

    /// Says of a pod what its node or the cluster would.
    pub(crate) async fn tell(&self, pod: &str, status: Value) {
        let status = json!({ "status": status });
        self.send("PATCH", &format!("pods/{pod}/status"), status).await.unwrap();
    }

    /// Deletes as an administrator does, with what grace the object has.
    pub(crate) async fn delete(&self, kind: &str, name: &str) {
        let background = json!({ "propagationPolicy": "Background" });
        self.send("DELETE", &format!("{kind}/{name}"), background).await.unwrap();
    }

    /// Deletes a pod with this many seconds to end.
    pub(crate) async fn delete_within(&self, name: &str, seconds: u32) {
        let within = json!({ "gracePeriodSeconds": seconds });
        self.send("DELETE", &format!("pods/{name}"), within).await.unwrap();
    }

    /// The API server answers nobody from now on, or everybody again.
    pub(crate) fn away(&self, away: bool) {
        match &self.server {
            Some(server) => server.away(away),
            None => real::away(away),
        }
    }

    /// From now on no container's log can be read.
    pub(crate) fn no_logs(&self) {
        match &self.server {
            Some(server) => {
                let message = "no route to host".into();
                server.fault(Fault { method: "GET", path: "/log", code: 500, message });
            }
            None => self.nodes.iter().for_each(Kubelet::mute),
        }
    }

    /// From now on a quota called `team` leaves no room for any pod.
    pub(crate) async fn no_quota(&self) {
        let message =
            "pods \"x\" is forbidden: exceeded quota: team, requested: pods=1, used: pods=0, limited: pods=0";
        match &self.server {
            Some(server) => {
                server.fault(Fault { method: "POST", path: "/pods", code: 403, message: message.into() });
            }
            None => {
                let quota = json!({ "metadata": { "name": "team" }, "spec": { "hard": { "pods": "0" } } });
                self.create("resourcequotas", quota).await;
                let counted = |all: &[Value]| all.iter().all(|quota| quota["status"]["hard"].is_object());
                self.eventually("a quota that counts", "resourcequotas", counted).await;
            }
        }
    }

    /// From now on the driver may not make secrets.
    pub(crate) async fn no_secrets(&self) {
        let message = "secrets is forbidden: User \"x\" cannot create resource \"secrets\"";
        match &self.server {
            Some(server) => {
                server.fault(Fault { method: "POST", path: "/secrets", code: 403, message: message.into() });
            }
            None => real::take_secrets(&self.access).await,
        }
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
