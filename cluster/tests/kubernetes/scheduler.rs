//! A scheduler that honours what the engine asks of one: room, nodes to avoid, and how a gang's pods stand to each other.

use serde_json::{Value, json};

use super::store::{Key, Selector, Store, over};

const GANG: &str = "regatta/gang";

/// Places every pod that can be, and says why the others cannot.
pub(crate) fn schedule(store: &mut Store) {
    let mut waiting: Vec<(u64, Key)> = Vec::new();
    for (key, pod) in store.objects.iter().filter(|((kind, ..), _)| kind == "pods") {
        if pod["spec"]["nodeName"].is_null() && pod["metadata"]["deletionTimestamp"].is_null() {
            let uid = pod["metadata"]["uid"].as_str().unwrap_or_default();
            waiting.push((uid.trim_start_matches("uid-").parse().unwrap_or(0), key.clone()));
        }
    }
    waiting.sort();
    for (_, key) in waiting {
        let Some(pod) = store.objects.get(&key).cloned() else { continue };
        let patch = match place(store, &pod) {
            Ok(node) => json!({
                "spec": { "nodeName": node },
                "status": { "conditions": [{ "type": "PodScheduled", "status": "True" }] },
            }),
            Err(why) => json!({
                "status": { "conditions": [
                    { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": why },
                ] },
            }),
        };
        store.patch(&key, patch);
    }
}

fn place(store: &Store, pod: &Value) -> Result<String, String> {
    let nodes = store.list("nodes", None, &Selector::default());
    let pods: Vec<Value> =
        store.list("pods", None, &Selector::default()).into_iter().filter(|pod| !over(pod)).collect();
    let gang = &pod["metadata"]["labels"][GANG];
    let mates = |node: &str| {
        let mate =
            |other: &&Value| other["metadata"]["labels"][GANG] == *gang && other["spec"]["nodeName"] == node;
        if gang.is_null() { 0 } else { pods.iter().filter(mate).count() }
    };
    let seated = pods.iter().any(|other| {
        !gang.is_null() && other["metadata"]["labels"][GANG] == *gang && other["spec"]["nodeName"].is_string()
    });
    let strictly =
        |how: &str| pod["spec"]["affinity"][how]["requiredDuringSchedulingIgnoredDuringExecution"].is_array();
    let mut short = 0;
    let mut best: Option<(i64, String)> = None;
    for node in &nodes {
        let name = node["metadata"]["name"].as_str().unwrap_or_default();
        let fits = wanted(pod).iter().all(|(resource, amount)| {
            let held: u64 = pods
                .iter()
                .filter(|other| other["spec"]["nodeName"] == name)
                .flat_map(wanted)
                .filter(|(other, _)| other == resource)
                .map(|(_, amount)| amount)
                .sum();
            held + amount <= thousandths(&node["status"]["allocatable"][resource])
        });
        short += usize::from(!fits);
        let apart = !(strictly("podAntiAffinity") && mates(name) > 0);
        let together = !(strictly("podAffinity") && seated && mates(name) == 0);
        if !(fits && apart && together && allowed(pod, name)) {
            continue;
        }
        let near = mates(name) as i64;
        let score = if pod["spec"]["affinity"]["podAntiAffinity"].is_object() { -near } else { near };
        if best.as_ref().is_none_or(|(least, _)| score > *least) {
            best = Some((score, name.to_owned()));
        }
    }
    best.map(|(_, node)| node)
        .ok_or_else(|| format!("0/{} nodes are available: {short} Insufficient cpu.", nodes.len()))
}

/// Whether the pod's own wishes let it stand there.
fn allowed(pod: &Value, node: &str) -> bool {
    let required = &pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let fields = required["nodeSelectorTerms"][0]["matchFields"].as_array().cloned().unwrap_or_default();
    fields.iter().all(|field| {
        assert_eq!(field["key"], "metadata.name");
        let named = field["values"][0] == node;
        if field["operator"] == "In" { named } else { !named }
    })
}

fn wanted(pod: &Value) -> Vec<(String, u64)> {
    let requests = pod["spec"]["containers"][0]["resources"]["requests"].as_object();
    requests.into_iter().flatten().map(|(name, amount)| (name.clone(), thousandths(amount))).collect()
}

fn thousandths(amount: &Value) -> u64 {
    let text = amount.as_str().unwrap_or("0");
    match text.strip_suffix('m') {
        Some(milli) => milli.parse().unwrap_or(0),
        None => text.parse::<u64>().unwrap_or(0) * 1000,
    }
}
