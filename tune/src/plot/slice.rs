//! The objective over each parameter alone.

use super::axis::{Frame, Scale, label};
use super::svg::{Canvas, Look, ramp, short};
use super::{better, finite, opacity, parameters};
use crate::error::Result;
use crate::results::ResultGrid;

const COLUMNS: usize = 3;
const PANEL: (f64, f64) = (300.0, 250.0);

/// A panel a parameter, the most important first, the trials coloured by when they were tried.
pub fn slice(grid: &ResultGrid) -> Result<String> {
    let objective = grid.objective()?;
    let (parameters, trials) = (parameters(grid), finite(grid));
    let rows = parameters.len().div_ceil(COLUMNS).max(1);
    let (width, height) = (PANEL.0 * COLUMNS as f64 + 30.0, PANEL.1 * rows as f64 + 70.0);
    let subtitle = format!(
        "{} ({}) over each parameter; from violet (the first trials) to orange (the last)",
        objective.metric,
        better(objective.direction)
    );
    let mut canvas = Canvas::new(width, height, "Slices", &subtitle);
    if trials.is_empty() || parameters.is_empty() {
        let why = if parameters.is_empty() { "the study varies nothing" } else { "no trial has a value yet" };
        canvas.nothing(why);
        return Ok(canvas.finish());
    }
    let y = Scale::of(trials.iter().map(|(_, value)| *value));
    let last = trials.iter().map(|(trial, _)| trial.number).max().unwrap_or(0).max(1);
    for (at, parameter) in parameters.iter().enumerate() {
        let (row, column) = ((at / COLUMNS) as f64, (at % COLUMNS) as f64);
        let frame = Frame {
            left: PANEL.0 * column + 76.0,
            top: PANEL.1 * row + 62.0,
            width: PANEL.0 - 84.0,
            height: PANEL.1 - 66.0,
            x: Scale::of_domain(&parameter.domain),
            y: y.clone(),
        };
        let name = if column == 0.0 { objective.metric.as_str() } else { "" };
        frame.draw(&mut canvas, &short(&parameter.path, 34), name);
        for (trial, value) in &trials {
            let Some(raw) = parameter.raw(&trial.full) else { continue };
            let colour = ramp(1.0 - f64::from(trial.number) / f64::from(last));
            let tip = format!("trial {}: {}", trial.number, label(*value));
            let look = Look { colour: &colour, opacity: opacity(trials.len()).max(0.35), tip };
            canvas.dot(frame.at(raw, *value), if trials.len() > 300 { 2.0 } else { 3.2 }, &look);
        }
    }
    Ok(canvas.finish())
}
