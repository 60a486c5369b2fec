//! From a study's log back to what it was told. What followed from that stands behind it in the log, and follows again.

use regatta_track::event::{Cause, Decision as Decided, Outcome};
use regatta_track::{Draft, Envelope, Event};
use serde_json::Value;

use super::Input;
use super::configs::of_bits;
use super::machine::STUDY;
use crate::error::{Error, Result};
use crate::sampler::Suggestion;
use crate::scheduler::Config;
use crate::space::{Node, Point, Space};

/// The kinds that only tell of what is not the study's own.
pub(super) fn is_aside(event: &Event) -> bool {
    matches!(
        event,
        Event::RunCreated(_)
            | Event::RunConfigured(_)
            | Event::RunEnvironment(_)
            | Event::WorkerJoined(_)
            | Event::WorkerLost(_)
            | Event::WorkerExited(_)
            | Event::LogTail(_)
            | Event::Unknown(_)
    ) || matches!(event, Event::StudyConfigured(body) if !body.plan.is_null())
}

/// What the study was told.
pub(super) fn input(envelope: &Envelope, space: &Space, same_space: bool) -> Result<Input> {
    let stray = || {
        let (seq, kind) = (envelope.seq, envelope.event.kind());
        Error::Study { problem: format!("event {seq} of its log, a {kind}, follows from nothing") }
    };
    Ok(match (&envelope.event, envelope.trial) {
        (Event::Decision(decided), None) if decided.by == STUDY => told(decided).ok_or_else(stray)?,
        (Event::Decision(decided), Some(trial)) if decided.by == STUDY => {
            discovered(trial, &decided.data, space).ok_or_else(stray)?
        }
        (Event::TrialCreated(body), Some(_)) => {
            let point = match same_space {
                true => of_bits(&body.data["point"]).ok_or_else(stray)?,
                false => nearest(&body.data["params"], space),
            };
            let note = body.data["note"].as_u64().unwrap_or(0);
            Input::Offer(Some(Suggestion { note, ..Suggestion::new(point) }))
        }
        (Event::TrialResumed(_), Some(_)) => Input::Offer(None),
        (Event::AttemptStarted(started), Some(trial)) => {
            Input::Started { trial, attempt: started.generation as u32 }
        }
        (Event::Report(report), Some(trial)) => {
            Input::Reported { trial, step: report.step, metrics: report.metrics.clone() }
        }
        (Event::CheckpointCommitted(committed), Some(trial)) => {
            Input::Checkpointed { trial, committed: committed.clone() }
        }
        (Event::TrialPaused(_), Some(trial)) => Input::Paused { trial },
        (Event::TrialFinished(finished), Some(trial)) => match finished.outcome {
            Outcome::Failed => Input::Failed {
                trial,
                cause: finished.cause.clone().unwrap_or_else(|| Cause::new("it failed without a word")),
            },
            _ => Input::Finished { trial },
        },
        (Event::RunFinished(finished), None) => Input::Ended(finished.outcome),
        _ => return Err(stray()),
    })
}

fn told(decided: &Decided) -> Option<Input> {
    Some(match decided.action.as_str() {
        "opened" => Input::Opened(serde_json::from_value(decided.data.clone()).ok()?),
        "enqueue" => Input::Enqueued(decided.data.clone()),
        "offer" | "exhausted" => Input::Offer(None),
        "stop" => Input::Stop(decided.reason.clone()),
        _ => return None,
    })
}

/// What a trial of an open space found, with its values to the bit.
fn discovered(trial: u32, data: &Value, space: &Space) -> Option<Input> {
    let nodes: Vec<(String, Node)> = serde_json::from_value(data["nodes"].clone()).ok()?;
    let mut grown = space.clone();
    for (name, node) in &nodes {
        grown.extend(name, node).ok()?;
    }
    let mut config = Config::new();
    for (name, bits) in data["bits"].as_object()? {
        let domain = &grown.parameters()[grown.find(name)?].domain;
        config.insert(name.clone(), domain.json(f64::from_bits(bits.as_u64()?)));
    }
    Some(Input::Discovered { trial, nodes, config })
}

/// A configuration of another space, as far as this one has room for it.
fn nearest(params: &Value, space: &Space) -> Point {
    let mut point = Point::empty(space.parameters().len());
    for (index, parameter) in space.parameters().iter().enumerate() {
        let value = params.get(&parameter.path);
        let raw = value.and_then(|value| parameter.domain.parse(&parameter.path, value).ok());
        // What cannot be said in this space is filled in: the trial is over, and only its result counts.
        let active = space.active(index, &point);
        point.set(index, active.then(|| raw.unwrap_or_else(|| parameter.domain.raw(0.5))));
    }
    point
}

/// Whether what is stored is what follows now; words for people may differ from build to build.
pub(super) fn agrees(stored: &Envelope, follows: &Draft) -> bool {
    if (stored.trial, stored.event.kind()) != (follows.trial, follows.event.kind()) {
        return false;
    }
    match (&stored.event, &follows.event) {
        (Event::Decision(a), Event::Decision(b)) => (&a.by, &a.action) == (&b.by, &b.action),
        (Event::TrialFinished(a), Event::TrialFinished(b)) => a.outcome == b.outcome,
        (Event::TrialCloned(a), Event::TrialCloned(b)) => (a.from, &a.checkpoint) == (b.from, &b.checkpoint),
        (Event::Report(a), Event::Report(b)) => a == b,
        _ => true,
    }
}
