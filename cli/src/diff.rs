//! `regatta diff A B`: where two runs, studies or trials differ, in their configurations, in the environments they ran in,
//! and in what came of them.

use std::collections::{BTreeMap, BTreeSet};

use regatta_track::Reader;
use regatta_tune::results::flat;
use serde_json::{Map, Value, json};

use crate::args::Diff;
use crate::out::{self, table};
use crate::problem::{Outcome, Problem};
use crate::runs::{Found, number};
use crate::study::{cell, no_trial};
use crate::which::{self, Subject};

/// What is known of a run, a study or a trial, by sections of values by path.
type Known = [(&'static str, BTreeMap<String, Value>); 3];

/// `regatta diff A B`.
pub(crate) fn run(args: &Diff, json: bool) -> Outcome {
    let subjects = which::resolve(&args.what, &args.root)?;
    let [one, other] = subjects.as_slice() else {
        let names: Vec<String> = subjects.iter().map(Subject::name).collect();
        let what = if names.is_empty() { "nothing".into() } else { names.join(", ") };
        return Err(Problem::usage(format!("two things differ, not {}: {what}", names.len())));
    };
    let names = [one.name(), other.name()];
    let (one, other) = (known(one)?, known(other)?);
    let sections = one.iter().zip(&other).map(|((section, one), (_, other))| (*section, rows(one, other)));
    let sections: Vec<_> = sections.filter(|(_, rows)| !rows.is_empty()).collect();
    if json {
        let section = |rows: &[(&String, Option<&Value>, Option<&Value>)]| -> Map<String, Value> {
            rows.iter().map(|(path, one, other)| ((*path).clone(), json!([one, other]))).collect()
        };
        let differ: Map<String, Value> =
            sections.iter().map(|(name, rows)| ((*name).to_owned(), section(rows).into())).collect();
        return out::json(json!({ "names": names, "differ": differ }));
    }
    if sections.is_empty() {
        return out::text(&format!("{} and {} do not differ\n", names[0], names[1]));
    }
    let mut lines = Vec::new();
    for (section, rows) in &sections {
        if !lines.is_empty() {
            lines.push(vec![String::new()]);
        }
        lines.push(vec![(*section).to_owned(), names[0].clone(), names[1].clone()]);
        for (path, one, other) in rows {
            let value = |value: &Option<&Value>| cell(*value).map_or("-".into(), |text| short(&text));
            lines.push(vec![format!("  {path}"), value(one), value(other)]);
        }
    }
    out::text(&table(&lines))
}

/// The values that are not the same on both sides.
fn rows<'a>(
    one: &'a BTreeMap<String, Value>,
    other: &'a BTreeMap<String, Value>,
) -> Vec<(&'a String, Option<&'a Value>, Option<&'a Value>)> {
    let paths: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    let both = paths.into_iter().map(|path| (path, one.get(path), other.get(path)));
    both.filter(|(_, one, other)| one != other).collect()
}

fn known(subject: &Subject) -> Outcome<Known> {
    match subject {
        Subject::Run(found) | Subject::Study(found) => whole(found),
        Subject::Trial(study, trial) => {
            let grid = which::grid(study)?;
            let known = grid.trial(*trial).ok_or_else(|| no_trial(study, *trial, &grid))?;
            // Whoever ran by himself had an environment of his own.
            let own =
                match which::run(&format!("{}/{trial}", study.folder.display()), std::path::Path::new(".")) {
                    Ok(own) => whole(&own)?[1].1.clone(),
                    Err(_) => flat(&grid.run().env, &[]),
                };
            let last = known.metrics.iter().filter_map(|(name, s)| Some((name.clone(), number(s.last()?.1))));
            let mut result: BTreeMap<String, Value> = last.filter(|(name, _)| tells(name)).collect();
            result.insert("state".into(), json!(known.state));
            Ok([("configuration", known.config.clone()), ("environment", own), ("result", result)])
        }
    }
}

fn whole(found: &Found) -> Outcome<Known> {
    let mut reader = Reader::open(&found.folder)?;
    let snapshot = reader.snapshot()?;
    let run = snapshot.run()?.unwrap_or_default();
    let last =
        snapshot.metrics(None)?.into_iter().map(|(name, metric)| (name.to_string(), number(metric.last)));
    let mut result: BTreeMap<String, Value> = last.filter(|(name, _)| tells(name)).collect();
    result.insert("state".into(), json!(crate::runs::status(&run, &found.folder)));
    let mut config = flat(&run.config, &[]);
    // That they are two is no difference.
    config.retain(|path, _| path != "run.name");
    Ok([("configuration", config), ("environment", flat(&run.env, &[])), ("result", result)])
}

/// Whether a difference in this metric says anything: times always differ.
fn tells(metric: &str) -> bool {
    !metric.starts_with("time_")
}

/// A value that fits into a column; a diff of the working tree does not.
fn short(text: &str) -> String {
    const MOST: usize = 48;
    let line = text.lines().next().unwrap_or_default();
    match line.chars().count() > MOST || line.len() < text.len() {
        true => format!("{}…", line.chars().take(MOST).collect::<String>()),
        false => line.to_owned(),
    }
}
