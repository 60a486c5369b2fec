//! `regatta compare`: runs and trials side by side, the best first; those that differ in nothing but their seed together,
//! with mean and deviation.

use regatta_tune::results::{History, Objective, Scope, over_seeds, ranked};
use serde_json::{Value, json};

use crate::args::Compare;
use crate::judge::Judged;
use crate::out::{self, table};
use crate::problem::Outcome;
use crate::runs::number;
use crate::study::{cell, no_trial, varying};
use crate::term::figure;
use crate::which::{self, Subject};

/// Columns of the configuration, at most.
const COLUMNS: usize = 6;

/// What is compared. Its history's number is its place among all.
struct Entry {
    name: String,
    history: History,
}

/// `regatta compare A B C...`.
pub(crate) fn run(args: &Compare, json: bool) -> Outcome {
    let (entries, own) = gather(args)?;
    let histories: Vec<History> = entries.iter().map(|entry| entry.history.clone()).collect();
    let judged = Judged::settle(&args.judge, own.as_ref(), &histories)?;
    let Objective { metric, direction } = &judged.objective;
    let order = ranked(&histories, metric, *direction, judged.scope);
    let groups = Groups::of(&histories, &args.seed, &judged);
    let columns: Vec<String> = varying(&histories).into_iter().take(COLUMNS).collect();
    let first = order.first().map_or(f64::NAN, |(_, value)| *value);
    let rows: Vec<Row> = (order.iter())
        .map(|(history, value)| Row::of(&entries, history, *value, first, &judged.objective))
        .chain(
            histories
                .iter()
                .filter(|h| order.iter().all(|(known, _)| known.number != h.number))
                .map(|h| Row::of(&entries, h, f64::NAN, first, &judged.objective)),
        )
        .collect();
    if json {
        let rows: Vec<Value> = rows.iter().map(Row::json).collect();
        return out::json(json!({
            "metric": metric, "direction": direction, "entries": rows, "groups": groups.json(&entries),
        }));
    }
    let mut text = format!("{}\n\n", judged.words());
    let mut lines = vec![["", "state", "best", "at", "last", "behind"].map(str::to_owned).to_vec()];
    lines[0].extend(columns.iter().cloned());
    for row in &rows {
        let mut line = row.cells();
        line.extend(
            columns.iter().map(|path| cell(row.history.config.get(path)).unwrap_or_else(|| "-".into())),
        );
        lines.push(line);
    }
    text += &table(&lines);
    text += &groups.text(&args.seed, &columns);
    out::text(&text)
}

/// The histories that are meant, and the objective of the first study among them.
fn gather(args: &Compare) -> Outcome<(Vec<Entry>, Option<Objective>)> {
    let (mut entries, mut own): (Vec<Entry>, Option<Objective>) = (Vec::new(), None);
    for subject in which::resolve(&args.what, &args.root)? {
        let name = subject.name();
        match subject {
            Subject::Run(found) => entries.push(Entry { name, history: History::of_run(&found.folder)? }),
            Subject::Trial(study, number) => {
                let grid = which::grid(&study)?;
                own = own.or_else(|| grid.objectives().first().cloned());
                let history = grid.trial(number).ok_or_else(|| no_trial(&study, number, &grid))?.clone();
                entries.push(Entry { name, history });
            }
            Subject::Study(study) => {
                let grid = Judged::grid(&args.judge, which::grid(&study)?)?;
                own = own.or_else(|| grid.objectives().first().cloned());
                let top = if args.top == 0 { usize::MAX } else { args.top };
                entries.extend(grid.ranked().into_iter().take(top).map(|(trial, _)| Entry {
                    name: format!("{name}/{}", trial.number),
                    history: trial.clone(),
                }));
            }
        }
    }
    for (at, entry) in (0..).zip(&mut entries) {
        entry.history.number = at;
    }
    Ok((entries, own))
}

/// One line.
struct Row<'a> {
    name: &'a str,
    history: &'a History,
    best: Option<(u64, f64)>,
    last: Option<f64>,
    behind: f64,
}

impl<'a> Row<'a> {
    fn of(entries: &'a [Entry], history: &'a History, value: f64, first: f64, objective: &Objective) -> Self {
        let Objective { metric, direction } = objective;
        let series = history.metrics.get(metric).into_iter().flatten();
        let best = series.filter(|(_, value)| !value.is_nan()).min_by(|a, b| direction.order(a.1, b.1));
        Row {
            name: &entries[history.number as usize].name,
            history,
            best: best.copied(),
            last: history.score(metric, *direction, Scope::Last),
            behind: direction.loss(value) - direction.loss(first),
        }
    }

    fn cells(&self) -> Vec<String> {
        let or = |value: Option<f64>| value.map_or("-".into(), figure);
        vec![
            self.name.to_owned(),
            self.history.state.clone(),
            or(self.best.map(|(_, value)| value)),
            self.best.map_or("-".into(), |(step, _)| step.to_string()),
            or(self.last),
            behind(self.behind),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "state": self.history.state, "best": self.best.map(|(_, value)| number(value)),
            "best_step": self.best.map(|(step, _)| step), "last": self.last.map(number),
            "behind": number(self.behind), "config": self.history.full,
        })
    }
}

fn behind(value: f64) -> String {
    match value {
        none if none.is_nan() => "-".into(),
        0.0 => "best".into(),
        more => format!("+{}", figure(more)),
    }
}

/// What differs in nothing but the seed, judged by best and by last.
struct Groups {
    /// Names' places, the best values' mean and deviation, the last ones', and how far behind.
    rows: Vec<GroupRow>,
}

struct GroupRow {
    config: regatta_tune::scheduler::Config,
    places: Vec<u32>,
    best: (f64, f64),
    last: (f64, f64),
    behind: f64,
}

impl Groups {
    fn of(histories: &[History], seed: &str, judged: &Judged) -> Groups {
        let Objective { metric, direction } = &judged.objective;
        // A run says where its seed is by a path, a trial often by the name alone.
        let plain: Vec<History> = (histories.iter())
            .map(|history| {
                let mut history = history.clone();
                let suffix = format!(".{seed}");
                history.config.retain(|path, _| path != seed && !path.ends_with(&suffix));
                history
            })
            .collect();
        let of = |scope| over_seeds(&plain, seed, metric, *direction, scope);
        let (best, last) = (of(Scope::Best), of(Scope::Last));
        let rows = (of(judged.scope).into_iter())
            .map(|group| {
                let same = |all: &[regatta_tune::results::Group]| {
                    let found = all.iter().find(|other| other.trials == group.trials);
                    found.map_or((f64::NAN, 0.0), |found| (found.mean, found.deviation))
                };
                let (best, last) = (same(&best), same(&last));
                GroupRow { config: group.config, places: group.trials, best, last, behind: group.behind }
            })
            .collect();
        Groups { rows }
    }

    /// Nothing where no two belong together.
    fn text(&self, seed: &str, columns: &[String]) -> String {
        if self.rows.iter().all(|row| row.places.len() < 2) {
            return String::new();
        }
        let columns: Vec<&String> = columns
            .iter()
            .filter(|path| self.rows.iter().any(|row| row.config.contains_key(*path)))
            .collect();
        let mut lines = vec![["runs", "best", "last", "behind"].map(str::to_owned).to_vec()];
        lines[0].extend(columns.iter().map(|path| (*path).clone()));
        for row in &self.rows {
            let spread = |(mean, deviation): (f64, f64)| format!("{} ± {}", figure(mean), figure(deviation));
            let mut line =
                vec![row.places.len().to_string(), spread(row.best), spread(row.last), behind(row.behind)];
            line.extend(columns.iter().map(|path| cell(row.config.get(*path)).unwrap_or_else(|| "-".into())));
            lines.push(line);
        }
        format!("\nover `{seed}`: mean ± standard deviation\n{}", table(&lines))
    }

    fn json(&self, entries: &[Entry]) -> Vec<Value> {
        let figures =
            |(mean, deviation): (f64, f64)| json!({ "mean": number(mean), "deviation": number(deviation) });
        let row = |row: &GroupRow| {
            let names: Vec<&str> = row.places.iter().map(|at| entries[*at as usize].name.as_str()).collect();
            json!({
                "names": names, "config": row.config, "best": figures(row.best), "last": figures(row.last),
                "behind": number(row.behind),
            })
        };
        self.rows.iter().map(row).collect()
    }
}
