//! Data goes to standard output, and nothing else does; words for people go to standard error.

use std::io::{ErrorKind, Write};

use serde_json::{Value, json};

use crate::problem::{Outcome, Problem};

/// The version of everything that `--json` prints.
pub(crate) const SCHEMA: u32 = 1;

/// Writes text.
pub(crate) fn text(text: &str) -> Outcome {
    write(text.as_bytes())
}

/// Writes an object with the schema's version in it, on one line.
pub(crate) fn json(mut value: Value) -> Outcome {
    value["schema"] = json!(SCHEMA);
    write(format!("{value}\n").as_bytes())
}

/// Writes bytes. A reader that has seen enough is no error.
pub(crate) fn write(bytes: &[u8]) -> Outcome {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Problem::failed(format!("cannot write the answer: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a line to standard error. That nobody can hear it is no reason to end.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Rows of cells as aligned columns, the first row the heading.
pub(crate) fn table<R: AsRef<[String]>>(rows: &[R]) -> String {
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let cell = |row: &R, column: usize| row.as_ref().get(column).map_or(0, |cell| cell.chars().count());
    let width = |column: usize| rows.iter().map(|row| cell(row, column)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.as_ref().iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
