//! The cluster's nodes, as far as they may be looked at: only to say at once what could never run.
//!
//! Placing is the scheduler's. Where the nodes may not be listed, or are made as they are needed, the cluster is taken for
//! one that has room for anything, and what has none is said when it is waited for.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};

use super::KubernetesConfig;
use super::api::{is_forbidden, refused};
use super::quantity::thousandths;
use crate::error::{Error, Result};
use crate::request::Seat;
use crate::resource::{Bytes, Milli, Resources};
use crate::spawner::NodeStatus;

/// The nodes on which pods of this configuration may stand; `None` where they are not to be known.
pub(super) async fn list(
    client: &Client,
    config: &KubernetesConfig,
    within: Duration,
) -> Result<Option<Vec<NodeStatus>>> {
    if config.autoscaled {
        return Ok(None);
    }
    let api: Api<Node> = Api::all(client.clone());
    let wanted: Vec<String> =
        config.node_selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let params = ListParams::default().labels(&wanted.join(","));
    match tokio::time::timeout(within, api.list(&params)).await {
        Ok(Ok(list)) => Ok(Some(list.items.iter().map(|node| read(node, config)).collect())),
        Ok(Err(error)) if is_forbidden(&error) => Ok(None),
        Ok(Err(error)) => Err(refused("the list of nodes", &error)),
        Err(_) => Err(Error::Engine {
            engine: super::ENGINE,
            what: "the list of nodes".into(),
            reason: format!("no answer within {within:?}"),
            advice: String::new(),
        }),
    }
}

fn read(node: &Node, config: &KubernetesConfig) -> NodeStatus {
    let status = node.status.clone().unwrap_or_default();
    let mut total = Resources::none();
    for (name, quantity) in status.allocatable.iter().flatten() {
        let Some(amount) = thousandths(&quantity.0).and_then(|amount| u64::try_from(amount).ok()) else {
            continue;
        };
        match name.as_str() {
            "cpu" => total.cpu = Milli::from_thousandths(amount),
            "memory" => total.memory = Bytes(amount / 1000),
            name if name == config.gpu => total.gpu = Milli::from_thousandths(amount),
            name if name.contains('/') => total.restore_custom(name, Milli::from_thousandths(amount)),
            _ => {}
        }
    }
    let ready = status.conditions.iter().flatten().any(|is| is.type_ == "Ready" && is.status == "True");
    let spec = node.spec.clone().unwrap_or_default();
    let shunned = spec.taints.iter().flatten().any(|taint| {
        let keeps_off = matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
        let tolerated = config.tolerations.iter().any(|toleration| {
            toleration.key.as_ref().is_none_or(|key| *key == taint.key)
                && toleration.value.as_ref().is_none_or(|value| Some(value) == taint.value.as_ref())
                && toleration.effect.as_ref().is_none_or(|effect| *effect == taint.effect)
        });
        keeps_off && !tolerated && taint.key != config.gpu
    });
    let up = ready && !shunned && !spec.unschedulable.unwrap_or(false);
    NodeStatus { name: node.metadata.name.clone().unwrap_or_default(), free: total.clone(), total, up }
}

/// What stands for the nodes of a cluster that does not show them.
pub(super) fn anywhere() -> Vec<NodeStatus> {
    let total = Resources::cpus(1024).with_gpus(64).with_memory(Bytes(1 << 46));
    let node = |n: usize| NodeStatus {
        name: format!("some-node-{n}"),
        free: total.clone(),
        total: total.clone(),
        up: true,
    };
    (0..64).map(node).collect()
}

/// Takes what gangs hold off what is free.
pub(super) fn without<'a>(
    mut nodes: Vec<NodeStatus>,
    seats: impl IntoIterator<Item = &'a Seat>,
) -> Vec<NodeStatus> {
    let minus = |from: Milli, part: Milli| {
        Milli::from_thousandths(from.thousandths().saturating_sub(part.thousandths()))
    };
    for seat in seats {
        let Some(node) = nodes.iter_mut().find(|node| node.name == seat.node) else { continue };
        let (free, held) = (&node.free, &seat.resources);
        let mut left = Resources::none().with_memory(Bytes(free.memory.0.saturating_sub(held.memory.0)));
        (left.cpu, left.gpu) = (minus(free.cpu, held.cpu), minus(free.gpu, held.gpu));
        for (name, amount) in free.customs() {
            left.restore_custom(name, minus(amount, held.custom(name)));
        }
        node.free = left;
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: serde_json::Value) -> NodeStatus {
        read(&serde_json::from_value(text).unwrap(), &KubernetesConfig::new("image"))
    }

    #[test]
    fn a_node_has_what_pods_may_have_of_it() {
        let ready = serde_json::json!([{ "type": "Ready", "status": "True" }]);
        let seen = node(serde_json::json!({
            "metadata": { "name": "a" },
            "status": {
                "capacity": { "cpu": "4" },
                "allocatable": { "cpu": "3920m", "memory": "16Gi", "nvidia.com/gpu": "8", "pods": "110", "me.org/nic": "2" },
                "conditions": ready,
            },
        }));
        assert_eq!(seen.total.to_string(), "cpu: 3.92, gpu: 8, memory: 16GiB, me.org/nic: 2");
        assert!(seen.up);
        let tainted = |key: &str| {
            serde_json::json!({
                "spec": { "taints": [{ "key": key, "effect": "NoSchedule" }] }, "status": { "conditions": ready },
            })
        };
        assert!(node(tainted("nvidia.com/gpu")).up && !node(tainted("theirs")).up);
        assert!(
            !node(
                serde_json::json!({ "spec": { "unschedulable": true }, "status": { "conditions": ready } })
            )
            .up
        );
        assert!(!node(serde_json::json!({})).up, "nothing says that it is ready");
    }
}
