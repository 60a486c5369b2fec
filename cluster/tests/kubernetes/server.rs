//! A small API server, true to the real one where the engine looks: objects and their versions, selectors, news, merge
//! patches, graceful deletion, owners, logs, rights. Its rights are those of the manifest that is shipped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use regatta_cluster::kubernetes::MANIFEST;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::cluster::{ADMIN, DRIVER, USER};
use super::logs::follow;
use super::scheduler::schedule;
use super::store::{Key, Selector, Store, over};

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Where nodes leave the logs of containers.
    pub(crate) logs: PathBuf,
    store: Mutex<Store>,
    changed: watch::Sender<u64>,
    rights: Vec<(String, String, String)>,
    faults: Mutex<Vec<Fault>>,
    /// It answers nobody.
    away: watch::Sender<bool>,
}

/// What the server shall say in place of an answer.
pub(crate) struct Fault {
    pub(crate) method: &'static str,
    /// What stands in it, or in its query.
    pub(crate) path: &'static str,
    pub(crate) code: u16,
    pub(crate) message: String,
}

impl Server {
    /// Serves on a port of its own until the runtime ends.
    pub(crate) async fn start(logs: &Path) -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Arc::new(Self {
            address: listener.local_addr().unwrap(),
            logs: logs.to_owned(),
            store: Mutex::default(),
            changed: watch::Sender::new(0),
            rights: rights(),
            faults: Mutex::default(),
            away: watch::Sender::new(false),
        });
        let app = axum::Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    /// Answers so from now on where method and path are so.
    pub(crate) fn fault(&self, fault: Fault) {
        self.faults.lock().unwrap().push(fault);
    }

    /// Answers nobody from now on, or everybody again.
    pub(crate) fn away(&self, away: bool) {
        self.away.send_replace(away);
    }

    /// Looks at, or changes, what is remembered, as an administrator would.
    pub(crate) fn with<T>(&self, what: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let done = what(&mut store);
        schedule(&mut store);
        self.changed.send_replace(store.version());
        done
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn may(&self, token: &str, verb: &str, resource: &str) -> bool {
        let role = match token {
            ADMIN => return true,
            USER => "regatta-user",
            _ => "regatta-driver",
        };
        let allowed = |(of, what, how): &(String, String, String)| {
            (of == role || of == "regatta-nodes") && what == resource && how == verb
        };
        self.rights.iter().any(allowed)
    }
}

/// Role, resource and verb of everything the manifest gives.
fn rights() -> Vec<(String, String, String)> {
    let mut rights = Vec::new();
    for document in MANIFEST.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).expect("the manifest is YAML");
        for rule in object["rules"].as_array().into_iter().flatten() {
            assert_eq!(rule["apiGroups"], json!([""]));
            for resource in rule["resources"].as_array().unwrap() {
                for verb in rule["verbs"].as_array().unwrap() {
                    let text = |value: &Value| value.as_str().unwrap().to_owned();
                    rights.push((text(&object["metadata"]["name"]), text(resource), text(verb)));
                }
            }
        }
    }
    rights
}

fn refuse(code: u16, reason: &str, message: impl Into<String>) -> Response {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message.into(),
    });
    (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string())
        .into_response()
}

fn say(code: StatusCode, body: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

struct Asked {
    kind: String,
    namespace: Option<String>,
    name: Option<String>,
    sub: Option<String>,
    query: Vec<(String, String)>,
}

impl Asked {
    fn read(request: &Request) -> Option<Self> {
        let path = request.uri().path().strip_prefix("/api/v1/")?;
        let mut parts = path.split('/').map(str::to_owned);
        let first = parts.next()?;
        let (namespace, kind) =
            if first == "namespaces" { (Some(parts.next()?), parts.next()?) } else { (None, first) };
        let query = request.uri().query().unwrap_or_default();
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(name, value)| (name.to_owned(), decode(value))).collect();
        Some(Self { kind, namespace, name: parts.next(), sub: parts.next(), query })
    }

    fn query(&self, name: &str) -> &str {
        self.query.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    fn key(&self) -> Key {
        let name = self.name.clone().unwrap_or_default();
        (self.kind.clone(), self.namespace.clone().unwrap_or_default(), name)
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                bytes.push(u8::from_str_radix(&String::from_utf8_lossy(&hex), 16).unwrap_or(b'?'));
            }
            b'+' => bytes.push(b' '),
            byte => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn answer(State(server): State<Arc<Server>>, request: Request) -> Response {
    let _ = server.away.subscribe().wait_for(|away| !away).await;
    let method = request.method().as_str().to_owned();
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default().to_owned();
    if ![ADMIN, USER, DRIVER].contains(&token.as_str()) {
        return refuse(401, "Unauthorized", "Unauthorized");
    }
    let Some(asked) = Asked::read(&request) else {
        return refuse(404, "NotFound", "the server could not find it");
    };
    let watches = asked.query("watch") == "true" || asked.query("watch") == "1";
    let verb = match (method.as_str(), &asked.name) {
        ("POST", _) => "create",
        ("PATCH", _) => "patch",
        ("DELETE", _) => "delete",
        ("GET", Some(_)) => "get",
        ("GET", None) if watches => "watch",
        _ => "list",
    };
    let resource =
        [Some(asked.kind.clone()), asked.sub.clone()].into_iter().flatten().collect::<Vec<_>>().join("/");
    if !server.may(&token, verb, &resource) {
        let message = format!(
            "{resource} is forbidden: User \"{token}\" cannot {verb} resource \"{resource}\" in API group \"\" in the namespace \"{}\"",
            asked.namespace.as_deref().unwrap_or_default(),
        );
        return refuse(403, "Forbidden", message);
    }
    let fault = {
        let faults = server.faults.lock().unwrap();
        let found = faults.iter().find(|fault| fault.method == method && path.contains(fault.path));
        found.filter(|_| token != ADMIN).map(|fault| (fault.code, fault.message.clone()))
    };
    if let Some((code, message)) = fault {
        return refuse(code, "Fault", message);
    }
    let body = axum::body::to_bytes(request.into_body(), 1 << 22).await.unwrap_or_default();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let key = asked.key();
    let missing = || refuse(404, "NotFound", format!("{} \"{}\" not found", key.0, key.2));
    match verb {
        "create" => create(&server, &asked, body),
        "patch" => server
            .with(|store| store.patch(&key, body))
            .map_or_else(missing, |object| say(StatusCode::OK, &object)),
        "delete" => {
            let grace = body["gracePeriodSeconds"].as_u64();
            server
                .with(|store| store.delete(&key, grace))
                .map_or_else(missing, |object| say(StatusCode::OK, &object))
        }
        "get" if asked.sub.as_deref() == Some("log") => {
            log(server, key, asked.query("follow") == "true").await
        }
        "get" => {
            let object = server.store().objects.get(&key).cloned();
            object.map_or_else(missing, |object| say(StatusCode::OK, &object))
        }
        "watch" => news(server, asked),
        _ => {
            let store = server.store();
            let wanted = Selector::read(asked.query("labelSelector"), asked.query("fieldSelector"));
            let items = store.list(&asked.kind, asked.namespace.as_deref(), &wanted);
            let metadata = json!({ "resourceVersion": store.version().to_string() });
            say(
                StatusCode::OK,
                &json!({ "apiVersion": "v1", "kind": "List", "metadata": metadata, "items": items }),
            )
        }
    }
}

fn create(server: &Server, asked: &Asked, object: Value) -> Response {
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let key = (asked.kind.clone(), asked.namespace.clone().unwrap_or_default(), name.clone());
    match server.with(|store| store.create(key, object)) {
        Some(object) => say(StatusCode::CREATED, &object),
        None => refuse(409, "AlreadyExists", format!("{} \"{name}\" already exists", asked.kind)),
    }
}

/// News from a version on, for as long as was asked.
fn news(server: Arc<Server>, asked: Asked) -> Response {
    let from: u64 = asked.query("resourceVersion").parse().unwrap_or(0);
    let within = Duration::from_secs(asked.query("timeoutSeconds").parse().unwrap_or(30));
    let until = Instant::now() + within;
    let wanted = Selector::read(asked.query("labelSelector"), asked.query("fieldSelector"));
    let changed = server.changed.subscribe();
    let stream = stream::unfold((server, from, changed), move |(server, from, mut changed)| {
        let (wanted, kind, namespace) = (wanted.clone(), asked.kind.clone(), asked.namespace.clone());
        async move {
            loop {
                changed.borrow_and_update();
                let (lines, version) = {
                    let store = server.store();
                    let new = store.news.iter().filter(|(version, _, of, object)| {
                        let here = namespace.as_deref().is_none_or(|n| object["metadata"]["namespace"] == n);
                        *version > from && *of == kind && here && wanted.matches(object)
                    });
                    let line = |(_, what, _, object): &(u64, &str, String, Value)| {
                        format!("{}\n", json!({ "type": what, "object": object }))
                    };
                    (new.map(line).collect::<String>(), store.version())
                };
                if !lines.is_empty() {
                    return Some((Ok::<_, std::io::Error>(Bytes::from(lines)), (server, version, changed)));
                }
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero()
                    || !matches!(tokio::time::timeout(left, changed.changed()).await, Ok(Ok(())))
                {
                    return None;
                }
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response()
}

/// What a container wrote, while it writes if asked.
async fn log(server: Arc<Server>, key: Key, follow_it: bool) -> Response {
    let path = server.logs.join(&key.2);
    let begun = {
        let store = server.store();
        let Some(pod) = store.objects.get(&key) else {
            return refuse(404, "NotFound", format!("pods \"{}\" not found", key.2));
        };
        let state = &pod["status"]["containerStatuses"][0]["state"];
        state["running"].is_object() || state["terminated"].is_object()
    };
    if !begun {
        let message =
            format!("container \"regatta\" in pod \"{}\" is waiting to start: ContainerCreating", key.2);
        return refuse(400, "BadRequest", message);
    }
    let body = follow(path, follow_it, move || server.store().objects.get(&key).is_none_or(over));
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}
