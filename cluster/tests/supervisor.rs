//! The pure supervisor and the pure link under 10,000 random histories each. The names in the assertions are those of
//! `gang::machine`.

use std::collections::VecDeque;
use std::time::Duration;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use regatta_cluster::gang::machine::{Action, Input, Machine, Output};
use regatta_cluster::gang::state::{Event, Incarnation, Phase, State, Step};
use regatta_cluster::link::{Arrival, Inbox, Limits, Outbox};
use regatta_cluster::{CauseKind, Timing};

const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    suspect: Duration::from_secs(2),
    dead: Duration::from_secs(5),
    start: Duration::from_secs(60),
    settle: Duration::from_secs(1),
    lease: Duration::from_secs(10),
};

/// A supervisor beside the fold of what it gave out.
struct Watched {
    machine: Machine,
    fold: State,
    now: Duration,
    failures: usize,
    launches: usize,
}

impl Watched {
    fn launch(members: u32) -> (Self, Output) {
        let slots: Vec<u32> = (0..members).collect();
        let (machine, output) = Machine::launch(TIMING, &slots, 1, 1, Duration::ZERO);
        let fold = State::new(&slots);
        let mut watched = Self { machine, fold, now: Duration::ZERO, failures: 0, launches: 0 };
        watched.check(&output);
        (watched, output)
    }

    fn handle(&mut self, input: Input) -> Output {
        let output = self.machine.handle(self.now, input);
        self.check(&output);
        output
    }

    fn hello(&mut self, slot: u32, attempt: u32, who: u8) -> Option<Output> {
        let before = self.machine.state().clone();
        match self.machine.hello(self.now, slot, attempt, Incarnation([who; 16])) {
            Ok(output) => {
                self.check(&output);
                Some(output)
            }
            Err(_) => {
                assert_eq!(&before, self.machine.state(), "GM-2: a refused call changes nothing");
                None
            }
        }
    }

    fn check(&mut self, output: &Output) {
        for event in &output.events {
            let (attempt, generation) = (self.fold.attempt, self.fold.generation);
            let root_known = self.fold.causes.iter().any(|cause| !cause.kind.is_consequence());
            self.fold.apply(event);
            assert!(self.fold.attempt >= attempt && self.fold.generation >= generation, "GM-5: never back");
            match event {
                Event::Launched { .. } => {
                    self.launches += 1;
                }
                Event::Failed(failure) => {
                    self.failures += 1;
                    assert_eq!(self.failures, self.launches, "GM-3: an attempt fails at most once");
                    assert!(!(root_known && failure.root.kind.is_consequence()), "GM-3: {failure}");
                }
                Event::Joined => assert!(self.fold.members.iter().all(|m| m.step == Step::Ready)),
                _ => {}
            }
        }
        assert_eq!(&self.fold, self.machine.state(), "GM-1: the state is the fold of the events");
        for action in &output.actions {
            if let Action::Assign { generation, .. }
            | Action::Start { generation, .. }
            | Action::Abort { generation, .. } = action
            {
                assert_eq!(*generation, self.fold.generation, "GM-5: commands are of the present generation");
            }
        }
    }

    /// Lets time pass and nothing else; GM-4.
    fn starve(&mut self) {
        let resting =
            |phase| matches!(phase, Phase::Joined | Phase::Finished | Phase::Failed | Phase::Stopped);
        let until = self.now + TIMING.start + TIMING.dead + TIMING.settle * 4 + Duration::from_secs(60);
        while self.now < until {
            self.now += Duration::from_secs(2);
            self.handle(Input::Tick);
        }
        let phase = self.machine.state().phase;
        assert!(resting(phase), "GM-4: {phase:?} did not end by itself");
    }
}

/// Anything at all may come, in any order, about anyone.
fn any_input() -> impl Strategy<Value = (u64, Input, Option<(u32, u32, u8)>)> {
    let slot = 0..4u32;
    let generation = 0..4u64;
    let kind = prop_oneof![
        (0..3i32).prop_map(|code| CauseKind::Exited { code }),
        Just(CauseKind::Killed { signal: 9 }),
        Just(CauseKind::Lost),
        Just(CauseKind::NotLaunched),
    ];
    let input = prop_oneof![
        4 => Just(Input::Tick),
        6 => slot.clone().prop_map(|slot| Input::Heard { slot }),
        1 => slot.clone().prop_map(|slot| Input::Disconnected { slot }),
        6 => (slot.clone(), generation.clone()).prop_map(|(slot, generation)| Input::Ready { slot, generation }),
        4 => (slot.clone(), generation.clone())
            .prop_map(|(slot, generation)| Input::Finished { slot, generation }),
        1 => (slot.clone(), generation, proptest::option::of(0..4u32)).prop_map(|(slot, generation, peer)| {
            Input::Failed { slot, generation, message: "error".into(), peer }
        }),
        1 => (slot.clone(), 0..4u32, kind).prop_map(|(slot, attempt, kind)| {
            Input::Ended { slot, attempt, kind, message: String::new() }
        }),
        3 => Just(Input::Start),
        1 => Just(Input::Relaunch),
        1 => (0..3000u64).prop_map(|grace| Input::Stop { grace: Duration::from_millis(grace) }),
    ];
    (0..1500u64, input, proptest::option::weighted(0.4, (slot, 0..4u32, 0..3u8)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_is_the_fold_of_its_events(inputs in proptest::collection::vec(any_input(), 0..40)) {
        let (mut watched, _) = Watched::launch(3);
        for (millis, input, hello) in inputs {
            watched.now += Duration::from_millis(millis);
            if let Some((slot, attempt, who)) = hello {
                watched.hello(slot, attempt, who);
            }
            // What time alone and the mere sign of life bring about comes first, so that the rest is the input's doing.
            if let Input::Ready { slot, .. } | Input::Finished { slot, .. } | Input::Failed { slot, .. } = &input {
                watched.handle(Input::Heard { slot: *slot });
            }
            watched.handle(Input::Tick);
            let present = watched.fold.generation;
            let stale = match &input {
                Input::Ready { generation, .. }
                | Input::Finished { generation, .. }
                | Input::Failed { generation, .. } => *generation != present,
                Input::Ended { attempt, .. } => *attempt != watched.fold.attempt,
                _ => false,
            };
            let output = watched.handle(input);
            prop_assert!(!stale || output == Output::default(), "GM-5: {output:?}");
        }
        watched.starve();
    }
}

/// A worker as the controller sees it over a bad network.
#[derive(Clone)]
struct SimWorker {
    alive: bool,
    stopped_until: Duration,
    generation: u64,
    busy_until: Option<Duration>,
    attempt: u32,
    who: u8,
}

/// What travels between a worker and the supervisor.
#[derive(Clone, Debug)]
enum Frame {
    Hello,
    Beat,
    Ready(u64),
    Finished(u64),
}

/// A gang whose workers really work, over a network that loses (by disconnecting), repeats and delays.
struct Simulation {
    rng: StdRng,
    watched: Watched,
    workers: Vec<SimWorker>,
    /// Under way: when it arrives, from whom, of which attempt, what.
    frames: VecDeque<(Duration, u32, u32, Frame)>,
    partitioned: Vec<Duration>,
    faulty: bool,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let members = rng.random_range(1..5u32);
        let faulty = rng.random_bool(0.7);
        let (watched, output) = Watched::launch(members);
        let worker = SimWorker {
            alive: false,
            stopped_until: Duration::ZERO,
            generation: 0,
            busy_until: None,
            attempt: 0,
            who: 0,
        };
        let mut simulation = Self {
            rng,
            watched,
            workers: vec![worker; members as usize],
            frames: VecDeque::new(),
            partitioned: vec![Duration::ZERO; members as usize],
            faulty,
        };
        simulation.act(output);
        simulation
    }

    fn act(&mut self, output: Output) {
        for action in output.actions {
            match action {
                Action::Launch { attempt } => {
                    for slot in 0..self.workers.len() {
                        let who = self.rng.next_u32() as u8;
                        let worker = &mut self.workers[slot];
                        *worker = SimWorker {
                            alive: true,
                            attempt,
                            who,
                            generation: 0,
                            busy_until: None,
                            ..worker.clone()
                        };
                        self.send(slot as u32, Frame::Hello);
                    }
                }
                Action::Assign { slot, generation } => {
                    self.workers[slot as usize].generation = generation;
                    self.send(slot, Frame::Ready(generation));
                }
                Action::Start { slot, generation } => {
                    let work = Duration::from_millis(self.rng.random_range(0..8000));
                    let worker = &mut self.workers[slot as usize];
                    assert_eq!(
                        worker.generation, generation,
                        "started in a generation it was not assigned to"
                    );
                    worker.busy_until = Some(self.watched.now + work);
                }
                Action::Abort { slot, .. } => self.workers[slot as usize].busy_until = None,
                Action::Stop { slot, .. } => self.end(slot, CauseKind::Exited { code: 75 }),
                Action::Kill => {
                    for slot in 0..self.workers.len() as u32 {
                        self.end(slot, CauseKind::Killed { signal: 9 });
                    }
                }
            }
        }
    }

    fn send(&mut self, slot: u32, frame: Frame) {
        let attempt = self.workers[slot as usize].attempt;
        let slow = self.faulty && self.rng.random_bool(0.02);
        let delay = Duration::from_millis(self.rng.random_range(0..if slow { 4000 } else { 50 }));
        let mut at = self.watched.now + delay;
        // A stream keeps the order: nothing overtakes, a slow frame holds up those behind it.
        if let Some(last) = self.frames.iter().filter(|frame| frame.1 == slot).map(|frame| frame.0).max() {
            at = at.max(last);
        }
        self.frames.push_back((at, slot, attempt, frame.clone()));
        if self.faulty && self.rng.random_bool(0.05) {
            self.frames.push_back((at, slot, attempt, frame));
        }
    }

    fn end(&mut self, slot: u32, kind: CauseKind) {
        let worker = &mut self.workers[slot as usize];
        if std::mem::replace(&mut worker.alive, false) {
            let attempt = worker.attempt;
            self.frames.retain(|frame| frame.1 != slot);
            self.handle(Input::Disconnected { slot });
            self.handle(Input::Ended { slot, attempt, kind, message: String::new() });
        }
    }

    fn handle(&mut self, input: Input) {
        let output = self.watched.handle(input);
        self.act(output);
    }

    fn fault(&mut self) {
        let slot = self.rng.random_range(0..self.workers.len() as u32);
        let now = self.watched.now;
        let lasting = now + Duration::from_millis(self.rng.random_range(0..9000));
        match self.rng.random_range(0..5) {
            0 => self.end(slot, CauseKind::Killed { signal: 9 }),
            1 => self.workers[slot as usize].stopped_until = lasting,
            2 => self.partitioned[slot as usize] = lasting,
            3 => {
                // An impostor, and a zombie of an earlier attempt.
                let attempt = self.workers[slot as usize].attempt;
                let impostor = self.workers[slot as usize].who.wrapping_add(1);
                let held = self.watched.machine.state().members[slot as usize].incarnation.is_some();
                assert!(!held || self.watched.hello(slot, attempt, impostor).is_none(), "the slot is taken");
                assert!(self.watched.hello(slot, attempt.wrapping_sub(1), impostor).is_none(), "GM-5");
            }
            _ => {
                let generation = self.workers[slot as usize].generation;
                let peer = (slot + 1) % self.workers.len() as u32;
                let peer = self.rng.random_bool(0.5).then_some(peer);
                self.handle(Input::Failed { slot, generation, message: "error".into(), peer });
            }
        }
    }

    fn step(&mut self) {
        self.watched.now += Duration::from_millis(100);
        let now = self.watched.now;
        if self.faulty && self.rng.random_bool(0.01) {
            self.fault();
        }
        let mut waiting = VecDeque::new();
        while let Some((at, slot, attempt, frame)) = self.frames.pop_front() {
            if at > now || self.partitioned[slot as usize] > now {
                waiting.push_back((at, slot, attempt, frame));
                continue;
            }
            let who = self.workers[slot as usize].who;
            match frame {
                Frame::Hello => {
                    if let Some(output) = self.watched.hello(slot, attempt, who) {
                        self.act(output);
                    }
                }
                Frame::Beat => self.handle(Input::Heard { slot }),
                Frame::Ready(generation) => self.handle(Input::Ready { slot, generation }),
                Frame::Finished(generation) => self.handle(Input::Finished { slot, generation }),
            }
            waiting.append(&mut self.frames);
            self.frames = std::mem::take(&mut waiting);
        }
        self.frames = waiting;
        for slot in 0..self.workers.len() as u32 {
            let worker = &mut self.workers[slot as usize];
            if !worker.alive || worker.stopped_until > now {
                continue;
            }
            if worker.busy_until.is_some_and(|until| now >= until) {
                worker.busy_until = None;
                let generation = worker.generation;
                self.send(slot, Frame::Finished(generation));
            }
            self.send(slot, Frame::Beat);
        }
        self.handle(Input::Tick);
    }
}

#[test]
fn gangs_over_a_bad_network_end_as_they_should_for_10_000_seeds() {
    let (mut finished, mut failed) = (0, 0);
    for seed in 0..10_000 {
        let mut simulation = Simulation::new(seed);
        let mut relaunches = 0;
        let mut rounds = 0;
        let outcome = loop {
            simulation.step();
            rounds += 1;
            assert!(rounds < 4000, "seed {seed} hangs in {:?}", simulation.watched.machine.state());
            match simulation.watched.machine.state().phase {
                Phase::Joined => simulation.handle(Input::Start),
                Phase::Finished => break Phase::Finished,
                Phase::Failed if relaunches < 2 => {
                    relaunches += 1;
                    simulation.handle(Input::Relaunch);
                }
                Phase::Failed => break Phase::Failed,
                _ => {}
            }
        };
        assert!(simulation.faulty || outcome == Phase::Finished, "seed {seed}: without faults it finishes");
        finished += usize::from(outcome == Phase::Finished);
        failed += usize::from(outcome == Phase::Failed);
        simulation.handle(Input::Stop { grace: Duration::from_secs(1) });
        simulation.watched.starve();
        assert_eq!(simulation.watched.machine.state().phase, Phase::Stopped, "seed {seed}");
    }
    // The faults are rare enough that most get through and frequent enough that some do not.
    assert!(finished > 5000 && failed > 50, "{finished} finished, {failed} failed");
}

/// A link between two sides over streams that break at any point; the receiver acknowledges late.
#[test]
fn the_link_delivers_exactly_once_in_order_for_10_000_seeds() {
    for seed in 0..10_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let limits =
            Limits { frames: 64, bytes: 4000, window_frames: rng.random_range(1..9), window_bytes: 900 };
        let mut outbox = Outbox::new(limits);
        let mut inbox = Inbox::default();
        let mut wire: VecDeque<(u64, u64)> = VecDeque::new();
        let (mut pushed, mut delivered) = (0u64, Vec::new());
        let total = rng.random_range(0..80u64);
        let mut rounds = 0;
        while (delivered.len() as u64) < total || !outbox.is_empty() {
            rounds += 1;
            assert!(rounds < 20_000, "seed {seed} makes no progress");
            match rng.random_range(0..10) {
                0..3 if pushed < total => {
                    if let Ok(number) = outbox.push(pushed, rng.random_range(1..1000)) {
                        assert_eq!(number, pushed + 1, "numbers follow each other");
                        pushed += 1;
                    }
                }
                3..6 => {
                    if let Some((number, message)) = outbox.send_next() {
                        wire.push_back((number, *message));
                    }
                }
                6..8 => {
                    if let Some((number, message)) = wire.pop_front() {
                        match inbox.arrived(number, limits.window_frames) {
                            Arrival::New => delivered.push(message),
                            Arrival::Duplicate => {}
                            Arrival::Broken => panic!("seed {seed}: an honest sender was not believed"),
                        }
                        if rng.random_bool(0.1) {
                            assert_ne!(inbox.arrived(number, limits.window_frames), Arrival::New);
                        }
                    }
                }
                8 => {
                    inbox.acknowledge(rng.random_range(0..=inbox.delivered()));
                    if rng.random_bool(0.8) {
                        outbox.acknowledge(inbox.acknowledged());
                    }
                }
                _ if rng.random_bool(0.1) => {
                    // The stream breaks; what was on it is lost. The receiver says what it has acknowledged.
                    wire.clear();
                    outbox.acknowledge(inbox.acknowledged());
                    outbox.reconnect();
                }
                _ => {
                    inbox.acknowledge(inbox.delivered());
                    outbox.acknowledge(inbox.acknowledged());
                }
            }
        }
        assert_eq!(delivered, (0..total).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn a_lying_peer_cannot_break_the_link() {
    let mut outbox = Outbox::new(Limits::default());
    outbox.push("a", 1).unwrap();
    outbox.acknowledge(u64::MAX);
    assert!(!outbox.is_empty(), "what was never sent cannot have been received");
    assert_eq!(outbox.send_next(), Some((1, &"a")));
    outbox.acknowledge(u64::MAX);
    assert!(outbox.is_empty());

    let mut inbox = Inbox::default();
    assert_eq!(inbox.arrived(2, 8), Arrival::Broken, "a hole");
    for number in 1..=8 {
        assert_eq!(inbox.arrived(number, 8), Arrival::New);
    }
    assert_eq!(inbox.arrived(9, 8), Arrival::Broken, "more than the window");
    assert!(!inbox.acknowledge(0));
    assert!(inbox.acknowledge(u64::MAX));
    assert_eq!(inbox.acknowledged(), 8);
}
