//! How each trial learned.

use super::axis::{Frame, Scale, label};
use super::svg::{Anchor, Canvas, Look, ramp};
use super::{better, finite, opacity, places};
use crate::error::Result;
use crate::results::ResultGrid;

const WIDTH: f64 = 840.0;
const HEIGHT: f64 = 460.0;
/// Points of one curve; of more only so many are drawn, the last among them.
const POINTS: usize = 200;

/// Each trial's course of the objective, the best on top.
pub fn curves(grid: &ResultGrid) -> Result<String> {
    let objective = grid.objective()?;
    let subtitle = format!(
        "each trial's {} as it went on, {}; from orange (the best) to violet (the worst)",
        objective.metric,
        better(objective.direction)
    );
    let mut canvas = Canvas::new(WIDTH, HEIGHT, "Learning curves", &subtitle);
    let ranked = finite(grid);
    let series = |trial: &crate::results::History| -> Vec<(f64, f64)> {
        let points = trial.metrics.get(&objective.metric).into_iter().flatten();
        let points: Vec<_> = points.map(|(step, value)| (*step as f64, *value)).collect();
        let every = points.len().div_ceil(POINTS).max(1);
        let kept = |(at, _): &(usize, _)| at % every == 0 || at + 1 == points.len();
        let thinned = points.iter().copied().enumerate().filter(kept).map(|(_, point)| point);
        thinned.filter(|(_, value)| value.is_finite()).collect()
    };
    let curves: Vec<_> = places(&ranked)
        .into_iter()
        .map(|(trial, value, place)| (trial, value, place, series(trial)))
        .collect();
    if curves.is_empty() {
        canvas.nothing("no trial has a value yet");
        return Ok(canvas.finish());
    }
    let points = || curves.iter().flat_map(|(.., points)| points.iter().copied());
    let frame = Frame {
        left: 76.0,
        top: 58.0,
        width: WIDTH - 100.0,
        height: HEIGHT - 112.0,
        x: Scale::from_zero(points().map(|(step, _)| step)),
        y: Scale::of(points().map(|(_, value)| value)),
    };
    frame.draw(&mut canvas, "step", &objective.metric);
    for (trial, value, place, points) in curves.iter().rev() {
        let best = *place == 0.0;
        let tip = format!("trial {}: {} ({})", trial.number, label(*value), trial.state);
        let opacity = if best { 1.0 } else { opacity(curves.len()) };
        let colour = ramp(*place);
        let look = Look { colour: &colour, opacity, tip };
        let places: Vec<_> = points.iter().map(|(step, value)| frame.at(*step, *value)).collect();
        match places.as_slice() {
            [one] => canvas.dot(*one, 2.5, &look),
            several => canvas.path(several, if best { 2.4 } else { 1.3 }, &look),
        }
        if let (true, Some((x, y))) = (best, places.last()) {
            canvas.text(x - 4.0, y - 7.0, Anchor::End, "small over", &format!("trial {}", trial.number));
        }
    }
    Ok(canvas.finish())
}
