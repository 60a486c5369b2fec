//! Bars: how much each parameter matters, and when each trial ran.

use super::axis::{Frame, Scale};
use super::svg::{Anchor, Canvas, Look, STATES, short, state};
use crate::error::Result;
use crate::results::ResultGrid;

const WIDTH: f64 = 840.0;

/// Each parameter's share of what matters.
pub fn importance(grid: &ResultGrid) -> Result<String> {
    let objective = grid.objective()?;
    let shares = grid.importance();
    let (left, top, row) = (230.0, 66.0, 26.0);
    let height = top + row * shares.len().max(4) as f64 + 30.0;
    let subtitle = format!("of each parameter for {}, by PED-ANOVA over the trials that came to their end", objective.metric);
    let mut canvas = Canvas::new(WIDTH, height, "Importance", &subtitle);
    if shares.iter().all(|importance| importance.share == 0.0) {
        canvas.nothing("too few trials came to their end");
        return Ok(canvas.finish());
    }
    let full = shares.first().map_or(1.0, |first| first.share);
    for (at, importance) in shares.iter().enumerate() {
        let y = top + row * at as f64;
        let length = importance.share / full * (WIDTH - left - 80.0);
        let share = format!("{:.1} %", 100.0 * importance.share);
        canvas.text(left - 10.0, y + 13.0, Anchor::End, "", &short(&importance.path, 30));
        let tip = format!("{}: {share}", importance.path);
        canvas.rect((left, y), (length, row - 9.0), &Look { colour: "#3a94a0", opacity: 0.9, tip });
        canvas.text(left + length + 8.0, y + 13.0, Anchor::Start, "small faint", &share);
    }
    canvas.line((left, top - 6.0), (left, top + row * shares.len() as f64), "axis");
    Ok(canvas.finish())
}

/// When each trial ran, and what became of it.
pub fn timeline(grid: &ResultGrid) -> String {
    let trials: Vec<_> = grid.trials().iter().filter(|trial| !trial.spans.is_empty()).collect();
    let moments = || trials.iter().flat_map(|t| &t.spans).flat_map(|(from, to)| [Some(*from), *to]).flatten();
    let from = moments().fold(f64::INFINITY, f64::min);
    // A trial without an end runs until the last moment that anything is known of.
    let known = grid.run().ended.map(|at| at.seconds());
    let until = moments().chain(known).fold(f64::NEG_INFINITY, f64::max);
    let row = (620.0 / trials.len().max(1) as f64).clamp(1.0, 20.0);
    let tall = (row * trials.len() as f64).max(120.0);
    let mut canvas = Canvas::new(WIDTH, tall + 120.0, "Timeline", "when each trial ran, and how it stands");
    if trials.is_empty() {
        canvas.nothing("no trial ran yet");
        return canvas.finish();
    }
    let frame = Frame {
        left: 76.0,
        top: 58.0,
        width: WIDTH - 100.0,
        height: tall,
        x: Scale::from_zero([until - from]),
        y: Scale::Linear { low: 0.0, high: tall / row },
    };
    let every = (14.0 / row).ceil() as usize;
    for (at, trial) in trials.iter().enumerate() {
        let top = frame.top + row * at as f64;
        if at % every == 0 {
            canvas.text(frame.left - 6.0, top + row / 2.0 + 4.0, Anchor::End, "small", &trial.number.to_string());
        }
        for (begun, ended) in &trial.spans {
            let (x, _) = frame.at(begun - from, 0.0);
            let (end, _) = frame.at(ended.unwrap_or(until) - from, 0.0);
            let seconds = ended.unwrap_or(until) - begun;
            let tip = format!("trial {}: {} ({seconds:.1} s)", trial.number, trial.state);
            let look = Look { colour: state(&trial.state), opacity: 0.85, tip };
            canvas.rect((x, top + row * 0.1), (end - x, row * 0.8), &look);
        }
    }
    let frame = Frame { y: Scale::Names(Vec::new()), ..frame };
    frame.draw(&mut canvas, "seconds since the first trial began", "trial");
    let seen = |name: &str| trials.iter().any(|trial| trial.state == name);
    canvas.legend(&STATES.into_iter().filter(|(name, _)| seen(name)).collect::<Vec<_>>());
    canvas.finish()
}
