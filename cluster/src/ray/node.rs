//! Ray's nodes and amounts in our words, and ours in Ray's.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::allocator::Allocator;
use crate::error::Result;
use crate::placement::Placement;
use crate::request::GangRequest;
use crate::resource::{Bytes, Milli, Resources};

/// Amounts by Ray's names.
pub(super) type Amounts = BTreeMap<String, f64>;

/// A node as Ray's own interfaces tell of it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Node {
    /// Unlike the name this is another when the node comes back.
    #[serde(alias = "NodeID", alias = "node_id")]
    pub(super) id: String,
    #[serde(alias = "NodeName", alias = "node_name")]
    pub(super) name: String,
    #[serde(alias = "Resources", alias = "resources_total", default)]
    amounts: Amounts,
    // `ray.nodes()` says it twice, the dashboard by the state alone.
    #[serde(rename = "Alive", default)]
    alive: bool,
    #[serde(default)]
    state: String,
}

impl Node {
    pub(super) fn up(&self) -> bool {
        self.alive || self.state == "ALIVE"
    }

    pub(super) fn total(&self) -> Resources {
        let amount = |name: &str| self.amounts.get(name).copied().unwrap_or(0.0);
        let mut total = Resources::none().with_memory(Bytes(amount("memory").max(0.0) as u64));
        (total.cpu, total.gpu) = (milli(amount("CPU")), milli(amount("GPU")));
        let builtin = |name: &str| matches!(name, "CPU" | "GPU" | "memory" | "object_store_memory");
        for (name, amount) in &self.amounts {
            if !builtin(name) && !name.starts_with("node:") {
                total.restore_custom(name, milli(*amount));
            }
        }
        total
    }
}

fn milli(amount: f64) -> Milli {
    // Ray counts in ten-thousandths; what is no thousandth is not promised.
    Milli::from_thousandths((amount.max(0.0) * 1000.0 + 1e-6).floor() as u64)
}

/// What a worker asks for, as the bundle of a placement group.
pub(super) fn bundle(want: &Resources) -> Amounts {
    let units = |amount: Milli| amount.thousandths() as f64 / 1000.0;
    let mut bundle = Amounts::new();
    bundle.insert("CPU".into(), units(want.cpu));
    bundle.insert("GPU".into(), units(want.gpu));
    bundle.insert("memory".into(), want.memory.0 as f64);
    bundle.extend(want.customs().map(|(name, amount)| (name.to_owned(), units(amount))));
    bundle.retain(|_, amount| *amount > 0.0);
    bundle
}

/// How Ray calls a placement.
pub(super) fn strategy(placement: Placement) -> &'static str {
    match placement {
        Placement::Pack => "PACK",
        Placement::Spread => "SPREAD",
        Placement::StrictPack => "STRICT_PACK",
        Placement::StrictSpread => "STRICT_SPREAD",
    }
}

/// An error where these nodes, named and idle, could never seat the gang, or where the request makes no sense.
pub(super) fn feasible(
    nodes: impl IntoIterator<Item = (String, Resources, bool)>,
    request: &GangRequest,
) -> Result<()> {
    let nodes: Vec<_> = nodes.into_iter().collect();
    let mut idle = Allocator::new(nodes.iter().map(|(name, total, _)| (name.clone(), total.clone())))?;
    for (name, ..) in nodes.iter().filter(|(.., up)| !up) {
        idle.set_up(name, false);
    }
    idle.request(request.clone()).map(drop)
}

/// Each node that is up with a name that no other has: Ray lets two nodes have one.
pub(super) fn named(nodes: &[Node]) -> Vec<(String, &Node)> {
    let up: Vec<&Node> = nodes.iter().filter(|node| node.up()).collect();
    let alike = |name: &str| up.iter().filter(|node| node.name == name).count();
    let name = |node: &Node| match alike(&node.name) {
        1 => node.name.clone(),
        _ => format!("{}-{}", node.name, &node.id[..node.id.len().min(8)]),
    };
    up.iter().map(|node| (name(node), *node)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    // As `ray.nodes()` and as the dashboard of Ray 2.60 tell of a node.
    const BY_RAY: &str = r#"{"NodeID": "aa24c3e6", "Alive": true, "NodeManagerAddress": "10.0.0.7", "NodeName": "gpu7", "alive": true,
        "Resources": {"CPU": 8.0, "GPU": 1.0, "memory": 1073741824.0, "node:10.0.0.7": 1.0, "object_store_memory": 8.0,
        "nvme": 0.5}, "Labels": {}}"#;
    const BY_DASHBOARD: &str = r#"{"node_id": "aa24c3e6", "node_ip": "10.0.0.7", "is_head_node": false, "state": "ALIVE",
        "state_message": null, "node_name": "gpu7", "resources_total": {"CPU": 8.0, "GPU": 1.0, "memory": 1073741824.0,
        "nvme": 0.5}, "labels": {}}"#;

    fn node(text: &str) -> Node {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_node_is_the_same_from_both_sides() {
        let total: Resources = "cpu: 8, gpu: 1, memory: 1GiB, nvme: 0.5".parse().unwrap();
        for text in [BY_RAY, BY_DASHBOARD] {
            let node = node(text);
            assert_eq!((node.id.as_str(), node.name.as_str(), node.up()), ("aa24c3e6", "gpu7", true));
            assert_eq!(node.total(), total);
        }
        assert!(!node(&BY_DASHBOARD.replace("ALIVE", "DEAD")).up());
        assert!(!node(&BY_RAY.replace("true", "false")).up());
        assert_eq!(bundle(&total)["CPU"], 8.0);
        assert_eq!(bundle(&"cpu: 0.5, nvme: 0.5".parse().unwrap()).len(), 2);
    }

    #[test]
    fn nodes_of_one_name_are_told_apart() {
        let mut nodes = vec![node(BY_RAY), node(&BY_RAY.replace("aa24", "bb24"))];
        let names = |nodes: &[Node]| named(nodes).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&nodes), ["gpu7-aa24c3e6", "gpu7-bb24c3e6"]);
        nodes[0].alive = false;
        assert_eq!(names(&nodes), ["gpu7"]);
    }

    #[test]
    fn what_no_state_of_the_cluster_could_seat_is_refused_with_what_would_fit() {
        let node = node(BY_RAY);
        let nodes = || [("gpu7".to_owned(), node.total(), true), ("gpu8".to_owned(), node.total(), false)];
        let request = |workers| GangRequest::new("g", workers, Resources::cpus(8));
        assert!(feasible(nodes(), &request(1)).is_ok());
        let refused = feasible(nodes(), &request(2)).unwrap_err();
        assert!(matches!(&refused, Error::Infeasible(why) if why.would_fit == 1), "{refused}");
        assert!(feasible(nodes(), &request(1).exclude("gpu7")).is_err());
    }
}
