//! How a study goes, on standard error: a table that is drawn again on a terminal, a line now and then elsewhere, and what
//! happens in between.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, Instant};

use regatta_track::event::Outcome;
use regatta_tune::scheduler::State;
use regatta_tune::study::{Facts, Input, Machine};
use regatta_tune::{StudyCallback, StudyEvent};
use serde_json::Value;

use crate::term::{Mode, duration, figure};

/// How often a line is written where there is no terminal.
const PLAIN: Duration = Duration::from_secs(30);
/// How often the table is drawn on a terminal.
const DRAWN: Duration = Duration::from_millis(250);
/// How many trials the table shows.
const ROWS: usize = 12;

/// What is shown.
pub(crate) struct Look {
    pub(crate) mode: Mode,
    /// What resumes this study; `{run}` is its name.
    pub(crate) resume: String,
}

/// Shows a study as it goes.
pub(crate) struct Sweep<W> {
    look: Look,
    to: W,
    width: fn() -> usize,
    drawn: Option<Instant>,
    begun: Instant,
    /// Lines that stand there to be drawn over.
    open: usize,
}

impl<W: Write + Send> Sweep<W> {
    pub(crate) fn new(look: Look, to: W, width: fn() -> usize) -> Self {
        Sweep { look, to, width, drawn: None, begun: Instant::now(), open: 0 }
    }

    /// Takes away what was drawn. Nobody is left to be told that standard error is gone.
    fn clear(&mut self) {
        if self.open > 0 {
            let _ = write!(self.to, "\x1b[{}A\x1b[J", self.open);
            self.open = 0;
        }
    }

    /// A line that stays.
    fn say(&mut self, text: &str) {
        if self.look.mode != Mode::None {
            self.clear();
            let _ = writeln!(self.to, "{text}");
        }
    }

    fn draw(&mut self, study: &Machine) {
        let every = if self.look.mode == Mode::Bar { DRAWN } else { PLAIN };
        let now = Instant::now();
        let last = *self.drawn.get_or_insert(now);
        if self.look.mode == Mode::None || now - last < every {
            return;
        }
        self.drawn = Some(now);
        let summary = summary(study);
        match self.look.mode {
            Mode::Bar => {
                let width = (self.width)().saturating_sub(1);
                self.clear();
                let lines: Vec<String> = std::iter::once(summary).chain(table(study, ROWS)).collect();
                for line in &lines {
                    let cut: String = line.chars().take(width).collect();
                    let _ = writeln!(self.to, "{cut}");
                }
                let _ = self.to.flush();
                self.open = lines.len();
            }
            _ => drop(writeln!(self.to, "{summary}")),
        }
    }

    fn ended(&mut self, study: &Machine, outcome: Outcome, why: Option<&str>) {
        let took = duration(self.begun.elapsed().as_secs_f64());
        let summary = summary(study);
        self.say(&format!("{summary}   {took}"));
        if self.look.mode != Mode::None {
            for line in table(study, ROWS) {
                let _ = writeln!(self.to, "{line}");
            }
        }
        if let Some(why) = why {
            self.say(&format!("stopped: {why}"));
        }
        if let Some((trial, value)) = study.best() {
            let objective = &study.objectives()[0].metric;
            let config = study.config(trial).unwrap_or_default();
            self.say(&format!("best {objective} {}  trial {trial}  {config}", figure(value)));
        }
        if outcome == Outcome::Interrupted {
            let resume = self.look.resume.clone();
            self.say(&format!("resume: {resume}"));
        }
    }
}

/// `24 trials: 4 running, 9 stopped, 6 done, 1 failed, 4 pending   best 0.9889 trial 11`.
fn summary(study: &Machine) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (trial, facts) in study.trials() {
        *counts.entry(state(study, trial, facts)).or_default() += 1;
    }
    let samples = study.opened().samples.max(study.trials().len() as u64);
    let left = if study.closing().is_some() { 0 } else { samples - study.trials().len() as u64 };
    let order = ["running", "starting", "paused", "stopped", "done", "failed"];
    let mut parts: Vec<String> =
        order.iter().filter_map(|state| Some(format!("{} {state}", counts.get(state)?))).collect();
    if left > 0 {
        parts.push(format!("{left} pending"));
    }
    let best = study
        .best()
        .map_or(String::new(), |(trial, value)| format!("   best {} trial {trial}", figure(value)));
    format!("{samples} trials: {}{best}", parts.join(", "))
}

/// How a trial stands, in a word.
fn state(study: &Machine, trial: u32, facts: &Facts) -> &'static str {
    match facts.outcome {
        Some(Outcome::Completed) => "done",
        Some(Outcome::Stopped | Outcome::Interrupted) => "stopped",
        Some(Outcome::Failed) => "failed",
        None => match study.roster().state(trial) {
            State::Starting => "starting",
            State::Paused | State::Pausing => "paused",
            _ => "running",
        },
    }
}

/// The trials worth showing: those that run, then the best, then those that failed.
fn table(study: &Machine, rows: usize) -> Vec<String> {
    let objective = &study.objectives()[0];
    let loss = |facts: &Facts| {
        facts.values.first().copied().flatten().map_or(f64::INFINITY, |value| objective.loss(value))
    };
    let rank = |trial: u32, facts: &Facts| match state(study, trial, facts) {
        "running" | "starting" => 0,
        "failed" => 2,
        _ => 1,
    };
    let mut order: Vec<(u32, &Facts)> = study.trials().collect();
    order.sort_by(|(a, x), (b, y)| {
        rank(*a, x).cmp(&rank(*b, y)).then(loss(x).total_cmp(&loss(y))).then(a.cmp(b))
    });
    let hidden = order.len().saturating_sub(rows);
    order.truncate(rows);
    let paths: Vec<&str> = study.space().parameters().iter().map(|p| p.path.as_str()).take(6).collect();
    let mut cells = vec![header(&objective.metric, &paths)];
    for (trial, facts) in order {
        let value = facts.values.first().copied().flatten().map_or("-".into(), figure);
        let mut row =
            vec![trial.to_string(), state(study, trial, facts).into(), facts.reports.to_string(), value];
        let config = study.config(trial).unwrap_or_default();
        row.extend(paths.iter().map(|path| cell(&config, path)));
        let why = facts.cause.as_deref().unwrap_or_default().lines().last().unwrap_or_default();
        row.push(why.to_owned());
        cells.push(row);
    }
    let mut lines = aligned(&cells);
    if hidden > 0 {
        lines.push(format!("... and {hidden} more"));
    }
    lines
}

fn header(metric: &str, paths: &[&str]) -> Vec<String> {
    let mut header = ["trial", "state", "reports", metric].map(str::to_owned).to_vec();
    header.extend(paths.iter().map(|path| path.rsplit('.').next().unwrap_or(path).to_owned()));
    header.push(String::new());
    header
}

/// A value of a configuration, by path.
fn cell(config: &Value, path: &str) -> String {
    let found = config.get(path).or_else(|| path.split('.').try_fold(config, |value, name| value.get(name)));
    match found {
        None => "-".into(),
        Some(Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(value)) => figure(value),
            _ => number.to_string(),
        },
        Some(Value::String(text)) => text.clone(),
        Some(Value::Object(branch)) if branch.len() == 1 => branch.keys().next().cloned().unwrap_or_default(),
        Some(other) => other.to_string(),
    }
}

fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |at: usize| rows.iter().filter_map(|row| row.get(at)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

impl<W: Write + Send> StudyCallback for Sweep<W> {
    fn on(&mut self, event: &StudyEvent<'_>, study: &Machine) {
        match event {
            StudyEvent::Begun { experiment, name, resumed, .. } => {
                let resumed = if *resumed { "  resumed" } else { "" };
                let (opened, search) = (study.opened(), study.search().sampler().name());
                self.look.resume =
                    self.look.resume.replace("{run}", name).replace("{experiment}", experiment);
                self.say(&format!(
                    "study {experiment}/{name}{resumed}  {} trials, {} at once, {search}",
                    opened.samples, opened.concurrent
                ));
            }
            StudyEvent::Told { input: Input::Failed { trial, .. } } => {
                let why = study.trial(*trial).and_then(|facts| facts.cause.clone()).unwrap_or_default();
                let why = why.lines().last().unwrap_or_default();
                self.say(&format!("trial {trial} failed: {why}"));
                self.draw(study);
            }
            StudyEvent::Told { .. } => self.draw(study),
            StudyEvent::Stopping { grace } => {
                let grace = duration(grace.as_secs_f64());
                self.say(&format!(
                    "stopping: trials save and leave, within {grace}      press Ctrl-C again to kill"
                ));
            }
            StudyEvent::Ended { outcome, why } => self.ended(study, *outcome, *why),
            _ => {}
        }
    }
}
