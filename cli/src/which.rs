//! What a command is about, as people say it: a run, a study, or a trial of a study. A trial is `STUDY/7`; a plain number
//! is a trial of the study named before it, or else of the newest there is.

use std::path::Path;

use regatta_track::{Query, Reader, Timestamp};
use regatta_train::folder::is_run;
use regatta_tune::results::ResultGrid;

use crate::problem::{Outcome, Problem};
use crate::runs::{self, Found};

/// What is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A run that is no study.
    Run(Found),
    /// A study as a whole.
    Study(Found),
    /// One of its trials.
    Trial(Found, u32),
}

impl Subject {
    /// What it is called.
    pub(crate) fn name(&self) -> String {
        match self {
            Subject::Run(found) | Subject::Study(found) => found.name.clone(),
            Subject::Trial(study, number) => format!("{}/{number}", study.name),
        }
    }
}

/// One thing.
pub(crate) fn one(what: &str, root: &Path) -> Outcome<Subject> {
    let mut all = resolve(&[what.to_owned()], root)?;
    all.pop().ok_or_else(|| Problem::usage(format!("`{what}` is nothing")))
}

/// Everything that the words name.
pub(crate) fn resolve(words: &[String], root: &Path) -> Outcome<Vec<Subject>> {
    let mut subjects: Vec<Subject> = Vec::new();
    let mut study: Option<Found> = None;
    for (at, word) in words.iter().enumerate() {
        if let Ok(number) = word.parse::<u32>() {
            let of = match &study {
                Some(study) => study.clone(),
                None => study.insert(newest(root)?).clone(),
            };
            // The study was named for the sake of its trials.
            if at > 0 && subjects.last() == Some(&Subject::Study(of.clone())) {
                subjects.pop();
            }
            subjects.push(Subject::Trial(of, number));
            continue;
        }
        let subject = named(word, root)?;
        if let Subject::Study(found) | Subject::Trial(found, _) = &subject {
            study = Some(found.clone());
        }
        subjects.push(subject);
    }
    Ok(subjects)
}

fn named(word: &str, root: &Path) -> Outcome<Subject> {
    if let Some((study, number)) = trial(word, root) {
        return Ok(Subject::Trial(study, number));
    }
    let found = runs::find(word, root)?;
    if is_study(&found)? { Ok(Subject::Study(found)) } else { Ok(Subject::Run(found)) }
}

/// `STUDY/7`, if there is such a study.
fn trial(word: &str, root: &Path) -> Option<(Found, u32)> {
    let (study, number) = word.trim_end_matches('/').rsplit_once('/')?;
    let (number, found) = (number.parse().ok()?, runs::find(study, root).ok()?);
    is_study(&found).unwrap_or(false).then_some((found, number))
}

/// A run, or a trial that is a run of its own.
pub(crate) fn run(word: &str, root: &Path) -> Outcome<Found> {
    let (study, number) = match (trial(word, root), word.parse()) {
        (Some(trial), _) => trial,
        (None, Ok(number)) if runs::find(word, root).is_err() => (newest(root)?, number),
        _ => return runs::find(word, root),
    };
    let folder = study.folder.join("trials").join(format!("{number:05}"));
    let name = format!("{}/{number}", study.name);
    if !is_run(&folder) {
        let why = format!("trial {name} is no run of its own: there is no run.db in {}", folder.display());
        return Err(Problem::usage(why));
    }
    Ok(Found { experiment: study.experiment, name, folder })
}

/// Whether a run has trials, or is going to.
pub(crate) fn is_study(found: &Found) -> Outcome<bool> {
    let mut reader = Reader::open(&found.folder)?;
    let query = Query { limit: 1, kinds: &["study_configured", "trial_created"], ..Query::default() };
    Ok(!reader.snapshot()?.events(&query)?.is_empty())
}

/// The study that was begun last.
fn newest(root: &Path) -> Outcome<Found> {
    let created = |found: &Found| -> Timestamp {
        let run = Reader::open(&found.folder).and_then(|mut reader| reader.snapshot()?.run());
        run.ok().flatten().map_or(Timestamp::default(), |run| run.created)
    };
    let mut all: Vec<(Timestamp, Found)> =
        runs::all(root).into_iter().map(|found| (created(&found), found)).collect();
    all.sort();
    let studies = all.into_iter().rev().map(|(_, found)| found);
    studies.into_iter().find(|found| is_study(found).unwrap_or(false)).ok_or_else(|| {
        Problem::usage(format!(
            "a number is a trial of a study, and there is no study under {}",
            root.display()
        ))
    })
}

/// A study's results.
pub(crate) fn grid(study: &Found) -> Outcome<ResultGrid> {
    Ok(ResultGrid::open(&study.folder)?)
}
