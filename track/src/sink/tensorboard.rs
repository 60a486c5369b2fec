//! TensorBoard event files: a scalar for each metric, hyperparameters for the run or each trial (in `trials/00007/`), the
//! columns of the HParams tab for a study, and a session's start wherever training went back, so that TensorBoard drops
//! what was computed twice instead of drawing it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::{Output, Shelf, folder_of};
use super::proto::Message;
use super::{Cursor, Sink, Start};
use crate::error::{Error, Result};
use crate::event::{Envelope, Event, Outcome, Report, Timestamp};
use crate::lock::host;
use crate::state::Scope;
use crate::study::{Domain, Parameter, StudyConfigured};

const PREFIX: &str = "events.out.tfevents.";

/// The sink of event files.
pub struct TensorBoard {
    folder: PathBuf,
    cursor: Cursor,
    open: Shelf<EventFile>,
    /// The file and attempt that each scope was last at in this process.
    known: HashMap<Scope, (PathBuf, u32)>,
    /// Whether trials write their own files.
    without_trials: bool,
    run: Told,
}

/// What was told of the run and is needed later.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Told {
    /// Its name, by which TensorBoard tells sessions apart.
    name: String,
    /// Its configuration, until its first report shows that the run itself trains.
    config: Value,
    /// What it varies, if it is a study.
    parameters: Vec<Parameter>,
}

impl TensorBoard {
    /// For the run in this folder.
    pub fn new(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        TensorBoard {
            folder: folder.into(),
            cursor: Cursor::new(folder, "tensorboard"),
            open: Shelf::default(),
            known: HashMap::new(),
            without_trials: false,
            run: Told::default(),
        }
    }

    /// For the study in this folder, whose trials are runs that write their own files.
    pub fn without_trials(folder: impl AsRef<Path>) -> Self {
        TensorBoard { without_trials: true, ..TensorBoard::new(folder) }
    }

    /// The open file of a scope. The first of this process is a new one, whose name sorts after all there are.
    fn file(&mut self, e: &Envelope, step: u64) -> Result<&mut EventFile> {
        let scope = e.trial;
        let known = self.known.get(&scope).cloned();
        let folder = folder_of(&self.folder, scope);
        let file = self.open.get(scope, || match &known {
            Some((path, attempt)) => EventFile::again(path, *attempt),
            None => EventFile::create(&folder, e, step),
        })?;
        self.known.insert(scope, (file.path.clone(), file.attempt));
        Ok(file)
    }

    fn report(&mut self, e: &Envelope, report: &Report) -> Result<()> {
        let config = if e.trial.is_none() { self.run.config.take() } else { Value::Null };
        let group = self.run.name.clone();
        let file = self.file(e, report.step)?;
        if !config.is_null() {
            file.hparams_start(e, &group, hyperparameters(&config))?;
        }
        if file.attempt != e.attempt {
            file.attempt = e.attempt;
            file.session_start(e.at, report.step)?;
        }
        for (name, value) in report.metrics.iter() {
            file.scalar(e.at, report.step, name, value)?;
        }
        self.known.entry(e.trial).and_modify(|known| known.1 = e.attempt);
        Ok(())
    }
}

impl Sink for TensorBoard {
    fn name(&self) -> &str {
        "tensorboard"
    }

    fn kinds(&self) -> &[&str] {
        &[
            "report",
            "run_created",
            "run_configured",
            "run_finished",
            "study_configured",
            "trial_created",
            "trial_finished",
        ]
    }

    fn resume(&mut self) -> Result<Start> {
        self.open.clear();
        self.known.clear();
        let (seq, run) = self.cursor.load();
        self.run = serde_json::from_value(run).unwrap_or_default();
        Ok(Start::After(seq))
    }

    fn write(&mut self, events: &[Envelope]) -> Result<()> {
        for e in events {
            if self.without_trials && e.trial.is_some() {
                continue;
            }
            match &e.event {
                Event::Report(report) if e.rank.unwrap_or(0) == 0 => self.report(e, report)?,
                Event::RunCreated(body) => self.run.name = body.name.clone(),
                Event::RunConfigured(body) if e.trial.is_none() => self.run.config = body.config.clone(),
                // TensorBoard keeps the first it reads: of parameters that trials discover, it finds the columns itself.
                Event::StudyConfigured(body) if !body.parameters.is_empty() => {
                    self.run.parameters = body.parameters.clone();
                    self.file(e, 0)?.hparams(e.at, "_hparams_/experiment", experiment(e.at, body))?;
                }
                Event::TrialCreated(body) => {
                    let group = format!("trial_{:05}", e.trial.unwrap_or(0));
                    let mut flat = hyperparameters(&body.config);
                    // A branch is chosen by its name, which the configuration has no value for.
                    for parameter in &self.run.parameters {
                        if let Some(value) = parameter.value(&body.config).and_then(|v| hyperparameter(&v)) {
                            flat.insert(parameter.path.clone(), value);
                        }
                    }
                    self.file(e, 0)?.hparams_start(e, &group, flat)?;
                }
                Event::TrialFinished(body) => self.file(e, u64::MAX >> 1)?.hparams_end(e, body.outcome)?,
                // A run that only has trials trained nothing itself and is no session.
                Event::RunFinished(body) if self.run.config.is_null() => {
                    self.file(e, u64::MAX >> 1)?.hparams_end(e, body.outcome)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn save(&mut self, upto: u64) -> Result<()> {
        self.open.sync()?;
        let run = serde_json::to_value(&self.run)
            .map_err(|source| Error::Encode { kind: "cursor".into(), source: source.into() })?;
        self.cursor.save(upto, run)
    }
}

/// One event file, open.
struct EventFile {
    path: PathBuf,
    file: BufWriter<File>,
    /// The tags whose metadata this file has.
    tags: HashSet<Arc<str>>,
    attempt: u32,
}

impl Output for EventFile {
    fn sync(&mut self) -> Result<()> {
        let file = &mut self.file;
        file.flush().and_then(|()| file.get_ref().sync_data()).map_err(Error::io("write", &self.path))
    }
}

impl EventFile {
    fn create(folder: &Path, e: &Envelope, step: u64) -> Result<EventFile> {
        std::fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let second = |entry: std::fs::DirEntry| -> Option<i64> {
            entry.file_name().to_str()?.strip_prefix(PREFIX)?.get(..10)?.parse().ok()
        };
        let newest =
            std::fs::read_dir(folder).map_err(Error::io("read", folder))?.flatten().filter_map(second).max();
        // TensorBoard reads the files of a folder in the order of their names.
        let now = Timestamp::now().0 / 1_000_000;
        let second = newest.map_or(now, |newest| now.max(newest + 1));
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{PREFIX}{second:010}.{}.{}.{count}", host(), std::process::id()));
        let file =
            File::options().append(true).create_new(true).open(&path).map_err(Error::io("create", &path))?;
        let mut file =
            EventFile { path, file: BufWriter::new(file), tags: HashSet::new(), attempt: e.attempt };
        file.put(Message::new().double(1, e.at.seconds()).text(3, "brain.Event:2"))?;
        let step = if newest.is_some() { step } else { 0 };
        file.session_start(e.at, step)?;
        Ok(file)
    }

    /// A file of this process that was closed to make room for others.
    fn again(path: &Path, attempt: u32) -> Result<EventFile> {
        let file = File::options().append(true).open(path).map_err(Error::io("open", path))?;
        Ok(EventFile { path: path.into(), file: BufWriter::new(file), tags: HashSet::new(), attempt })
    }

    fn put(&mut self, event: Message) -> Result<()> {
        self.file.write_all(&event.record()).map_err(Error::io("write", &self.path))
    }

    /// From here on what follows counts, and what was written before of this step and later does not.
    fn session_start(&mut self, at: Timestamp, step: u64) -> Result<()> {
        self.put(event(at, step).message(7, Message::new().varint(1, 1)))
    }

    fn scalar(&mut self, at: Timestamp, step: u64, name: &Arc<str>, value: f64) -> Result<()> {
        let tensor =
            Message::new().varint(1, 1).message(2, Message::new()).bytes(5, &(value as f32).to_le_bytes());
        let mut entry = Message::new().text(1, name);
        if self.tags.insert(name.clone()) {
            let plugin = Message::new().text(1, "scalars");
            entry = entry.message(9, Message::new().message(1, plugin).varint(4, 1));
        }
        let entry = entry.message(8, tensor);
        self.put(event(at, step).message(5, Message::new().message(1, entry)))
    }

    fn hparams(&mut self, at: Timestamp, tag: &str, data: Message) -> Result<()> {
        let plugin = Message::new().text(1, "hparams").message(2, data);
        // An empty tensor, as the plugin itself writes it: all is in the metadata.
        let shape = Message::new().message(2, Message::new());
        let tensor = Message::new().varint(1, 1).message(2, shape);
        let entry =
            Message::new().text(1, tag).message(9, Message::new().message(1, plugin)).message(8, tensor);
        self.put(event(at, 0).message(5, Message::new().message(1, entry)))
    }

    fn hparams_start(&mut self, e: &Envelope, group: &str, values: BTreeMap<String, Message>) -> Result<()> {
        let mut info = Message::new();
        for (name, value) in values {
            info = info.message(1, Message::new().text(1, &name).message(2, value));
        }
        let info = info.text(4, group).double(5, e.at.seconds());
        self.hparams(e.at, "_hparams_/session_start_info", Message::new().message(3, info))
    }

    /// TensorBoard keeps the first end it reads, so an interruption is none: the run may go on.
    fn hparams_end(&mut self, e: &Envelope, outcome: Outcome) -> Result<()> {
        let status = match outcome {
            Outcome::Completed | Outcome::Stopped => 1,
            Outcome::Failed => 2,
            Outcome::Interrupted => return Ok(()),
        };
        let info = Message::new().varint(1, status).double(2, e.at.seconds());
        self.hparams(e.at, "_hparams_/session_end_info", Message::new().message(4, info))
    }
}

fn event(at: Timestamp, step: u64) -> Message {
    Message::new().double(1, at.seconds()).varint(2, step)
}

/// What a study varies and optimises: the columns of the HParams tab.
fn experiment(at: Timestamp, study: &StudyConfigured) -> Message {
    let mut info = Message::new().double(3, at.seconds());
    for parameter in &study.parameters {
        info = info.message(4, column(parameter));
    }
    for objective in &study.objectives {
        let name = Message::new().text(2, &objective.metric);
        info = info.message(5, Message::new().message(1, name));
    }
    Message::new().message(2, info)
}

/// A parameter's name, type and values, as TensorBoard filters by them.
fn column(parameter: &Parameter) -> Message {
    const STRING: u64 = 1;
    const BOOL: u64 = 2;
    const FLOAT: u64 = 3;
    let interval = |low: f64, high: f64| Message::new().double(1, low).double(2, high);
    let list = |values: Vec<Message>| {
        values.into_iter().fold(Message::new(), |list, value| list.message(1, value))
    };
    let info = Message::new().text(1, &parameter.path);
    match &parameter.domain {
        Domain::Float { low, high, .. } => info.varint(4, FLOAT).message(6, interval(*low, *high)),
        Domain::Int { low, high, .. } => {
            info.varint(4, FLOAT).message(6, interval(*low as f64, *high as f64))
        }
        Domain::Normal { .. } => info.varint(4, FLOAT),
        Domain::Grid(values) => {
            let values = values.iter().map(|value| Message::new().double(2, *value)).collect();
            info.varint(4, FLOAT).message(5, list(values))
        }
        Domain::Category(values) => {
            let kind = match () {
                () if values.iter().all(Value::is_boolean) => BOOL,
                () if values.iter().all(Value::is_number) => FLOAT,
                () => STRING,
            };
            let values = values.iter().filter_map(hyperparameter).collect();
            info.varint(4, kind).message(5, list(values))
        }
    }
}

/// A configuration as hyperparameters: `{"model": {"name": "mlp"}}` is `model.name`. Null is left out.
fn hyperparameters(config: &Value) -> BTreeMap<String, Message> {
    let mut flat = BTreeMap::new();
    flatten("", config, &mut flat);
    flat
}

fn flatten(prefix: &str, value: &Value, flat: &mut BTreeMap<String, Message>) {
    if let Value::Object(fields) = value {
        for (name, value) in fields {
            let name = match prefix {
                // An experiment's `config` is what is trained with: its names are the ones that a study varies.
                "" if name == "config" && value.is_object() => String::new(),
                "" => name.clone(),
                prefix => format!("{prefix}.{name}"),
            };
            flatten(&name, value, flat);
        }
    } else if let Some(value) = hyperparameter(value) {
        flat.insert(if prefix.is_empty() { "config".into() } else { prefix.into() }, value);
    }
}

/// A value as protocol buffers have it. A list is its JSON; null is none.
fn hyperparameter(value: &Value) -> Option<Message> {
    match value {
        Value::Null => None,
        Value::Bool(flag) => Some(Message::new().varint(4, u64::from(*flag))),
        Value::Number(number) => Some(Message::new().double(2, number.as_f64().unwrap_or(f64::NAN))),
        Value::String(text) => Some(Message::new().text(3, text)),
        Value::Array(_) | Value::Object(_) => Some(Message::new().text(3, &value.to_string())),
    }
}
