//! Parallel coordinates: an axis a parameter, a line a trial.

use super::axis::{Scale, label};
use super::svg::{Anchor, Canvas, Look, length, ramp, short};
use super::{better, finite, opacity, parameters, places};
use crate::error::Result;
use crate::results::ResultGrid;

const HEIGHT: f64 = 460.0;
const TOP: f64 = 84.0;
const TALL: f64 = 310.0;
/// Where those pass that do not have the parameter, below its axis.
const NONE: f64 = 28.0;

/// Every trial's configuration and what it came to, the best on top.
pub fn parallel(grid: &ResultGrid) -> Result<String> {
    let objective = grid.objective()?;
    let parameters = parameters(grid);
    let ranked = finite(grid);
    let gap = (760.0 / parameters.len().max(1) as f64).clamp(104.0, 190.0);
    let width = (gap * parameters.len() as f64 + 150.0).max(840.0);
    let subtitle = format!(
        "a line is a trial, by {} ({}) from orange (the best) to violet (the worst); left is what matters most",
        objective.metric,
        better(objective.direction)
    );
    let mut canvas = Canvas::new(width, HEIGHT, "Parallel coordinates", &subtitle);
    if ranked.is_empty() || parameters.is_empty() {
        let why = if parameters.is_empty() { "the study varies nothing" } else { "no trial has a value yet" };
        canvas.nothing(why);
        return Ok(canvas.finish());
    }
    let room = (width - 150.0) / parameters.len() as f64;
    let left = |axis: usize| 64.0 + room * axis as f64;
    let up = |place: f64| TOP + (1.0 - place) * TALL;
    let mut axes: Vec<(String, Scale)> =
        parameters.iter().map(|p| (p.path.clone(), Scale::of_domain(&p.domain))).collect();
    axes.push((objective.metric.clone(), Scale::of(ranked.iter().map(|(_, value)| *value))));
    let mut missing = vec![false; axes.len()];
    for (trial, value, place) in places(&ranked).into_iter().rev() {
        let mut points = Vec::new();
        for (axis, parameter) in parameters.iter().enumerate() {
            let raw = parameter.raw(&trial.full);
            missing[axis] |= raw.is_none();
            points.push((left(axis), raw.map_or(TOP + TALL + NONE, |raw| up(axes[axis].1.place(raw)))));
        }
        points.push((left(parameters.len()), up(axes[parameters.len()].1.place(value))));
        let best = place == 0.0;
        let colour = ramp(place);
        let opacity = if best { 1.0 } else { opacity(ranked.len()) };
        let look =
            Look { colour: &colour, opacity, tip: format!("trial {}: {}", trial.number, label(value)) };
        canvas.path(&points, if best { 2.4 } else { 1.2 }, &look);
    }
    for (at, (name, scale)) in axes.iter().enumerate() {
        let x = left(at);
        canvas.line((x, TOP), (x, TOP + TALL), "axis");
        let name = short(name, (room / length("x")) as usize);
        canvas.text(x, TOP - 12.0, Anchor::Middle, "over", &name);
        for (value, text) in scale.ticks(5) {
            let y = up(scale.place(value));
            canvas.line((x - 4.0, y), (x, y), "axis");
            canvas.text(x - 7.0, y + 4.0, Anchor::End, "small over", &text);
        }
        if missing[at] {
            canvas.text(x - 7.0, TOP + TALL + NONE + 4.0, Anchor::End, "small faint over", "none");
        }
    }
    Ok(canvas.finish())
}
