//! A study in pictures: SVG that any browser shows, on light and on dark ground, with one look for all of them. Hovering
//! over a mark tells which trial it is.
//!
//! ```no_run
//! use regatta_tune::plot;
//! use regatta_tune::results::ResultGrid;
//!
//! let grid = ResultGrid::open("runs/mnist/sweep")?;
//! for (name, svg) in plot::all(&grid)? {
//!     std::fs::write(format!("{name}.svg"), svg)?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! They are made to be looked at, not to be parsed: for figures take the tables of [`results`](crate::results).

mod axis;
mod bars;
mod curves;
mod history;
mod parallel;
mod slice;
mod svg;

use crate::error::Result;
use crate::results::{Direction, History, ResultGrid};

pub use bars::{importance, timeline};
pub use curves::curves;
pub use history::{history, pareto};
pub use parallel::parallel;
pub use slice::slice;

/// Every plot that the study has something for, by its name.
pub fn all(grid: &ResultGrid) -> Result<Vec<(&'static str, String)>> {
    let mut plots = vec![
        ("history", history(grid)?),
        ("curves", curves(grid)?),
        ("parallel", parallel(grid)?),
        ("slice", slice(grid)?),
        ("importance", importance(grid)?),
        ("timeline", timeline(grid)),
    ];
    if grid.objectives().len() > 1 {
        plots.push(("pareto", pareto(grid)?));
    }
    Ok(plots)
}

/// Parameters in one picture, at most: the most important ones.
const PARAMETERS: usize = 12;

/// A trial's place among the others, 0 for the best and 1 for the worst.
fn places<'a>(ranked: &[(&'a History, f64)]) -> Vec<(&'a History, f64, f64)> {
    let last = ranked.len().saturating_sub(1).max(1) as f64;
    let place = |(at, (trial, value)): (usize, &(&'a History, f64))| (*trial, *value, at as f64 / last);
    ranked.iter().enumerate().map(place).collect()
}

/// How opaque each of so many marks is, so that many do not become a blot.
fn opacity(marks: usize) -> f64 {
    (40.0 / marks.max(1) as f64).clamp(0.15, 0.9)
}

/// The trials with a finite value, the best first. Who has none cannot be placed.
fn finite(grid: &ResultGrid) -> Vec<(&History, f64)> {
    grid.ranked().into_iter().filter(|(_, value)| value.is_finite()).collect()
}

/// The parameters to show, by their places in the study, the most important first.
fn parameters(grid: &ResultGrid) -> Vec<&regatta_track::event::Parameter> {
    let importance = grid.importance();
    let named = importance.iter().filter_map(|i| grid.parameters().iter().find(|p| p.path == i.path));
    named.take(PARAMETERS).collect()
}

fn better(direction: Direction) -> &'static str {
    match direction {
        Direction::Minimize => "lower is better",
        Direction::Maximize => "higher is better",
    }
}
