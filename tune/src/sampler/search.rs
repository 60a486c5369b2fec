//! Asking and telling, without a runner: a sampler, a space and a history held together.

use std::collections::{BTreeMap, VecDeque};

use serde_json::Value;

use super::{Ask, End, History, Judge, Sampler, Suggestion, Told, complete, random};
use crate::error::{Error, Result};
use crate::scheduler::Scheduler;
use crate::space::{Point, Space};

/// A search under somebody else's control: [`ask`](Self::ask) what to try, [`tell`](Self::tell) what came of it.
///
/// It keeps no clock and touches no disk. The same calls in the same order give the same trials.
pub struct Search {
    space: Space,
    sampler: Box<dyn Sampler>,
    history: History,
    judge: Judge,
    seed: u64,
    next: u64,
    queue: VecDeque<Point>,
    base: Option<Value>,
    constraints: BTreeMap<u64, Vec<f64>>,
}

/// A trial to be run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Trial {
    /// Its number, for [`Search::tell`].
    pub number: u64,
    /// What to try.
    pub point: Point,
    /// The same, as a configuration.
    pub config: Value,
}

impl Search {
    /// A search from the start.
    pub fn new(space: Space, sampler: impl Sampler + 'static, seed: u64) -> Self {
        Self {
            space,
            sampler: Box::new(sampler),
            history: History::new(),
            judge: Judge::default(),
            seed,
            next: 0,
            queue: VecDeque::new(),
            base: None,
            constraints: BTreeMap::new(),
        }
    }

    /// What the space keeps comes from this configuration.
    #[must_use]
    pub fn base(mut self, base: Value) -> Self {
        self.base = Some(base);
        self
    }

    /// Asks for the next trial.
    pub fn ask(&mut self) -> Result<Trial> {
        let ask = Ask { space: &self.space, history: &self.history, number: self.next, seed: self.seed };
        let suggestion = suggest(&mut *self.sampler, self.queue.front(), &ask)?;
        self.begin(suggestion)
    }

    /// What the next trial should try, by the history [as a scheduler judges it](History::judged_by). Nothing begins by this.
    pub fn suggest_under(&mut self, scheduler: &dyn Scheduler) -> Result<Suggestion> {
        let history = self.judge.look(&self.history, scheduler);
        let ask = Ask { space: &self.space, history, number: self.next, seed: self.seed };
        suggest(&mut *self.sampler, self.queue.front(), &ask)
    }

    /// Begins the next trial with what was suggested for it, now or before a restart.
    pub fn begin(&mut self, suggestion: Suggestion) -> Result<Trial> {
        let Suggestion { point, note } = suggestion;
        let config = self.space.config(&point, self.base.as_ref())?;
        self.queue.pop_front();
        let number = self.next;
        self.next += 1;
        self.history.start(number, point.clone(), note);
        Ok(Trial { number, point, config })
    }

    /// Tries this configuration next (after those enqueued before). What it does not mention is drawn.
    pub fn enqueue(&mut self, config: &Value) -> Result<()> {
        self.queue.push_back(self.space.point(config)?);
        Ok(())
    }

    /// A trial's losses, one an objective: lower is better.
    pub fn tell(&mut self, number: u64, losses: &[f64]) -> Result<()> {
        self.end(number, End::Complete, losses)
    }

    /// What is to stay at or below zero in a running trial, told before its losses.
    pub fn constrain(&mut self, number: u64, constraints: &[f64]) -> Result<()> {
        if !self.history.running().contains_key(&number) {
            return Err(unknown(number));
        }
        self.constraints.insert(number, constraints.to_vec());
        Ok(())
    }

    /// How a trial ended, and the losses it had then.
    pub fn end(&mut self, number: u64, end: End, losses: &[f64]) -> Result<()> {
        let running = self.history.running().get(&number).ok_or_else(|| unknown(number))?.clone();
        let constraints = self.constraints.remove(&number).unwrap_or_default();
        let (point, note, losses) = (running.point, running.note, losses.to_vec());
        self.history.tell(Told { number, point, note, end, losses, constraints });
        Ok(())
    }

    /// Takes in what another study found: its configurations and losses count as trials of this one, and every later
    /// suggestion knows them.
    pub fn warm_start<'a>(&mut self, trials: impl IntoIterator<Item = (&'a Value, &'a [f64])>) -> Result<()> {
        for (config, losses) in trials {
            let point = self.space.point(config)?;
            self.space.check(&point)?;
            self.history.tell(Told::complete(self.next, point, losses.to_vec()));
            self.next += 1;
        }
        Ok(())
    }

    /// The best configuration so far by its first loss, among those that satisfy their constraints; and that loss.
    pub fn best(&self) -> Option<(Value, f64)> {
        let complete = |t: &&Told| t.end == End::Complete && t.violation() == 0.0 && t.loss().is_finite();
        let best =
            self.history.told().iter().filter(complete).min_by(|a, b| a.loss().total_cmp(&b.loss()))?;
        Some((self.space.config(&best.point, self.base.as_ref()).ok()?, best.loss()))
    }

    /// What happened so far.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Where it searches.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Where it searches, for a trial that found more of it.
    pub(crate) fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }

    /// What a running trial turned out to try.
    pub(crate) fn amend(&mut self, number: u64, point: Point) {
        let note = self.history.running().get(&number).map_or(0, |running| running.note);
        self.history.start(number, point, note);
    }

    /// Who suggests.
    pub fn sampler(&self) -> &dyn Sampler {
        &*self.sampler
    }

    /// How many trials were begun.
    pub fn asked(&self) -> u64 {
        self.next
    }
}

/// What was enqueued, its gaps filled; or else what the sampler says.
fn suggest(sampler: &mut dyn Sampler, enqueued: Option<&Point>, ask: &Ask<'_>) -> Result<Suggestion> {
    let Some(known) = enqueued else {
        let suggestion = sampler.suggest(ask)?;
        ask.space.check(&suggestion.point)?;
        return Ok(suggestion);
    };
    let rest = random::point(ask);
    let mut stream = ask.stream("enqueued");
    let domain = |i: usize| &ask.space.parameters()[i].domain;
    let draw = |i, _: &Point| rest.get(i).unwrap_or_else(|| domain(i).raw(stream.unit()));
    Ok(Suggestion::new(complete(ask.space, known.clone(), draw)))
}

fn unknown(number: u64) -> Error {
    Error::Sampler {
        sampler: "search",
        problem: format!("trial {number} does not run: ask first, and tell once"),
    }
}
