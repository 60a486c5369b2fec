//! What each trial came to, in the order of their numbers; and of several objectives, two against one another.

use super::axis::{Frame, Scale, label};
use super::svg::{Canvas, Look, STATES, state};
use super::{better, finite, opacity};
use crate::error::Result;
use crate::results::ResultGrid;

const WIDTH: f64 = 840.0;
const HEIGHT: f64 = 440.0;

/// Each trial's value by its number, and the best so far.
pub fn history(grid: &ResultGrid) -> Result<String> {
    let objective = grid.objective()?;
    let mut trials = finite(grid);
    trials.sort_by_key(|(trial, _)| trial.number);
    let subtitle = format!(
        "each trial's {}, {}; the line is the best so far",
        objective.metric,
        better(objective.direction)
    );
    let mut canvas = Canvas::new(WIDTH, HEIGHT, "History", &subtitle);
    if trials.is_empty() {
        canvas.nothing("no trial has a value yet");
        return Ok(canvas.finish());
    }
    let last = grid.trials().last().map_or(0, |trial| trial.number);
    let frame = Frame {
        left: 76.0,
        top: 58.0,
        width: WIDTH - 100.0,
        height: HEIGHT - 112.0,
        x: Scale::Whole { low: -0.5, high: f64::from(last) + 0.5 },
        y: Scale::of(trials.iter().map(|(_, value)| *value)),
    };
    frame.draw(&mut canvas, "trial", &objective.metric);
    let mut best: Option<f64> = None;
    let mut stairs = Vec::new();
    for (trial, value) in &trials {
        let before = best.unwrap_or(*value);
        let now = if objective.direction.order(*value, before).is_lt() { *value } else { before };
        stairs.extend([frame.at(f64::from(trial.number), before), frame.at(f64::from(trial.number), now)]);
        best = Some(now);
    }
    stairs.extend(best.map(|best| frame.at(f64::from(last), best)));
    canvas.strong(&stairs);
    let radius = if trials.len() > 300 { 2.5 } else { 4.0 };
    for (trial, value) in &trials {
        let tip = format!("trial {}: {} ({})", trial.number, label(*value), trial.state);
        let look = Look { colour: state(&trial.state), opacity: opacity(trials.len()).max(0.5), tip };
        canvas.dot(frame.at(f64::from(trial.number), *value), radius, &look);
    }
    for (trial, why) in grid.errors() {
        let (x, _) = frame.at(f64::from(trial.number), 0.0);
        let look = Look {
            colour: state("failed"),
            opacity: 0.9,
            tip: format!("trial {} failed: {why}", trial.number),
        };
        canvas.rect((x - 1.0, frame.bottom() - 9.0), (2.0, 9.0), &look);
    }
    let seen = |name: &str| grid.trials().iter().any(|trial| trial.state == name);
    let legend: Vec<_> = STATES.into_iter().filter(|(name, _)| seen(name)).collect();
    canvas.legend(&legend);
    Ok(canvas.finish())
}

/// The first two objectives against each other; who is beaten in both by none is marked.
pub fn pareto(grid: &ResultGrid) -> Result<String> {
    let [one, other] = match grid.objectives() {
        [one, other, ..] => [one, other],
        _ => [grid.objective()?; 2],
    };
    let subtitle = format!(
        "{} ({}) and {} ({}); the coloured ones are beaten in all objectives by none",
        one.metric,
        better(one.direction),
        other.metric,
        better(other.direction)
    );
    let mut canvas = Canvas::new(WIDTH, HEIGHT, "Pareto front", &subtitle);
    let last = |trial: &crate::results::History, metric: &str| trial.values(metric).last().copied();
    let points: Vec<_> = (grid.trials().iter())
        .filter_map(|trial| Some((trial, last(trial, &one.metric)?, last(trial, &other.metric)?)))
        .filter(|(_, x, y)| x.is_finite() && y.is_finite())
        .collect();
    if points.is_empty() {
        canvas.nothing("no trial has values for both yet");
        return Ok(canvas.finish());
    }
    let frame = Frame {
        left: 76.0,
        top: 58.0,
        width: WIDTH - 100.0,
        height: HEIGHT - 112.0,
        x: Scale::of(points.iter().map(|(_, x, _)| *x)),
        y: Scale::of(points.iter().map(|(_, _, y)| *y)),
    };
    frame.draw(&mut canvas, &one.metric, &other.metric);
    let front: Vec<u32> = grid.pareto().iter().map(|trial| trial.number).collect();
    for (trial, x, y) in points {
        let (colour, radius) =
            if front.contains(&trial.number) { ("#e07020", 5.0) } else { ("#8b93a3", 3.0) };
        let tip = format!("trial {}: {}, {}", trial.number, label(x), label(y));
        canvas.dot(frame.at(x, y), radius, &Look { colour, opacity: 0.8, tip });
    }
    Ok(canvas.finish())
}
