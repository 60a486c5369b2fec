//! `study.journal`: a study as Optuna's journal storage keeps it, so that `optuna.load_study` and `optuna-dashboard` read
//! it while it grows.
//!
//! Every line is one operation and carries, beside what Optuna reads, the event it came from and its place among that
//! event's lines, by which a repetition after a crash is recognised. Trials are numbered alike in both: Optuna counts them
//! as they are created, and a number that a study left out is created there as failed. The file is for others to read;
//! whoever else creates trials in it makes the numbers differ.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::files::{Output, open_lines};
use super::{Cursor, Sink, Start};
use crate::error::{Error, Result};
use crate::event::{Envelope, Event, Outcome, Timestamp};
use crate::metrics::Metrics;
use crate::study::{Domain, Parameter, StudyConfigured};

const FILE: &str = "study.journal";
/// Where an event and its part stand at the end of each line.
const SEQ: &str = ",\"seq\":";

/// Optuna's operations.
mod op {
    pub(super) const CREATE_STUDY: u32 = 0;
    pub(super) const STUDY_USER_ATTR: u32 = 2;
    pub(super) const STUDY_SYSTEM_ATTR: u32 = 3;
    pub(super) const CREATE_TRIAL: u32 = 4;
    pub(super) const SET_PARAM: u32 = 5;
    pub(super) const SET_STATE: u32 = 6;
    pub(super) const INTERMEDIATE: u32 = 7;
    pub(super) const TRIAL_USER_ATTR: u32 = 8;
}

/// Optuna's states of a trial.
mod state {
    pub(super) const RUNNING: u32 = 0;
    pub(super) const COMPLETE: u32 = 1;
    pub(super) const PRUNED: u32 = 2;
    pub(super) const FAIL: u32 = 3;
}

/// The sink of a study's `study.journal`. Of a run that is no study it writes nothing.
pub struct OptunaJournal {
    path: PathBuf,
    cursor: Cursor,
    open: Option<Journal>,
    study: Study,
}

/// What the events so far add up to, as far as later lines need it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Study {
    experiment: String,
    name: String,
    configured: Option<StudyConfigured>,
    /// How many trials the file has.
    created: u32,
    /// The last figures of trials that have not ended.
    last: BTreeMap<u32, Metrics>,
}

/// The open file, and the last line in it.
struct Journal {
    path: PathBuf,
    file: BufWriter<File>,
    last: (u64, u32),
}

impl Output for Journal {
    fn sync(&mut self) -> Result<()> {
        let file = &mut self.file;
        file.flush().and_then(|()| file.get_ref().sync_data()).map_err(Error::io("write", &self.path))
    }
}

impl OptunaJournal {
    /// For the study in this folder.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        OptunaJournal {
            path: folder.join(FILE),
            cursor: Cursor::new(folder, FILE),
            open: None,
            study: Study::default(),
        }
    }

    fn journal(&mut self) -> Result<&mut Journal> {
        if self.open.is_none() {
            self.open = Some(Journal::open(&self.path)?);
        }
        Ok(self.open.as_mut().unwrap_or_else(|| unreachable!("it was just opened")))
    }
}

impl Sink for OptunaJournal {
    fn name(&self) -> &str {
        FILE
    }

    fn kinds(&self) -> &[&str] {
        &[
            "run_created",
            "study_configured",
            "trial_created",
            "trial_configured",
            "trial_cloned",
            "trial_finished",
            "report",
        ]
    }

    fn resume(&mut self) -> Result<Start> {
        self.open = None;
        // A file that is gone is written again from the beginning.
        let (seq, extra) = if self.path.exists() { self.cursor.load() } else { Default::default() };
        let study = serde_json::from_value(extra).ok();
        let seq = if study.is_some() { seq } else { 0 };
        self.study = study.unwrap_or_default();
        Ok(Start::After(seq))
    }

    fn write(&mut self, events: &[Envelope]) -> Result<()> {
        for e in events {
            let lines = self.study.lines(e);
            if !lines.is_empty() {
                self.journal()?.put(e.seq, &lines)?;
            }
        }
        // Others read along.
        match &mut self.open {
            Some(journal) => journal.file.flush().map_err(Error::io("write", &journal.path)),
            None => Ok(()),
        }
    }

    fn save(&mut self, upto: u64) -> Result<()> {
        if let Some(journal) = &mut self.open {
            journal.sync()?;
        }
        let study = serde_json::to_value(&self.study)
            .map_err(|source| Error::Encode { kind: "cursor".into(), source: source.into() })?;
        self.cursor.save(upto, study)
    }
}

impl Journal {
    fn open(path: &Path) -> Result<Journal> {
        let (file, _) = open_lines(path)?;
        let read = || -> std::io::Result<(u64, u32)> {
            let mut last = (0, 0);
            // A dashboard may have added lines of its own.
            for line in BufReader::new(File::open(path)?).split(b'\n') {
                last = place(&line?).unwrap_or(last);
            }
            Ok(last)
        };
        let last = read().map_err(Error::io("read", path))?;
        Ok(Journal { path: path.into(), file: BufWriter::new(file), last })
    }

    /// Writes an event's lines, but those that are there.
    fn put(&mut self, seq: u64, lines: &[Line]) -> Result<()> {
        for (part, Line { op, fields }) in (0..).zip(lines) {
            if (seq, part) <= self.last {
                continue;
            }
            writeln!(
                self.file,
                "{{\"op_code\":{op},\"worker_id\":\"regatta\"{fields}{SEQ}[{seq},{part}]}}"
            )
            .map_err(Error::io("write", &self.path))?;
            self.last = (seq, part);
        }
        Ok(())
    }
}

/// The event and part that a line of ours ends with.
fn place(line: &[u8]) -> Option<(u64, u32)> {
    let text = std::str::from_utf8(line).ok()?.strip_suffix('}')?;
    serde_json::from_str(&text[text.rfind(SEQ)? + SEQ.len()..]).ok()
}

/// One operation.
struct Line {
    op: u32,
    /// The rest of the object: `,"name":value` each.
    fields: String,
}

impl Line {
    fn new(op: u32) -> Self {
        Line { op, fields: String::new() }
    }

    /// With a field whose value is text that JSON, or Python's idea of it, reads.
    fn raw(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        let _ = write!(self.fields, ",\"{name}\":{value}");
        self
    }

    fn field(self, name: &str, value: impl Into<Value>) -> Self {
        self.raw(name, value.into())
    }
}

impl Study {
    /// What an event adds to the file.
    fn lines(&mut self, e: &Envelope) -> Vec<Line> {
        match &e.event {
            Event::RunCreated(body) => {
                (self.experiment, self.name) = (body.experiment.clone(), body.name.clone());
                Vec::new()
            }
            Event::StudyConfigured(body) => {
                let first = self.configured.replace(body.clone()).is_none();
                if first { self.create(body) } else { Vec::new() }
            }
            _ => match (self.configured.take(), e.trial) {
                (Some(configured), Some(trial)) => {
                    let lines = self.trial(&configured, trial, e);
                    self.configured = Some(configured);
                    lines
                }
                (configured, _) => {
                    self.configured = configured;
                    Vec::new()
                }
            },
        }
    }

    fn create(&self, body: &StudyConfigured) -> Vec<Line> {
        let directions: Vec<u32> = body.objectives.iter().map(|o| if o.maximize { 2 } else { 1 }).collect();
        let names: Vec<&str> = body.objectives.iter().map(|o| o.metric.as_str()).collect();
        let study = |op| Line::new(op).field("study_id", 0);
        vec![
            Line::new(op::CREATE_STUDY).field("study_name", &*self.name).field("directions", directions),
            study(op::STUDY_SYSTEM_ATTR).field("system_attr", json!({ "study:metric_names": names })),
            study(op::STUDY_USER_ATTR).field("user_attr", json!({ "experiment": self.experiment })),
        ]
    }

    fn trial(&mut self, study: &StudyConfigured, trial: u32, e: &Envelope) -> Vec<Line> {
        let of = |op| Line::new(op).field("trial_id", trial);
        match &e.event {
            Event::TrialCreated(body) if trial >= self.created => {
                let missing = (self.created..trial)
                    .map(|_| created(e.at, state::FAIL, "{}", "{}").raw("datetime_complete", time(e.at)));
                let mut lines: Vec<Line> = missing.collect();
                let (mut distributions, mut params) = (Vec::new(), Vec::new());
                for (parameter, raw) in suggested(study, &body.config) {
                    let name = Value::from(&*parameter.path);
                    distributions.push(format!("{name}:{}", distribution(&parameter.domain)));
                    params.push(format!("{name}:{}", number(raw)));
                }
                let (distributions, params) = (distributions.join(","), params.join(","));
                lines.push(created(
                    e.at,
                    state::RUNNING,
                    &format!("{{{distributions}}}"),
                    &format!("{{{params}}}"),
                ));
                self.created = trial + 1;
                self.last.insert(trial, Metrics::new());
                lines
            }
            Event::TrialConfigured(body) => set(study, trial, &body.config),
            Event::TrialCloned(body) => {
                let mut lines = set(study, trial, &body.config);
                lines.push(of(op::TRIAL_USER_ATTR).field("user_attr", json!({ "cloned_from": body.from })));
                lines
            }
            Event::Report(body) if e.rank.unwrap_or(0) == 0 => {
                let Some(last) = self.last.get_mut(&trial) else { return Vec::new() };
                let known = |name: &str| body.metrics.get(name);
                for objective in &study.objectives {
                    if let Some(value) = known(&objective.metric) {
                        last.insert(&*objective.metric, value);
                    }
                }
                // Optuna knows of intermediate values for one objective only.
                let value = match study.objectives.as_slice() {
                    [one] => known(&one.metric),
                    _ => None,
                };
                let line = |value| {
                    of(op::INTERMEDIATE).field("step", body.step).raw("intermediate_value", number(value))
                };
                value.map(line).into_iter().collect()
            }
            Event::TrialFinished(body) if body.outcome != Outcome::Interrupted => {
                let Some(last) = self.last.remove(&trial) else { return Vec::new() };
                let values: Option<Vec<f64>> =
                    study.objectives.iter().map(|o| last.get(&o.metric).filter(|v| !v.is_nan())).collect();
                let (state, values) = match (body.outcome, values) {
                    (Outcome::Completed, Some(values)) => (state::COMPLETE, Some(values)),
                    (Outcome::Stopped, values) => (state::PRUNED, values.filter(|v| v.len() == 1)),
                    // Complete is what has a value: so does Optuna.
                    _ => (state::FAIL, None),
                };
                let list =
                    |values: Vec<f64>| values.into_iter().map(number).collect::<Vec<_>>().join(",");
                let values = values.map_or("null".into(), |values| format!("[{}]", list(values)));
                let why = body.cause.as_ref().map(|cause| {
                    of(op::TRIAL_USER_ATTR).field("user_attr", json!({ "error": cause.message }))
                });
                let end = of(op::SET_STATE).field("state", state).raw("values", values);
                why.into_iter().chain([end.raw("datetime_complete", time(e.at))]).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// A trial's creation.
fn created(at: Timestamp, state: u32, distributions: &str, params: &str) -> Line {
    Line::new(op::CREATE_TRIAL)
        .field("study_id", 0)
        .field("state", state)
        .raw("datetime_start", time(at))
        .raw("distributions", distributions)
        .raw("params", params)
}

/// The parameters that a configuration has, with their raw values.
fn suggested<'a>(study: &'a StudyConfigured, config: &Value) -> Vec<(&'a Parameter, f64)> {
    study.parameters.iter().filter_map(|parameter| Some((parameter, parameter.raw(config)?))).collect()
}

/// The parameters of a running trial, which takes them over those it had.
fn set(study: &StudyConfigured, trial: u32, config: &Value) -> Vec<Line> {
    let line = |(parameter, raw): (&Parameter, f64)| {
        Line::new(op::SET_PARAM)
            .field("trial_id", trial)
            .field("param_name", &*parameter.path)
            .raw("param_value_internal", number(raw))
            .raw("distribution", distribution(&parameter.domain))
    };
    suggested(study, config).into_iter().map(line).collect()
}

/// A domain as Optuna's distribution, which stands in the file as a string.
fn distribution(domain: &Domain) -> Value {
    let last = |low: f64, high: f64, step: f64| low + ((high - low) / step + 1e-9).floor() * step;
    let (name, attributes) = match domain {
        Domain::Float { low, high, log, step } => {
            // Optuna warns of a last step that does not fit.
            let high = step.map_or(*high, |step| last(*low, *high, step).min(*high));
            ("FloatDistribution", json!({ "step": step, "low": low, "high": high, "log": log }))
        }
        // A normal value may be anything; so far out, it never is.
        Domain::Normal { mean, deviation } => {
            let reach = 6.0 * deviation;
            let (low, high) = (mean - reach, mean + reach);
            ("FloatDistribution", json!({ "step": null, "low": low, "high": high, "log": false }))
        }
        Domain::Int { low, high, log, step } => {
            let high = low + (high - low) / step * step;
            ("IntDistribution", json!({ "step": step, "low": low, "high": high, "log": log }))
        }
        Domain::Grid(values) => ("CategoricalDistribution", json!({ "choices": values })),
        Domain::Category(values) => {
            let choices: Vec<Value> = values.iter().map(plain).collect();
            ("CategoricalDistribution", json!({ "choices": choices }))
        }
    };
    Value::from(json!({ "name": name, "attributes": attributes }).to_string())
}

/// Optuna's choices are plain values: what is not stands there as its JSON.
fn plain(value: &Value) -> Value {
    match value {
        Value::Array(_) | Value::Object(_) => Value::from(value.to_string()),
        plain => plain.clone(),
    }
}

/// A number as Python's JSON has it.
fn number(value: f64) -> String {
    if value.is_nan() {
        "NaN".into()
    } else if value.is_infinite() {
        if value > 0.0 { "Infinity".into() } else { "-Infinity".into() }
    } else {
        json!(value).to_string()
    }
}

/// A time in UTC: `"2026-11-21T07:00:00.000000+00:00"`.
fn time(at: Timestamp) -> String {
    let (seconds, micros) = (at.0.div_euclid(1_000_000), at.0.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March end with the leap day; 400 of them are 146,097 days.
    let day = days + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let date = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + later;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("\"{year:04}-{month:02}-{date:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}+00:00\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01T00:00:00.000000+00:00"),
            (951_782_400_000_000, "2000-02-29T00:00:00.000000+00:00"),
            (1_795_244_399_000_001, "2026-11-21T06:59:59.000001+00:00"),
            (4_107_542_400_000_000, "2100-03-01T00:00:00.000000+00:00"),
        ];
        for (at, expected) in cases {
            assert_eq!(time(Timestamp(at)), format!("\"{expected}\""));
        }
    }
}
