//! Thousands of lives of a run against the machine's promises: crews that fail at any point, finish, stop or hang; signals
//! at any time; controllers that die and are followed by others.

use std::time::Duration;

use proptest::prelude::*;
use regatta_track::event::{Cause, CheckpointCommitted, Outcome};
use regatta_track::{Draft, Event, Timestamp};
use serde_json::Value;

use super::ledger::Ledger;
use super::machine::{
    Action, Ending, Input, LONGEST_BACKOFF, Machine, Phase, Plan, Problem, ProblemKind, Status,
};
use crate::config::{FailureConfig, StopConfig};
use crate::wire::{Decision, StopReason};
use crate::{Error, Result};

const GRACE: Duration = Duration::from_secs(30);

/// What comes next in a life.
#[derive(Debug, Clone)]
enum Step {
    /// The crew does the next thing that crews do: is placed, starts, is gone.
    Proceed,
    Commit,
    Fail(ProblemKind),
    Finish,
    StuckAtItsEnd,
    Stop(StopReason),
    Kill,
    Wait(u64),
    StoreBreaks,
    ControllerDies,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let reason = prop_oneof![
        Just(StopReason::User),
        Just(StopReason::Preempted),
        Just(StopReason::Scheduler),
        Just(StopReason::Reached("accuracy 1".into())),
    ];
    let step = prop_oneof![
        12 => Just(Step::Proceed),
        4 => Just(Step::Commit),
        4 => Just(Step::Fail(ProblemKind::Failure)),
        2 => Just(Step::Fail(ProblemKind::Preemption)),
        1 => Just(Step::Fail(ProblemKind::Fatal)),
        1 => Just(Step::Finish),
        1 => Just(Step::StuckAtItsEnd),
        1 => reason.prop_map(Step::Stop),
        1 => Just(Step::Kill),
        5 => (0..100_000_u64).prop_map(Step::Wait),
        1 => Just(Step::StoreBreaks),
        2 => Just(Step::ControllerDies),
    ];
    prop::collection::vec(step, 1..60)
}

/// What a crew is up to, as the machine's actions made it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Crew {
    None,
    Placing,
    Joining,
    Running,
    /// Failed or finished; something of it may be left.
    Over,
    TakenDown,
}

/// A run, its log, and whatever its crew does.
struct World {
    plan: Plan,
    machine: Machine,
    now: Duration,
    /// When this controller began.
    since: Duration,
    log: Vec<Draft>,
    /// The store is broken: nothing is added to the log any more.
    broken: bool,
    crew: Crew,
    commits: u64,
    failures: u64,
    /// The first cause since progress, the user, or the beginning.
    first: Option<String>,
    /// When it was told to stop.
    told: Option<Duration>,
    /// Failures and preemptions since progress, the user, or the beginning.
    fruitless: i32,
}

impl World {
    fn new(max_failures: u32, max_preemptions: u32, seconds: Option<f64>) -> Self {
        let failure = FailureConfig { max_failures, max_preemptions, ..FailureConfig::default() };
        let stop = StopConfig { seconds, ..StopConfig::default() };
        Self::with(Plan { run: "e/r".into(), failure, stop, world_size: 2, ..Plan::default() })
    }

    fn with(plan: Plan) -> Self {
        let machine = Machine::new(plan.clone(), Ledger::default(), Timestamp(0));
        let mut world = World {
            plan,
            machine,
            now: Duration::ZERO,
            since: Duration::ZERO,
            log: Vec::new(),
            broken: false,
            crew: Crew::None,
            commits: 0,
            failures: 0,
            first: None,
            told: None,
            fruitless: 0,
        };
        world.input(Input::Begin);
        world
    }

    fn fold(&self) -> Ledger {
        let mut ledger = Ledger::default();
        for draft in &self.log {
            ledger.apply(draft.attempt, draft.at.unwrap(), &draft.event);
        }
        ledger
    }

    fn input(&mut self, input: Input) {
        let before = self.machine.ledger().clone();
        let phase = self.machine.phase();
        let output = self.machine.handle(self.now - self.since, input);
        assert!(phase != Phase::Ended || output.events.is_empty(), "CM-4: nothing follows the end");
        let end = output.events.iter().rposition(|draft| matches!(draft.event, Event::RunFinished(_)));
        if self.machine.phase() == Phase::Ended && phase != Phase::Ended {
            assert_eq!(end, Some(output.events.len() - 1), "CM-4: the end is the last event");
        }
        for draft in output.events {
            self.check_event(&before, &draft);
            if !self.broken {
                self.log.push(draft);
            }
        }
        assert!(self.broken || &self.fold() == self.machine.ledger(), "CM-1");
        for action in output.actions {
            match action {
                Action::Launch { attempt, generation, .. } => {
                    assert_eq!(self.crew, Crew::None, "CM-5");
                    assert_eq!((attempt, generation), (before.attempt + 1, before.generation + 1), "CM-3");
                    self.crew = Crew::Placing;
                }
                Action::TakeDown { .. } => self.crew = Crew::TakenDown,
                Action::Decide(Decision::Stop(_)) => {
                    assert_eq!(self.crew, Crew::Running);
                }
                Action::Decide(Decision::Save | Decision::GoOn(_)) => {}
            }
        }
        let FailureConfig { max_failures, max_preemptions, .. } = self.plan.failure;
        if self.machine.phase() == Phase::Recovering {
            assert!(self.machine.ledger().failures <= max_failures, "CM-2");
            assert!(self.machine.ledger().preemptions <= max_preemptions, "CM-2");
            if phase != Phase::Recovering {
                let doubled =
                    Duration::from_secs_f64(0.1 * 2_f64.powi(self.fruitless - 1)).min(LONGEST_BACKOFF);
                // A rehearsal restarts without a failure.
                let wait = if self.fruitless == 0 { Duration::ZERO } else { doubled };
                assert_eq!(self.machine.backoff_left(), wait, "CM-8");
            }
        }
    }

    fn check_event(&mut self, before: &Ledger, draft: &Draft) {
        match &draft.event {
            Event::AttemptEnded(_) => assert!(before.open.is_some(), "CM-4: an attempt ends once"),
            Event::RunFinished(finished) => {
                self.fruitless = 0;
                if self.crew == Crew::None && before.open.is_none() && self.machine.phase() == Phase::Placing
                {
                    // That of the controller before, which gave the run up and died.
                    self.first = None;
                }
                assert!(!matches!(finished.outcome, Outcome::Failed) || finished.cause.is_some());
            }
            _ => {}
        }
    }

    fn step(&mut self, step: Step) {
        let stoppable = !matches!(self.machine.phase(), Phase::Ending | Phase::Ended);
        match step {
            Step::Proceed => self.proceed(Ok(())),
            Step::StuckAtItsEnd if self.crew == Crew::TakenDown => {
                self.proceed(Err(Error::other("end the crew", "it hangs")));
            }
            Step::Commit if self.crew == Crew::Running => {
                self.commits += 1;
                (self.first, self.fruitless) = (None, 0);
                let (step, generation) = (self.commits, self.machine.ledger().generation);
                let id = format!("step-{step:06}.g{generation}.{step:x}");
                self.input(Input::Committed(CheckpointCommitted {
                    id,
                    step,
                    generation,
                    ..Default::default()
                }));
            }
            Step::Fail(kind) if matches!(self.crew, Crew::Placing | Crew::Joining | Crew::Running) => {
                self.failures += 1;
                self.fruitless += 1;
                let message = format!("failure {}", self.failures);
                self.first.get_or_insert(message.clone());
                self.crew = Crew::Over;
                let error = Error::Trainable { rank: 0, message: message.clone() };
                self.input(Input::Failed(Problem { kind, cause: Cause::new(message), error }));
            }
            Step::Finish if self.crew == Crew::Running => {
                self.crew = Crew::Over;
                let stopped = self.machine.stopping().cloned();
                self.input(Input::Finished { value: Value::from(7), stopped });
            }
            Step::Stop(reason) => {
                if stoppable {
                    self.told.get_or_insert(self.now);
                }
                self.input(Input::Stop(reason));
            }
            Step::Kill => self.input(Input::Kill),
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.input(Input::Tick);
            }
            Step::StoreBreaks => {
                // Which is then what went wrong.
                (self.first, self.broken) = (None, true);
                self.input(Input::Broken(Error::other("store", "it is full")));
            }
            Step::ControllerDies => self.next_controller(),
            _ => {}
        }
    }

    fn proceed(&mut self, gone: Result<()>) {
        match self.crew {
            Crew::Placing => {
                self.crew = Crew::Joining;
                self.input(Input::Placed);
            }
            Crew::Joining => {
                self.crew = Crew::Running;
                self.input(Input::Started { world_size: 2 });
            }
            Crew::TakenDown => {
                self.crew = Crew::None;
                self.input(Input::Gone(gone));
            }
            Crew::None | Crew::Running | Crew::Over => self.input(Input::Tick),
        }
    }

    /// The workers end with their controller; another one goes on from the log.
    fn next_controller(&mut self) {
        let broken = std::mem::take(&mut self.broken);
        (self.crew, self.since, self.told) = (Crew::None, self.now, None);
        let ledger = self.fold();
        // What a broken store did not keep, nobody knows any more.
        if broken {
            let first = ledger.first.clone();
            (self.first, self.fruitless) = (first.map(|cause| cause.message), ledger.fruitless as i32);
        }
        let ended = self.log.last().is_some_and(|last| matches!(last.event, Event::RunFinished(_)));
        if ended {
            self.first = None;
        }
        let origin = Timestamp(self.now.as_micros() as i64);
        self.machine = Machine::new(self.plan.clone(), ledger, origin);
        self.input(Input::Begin);
        assert!(self.machine.ledger().open.is_some());
    }

    /// CM-6: nothing but time and a crew that is taken down when asked to.
    fn stop_and_wait(&mut self) -> Duration {
        let begun = self.now;
        self.input(Input::Stop(StopReason::User));
        for _ in 0..100 {
            match (self.machine.phase(), self.crew) {
                (Phase::Ended, _) => return self.now - begun,
                (_, Crew::TakenDown) => self.proceed(Ok(())),
                _ => {
                    self.now = self.machine.deadline().map_or(self.now, |at| self.now.max(self.since + at));
                    self.input(Input::Tick);
                }
            }
        }
        panic!("CM-6: it never ends: {:?}, {:?}", self.machine.phase(), self.crew);
    }

    fn ending(self) -> Ending {
        self.machine.into_ending().expect("ended")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_promises_hold(
        steps in steps(),
        max_failures in 0..4_u32,
        max_preemptions in 0..3_u32,
        seconds in prop::option::of(1.0..200.0),
    ) {
        let mut world = World::new(max_failures, max_preemptions, seconds);
        for step in steps {
            world.step(step);
        }
        let first = world.first.clone();
        let over = world.machine.phase() == Phase::Ended;
        let took = world.stop_and_wait();
        prop_assert!(took <= GRACE, "CM-6: {took:?}");
        prop_assert!(world.told.is_none_or(|_| over) || took <= GRACE);
        if world.broken {
            return Ok(());
        }
        let ended: Vec<&Event> = world.log.iter().map(|draft| &draft.event).collect();
        prop_assert!(matches!(ended.last(), Some(Event::RunFinished(_))), "CM-4");
        let begun = ended.iter().filter(|event| matches!(event, Event::AttemptStarted(_))).count();
        let closed = ended.iter().filter(|event| matches!(event, Event::AttemptEnded(_))).count();
        prop_assert_eq!((begun, closed), (world.machine.ledger().attempt as usize, begun), "CM-3, CM-4");
        let ending = world.ending();
        if let (Status::Failed, Some(first), Some(error)) = (&ending.status, first, &ending.error) {
            prop_assert!(error.to_string().contains(&first), "CM-7: {error}, not {first}");
        }
    }
}

/// Plays a run whose crew always fails, and tells the waits before its restarts.
fn waits(commit_before: Option<usize>) -> Vec<Duration> {
    let mut world = World::new(20, 0, None);
    let mut waits = Vec::new();
    for round in 0..12 {
        world.step(Step::Proceed);
        world.step(Step::Proceed);
        if commit_before == Some(round) {
            world.step(Step::Commit);
        }
        world.step(Step::Fail(ProblemKind::Failure));
        waits.push(world.machine.backoff_left());
        world.step(Step::Proceed);
        world.now += waits[round];
        world.step(Step::Wait(0));
    }
    waits
}

#[test]
fn restarts_wait_longer_and_longer_and_progress_makes_them_quick_again() {
    let seconds = |waits: Vec<Duration>| -> Vec<f64> { waits.iter().map(Duration::as_secs_f64).collect() };
    let expected = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0];
    assert_eq!(seconds(waits(None)), expected);
    let again = seconds(waits(Some(4)));
    assert_eq!((again[..4].to_vec(), again[4..].to_vec()), (expected[..4].to_vec(), expected[..8].to_vec()));
}

#[test]
fn the_first_cause_is_told_with_the_budget_that_was_spent() {
    let mut world = World::new(1, 0, None);
    for _ in 0..2 {
        world.step(Step::Proceed);
        world.step(Step::Proceed);
        world.step(Step::Fail(ProblemKind::Failure));
        world.step(Step::Proceed);
        world.step(Step::Wait(100));
    }
    let decided: Vec<String> = world
        .log
        .iter()
        .filter_map(|draft| match &draft.event {
            Event::Decision(decision) => Some(format!("{}: {}", decision.action, decision.reason)),
            _ => None,
        })
        .collect();
    assert_eq!(
        decided,
        [
            "restart: restart from the beginning in 0.1 s",
            "give_up: 2 failures, and 1 were to be made good (max_failures)"
        ]
    );
    let ending = world.ending();
    assert_eq!(
        (ending.status, ending.error.unwrap().to_string()),
        (Status::Failed, "rank 0: failure 1".to_owned())
    );
}

#[test]
fn a_generation_that_the_storage_has_seen_is_not_taken_again() {
    let mut machine = Machine::new(Plan::default(), Ledger::default(), Timestamp(0));
    machine.handle(Duration::ZERO, Input::Fence(7));
    let actions = machine.handle(Duration::ZERO, Input::Begin).actions;
    assert!(matches!(actions[..], [Action::Launch { attempt: 1, generation: 8, .. }]), "{actions:?}");
}

#[test]
fn a_rehearsal_restores_what_it_saved_once() {
    for (saves, attempts) in [(true, 2), (false, 1)] {
        let mut world = World::with(Plan { run: "e/r".into(), rehearsal: true, ..Plan::default() });
        for attempt in 1..=attempts {
            world.step(Step::Proceed);
            world.step(Step::Proceed);
            if saves && attempt == 1 {
                world.step(Step::Commit);
            }
            world.step(Step::Finish);
            world.step(Step::Proceed);
            world.step(Step::Wait(0));
        }
        assert_eq!((world.machine.ledger().attempt, world.ending().status), (attempts, Status::Completed));
    }
}

#[test]
fn a_stop_that_takes_too_long_is_a_stop_all_the_same() {
    let mut world = World::new(1, 0, None);
    world.step(Step::Proceed);
    world.step(Step::Proceed);
    assert_eq!(world.stop_and_wait(), GRACE);
    let ending = world.ending();
    assert_eq!(ending.status, Status::Stopped { reason: StopReason::User, forced: false });
    assert!(ending.error.unwrap().to_string().contains("failure.grace_seconds"));
}

#[test]
fn the_time_limit_is_over_all_attempts() {
    let mut world = World::new(3, 0, Some(10.0));
    world.step(Step::Proceed);
    world.step(Step::Proceed);
    world.step(Step::Wait(6_000));
    world.step(Step::ControllerDies);
    // What the dead controller's attempt took is known up to its last event.
    assert_eq!(world.machine.ledger().spent, Duration::ZERO);
    world.step(Step::Proceed);
    world.step(Step::Proceed);
    world.step(Step::Wait(6_000));
    world.step(Step::Fail(ProblemKind::Failure));
    world.step(Step::Proceed);
    world.step(Step::Wait(1_000));
    assert_eq!(world.machine.phase(), Phase::Placing);
    assert_eq!(world.machine.ledger().spent, Duration::from_secs(6));
    world.step(Step::Proceed);
    world.step(Step::Proceed);
    world.step(Step::Wait(3_999));
    assert_eq!(world.machine.phase(), Phase::Running);
    world.step(Step::Wait(1));
    assert_eq!(world.machine.stopping(), Some(&StopReason::Reached("10 s".into())));
    world.step(Step::Finish);
    world.step(Step::Proceed);
    assert_eq!(world.ending().status, Status::Completed);
}
