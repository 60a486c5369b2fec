//! By which metric things are judged: what was typed, else what the study or run itself says, else the only one there is.

use regatta_tune::results::{Direction, History, Objective, ResultGrid, Scope};

use crate::args::{Better, Judge};
use crate::problem::{Outcome, Problem, advice};

/// Words in the names of metrics of which more is better.
const MORE: [&str; 12] = [
    "acc",
    "auc",
    "f1",
    "precision",
    "recall",
    "reward",
    "return",
    "score",
    "r2",
    "bleu",
    "iou",
    "throughput",
];

/// A metric, its direction, and which of its values count.
#[derive(Debug, Clone)]
pub(crate) struct Judged {
    pub(crate) objective: Objective,
    pub(crate) scope: Scope,
}

impl Judged {
    /// Settles it for things that report these metrics.
    pub(crate) fn settle(typed: &Judge, own: Option<&Objective>, all: &[History]) -> Outcome<Judged> {
        let mut known: Vec<&str> =
            all.iter().flat_map(|history| history.metrics.keys()).map(String::as_str).collect();
        known.sort_unstable();
        known.dedup();
        let metric = match (&typed.metric, own) {
            (Some(metric), _) if known.contains(&metric.as_str()) || known.is_empty() => metric.clone(),
            (Some(metric), _) => {
                let advice = advice(metric, known.iter().copied());
                return Err(Problem::usage(format!("nothing reported a metric `{metric}`{advice}")));
            }
            (None, Some(own)) => own.metric.clone(),
            (None, None) => only(&known)?.to_owned(),
        };
        let own = own.filter(|own| own.metric == metric).map(|own| own.direction);
        let direction = match (typed.mode, own) {
            (Some(mode), _) => mode.into(),
            (None, Some(direction)) => direction,
            (None, None) => guess(&metric),
        };
        Ok(Judged { objective: Objective { metric, direction }, scope: typed.by.unwrap_or(Scope::Last) })
    }

    /// The same for a study, whose results are then judged so.
    pub(crate) fn grid(typed: &Judge, grid: ResultGrid) -> Outcome<ResultGrid> {
        let own = grid.objectives().first();
        let judged = Judged::settle(typed, own, grid.trials())?;
        let grid = grid.scope(judged.scope);
        // What was not asked to be otherwise keeps all of the study's objectives.
        match grid.objectives().first() {
            Some(own) if *own == judged.objective => Ok(grid),
            _ => Ok(grid.by(judged.objective.metric, judged.objective.direction)),
        }
    }

    /// In words: `loss, lower is better, by its last value`.
    pub(crate) fn words(&self) -> String {
        let better = if self.objective.direction == Direction::Minimize { "lower" } else { "higher" };
        let by = match self.scope {
            Scope::Last => "last value".to_owned(),
            Scope::Best => "best value".to_owned(),
            Scope::Average => "average".to_owned(),
            Scope::LastAverage(count) => format!("average of the last {count}"),
        };
        format!("{}, {better} is better, by its {by}", self.objective.metric)
    }
}

/// The metric, if there is no doubt: a loss among others is the one.
fn only<'a>(known: &[&'a str]) -> Outcome<&'a str> {
    match known {
        [one] => Ok(one),
        [] => Err(Problem::usage("nothing was reported yet")),
        several => several.iter().find(|name| **name == "loss").copied().ok_or_else(|| {
            Problem::usage(format!("by which metric? --metric may be {}", several.join(", ")))
        }),
    }
}

/// Names tell: accuracies and scores are to grow, and all else is a loss. The heading says what was taken.
fn guess(metric: &str) -> Direction {
    let metric = metric.to_lowercase();
    match MORE.iter().any(|word| metric.contains(word)) {
        true => Direction::Maximize,
        false => Direction::Minimize,
    }
}

impl From<Better> for Direction {
    fn from(mode: Better) -> Self {
        match mode {
            Better::Min => Direction::Minimize,
            Better::Max => Direction::Maximize,
        }
    }
}

/// `last`, `best`, `average` or `last-5`.
pub(crate) fn scope(text: &str) -> Result<Scope, String> {
    match text {
        "last" => Ok(Scope::Last),
        "best" => Ok(Scope::Best),
        "average" => Ok(Scope::Average),
        other => match other.strip_prefix("last-").map(str::parse) {
            Some(Ok(count)) if count > 0 => Ok(Scope::LastAverage(count)),
            _ => Err("it is last, best, average or last-5 (the average of the last 5)".into()),
        },
    }
}
