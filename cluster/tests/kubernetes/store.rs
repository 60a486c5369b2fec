//! What an API server remembers: objects, their versions, and the news of them.

use std::collections::BTreeMap;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

/// A kind, a namespace (none for nodes) and a name.
pub(crate) type Key = (String, String, String);

#[derive(Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<Key, Value>,
    version: u64,
    /// Every change, for watchers: its version, its type, its kind, the object.
    pub(crate) news: Vec<(u64, &'static str, String, Value)>,
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    fn tell(&mut self, what: &'static str, key: &Key, mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.news.push((self.version, what, key.0.clone(), object.clone()));
        object
    }

    /// Adds a new object; `None` where there is one of its name.
    pub(crate) fn create(&mut self, key: Key, mut object: Value) -> Option<Value> {
        if self.objects.contains_key(&key) {
            return None;
        }
        let metadata = &mut object["metadata"];
        metadata["uid"] = format!("uid-{}", self.version + 1).into();
        metadata["namespace"] = key.1.clone().into();
        metadata["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
        if key.0 == "pods" {
            object["status"] = json!({ "phase": "Pending" });
        }
        let object = self.tell("ADDED", &key, object);
        self.objects.insert(key, object.clone());
        Some(object)
    }

    /// Lays a patch over an object; nothing is told where nothing changes.
    pub(crate) fn patch(&mut self, key: &Key, patch: Value) -> Option<Value> {
        let old = self.objects.get(key)?.clone();
        let mut new = old.clone();
        merge(&mut new, patch);
        if new != old {
            new = self.tell("MODIFIED", key, new);
            self.objects.insert(key.clone(), new.clone());
        }
        Some(new)
    }

    /// Deletes an object, or asks a pod's node to; what it owned goes with it.
    pub(crate) fn delete(&mut self, key: &Key, grace: Option<u64>) -> Option<Value> {
        let object = self.objects.get(key)?.clone();
        let runs = key.0 == "pods" && object["spec"]["nodeName"].is_string() && !over(&object);
        let own = object["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        let before = object["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(u64::MAX);
        let grace = if runs { grace.unwrap_or(own).min(before) } else { 0 };
        if grace > 0 {
            let at = Timestamp::now() + SignedDuration::from_secs(grace as i64);
            let leaving = json!({
                "deletionTimestamp": at.to_string(), "deletionGracePeriodSeconds": grace,
            });
            return self.patch(key, json!({ "metadata": leaving }));
        }
        self.objects.remove(key);
        let object = self.tell("DELETED", key, object);
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let owned = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid.as_str()))
        };
        let orphans: Vec<Key> =
            self.objects.iter().filter(|(_, object)| owned(object)).map(|(key, _)| key.clone()).collect();
        for orphan in orphans {
            self.delete(&orphan, None);
        }
        Some(object)
    }

    pub(crate) fn list(&self, kind: &str, namespace: Option<&str>, wanted: &Selector) -> Vec<Value> {
        let of_kind =
            self.objects.iter().filter(|((k, ns, _), _)| k == kind && namespace.is_none_or(|n| n == ns));
        of_kind.map(|(_, object)| object).filter(|object| wanted.matches(object)).cloned().collect()
    }
}

pub(crate) fn over(pod: &Value) -> bool {
    matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (name, value) in over {
                if value.is_null() {
                    under.remove(&name);
                } else {
                    merge(under.entry(name).or_insert_with(|| json!({})), value);
                }
            }
        }
        (under, over) => *under = over,
    }
}

/// The labels and fields that are asked for.
#[derive(Clone, Default)]
pub(crate) struct Selector(Vec<(String, Vec<String>)>);

impl Selector {
    pub(crate) fn read(labels: &str, fields: &str) -> Self {
        let mut terms = Vec::new();
        let mut rest = labels;
        while !rest.is_empty() {
            let end = match (rest.find(" in ("), rest.find(',')) {
                (Some(open), comma) if comma.is_none_or(|comma| open < comma) => {
                    rest.find(')').unwrap_or(rest.len() - 1) + 1
                }
                (_, comma) => comma.unwrap_or(rest.len()),
            };
            let term = &rest[..end];
            rest = rest[end..].trim_start_matches(',');
            let (name, values) = match term.split_once(" in (") {
                Some((name, values)) => {
                    (name, values.trim_end_matches(')').split(',').map(str::to_owned).collect())
                }
                None => {
                    let (name, value) = term.split_once('=').expect("a term that is understood");
                    (name, vec![value.to_owned()])
                }
            };
            terms.push((format!("/metadata/labels/{}", name.replace('/', "~1")), values));
        }
        for term in fields.split(',').filter(|term| !term.is_empty()) {
            let (path, value) = term.split_once('=').expect("a field");
            terms.push((format!("/{}", path.replace('.', "/")), vec![value.to_owned()]));
        }
        Self(terms)
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, values)| {
            let found = object.pointer(path).and_then(Value::as_str).unwrap_or_default();
            values.iter().any(|value| value == found)
        })
    }
}
