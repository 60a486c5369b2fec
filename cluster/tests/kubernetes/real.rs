//! A real API server, which `cargo xtask test-engines kubernetes` starts: a namespace of its own for every test, with the
//! manifest applied to it as its page says, and nodes that are new.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::http::Request;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use regatta_cluster::kubernetes::MANIFEST;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Names the folder with the kubeconfigs of an administrator and of a user without rights.
pub(crate) const FOLDER: &str = "REGATTA_TEST_KUBERNETES";
const PATIENCE: Duration = Duration::from_secs(60);
const RIGHTS: &str = "/apis/rbac.authorization.k8s.io/v1";

pub(crate) fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// How an API server is reached, and by whom.
pub(crate) struct Access {
    pub(crate) address: String,
    /// The file with the certificate of who vouches for it.
    pub(crate) authority: Option<PathBuf>,
    pub(crate) namespace: String,
    /// Of an administrator, a user, a driver.
    pub(crate) tokens: [String; 3],
}

impl Access {
    /// A kubeconfig for whoever has this token.
    pub(crate) fn kubeconfig(&self, token: &str) -> String {
        let mut cluster = json!({ "server": self.address });
        if let Some(authority) = &self.authority {
            cluster["certificate-authority"] = authority.to_str().into();
        }
        let context = json!({ "cluster": "test", "user": "test", "namespace": self.namespace });
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{ "name": "test", "cluster": cluster }],
            "users": [{ "name": "test", "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": context }],
        })
        .to_string()
    }

    pub(crate) async fn client(&self, token: &str) -> Client {
        let kubeconfig: Kubeconfig = serde_json::from_str(&self.kubeconfig(token)).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }
}

/// Asks for anything.
pub(crate) async fn send(client: &Client, method: &str, path: &str, body: Value) -> kube::Result<Value> {
    let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request =
        Request::builder().method(method).uri(path).header("content-type", kind).body(body).unwrap();
    client.request(request).await
}

/// Asks until it is so.
async fn until<T>(what: &str, mut so: impl AsyncFnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(done) = so().await {
            return done;
        }
        assert!(since.elapsed() < PATIENCE, "{what}: it did not come to that");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn items(client: &Client, path: &str) -> Vec<Value> {
    let mut all = send(client, "GET", path, Value::Null).await.unwrap();
    match all["items"].take() {
        Value::Array(items) => items,
        other => panic!("{other}"),
    }
}

/// A namespace nobody has used, on a cluster without nodes.
pub(crate) async fn open(folder: &Path) -> Access {
    static NAMESPACES: AtomicU32 = AtomicU32::new(0);
    let read = |name: &str| -> Value {
        let text = std::fs::read(folder.join(format!("{name}.kubeconfig"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let (admin, user) = (read("admin"), read("user"));
    let server = &admin["clusters"][0]["cluster"];
    let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
    let token = |of: &Value| text(&of["users"][0]["user"]["token"]);
    let mut access = Access {
        address: text(&server["server"]),
        authority: Some(text(&server["certificate-authority"]).into()),
        namespace: format!("test-{}-{number}", std::process::id()),
        tokens: [token(&admin), token(&user), String::new()],
    };
    let admin = access.client(&access.tokens[0]).await;
    clear(&admin).await;
    let namespace = json!({ "metadata": { "name": access.namespace } });
    send(&admin, "POST", "/api/v1/namespaces", namespace).await.unwrap();
    apply(&admin, &access.namespace).await;
    access.tokens[2] = account(&admin, &access.namespace).await;
    // The API server takes a moment to know the rights it was told.
    for token in &access.tokens[1..] {
        let (client, path) = (access.client(token).await, pods(&access.namespace));
        until("rights", async || send(&client, "GET", &path, Value::Null).await.ok()).await;
        until("the right to nodes", async || send(&client, "GET", "/api/v1/nodes", Value::Null).await.ok())
            .await;
    }
    access
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// Takes away what an earlier test has left: its nodes, and its pods, which have none any more.
async fn clear(admin: &Client) {
    for node in items(admin, "/api/v1/nodes").await {
        let name = node["metadata"]["name"].as_str().unwrap();
        let _ = send(admin, "DELETE", &format!("/api/v1/nodes/{name}"), Value::Null).await;
    }
    until("the end of all pods", async || {
        let left = items(admin, "/api/v1/pods").await;
        for pod in &left {
            let [namespace, name] = ["namespace", "name"].map(|key| pod["metadata"][key].as_str().unwrap());
            let path = format!("{}/{name}", pods(namespace));
            let _ = send(admin, "DELETE", &path, json!({ "gracePeriodSeconds": 0 })).await;
        }
        left.is_empty().then_some(())
    })
    .await;
}

/// What the page on Kubernetes has an administrator do.
async fn apply(admin: &Client, namespace: &str) {
    for document in MANIFEST.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).expect("the manifest is YAML");
        let kind = object["kind"].as_str().unwrap().to_owned();
        let path = match kind.as_str() {
            "ServiceAccount" => format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
            "Role" => format!("{RIGHTS}/namespaces/{namespace}/roles"),
            "RoleBinding" => format!("{RIGHTS}/namespaces/{namespace}/rolebindings"),
            "ClusterRole" => format!("{RIGHTS}/clusterroles"),
            other => panic!("a kind that is not known here: {other}"),
        };
        let made = send(admin, "POST", &path, object).await;
        // What is the whole cluster's is there already.
        assert!(made.is_ok() || kind == "ClusterRole", "{made:?}");
    }
    let user = json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "user" });
    let account = json!({ "kind": "ServiceAccount", "name": "regatta", "namespace": namespace });
    let role = |kind: &str, name: &str| json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name });
    let binding = json!({
        "metadata": { "name": "users" }, "roleRef": role("Role", "regatta-user"), "subjects": [user],
    });
    let path = format!("{RIGHTS}/namespaces/{namespace}/rolebindings");
    send(admin, "POST", &path, binding).await.unwrap();
    let binding = json!({
        "metadata": { "name": format!("regatta-nodes-{namespace}") },
        "roleRef": role("ClusterRole", "regatta-nodes"), "subjects": [user, account],
    });
    send(admin, "POST", &format!("{RIGHTS}/clusterrolebindings"), binding).await.unwrap();
}

/// The token of the drivers' service account, once pods may use accounts.
async fn account(admin: &Client, namespace: &str) -> String {
    let accounts = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    for name in ["default", "regatta"] {
        until("a service account", async || {
            let account = send(admin, "GET", &format!("{accounts}/{name}"), Value::Null).await.ok()?;
            account["secrets"].is_array().then_some(())
        })
        .await;
    }
    let wanted = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "expirationSeconds": 3600 },
    });
    let given = send(admin, "POST", &format!("{accounts}/regatta/token"), wanted).await.unwrap();
    given["status"]["token"].as_str().unwrap().to_owned()
}

/// Waits until so many nodes take pods.
pub(crate) async fn ready(admin: &Client, nodes: usize) {
    until("nodes that take pods", async || {
        let all = items(admin, "/api/v1/nodes").await;
        let free = all.iter().filter(|node| node["spec"]["taints"].is_null());
        (free.count() == nodes).then_some(())
    })
    .await;
}

/// Stops the API server's process, or has it go on.
pub(crate) fn away(away: bool) {
    let file = folder().unwrap().join("pid/kube-apiserver");
    let pid = Pid::from_raw(std::fs::read_to_string(file).unwrap().trim().parse().unwrap()).unwrap();
    kill_process(pid, if away { Signal::STOP } else { Signal::CONT }).unwrap();
}

/// Takes the right to make secrets from drivers.
pub(crate) async fn take_secrets(access: &Access) {
    let admin = access.client(&access.tokens[0]).await;
    let path = format!("{RIGHTS}/namespaces/{}/roles/regatta-driver", access.namespace);
    let mut role = send(&admin, "GET", &path, Value::Null).await.unwrap();
    let rules = role["rules"].as_array_mut().unwrap();
    rules.retain(|rule| rule["resources"] != json!(["secrets"]));
    let rules = json!({ "rules": rules });
    send(&admin, "PATCH", &path, rules).await.unwrap();
    // Until it is so. What is asked here is refused before it is looked at, or for what it is.
    let driver = access.client(&access.tokens[2]).await;
    let path = format!("/api/v1/namespaces/{}/secrets", access.namespace);
    until("the loss of a right", async || {
        let refused = send(&driver, "POST", &path, json!({ "metadata": { "name": "No Name" } })).await;
        matches!(refused, Err(kube::Error::Api(status)) if status.code == 403).then_some(())
    })
    .await;
}
