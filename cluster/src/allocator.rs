//! Who gets which part of the cluster, and when: a pure state machine, gangs in, leases out.
//!
//! One allocator owns everything, so a gang is seated whole or not at all and two half-seated gangs never wait for each
//! other. Invariants, which the tests cite:
//!
//! - **AL-1** what is held and what is free add up to what a node has, to the thousandth, unit by unit;
//! - **AL-2** the head of the line starts exactly when it would have started had nobody passed it: others pass only with
//!   what the head cannot use, whichever leases end first;
//! - **AL-3** what no idle cluster could seat is refused at once, also when a node's failure makes it so;
//! - **AL-4** when every lease is released and every request withdrawn, all is free again.
//!
//! There is no clock here: patience is the caller's, who withdraws the request.

mod node;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use self::node::Node;
use crate::error::{Error, Result};
use crate::placement::{Infeasible, Placement, lay_out, most};
use crate::request::{GangRequest, Lease, LeaseId, Seat};
use crate::resource::Resources;
use crate::spawner::NodeStatus;

/// The most workers one gang may have: beyond that a request is a slip of the finger.
pub const MAX_WORKERS: usize = 65_536;

/// Names a request in line; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What the allocator has decided about a request, which has left the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It has its seats.
    Granted {
        /// The request.
        request: RequestId,
        /// The seats.
        lease: Lease,
    },
    /// It can no longer be seated by any state of the cluster: a node went.
    Refused {
        /// The request.
        request: RequestId,
        /// Why.
        why: Box<Infeasible>,
    },
}

/// The state machine. Give it requests, releases and news of nodes; after each, ask it to [`decide`](Self::decide).
///
/// ```
/// use regatta_cluster::{Allocator, Decision, GangRequest, Resources};
///
/// let mut allocator = Allocator::new([("here".to_owned(), Resources::cpus(2))])?;
/// allocator.request(GangRequest::new("pair", 2, Resources::cpus(1)))?;
/// allocator.request(GangRequest::new("single", 1, Resources::cpus(1)))?;
/// let decisions = allocator.decide();
/// let [Decision::Granted { lease, .. }] = decisions.as_slice() else { panic!("the pair fills the node") };
/// assert_eq!(lease.seats[1].cpus, [1]);
/// allocator.release(lease.id);
/// assert_eq!(allocator.decide().len(), 1); // now the single
///
/// let refusal = allocator.request(GangRequest::new("trio", 3, Resources::cpus(1))).unwrap_err();
/// assert!(refusal.to_string().contains("at most 2 would fit"));
/// # Ok::<_, regatta_cluster::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Allocator {
    nodes: Vec<Node>,
    /// In order of arrival.
    line: VecDeque<(RequestId, GangRequest)>,
    held: BTreeMap<LeaseId, Lease>,
    issued: u64,
    /// A node went since the last decision, so those in line must be looked at again.
    node_went: bool,
}

impl Allocator {
    /// An allocator over these nodes, all of them up and idle.
    pub fn new(nodes: impl IntoIterator<Item = (String, Resources)>) -> Result<Self> {
        let mut names = BTreeSet::new();
        let mut all = Vec::new();
        for (name, total) in nodes {
            if !names.insert(name.clone()) {
                let problem = format!("two nodes are called `{name}`");
                return Err(Error::BadRequest { what: "the cluster".into(), problem });
            }
            all.push(Node::new(name, total));
        }
        let (line, held) = (VecDeque::new(), BTreeMap::new());
        Ok(Self { nodes: all, line, held, issued: 0, node_went: false })
    }

    /// Puts a gang at the end of the line, or refuses it at once where no state of the cluster could seat it.
    pub fn request(&mut self, request: GangRequest) -> Result<RequestId> {
        check(&request)?;
        if let Some(why) = self.infeasible(&request) {
            return Err(Error::Infeasible(Box::new(why)));
        }
        let id = RequestId(self.issue());
        self.line.push_back((id, request));
        Ok(id)
    }

    /// Takes a request out of the line; `false` where it has left it.
    pub fn withdraw(&mut self, request: RequestId) -> bool {
        let before = self.line.len();
        self.line.retain(|(id, _)| *id != request);
        self.line.len() < before
    }

    /// Frees a lease's seats; `false` where it is not held.
    pub fn release(&mut self, lease: LeaseId) -> bool {
        let Some(lease) = self.held.remove(&lease) else { return false };
        for seat in &lease.seats {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.name == seat.node) {
                node.give_back(seat);
            }
        }
        true
    }

    /// Opens or closes a node for placement; leases on it stay until released. `false` where there is no such node.
    pub fn set_up(&mut self, name: &str, up: bool) -> bool {
        let Some(node) = self.nodes.iter_mut().find(|node| node.name == name) else { return false };
        self.node_went |= node.up && !up;
        node.up = up;
        true
    }

    /// Seats whoever can be seated: the line in order, and past a head that must wait only those not in its way.
    pub fn decide(&mut self) -> Vec<Decision> {
        let mut decisions = Vec::new();
        if std::mem::take(&mut self.node_went) {
            self.refuse_impossible(&mut decisions);
        }
        while let Some((id, request)) = self.line.pop_front() {
            let Some(lease) = self.seat(&self.nodes, &request) else {
                self.line.push_front((id, request));
                break;
            };
            decisions.push(self.grant(id, lease));
        }
        self.pass_the_head(&mut decisions);
        decisions
    }

    /// Every node with what is free on it.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeStatus> {
        let status = |node: &Node| NodeStatus {
            name: node.name.clone(),
            total: node.total.clone(),
            free: node.free(),
            up: node.up,
        };
        self.nodes.iter().map(status).collect()
    }

    /// The requests in line, in order.
    pub fn line(&self) -> impl Iterator<Item = (RequestId, &GangRequest)> {
        self.line.iter().map(|(id, request)| (*id, request))
    }

    /// The leases held.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.held.values()
    }

    /// Why a request still waits, in words.
    #[must_use]
    pub fn blocked(&self, request: RequestId) -> String {
        let Some(ahead) = self.line.iter().position(|(id, _)| *id == request) else {
            return "it no longer stands in line".into();
        };
        let free: Vec<String> =
            self.nodes.iter().map(|node| format!("{}: {}", node.name, node.free())).collect();
        let line = match self.line.front() {
            Some((_, head)) if ahead > 0 => format!("{ahead} gangs stand before it, first `{}`; ", head.name),
            _ => "it is first in line; ".into(),
        };
        format!("{line}{} leases are held, free are {}", self.held.len(), free.join("; "))
    }

    fn issue(&mut self) -> u64 {
        self.issued += 1;
        self.issued
    }

    fn grant(&mut self, request: RequestId, mut lease: Lease) -> Decision {
        lease.id = LeaseId(self.issue());
        for seat in &lease.seats {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.name == seat.node) {
                node.take_seat(seat);
            }
        }
        self.held.insert(lease.id, lease.clone());
        Decision::Granted { request, lease }
    }

    /// Seats a gang on these nodes, or not; changes nothing.
    fn seat(&self, nodes: &[Node], request: &GangRequest) -> Option<Lease> {
        let fits = fits(nodes, request);
        let counts = lay_out(&fits, request.min_workers, request.max_workers, request.placement)?;
        let mut seats = Vec::new();
        for (node, count) in nodes.iter().zip(counts).filter(|(_, count)| *count > 0) {
            let mut node = node.clone();
            for local_slot in 0..count {
                let (cpus, gpus) = node.take(&request.per_worker)?;
                let (slot, resources) = (seats.len(), request.per_worker.clone());
                seats.push(Seat { slot, node: node.name.clone(), local_slot, resources, cpus, gpus });
            }
        }
        Some(Lease { id: LeaseId(0), seats })
    }

    /// AL-2: seats others on what is left when everything the head could use is hidden.
    fn pass_the_head(&mut self, decisions: &mut Vec<Decision>) {
        let Some((_, head)) = self.line.front() else { return };
        let mut spare = self.nodes.clone();
        for (node, workers) in spare.iter_mut().zip(could_use(&self.nodes, head)) {
            node.hide(workers, &head.per_worker);
        }
        let mut at = 1;
        let mut failed: Option<&GangRequest> = None;
        while let Some((id, request)) = self.line.get(at) {
            // A line of ten thousand equal trials is looked at once.
            let hopeless = failed.is_some_and(|other| same_shape(other, request));
            let Some(lease) = (if hopeless { None } else { self.seat(&spare, request) }) else {
                failed = Some(request);
                at += 1;
                continue;
            };
            for seat in &lease.seats {
                if let Some(node) = spare.iter_mut().find(|node| node.name == seat.node) {
                    node.take_seat(seat);
                }
            }
            let id = *id;
            failed = None;
            self.line.remove(at);
            decisions.push(self.grant(id, lease));
        }
    }

    fn refuse_impossible(&mut self, decisions: &mut Vec<Decision>) {
        let line = std::mem::take(&mut self.line);
        for (id, request) in line {
            match self.infeasible(&request) {
                Some(why) => decisions.push(Decision::Refused { request: id, why: Box::new(why) }),
                None => self.line.push_back((id, request)),
            }
        }
    }

    /// AL-3: `Some` where even an idle cluster could not seat it.
    fn infeasible(&self, request: &GangRequest) -> Option<Infeasible> {
        let idle: Vec<Node> = self.nodes.iter().map(Node::idle).collect();
        let fits = fits(&idle, request);
        let would_fit = most(&fits, request.placement);
        (would_fit < request.min_workers).then(|| Infeasible {
            gang: request.name.clone(),
            min_workers: request.min_workers,
            per_worker: request.per_worker.clone(),
            placement: request.placement,
            would_fit,
            detail: detail(&idle, &fits, request, would_fit),
        })
    }
}

/// Refuses what no cluster could mean.
pub(crate) fn check(request: &GangRequest) -> Result<()> {
    let problem = match request {
        r if r.min_workers == 0 => "it asks for no workers".to_owned(),
        r if r.min_workers > r.max_workers => {
            format!("it asks for at least {} and at most {} workers", r.min_workers, r.max_workers)
        }
        r if r.max_workers > MAX_WORKERS => {
            format!("it asks for {} workers; {MAX_WORKERS} is the most", r.max_workers)
        }
        r if r.per_worker.is_none() => {
            "its workers ask for no resource, so any number of them would run at once; say `cpu: 0.001` where next to \
             nothing is needed"
                .to_owned()
        }
        r if r.per_worker.gpu.units() > 0 && !r.per_worker.gpu.fraction().is_zero() => {
            format!("gpu: {} is neither whole nor a part of a single GPU", r.per_worker.gpu)
        }
        _ => return Ok(()),
    };
    Err(Error::BadRequest { what: format!("gang `{}`", request.name), problem })
}

fn same_shape(one: &GangRequest, other: &GangRequest) -> bool {
    one.per_worker == other.per_worker
        && (one.min_workers, one.max_workers) == (other.min_workers, other.max_workers)
        && one.placement == other.placement
        && one.excluded == other.excluded
}

fn open(node: &Node, request: &GangRequest) -> bool {
    node.up && !request.excluded.contains(&node.name)
}

/// How many of the gang's workers each node holds in what it has free.
fn fits(nodes: &[Node], request: &GangRequest) -> Vec<usize> {
    let fit = |node: &Node| match open(node, request) {
        true => node.fit(&request.per_worker, request.max_workers),
        false => 0,
    };
    nodes.iter().map(fit).collect()
}

/// The most of the gang's least workers that could ever stand on each node.
fn could_use(nodes: &[Node], head: &GangRequest) -> Vec<usize> {
    let on = |node: &Node| {
        let fit = if open(node, head) { node.idle().fit(&head.per_worker, head.min_workers) } else { 0 };
        match head.placement {
            Placement::StrictPack if fit < head.min_workers => 0,
            Placement::StrictSpread => fit.min(1),
            _ => fit,
        }
    };
    nodes.iter().map(on).collect()
}

/// What would fit, and what is short where: the first nodes only, for a cluster may have thousands.
fn detail(idle: &[Node], fits: &[usize], request: &GangRequest, would_fit: usize) -> String {
    const SHOWN: usize = 8;
    let mut parts = Vec::new();
    for (node, fit) in idle.iter().zip(fits).take(SHOWN) {
        let lacks = node.lacks(&request.per_worker);
        parts.push(match node {
            node if request.excluded.contains(&node.name) => format!("`{}` is excluded", node.name),
            node if !node.up => format!("`{}` is down", node.name),
            node if *fit == 0 => format!("`{}` falls short, {}", node.name, shortfall(&lacks)),
            node => format!("`{}` with {{{}}} would hold {fit}", node.name, node.total),
        });
    }
    if idle.len() > SHOWN {
        parts.push(format!("and {} more nodes", idle.len() - SHOWN));
    }
    let nodes = if parts.is_empty() { "there are no nodes".to_owned() } else { parts.join("; ") };
    let roomiest = idle.iter().filter(|node| open(node, request)).max_by_key(|node| node.total.cpu);
    let advice = match (would_fit, roomiest) {
        (0, Some(node)) => format!("ask for at most {{{}}} per worker", node.total),
        (0, None) => "add a node".to_owned(),
        (n, _) => format!("ask for at most {n} workers, or less for each"),
    };
    format!("Nodes: {nodes}. To run, {advice}")
}

fn shortfall(lacks: &[String]) -> String {
    match lacks {
        [] => "for its parts cannot be joined".to_owned(),
        _ => format!("having {}", lacks.join(", ")),
    }
}
