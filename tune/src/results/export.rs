//! The trials as a table, and the table as files for other programs.

use std::collections::BTreeSet;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::{Direction, History, Scope, ranked};

/// Rows under named columns. A cell without a value is null.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    /// The columns' names.
    pub columns: Vec<String>,
    /// The rows, each as long as there are columns.
    pub rows: Vec<Vec<Value>>,
}

/// One row a trial, the best first, and at the end those that failed or have no value for the metric: its number, state, steps, the
/// metric's value in this scope and its best and last, the last of every other metric, `config/` columns, and its error.
#[must_use]
pub fn table(trials: &[History], metric: &str, direction: Direction, scope: Scope) -> Table {
    let others: BTreeSet<&String> =
        trials.iter().flat_map(|trial| trial.metrics.keys()).filter(|m| *m != metric).collect();
    let config: BTreeSet<&String> = trials.iter().flat_map(|trial| trial.config.keys()).collect();
    let mut columns: Vec<String> = ["trial", "state", "steps", metric].map(str::to_owned).to_vec();
    columns.extend([format!("{metric}/best"), format!("{metric}/last")]);
    columns.extend(others.iter().map(|name| (*name).clone()));
    columns.extend(config.iter().map(|path| format!("config/{path}")));
    columns.push("error".to_owned());

    let sound = trials.iter().filter(|trial| trial.error.is_none());
    let order = ranked(sound, metric, direction, scope);
    let known: BTreeSet<u32> = order.iter().map(|(trial, _)| trial.number).collect();
    let rest = trials.iter().filter(|trial| !known.contains(&trial.number));
    let row = |trial: &History| {
        let score = |name: &str, scope| number(trial.score(name, direction, scope));
        let steps = trial.metrics.values().filter_map(|series| series.last()).map(|(step, _)| *step).max();
        let mut row = vec![json!(trial.number), json!(trial.state), json!(steps), score(metric, scope)];
        row.extend([score(metric, Scope::Best), score(metric, Scope::Last)]);
        row.extend(others.iter().map(|name| score(name, Scope::Last)));
        row.extend(config.iter().map(|path| trial.config.get(*path).cloned().unwrap_or_default()));
        row.push(json!(trial.error));
        row
    };
    Table { columns, rows: order.iter().map(|(trial, _)| *trial).chain(rest).map(row).collect() }
}

/// JSON has no numbers for what is not finite; their names are what pandas and others read.
fn number(value: Option<f64>) -> Value {
    match value {
        None => Value::Null,
        Some(value) if value.is_finite() => Value::from(value),
        Some(value) if value.is_nan() => Value::from("NaN"),
        Some(value) => Value::from(if value > 0.0 { "Infinity" } else { "-Infinity" }),
    }
}

impl Table {
    /// As comma-separated values (RFC 4180, lines end in a line feed), with a header; null is nothing.
    #[must_use]
    pub fn csv(&self) -> String {
        let mut text = String::new();
        let header: Vec<Value> = self.columns.iter().map(|name| json!(name)).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            for (at, cell) in row.iter().enumerate() {
                let separator = if at == 0 { "" } else { "," };
                let plain = match cell {
                    Value::Null => String::new(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let special = plain.contains(['"', ',', '\n', '\r']);
                // Writing to a string does not fail.
                let _ = match special {
                    true => write!(text, "{separator}\"{}\"", plain.replace('"', "\"\"")),
                    false => write!(text, "{separator}{plain}"),
                };
            }
            text.push('\n');
        }
        text
    }

    /// As a Parquet file. A column is as narrow as its values allow: booleans, integers, numbers, text.
    #[must_use]
    pub fn parquet(&self) -> Vec<u8> {
        super::parquet::file(self)
    }

    /// As a list of objects.
    #[must_use]
    pub fn json(&self) -> Value {
        let object = |row: &Vec<Value>| Map::from_iter(self.columns.iter().cloned().zip(row.iter().cloned()));
        self.rows.iter().map(|row| Value::Object(object(row))).collect()
    }
}
