//! Torchrun's environment: what a program reads to find its peers. Every worker has it, ours and those in other languages, so
//! that libraries which look for it find it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, TcpListener};

use crate::Lease;

/// What all ranks of an attempt are told.
#[derive(Debug, Clone)]
pub struct Contract {
    /// The run, as `TORCHELASTIC_RUN_ID`.
    pub run_id: String,
    /// How often it was started before.
    pub restart: u32,
    /// How often it may be, if that is known.
    pub max_restarts: Option<u32>,
    /// Whether all ranks are on this host, whatever it is called.
    pub local: bool,
    /// The port at which rank 0 listens, if the program has it do so.
    pub port: u16,
}

impl Contract {
    /// Each rank's variables. A rank's slot is its rank, and a node is a group.
    pub fn slots(&self, lease: &Lease) -> Vec<BTreeMap<String, OsString>> {
        let nodes = lease.nodes();
        let master = if self.local { "127.0.0.1" } else { nodes.first().copied().unwrap_or("127.0.0.1") };
        let world = lease.workers();
        let slots = lease.seats.iter().map(|seat| {
            let group = nodes.iter().position(|node| *node == seat.node).unwrap_or(0);
            let local: Vec<_> = lease.seats.iter().filter(|other| other.node == seat.node).collect();
            let numbers = [
                ("RANK", seat.slot),
                ("LOCAL_RANK", seat.local_slot),
                ("WORLD_SIZE", world),
                ("LOCAL_WORLD_SIZE", local.len()),
                ("GROUP_RANK", group),
                ("GROUP_WORLD_SIZE", nodes.len()),
                ("ROLE_RANK", seat.slot),
                ("ROLE_WORLD_SIZE", world),
                ("MASTER_PORT", usize::from(self.port)),
                ("TORCHELASTIC_RESTART_COUNT", self.restart as usize),
            ];
            let mut vars: BTreeMap<String, OsString> =
                numbers.into_iter().map(|(name, number)| (name.into(), number.to_string().into())).collect();
            let words = [
                ("MASTER_ADDR", master),
                ("ROLE_NAME", "default"),
                ("TORCHELASTIC_RUN_ID", &self.run_id),
                // Rank 0 serves the store itself.
                ("TORCHELASTIC_USE_AGENT_STORE", "False"),
            ];
            vars.extend(words.into_iter().map(|(name, word)| (name.into(), word.into())));
            let most = self.max_restarts.map(|most| most.to_string().into());
            vars.extend(most.map(|most| ("TORCHELASTIC_MAX_RESTARTS".into(), most)));
            vars
        });
        slots.collect()
    }

    /// The same for programs that choose their GPU by their local rank: each sees all that the gang has on its node. A worker of
    /// ours sees its own alone.
    pub fn slots_by_local_rank(&self, lease: &Lease) -> Vec<BTreeMap<String, OsString>> {
        let mut slots = self.slots(lease);
        for (seat, vars) in lease.seats.iter().zip(&mut slots) {
            let local: Vec<_> = lease.seats.iter().filter(|other| other.node == seat.node).collect();
            if local.len() > 1 && local.iter().all(|seat| !seat.gpus.is_empty()) {
                let gpus: Vec<String> =
                    local.iter().flat_map(|seat| &seat.gpus).map(u32::to_string).collect();
                vars.insert("CUDA_VISIBLE_DEVICES".into(), gpus.join(",").into());
            }
        }
        slots
    }
}

/// A port of this host that nobody listened at just now.
pub fn free_port() -> io::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    Ok(listener.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LeaseId, Resources, Seat};

    fn seat(slot: usize, node: &str, local_slot: usize, gpus: Vec<u32>) -> Seat {
        Seat { slot, node: node.into(), local_slot, resources: Resources::cpus(1), cpus: vec![0], gpus }
    }

    #[test]
    fn ranks_are_told_what_torchrun_tells_them() {
        let seats = vec![seat(0, "a", 0, vec![2]), seat(1, "a", 1, vec![3]), seat(2, "b", 0, vec![])];
        let lease = Lease { id: LeaseId(1), seats };
        let contract =
            Contract { run_id: "e/r".into(), restart: 1, max_restarts: Some(3), local: false, port: 4711 };
        let slots = contract.slots_by_local_rank(&lease);
        let get =
            |slot: usize, name: &str| slots[slot].get(name).map(|value| value.to_str().unwrap().to_owned());
        for (name, values) in [
            ("RANK", ["0", "1", "2"]),
            ("LOCAL_RANK", ["0", "1", "0"]),
            ("WORLD_SIZE", ["3", "3", "3"]),
            ("LOCAL_WORLD_SIZE", ["2", "2", "1"]),
            ("GROUP_RANK", ["0", "0", "1"]),
            ("MASTER_ADDR", ["a", "a", "a"]),
            ("MASTER_PORT", ["4711"; 3]),
            ("TORCHELASTIC_RESTART_COUNT", ["1"; 3]),
        ] {
            assert_eq!([0, 1, 2].map(|slot| get(slot, name).unwrap()), values, "{name}");
        }
        assert_eq!(get(1, "CUDA_VISIBLE_DEVICES").as_deref(), Some("2,3"));
        assert_eq!(get(2, "CUDA_VISIBLE_DEVICES"), None);
        assert!(contract.slots(&lease).iter().all(|vars| !vars.contains_key("CUDA_VISIBLE_DEVICES")));
        let local = Contract { local: true, ..contract };
        assert_eq!(local.slots(&lease)[2]["MASTER_ADDR"], "127.0.0.1");
    }
}
