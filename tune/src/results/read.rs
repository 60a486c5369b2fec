//! From a study's log to its results. Everything here is a fold over events: what a later report repeats, because its
//! trial went back to a checkpoint, replaces what was there.

use std::collections::BTreeMap;

use regatta_track::event::{self, Envelope, Event, Outcome, StudyConfigured};
use regatta_track::state::Status;
use regatta_track::{Query, Snapshot};
use serde_json::Value;

use super::History;
use crate::config::ITERATION;
use crate::space::{Domain, Space};

const KINDS: [&str; 11] = [
    "study_configured",
    "trial_created",
    "trial_configured",
    "trial_paused",
    "trial_resumed",
    "trial_cloned",
    "trial_finished",
    "attempt_started",
    "attempt_ended",
    "checkpoint_committed",
    "report",
];
/// Events read at once.
const PAGE: usize = 4_000;

/// A study's log, read.
#[derive(Default)]
pub(super) struct Read {
    pub(super) study: Option<StudyConfigured>,
    pub(super) trials: Vec<History>,
}

/// Reads all of a study.
pub(super) fn fold(snapshot: &mut Snapshot<'_>) -> regatta_track::Result<Read> {
    let (mut study, mut trials, mut after) = (None, Vec::<History>::new(), 0);
    loop {
        let page = snapshot.events(&Query { after, limit: PAGE, scope: None, kinds: &KINDS })?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for e in &page {
            match (&e.event, e.trial) {
                (Event::StudyConfigured(body), _) => study = Some(body.clone()),
                (_, Some(number)) => {
                    let place = trials.binary_search_by_key(&number, |trial| trial.number);
                    let place = place.unwrap_or_else(|place| {
                        trials.insert(place, History::new(number));
                        place
                    });
                    apply(&mut trials[place], e);
                }
                _ => {}
            }
        }
    }
    let parameters = study.as_ref().map_or(&[][..], |study: &StudyConfigured| &study.parameters);
    trials.iter_mut().for_each(|trial| trial.config = flat(&trial.full, parameters));
    Ok(Read { study, trials })
}

/// Reads a run as if it were a trial: its configuration, and what it reported.
pub(super) fn run(snapshot: &mut Snapshot<'_>) -> regatta_track::Result<History> {
    let run = snapshot.run()?.unwrap_or_default();
    let (mut history, mut after) = (History::new(0), 0);
    history.created = Some(run.created.seconds());
    loop {
        let page = snapshot.events(&Query { after, limit: PAGE, scope: Some(None), kinds: &KINDS })?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        page.iter().for_each(|e| apply(&mut history, e));
    }
    history.state = match run.status {
        Status::Pending => "pending",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Ended(outcome) => word(outcome),
    }
    .into();
    history.ended = run.ended.map(|at| at.seconds());
    history.error = run.cause.as_ref().map(|cause| cause.message.clone());
    history.cause = run.cause;
    // What is trained with stands under `config`, as a trial's stands alone; where a run lies is not part of it.
    let mut flat = flat(&run.config, &[]);
    flat.retain(|path, _| !matches!(path.as_str(), "run.name" | "run.experiment" | "run.storage"));
    let plain = |path: String| path.strip_prefix("config.").map(str::to_owned).unwrap_or(path);
    history.config = flat.into_iter().map(|(path, value)| (plain(path), value)).collect();
    history.full = run.config;
    Ok(history)
}

fn apply(trial: &mut History, e: &Envelope) {
    let at = e.at.seconds();
    match &e.event {
        Event::TrialCreated(body) => {
            (trial.full, trial.state) = (body.config.clone(), "pending".into());
            trial.created = Some(at);
        }
        Event::TrialConfigured(body) => trial.full = body.config.clone(),
        Event::TrialPaused(_) => {
            leave(trial, at);
            trial.state = "paused".into();
        }
        Event::TrialResumed(_) => {
            enter(trial, at);
            trial.state = "pending".into();
        }
        Event::TrialCloned(body) => {
            (trial.full, trial.cloned_from) = (body.config.clone(), Some(body.from));
        }
        Event::TrialFinished(body) => {
            leave(trial, at);
            trial.ended = Some(at);
            trial.state = word(body.outcome).into();
            trial.error = body.cause.as_ref().map(|cause| cause.message.clone());
            if body.outcome == Outcome::Failed && trial.error.is_none() {
                trial.error = Some("it failed without a word".into());
            }
            trial.cause.clone_from(&body.cause);
        }
        Event::AttemptStarted(_) => {
            enter(trial, at);
            trial.attempts += 1;
            (trial.state, trial.ended, trial.error, trial.cause) = ("running".into(), None, None, None);
        }
        Event::AttemptEnded(_) => leave(trial, at),
        Event::CheckpointCommitted(body) => trial.checkpoints.push((body.id.clone(), body.step)),
        Event::Report(body) if e.rank.unwrap_or(0) == 0 => {
            if trial.spans.last().is_none_or(|span| span.1.is_some()) && trial.ended.is_none() {
                // Who stores no attempts begins with its creation, or with its first word after a pause.
                let from = if trial.spans.is_empty() { trial.created.unwrap_or(at) } else { at };
                enter(trial, from);
            }
            if trial.state == "pending" {
                trial.state = "running".into();
            }
            // Who counts no steps reports all at the same; a later iteration is no repetition of an earlier one.
            let last = trial.metrics.get(ITERATION).and_then(|series| series.last()).map(|(_, last)| *last);
            let advances = body.metrics.get(ITERATION).zip(last).is_some_and(|(now, last)| now > last);
            for (name, value) in body.metrics.iter() {
                let series = trial.metrics.entry(name.to_string()).or_default();
                let stays = |step: u64| step < body.step || advances && step == body.step;
                let undone = series.iter().rposition(|(step, _)| stays(*step)).map_or(0, |at| at + 1);
                series.truncate(undone);
                series.push((body.step, value));
            }
        }
        _ => {}
    }
}

fn enter(trial: &mut History, at: f64) {
    if trial.spans.last().is_none_or(|span| span.1.is_some()) {
        trial.spans.push((at, None));
    }
}

fn leave(trial: &mut History, at: f64) {
    match trial.spans.last_mut() {
        Some(span) => span.1 = span.1.or(Some(at)),
        None => trial.spans.push((trial.created.unwrap_or(at), Some(at))),
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "done",
        Outcome::Stopped => "stopped",
        Outcome::Interrupted => "interrupted",
        Outcome::Failed => "failed",
    }
}

/// A configuration's values by path, and the names of the branches it takes.
#[must_use]
pub fn flat(config: &Value, parameters: &[event::Parameter]) -> BTreeMap<String, Value> {
    fn leaves(path: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) if !fields.is_empty() => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    leaves(&path, value, out);
                }
            }
            Value::Null if path.is_empty() => {}
            _ => {
                out.insert(if path.is_empty() { ".".into() } else { path.into() }, value.clone());
            }
        }
    }
    let mut out = BTreeMap::new();
    leaves("", config, &mut out);
    for parameter in parameters {
        if let Some(value) = parameter.value(config) {
            out.insert(parameter.path.clone(), value.into_owned());
        }
    }
    out
}

/// The parameters of a space as a study's log has them.
#[must_use]
pub fn recorded(space: &Space) -> Vec<event::Parameter> {
    let parameter = |parameter: &crate::space::Parameter| event::Parameter {
        path: parameter.path.clone(),
        domain: match parameter.domain.clone() {
            Domain::Float { low, high, log, step } => event::Domain::Float { low, high, log, step },
            Domain::Normal { mean, deviation } => event::Domain::Normal { mean, deviation },
            Domain::Int { low, high, log, step } => event::Domain::Int { low, high, log, step },
            Domain::Grid(values) => event::Domain::Grid(values),
            Domain::Category(values) => event::Domain::Category(values),
        },
        parent: parameter.parent.map(|of| (of.parameter, of.branch)),
    };
    space.parameters().iter().map(parameter).collect()
}

/// The reverse; nothing for what a newer log may hold.
pub(crate) fn domain(recorded: &event::Domain) -> Option<Domain> {
    Some(match recorded.clone() {
        event::Domain::Float { low, high, log, step } => Domain::Float { low, high, log, step },
        event::Domain::Normal { mean, deviation } => Domain::Normal { mean, deviation },
        event::Domain::Int { low, high, log, step } => Domain::Int { low, high, log, step },
        event::Domain::Grid(values) => Domain::Grid(values),
        event::Domain::Category(values) => Domain::Category(values),
        _ => return None,
    })
}
