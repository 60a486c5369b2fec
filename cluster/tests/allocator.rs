//! The allocator's invariants (AL-1 to AL-4) over thousands of random histories, and its answers in single cases.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use regatta_cluster::{
    Allocator, Bytes, Decision, Error, GangRequest, Lease, LeaseId, Milli, Placement, RequestId, Resources,
};

#[derive(Clone, Debug)]
enum Op {
    Request(GangRequest),
    Release(prop::sample::Index),
    Withdraw(prop::sample::Index),
    SetUp(usize, bool),
}

const NODES: [&str; 3] = ["a", "b", "c"];
const THOUSANDTHS: [u64; 9] = [0, 0, 250, 300, 500, 1000, 1000, 2000, 1500];

fn amounts(cpu: u64, gpu: u64, memory: u64, custom: u64) -> Resources {
    let mut resources =
        Resources::none().with_cpu_thousandths(cpu).with_gpu_thousandths(gpu).with_memory(Bytes(memory));
    if custom > 0 {
        resources = resources.with_custom("license", custom as u32).unwrap();
    }
    resources
}

fn cluster() -> impl Strategy<Value = Vec<(String, Resources)>> {
    let node = (0..=8u64, 0..=3u64, 0..=8u64, 0..=2u64)
        .prop_map(|(half_cpus, gpus, memory, custom)| amounts(half_cpus * 500, gpus * 1000, memory, custom));
    prop::collection::vec(node, 1..=3)
        .prop_map(|nodes| NODES.iter().map(|name| (*name).to_owned()).zip(nodes).collect())
}

fn gang() -> impl Strategy<Value = GangRequest> {
    let each =
        (prop::sample::select(&THOUSANDTHS[..]), prop::sample::select(&THOUSANDTHS[..8]), 0..=4u64, 0..=5u64)
            .prop_map(|(cpu, gpu, memory, custom)| amounts(cpu, gpu, memory, custom.saturating_sub(4)));
    let placement = prop::sample::select(vec![
        Placement::Pack,
        Placement::Pack,
        Placement::Spread,
        Placement::StrictPack,
        Placement::StrictSpread,
    ]);
    let excluded = prop::option::weighted(0.15, prop::sample::select(&NODES[..]));
    (each, 1..=4usize, 0..=3usize, placement, excluded).prop_map(|(each, min, more, placement, excluded)| {
        let request = GangRequest::new("gang", min, each).workers(min..=min + more).placement(placement);
        excluded.into_iter().fold(request, GangRequest::exclude)
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => gang().prop_map(Op::Request),
        4 => any::<prop::sample::Index>().prop_map(Op::Release),
        1 => any::<prop::sample::Index>().prop_map(Op::Withdraw),
        1 => (0..3usize, prop::bool::weighted(0.6)).prop_map(|(node, up)| Op::SetUp(node, up)),
    ]
}

/// The allocator as it would be had nobody passed the head: AL-2's measure.
struct Alone {
    head: RequestId,
    allocator: Allocator,
}

impl Alone {
    fn of(real: &Allocator) -> Option<Self> {
        let head = real.line().next()?.0;
        let mut allocator = real.clone();
        for (other, _) in real.line().skip(1) {
            allocator.withdraw(other);
        }
        Some(Self { head, allocator })
    }
}

fn granted(decisions: &[Decision], to: RequestId) -> bool {
    decisions.iter().any(|d| matches!(d, Decision::Granted { request, .. } if *request == to))
}

/// AL-1, and that every lease is what its gang asked for.
fn books_balance(allocator: &Allocator, asked: &BTreeMap<LeaseId, GangRequest>) {
    let mut units: BTreeMap<(String, &str, u32), u64> = BTreeMap::new();
    let mut held: BTreeMap<String, (u64, u64, u64, u64)> = BTreeMap::new();
    for lease in allocator.leases() {
        for seat in &lease.seats {
            let sum = held.entry(seat.node.clone()).or_default();
            sum.0 += seat.resources.cpu.thousandths();
            sum.1 += seat.resources.gpu.thousandths();
            sum.2 += seat.resources.memory.0;
            sum.3 += seat.resources.custom("license").thousandths();
            for (kind, ids, amount) in
                [("cpu", &seat.cpus, seat.resources.cpu), ("gpu", &seat.gpus, seat.resources.gpu)]
            {
                assert_eq!(ids.len() as u64, amount.thousandths().div_ceil(1000), "{seat:?}");
                for (nth, id) in ids.iter().enumerate() {
                    let part = if (nth as u64) < amount.units() { Milli::ONE } else { amount.fraction() };
                    *units.entry((seat.node.clone(), kind, *id)).or_default() += part.thousandths();
                }
            }
        }
    }
    assert!(units.values().all(|&part| part <= 1000), "a unit is held twice over: {units:?}");
    for node in allocator.nodes() {
        let (cpu, gpu, memory, custom) = held.remove(&node.name).unwrap_or_default();
        assert_eq!(node.free.cpu.thousandths() + cpu, node.total.cpu.thousandths());
        assert_eq!(node.free.gpu.thousandths() + gpu, node.total.gpu.thousandths());
        assert_eq!(node.free.memory.0 + memory, node.total.memory.0);
        assert_eq!(
            node.free.custom("license").thousandths() + custom,
            node.total.custom("license").thousandths()
        );
    }
    assert_eq!(allocator.leases().count(), asked.len());
}

fn lease_is_as_asked(lease: &Lease, request: &GangRequest, allocator: &Allocator) {
    assert!((request.min_workers..=request.max_workers).contains(&lease.workers()));
    let nodes = lease.nodes();
    assert!(nodes.iter().all(|node| !request.excluded.contains(*node)));
    assert!(allocator.nodes().iter().all(|node| node.up || !nodes.contains(&node.name.as_str())));
    match request.placement {
        Placement::StrictPack => assert_eq!(nodes.len(), 1),
        Placement::StrictSpread => assert_eq!(nodes.len(), lease.workers()),
        _ => {}
    }
    for (slot, seat) in lease.seats.iter().enumerate() {
        assert_eq!((seat.slot, &seat.resources), (slot, &request.per_worker));
    }
}

struct History {
    real: Allocator,
    alone: Option<Alone>,
    waiting: BTreeMap<RequestId, GangRequest>,
    asked: BTreeMap<LeaseId, GangRequest>,
}

impl History {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Request(request) => match self.real.request(request.clone()) {
                Ok(id) => drop(self.waiting.insert(id, request)),
                Err(error) => assert!(matches!(error, Error::Infeasible(_) | Error::BadRequest { .. })),
            },
            Op::Release(index) if !self.asked.is_empty() => {
                let lease = *self.asked.keys().nth(index.index(self.asked.len())).unwrap();
                self.asked.remove(&lease);
                assert!(self.real.release(lease));
                if let Some(alone) = &mut self.alone {
                    alone.allocator.release(lease);
                }
            }
            Op::Withdraw(index) if !self.waiting.is_empty() => {
                let request = *self.waiting.keys().nth(index.index(self.waiting.len())).unwrap();
                self.waiting.remove(&request);
                assert!(self.real.withdraw(request));
                self.alone = self.alone.take().filter(|alone| alone.head != request);
            }
            Op::SetUp(node, up) => {
                let known = self.real.set_up(NODES[node], up);
                assert_eq!(known, self.real.nodes().iter().any(|n| n.name == NODES[node]));
                if let Some(alone) = &mut self.alone {
                    alone.allocator.set_up(NODES[node], up);
                }
            }
            Op::Release(_) | Op::Withdraw(_) => {}
        }
        self.decide();
    }

    fn decide(&mut self) {
        let decisions = self.real.decide();
        if let Some(alone) = &mut self.alone {
            let as_if = alone.allocator.decide();
            let (real, alone) = (granted(&decisions, alone.head), granted(&as_if, alone.head));
            assert_eq!(real, alone, "AL-2: the head's start depends on who passed it");
        }
        for decision in decisions {
            match decision {
                Decision::Granted { request, lease } => {
                    let gang = self.waiting.remove(&request).expect("granted once");
                    lease_is_as_asked(&lease, &gang, &self.real);
                    self.asked.insert(lease.id, gang);
                }
                Decision::Refused { request, .. } => {
                    drop(self.waiting.remove(&request).expect("refused once"))
                }
            }
        }
        books_balance(&self.real, &self.asked);
        assert!(
            self.real.line().map(|(id, _)| id).eq(self.waiting.keys().copied()),
            "the line keeps its order"
        );
        let head = self.real.line().next().map(|(id, _)| id);
        if self.alone.as_ref().map(|alone| alone.head) != head {
            self.alone = Alone::of(&self.real);
        }
    }

    /// Everything ends: with every lease released and every node back, the line empties by itself (AL-4).
    fn end(mut self) {
        for node in NODES {
            self.real.set_up(node, true);
        }
        while !self.waiting.is_empty() {
            self.alone = None;
            let before = self.waiting.len();
            for lease in std::mem::take(&mut self.asked).into_keys() {
                assert!(self.real.release(lease));
            }
            self.decide();
            assert!(self.waiting.len() < before, "an idle cluster seats the head");
        }
        for lease in std::mem::take(&mut self.asked).into_keys() {
            assert!(self.real.release(lease));
        }
        assert!(self.real.nodes().iter().all(|node| node.free == node.total));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_over_any_history(nodes in cluster(), ops in prop::collection::vec(op(), 1..30)) {
        let real = Allocator::new(nodes).unwrap();
        let mut history =
            History { real, alone: None, waiting: BTreeMap::new(), asked: BTreeMap::new() };
        ops.into_iter().for_each(|op| history.apply(op));
        history.end();
    }
}

fn allocator(nodes: &[(&str, &str)]) -> Allocator {
    Allocator::new(nodes.iter().map(|(name, total)| ((*name).to_owned(), total.parse().unwrap()))).unwrap()
}

fn gang_of(name: &str, workers: usize, each: &str) -> GangRequest {
    GangRequest::new(name, workers, each.parse().unwrap())
}

fn leases(decisions: Vec<Decision>) -> Vec<Lease> {
    decisions
        .into_iter()
        .map(|decision| match decision {
            Decision::Granted { lease, .. } => lease,
            Decision::Refused { why, .. } => panic!("{why}"),
        })
        .collect()
}

#[test]
fn sixty_four_gangs_of_one_run_in_order_on_two_cores() {
    let mut allocator = allocator(&[("here", "cpu: 2")]);
    let ids: Vec<RequestId> =
        (0..64).map(|i| allocator.request(gang_of(&format!("t{i}"), 1, "cpu: 1")).unwrap()).collect();
    let (mut started, mut running) = (Vec::new(), std::collections::VecDeque::new());
    while started.len() < 64 {
        for decision in allocator.decide() {
            let Decision::Granted { request, lease } = decision else { panic!("refused") };
            started.push(request);
            running.push_back(lease.id);
        }
        assert!(running.len() <= 2);
        allocator.release(running.pop_front().expect("something runs while gangs wait"));
    }
    assert_eq!(started, ids);
}

#[test]
fn a_large_gang_is_not_starved_by_a_stream_of_small_ones() {
    let mut allocator = allocator(&[("here", "cpu: 4, gpu: 1")]);
    for i in 0..4 {
        allocator.request(gang_of(&format!("small{i}"), 1, "cpu: 1")).unwrap();
    }
    let first = leases(allocator.decide());
    let large = allocator.request(gang_of("large", 4, "cpu: 1")).unwrap();
    for lease in first {
        allocator.request(gang_of("late", 1, "cpu: 1")).unwrap();
        let before = allocator.decide();
        assert!(before.is_empty(), "late gangs must not take what the large one waits for");
        allocator.release(lease.id);
    }
    assert!(granted(&allocator.decide(), large));
}

#[test]
fn others_pass_the_head_only_with_what_it_cannot_use() {
    let mut allocator = allocator(&[("cpu", "cpu: 4"), ("gpu", "cpu: 4, gpu: 2")]);
    let first = allocator.request(gang_of("half the gpus", 1, "gpu: 1")).unwrap();
    assert!(granted(&allocator.decide(), first));
    allocator.request(gang_of("all gpus", 2, "gpu: 1, cpu: 1")).unwrap();
    let on_gpu = allocator.request(gang_of("gpu", 1, "gpu: 1")).unwrap();
    let on_cpu = allocator.request(gang_of("cpus", 6, "cpu: 1")).unwrap();
    let decisions = allocator.decide();
    assert!(!granted(&decisions, on_gpu));
    assert!(
        granted(&decisions, on_cpu),
        "two of the gpu node's CPUs and the other node's four are no use to the head"
    );
}

#[test]
fn the_impossible_is_refused_at_once_naming_what_would_fit() {
    let mut allocator = allocator(&[("a", "cpu: 2, gpu: 1, memory: 8GiB"), ("b", "cpu: 4, memory: 16GiB")]);
    let start = Instant::now();
    let mut refusal = |request: GangRequest| match allocator.request(request) {
        Err(Error::Infeasible(why)) => (why.would_fit, why.to_string()),
        other => panic!("not refused: {other:?}"),
    };
    let (fits, text) = refusal(gang_of("wide", 4, "cpu: 2"));
    assert_eq!(fits, 3);
    assert!(
        text.contains("at most 3 would fit")
            && text.contains("`b` with {cpu: 4, memory: 16GiB} would hold 2"),
        "{text}"
    );
    let (fits, text) = refusal(gang_of("fat", 1, "cpu: 1, memory: 32GiB, tpu: 1"));
    assert_eq!(fits, 0);
    assert!(text.contains("memory 8GiB of 32GiB") && text.contains("tpu 0 of 1"), "{text}");
    let (fits, _) = refusal(gang_of("together", 5, "cpu: 1").placement(Placement::StrictPack));
    assert_eq!(fits, 4);
    let (fits, _) = refusal(gang_of("apart", 3, "cpu: 1").placement(Placement::StrictSpread));
    assert_eq!(fits, 2);
    let (fits, text) = refusal(gang_of("avoiding", 3, "cpu: 1").exclude("b"));
    assert_eq!(fits, 2);
    assert!(text.contains("`b` is excluded"), "{text}");
    assert!(
        start.elapsed() < Duration::from_millis(50),
        "five refusals in 10 ms each: {:?}",
        start.elapsed()
    );
    assert_eq!(allocator.line().count(), 0);
}

#[test]
fn requests_that_contradict_themselves_are_told_so() {
    let mut allocator = allocator(&[("a", "cpu: 2")]);
    let mut problem = |request: GangRequest| allocator.request(request).unwrap_err().to_string();
    assert!(problem(gang_of("g", 0, "cpu: 1")).contains("no workers"));
    assert!(problem(gang_of("g", 1, "")).contains("no resource"));
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = gang_of("g", 1, "cpu: 1").workers(2..=1);
    assert!(problem(reversed).contains("at least 2 and at most 1"));
    assert!(problem(gang_of("g", 70_000, "cpu: 1")).contains("65536"));
    assert!(
        Allocator::new([("a".to_owned(), Resources::cpus(1)), ("a".to_owned(), Resources::cpus(1))]).is_err()
    );
}

#[test]
fn a_node_that_goes_refuses_those_who_can_no_longer_run() {
    let mut allocator = allocator(&[("a", "cpu: 1"), ("b", "cpu: 1")]);
    let both = allocator.request(gang_of("both", 2, "cpu: 1")).unwrap();
    let first = leases(allocator.decide()).remove(0);
    let again = allocator.request(gang_of("again", 2, "cpu: 1")).unwrap();
    let small = allocator.request(gang_of("small", 1, "cpu: 1")).unwrap();
    assert!(allocator.set_up("b", false) && both < again);
    let decisions = allocator.decide();
    let [Decision::Refused { request, why }] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!((*request, why.would_fit), (again, 1));
    assert!(why.to_string().contains("`b` is down"));
    allocator.release(first.id);
    assert!(granted(&allocator.decide(), small));
}

#[test]
fn fractions_of_gpus_share_one_and_whole_ones_stay_whole() {
    let mut allocator = allocator(&[("a", "cpu: 8, gpu: 2")]);
    allocator.request(gang_of("halves", 2, "gpu: 0.5")).unwrap();
    allocator.request(gang_of("whole", 1, "gpu: 1")).unwrap();
    let leases = leases(allocator.decide());
    assert_eq!(leases[0].seats[0].gpus, leases[0].seats[1].gpus);
    assert_ne!(leases[0].seats[0].gpus, leases[1].seats[0].gpus);
}

#[test]
fn elastic_gangs_take_what_is_free_and_never_wait_for_more() {
    let mut allocator = allocator(&[("a", "cpu: 4")]);
    allocator.request(gang_of("fixed", 1, "cpu: 1")).unwrap();
    allocator.request(gang_of("elastic", 2, "cpu: 1").workers(2..=16)).unwrap();
    let leases = leases(allocator.decide());
    assert_eq!(leases[1].workers(), 3);
}

#[test]
fn a_long_line_of_equal_gangs_is_decided_quickly() {
    let mut allocator = allocator(&[("a", "cpu: 64")]);
    for _ in 0..2_000 {
        allocator.request(gang_of("trial", 2, "cpu: 1")).unwrap();
    }
    let start = Instant::now();
    let mut rounds = 0;
    while allocator.line().next().is_some() {
        let oldest = allocator.leases().map(|lease| lease.id).next();
        oldest.map(|lease| allocator.release(lease));
        allocator.decide();
        rounds += 1;
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{rounds} decisions took {:?}", start.elapsed());
}
