//! The loop of the simulation: a queue of what happens next, and the runner's side of every decision.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use super::{Ask, Failure, Outcome, Record, Simulation, Trial, Workload};
use crate::scheduler::{Action, Checkpoint, Config, Decision, Draw, Event, Referee, Report, Scheduler};

/// More events than any study that ends.
const ENDLESS: usize = 20_000_000;

/// What happens to a trial, unless it became something else in between.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    /// Its workers are up.
    Up,
    /// It has done one unit.
    Step,
    /// It has left its slot.
    Left,
    /// It has ended.
    Ended,
}

#[derive(Debug)]
struct Next {
    at: f64,
    order: u64,
    trial: u32,
    incarnation: u64,
    what: What,
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> Ordering {
        self.at.total_cmp(&other.at).then(self.order.cmp(&other.order))
    }
}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Next {}

/// A trial as its workers know it.
struct Worker<S> {
    config: Arc<Config>,
    state: S,
    resource: u64,
    /// What is queued for an older one no longer happens.
    incarnation: u64,
    /// It holds a slot.
    placed: bool,
    /// It is to leave: by pausing or by ending.
    leaving: Option<What>,
}

struct Run<'a, W: Workload, F> {
    study: &'a Simulation<W>,
    source: F,
    draw: Draw,
    queue: BinaryHeap<Reverse<Next>>,
    workers: BTreeMap<u32, Worker<W::State>>,
    checkpoints: BTreeMap<Checkpoint, W::State>,
    busy: usize,
    now: f64,
    order: u64,
    outcome: Outcome,
}

pub(super) fn run<W: Workload, F: FnMut(&Ask<'_>) -> Option<Config>>(
    study: &Simulation<W>,
    scheduler: Box<dyn Scheduler>,
    source: F,
) -> Result<Outcome, Failure> {
    let referee = Referee::new(scheduler, study.seed);
    let outcome = Outcome { records: Vec::new(), trials: BTreeMap::new(), seconds: 0.0, steps: 0, referee };
    let (queue, workers, checkpoints) = Default::default();
    let draw = Draw::new(study.seed, u64::MAX);
    let mut run =
        Run { study, source, draw, queue, workers, checkpoints, busy: 0, now: 0.0, order: 0, outcome };
    run.offer()?;
    while let Some(Reverse(next)) = run.queue.pop() {
        if run.workers.get(&next.trial).is_none_or(|worker| worker.incarnation != next.incarnation) {
            continue;
        }
        run.now = next.at;
        match next.what {
            What::Up => run.up(next.trial)?,
            What::Step => run.step(next.trial)?,
            What::Left => run.left(next.trial)?,
            What::Ended => run.over(next.trial, Event::Finished { trial: next.trial })?,
        }
        if run.outcome.steps >= study.budget {
            return Ok(run.finish());
        }
        run.offer()?;
        let events = run.outcome.records.len();
        if events > ENDLESS {
            return Err(Failure::Endless { events });
        }
    }
    let left: Vec<u32> = run.outcome.referee.roster().live().map(|(trial, _)| trial).collect();
    if left.is_empty() { Ok(run.finish()) } else { Err(Failure::Stuck { left }) }
}

impl<W: Workload, F: FnMut(&Ask<'_>) -> Option<Config>> Run<'_, W, F> {
    fn finish(mut self) -> Outcome {
        self.outcome.seconds = self.now;
        self.outcome
    }

    fn queue(&mut self, trial: u32, after: f64, what: What) {
        let Some(worker) = self.workers.get(&trial) else { return };
        self.order += 1;
        let (at, order, incarnation) = (self.now + after, self.order, worker.incarnation);
        self.queue.push(Reverse(Next { at, order, trial, incarnation, what }));
    }

    /// Tells the referee and does what it answers.
    fn tell(&mut self, event: Event) -> Result<Vec<Decision>, Failure> {
        let decisions = self.outcome.referee.handle(event.clone())?;
        self.outcome.records.push(Record { at: self.now, event, decisions: decisions.clone() });
        for decision in &decisions {
            self.act(&decision.action)?;
        }
        Ok(decisions)
    }

    /// Offers free slots until one is left free.
    fn offer(&mut self) -> Result<(), Failure> {
        while self.busy < self.study.slots {
            let decisions = self.tell(Event::Slot)?;
            if decisions.iter().any(|decision| matches!(decision.action, Action::Wait | Action::Done)) {
                break;
            }
        }
        Ok(())
    }

    fn act(&mut self, action: &Action) -> Result<(), Failure> {
        match action {
            Action::Continue { .. } | Action::Wait | Action::Done => {}
            Action::Pause { trial } => self.leave(*trial, What::Left),
            Action::Stop { trial } | Action::Finish { trial } => self.leave(*trial, What::Ended),
            Action::Resume { trial, checkpoint } => {
                if let Some(checkpoint) = checkpoint {
                    self.restore(*trial, checkpoint)?;
                } else {
                    self.begin_again(*trial);
                }
                self.busy += 1;
                self.place(*trial);
            }
            Action::Clone { trial, checkpoint, config, .. } => {
                self.restore(*trial, checkpoint)?;
                if let Some(worker) = self.workers.get_mut(trial) {
                    worker.config = Arc::clone(config);
                    if worker.placed {
                        self.place(*trial);
                    }
                }
            }
            Action::Resize { trial, .. } => self.place(*trial),
            Action::StartNew => self.start_new()?,
        }
        Ok(())
    }

    fn start_new(&mut self) -> Result<(), Failure> {
        let trial = self.outcome.trials.len() as u32;
        let Outcome { trials, referee, .. } = &self.outcome;
        let ask = Ask { trial, trials, roster: referee.roster(), scheduler: referee.scheduler() };
        let Some(config) = (self.source)(&ask).map(Arc::new) else {
            return self.tell(Event::Exhausted).map(drop);
        };
        let state = self.study.workload.begin(trial, &config);
        let worker = Worker {
            config: Arc::clone(&config),
            state,
            resource: 0,
            incarnation: 0,
            placed: false,
            leaving: None,
        };
        self.workers.insert(trial, worker);
        self.outcome.trials.insert(trial, Trial { config: Arc::clone(&config), reports: Vec::new() });
        self.busy += 1;
        self.place(trial);
        self.tell(Event::Created { trial, config }).map(drop)
    }

    /// Starts the workers of a trial whose slot is taken already.
    fn place(&mut self, trial: u32) {
        if let Some(worker) = self.workers.get_mut(&trial) {
            (worker.placed, worker.leaving) = (true, None);
            worker.incarnation += 1;
        }
        self.queue(trial, self.study.start, What::Up);
    }

    fn restore(&mut self, trial: u32, checkpoint: &Checkpoint) -> Result<(), Failure> {
        let Some(state) = self.checkpoints.get(checkpoint) else {
            return Err(Failure::LostCheckpoint {
                trial,
                id: checkpoint.id.clone(),
                owner: checkpoint.owner,
            });
        };
        if let Some(worker) = self.workers.get_mut(&trial) {
            (worker.state, worker.resource) = (state.clone(), checkpoint.resource);
        }
        Ok(())
    }

    fn begin_again(&mut self, trial: u32) {
        if let Some(worker) = self.workers.get_mut(&trial) {
            (worker.state, worker.resource) = (self.study.workload.begin(trial, &worker.config), 0);
        }
    }

    /// Ends what a trial does, perhaps one step too late.
    fn leave(&mut self, trial: u32, what: What) {
        let late = self.draw.chance(self.study.faults.late);
        let Some(worker) = self.workers.get_mut(&trial) else { return };
        // What is on its way out may be told to stop rather than pause, but not the other way round.
        if worker.leaving == Some(What::Ended) || worker.leaving == Some(what) {
            return;
        }
        worker.leaving = Some(what);
        worker.incarnation += 1;
        if late && worker.placed {
            self.queue(trial, 0.5, What::Step);
        } else {
            self.queue(trial, self.study.leave, what);
        }
    }

    fn up(&mut self, trial: u32) -> Result<(), Failure> {
        self.tell(Event::Started { trial })?;
        self.go_on(trial);
        Ok(())
    }

    /// Queues a trial's next step. It is computed only when it is over.
    fn go_on(&mut self, trial: u32) {
        let jitter = 1.0 + self.study.faults.jitter * (2.0 * self.draw.unit() - 1.0);
        let Some(worker) = self.workers.get(&trial) else { return };
        let mut peek = worker.state.clone();
        let step = self.study.workload.step(&mut peek, &worker.config, worker.resource + 1);
        self.queue(trial, step.seconds * jitter, What::Step);
    }

    fn step(&mut self, trial: u32) -> Result<(), Failure> {
        let faults = self.study.faults;
        let Some(worker) = self.workers.get_mut(&trial) else { return Ok(()) };
        worker.resource += 1;
        let resource = worker.resource;
        let value = self.study.workload.step(&mut worker.state, &worker.config, resource).value;
        self.outcome.steps += 1;
        if self.draw.chance(faults.failure) {
            return self.over(trial, Event::Failed { trial });
        }
        if self.draw.chance(faults.retry) {
            return self.retry(trial);
        }
        let every = self.study.checkpoint_every;
        if every > 0 && resource.is_multiple_of(every) && !self.draw.chance(faults.unsaved) {
            let checkpoint = self.save(trial, resource);
            self.tell(Event::Checkpointed { trial, checkpoint })?;
            self.let_go();
        }
        if !self.draw.chance(faults.lost) {
            let value = if self.draw.chance(faults.nan) { f64::NAN } else { value };
            self.report(Report { trial, resource, value })?;
            if self.draw.chance(faults.repeated) && self.runs(trial) {
                self.report(Report { trial, resource, value })?;
            }
        }
        self.after_step(trial, resource)
    }

    fn report(&mut self, report: Report) -> Result<(), Failure> {
        if let Some(known) = self.outcome.trials.get_mut(&report.trial) {
            known.reports.push((report.resource, report.value));
        }
        self.tell(Event::Reported(report)).map(drop)
    }

    /// Whether nothing else is queued for a trial.
    fn runs(&self, trial: u32) -> bool {
        let worker = self.workers.get(&trial);
        let queued = |incarnation| {
            self.queue.iter().any(|next| (next.0.trial, next.0.incarnation) == (trial, incarnation))
        };
        worker.is_some_and(|worker| worker.placed && worker.leaving.is_none() && !queued(worker.incarnation))
    }

    fn after_step(&mut self, trial: u32, resource: u64) -> Result<(), Failure> {
        let Some(worker) = self.workers.get(&trial) else { return Ok(()) };
        if let Some(what) = worker.leaving {
            // It was late; if it was told to leave just now, its end is queued already.
            if !self
                .queue
                .iter()
                .any(|next| (next.0.trial, next.0.incarnation) == (trial, worker.incarnation))
            {
                self.queue(trial, self.study.leave, what);
            }
        } else if self.runs(trial) {
            if resource >= self.study.workload.horizon() {
                return self.over(trial, Event::Finished { trial });
            }
            if self.draw.chance(self.study.faults.interrupted) {
                return self.left(trial);
            }
            self.go_on(trial);
        }
        Ok(())
    }

    /// Its worker died; another begins where the last checkpoint was taken, and nobody is told.
    fn retry(&mut self, trial: u32) -> Result<(), Failure> {
        let newest = self.outcome.referee.roster().get(trial).and_then(|entry| entry.checkpoint.clone());
        match newest {
            Some(checkpoint) => self.restore(trial, &checkpoint)?,
            None => self.begin_again(trial),
        }
        match self.workers.get(&trial).and_then(|worker| worker.leaving) {
            Some(what) => self.queue(trial, self.study.leave, what),
            None => self.go_on(trial),
        }
        Ok(())
    }

    fn save(&mut self, trial: u32, resource: u64) -> Checkpoint {
        self.order += 1;
        let checkpoint = Checkpoint { owner: trial, id: format!("step-{resource}.{}", self.order), resource };
        if let Some(worker) = self.workers.get(&trial) {
            self.checkpoints.insert(checkpoint.clone(), worker.state.clone());
        }
        checkpoint
    }

    /// Deletes every checkpoint that nothing pins.
    fn let_go(&mut self) {
        let pinned = self.outcome.referee.roster().pinned();
        self.checkpoints.retain(|checkpoint, _| pinned.contains(checkpoint));
    }

    fn left(&mut self, trial: u32) -> Result<(), Failure> {
        let saves = !self.draw.chance(self.study.faults.unsaved);
        let resource = self.workers.get(&trial).map_or(0, |worker| worker.resource);
        let checkpoint = (saves && resource > 0).then(|| self.save(trial, resource));
        if let Some(worker) = self.workers.get_mut(&trial) {
            (worker.placed, worker.leaving) = (false, None);
            worker.incarnation += 1;
        }
        self.busy -= 1;
        self.tell(Event::Paused { trial, checkpoint })?;
        self.let_go();
        Ok(())
    }

    fn over(&mut self, trial: u32, event: Event) -> Result<(), Failure> {
        if self.workers.remove(&trial).is_some_and(|worker| worker.placed) {
            self.busy -= 1;
        }
        self.tell(event)?;
        self.let_go();
        Ok(())
    }
}
