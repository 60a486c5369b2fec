//! What every sampler keeps to; run it on your own:
//!
//! ```
//! regatta_tune::sampler::conformance::check(|| regatta_tune::sampler::Random);
//! ```
//!
//! - **Inside**: every point lies in its space, whatever the space and whatever happened.
//! - **Replayable**: a fresh sampler that is given the same history suggests the same, bit for bit.
//! - **Seeded**: another seed gives other points.
//! - **Unshaken**: losses that are infinite, not a number or all equal, failed and pruned trials, and trials that run side
//!   by side change none of this.

use serde_json::json;

use super::{Ask, End, History, Sampler, Suggestion, Told};
use crate::space::{Node, Point, Space, branches, choice, fixed, float, grid, group, int, normal};
use crate::stream::Stream;

/// Runs all checks and panics where one fails.
///
/// # Panics
/// With what the sampler did, where it does not conform.
pub fn check<S: Sampler>(make: impl Fn() -> S) {
    for (name, space) in spaces() {
        for history in 0..3 {
            replayable(&make, &format!("{name}, history {history}"), &space, history);
        }
    }
    let (_, space) = &spaces()[0];
    let first = |seed| {
        let history = History::new();
        make().suggest(&Ask { space, history: &history, number: 0, seed }).expect("a first point").point
    };
    assert_ne!(first(1), first(2), "another seed suggests the same");
}

/// A space of every kind.
fn spaces() -> Vec<(&'static str, Space)> {
    let body =
        group().with("momentum", float(0.0..=0.99)).with("deep", branches().unit("a").with("b", int(1..=3)));
    vec![
        ("floats", space(group().with("x", float(-5.0..=5.0)).with("y", float(1e-6..=1.0).log()))),
        (
            "mixed",
            space(
                group()
                    .with("x", float(-1.0..=2.0).step(0.1))
                    .with("n", int(1..=500).log())
                    .with("many", int(-100_000..=100_000))
                    .with("g", grid([1.0, 2.0, 4.0, 8.0]))
                    .with("z", normal(3.0, 2.0))
                    .with("kind", choice(["a", "b", "c"]))
                    .with("on", Node::Bool)
                    .with("one", int(3..=3))
                    .with("keep", fixed(json!({"a": 1}))),
            ),
        ),
        (
            "conditional",
            space(group().with("x", float(0.0..=1.0)).with("o", branches().unit("adam").with("sgd", body))),
        ),
        ("nothing to choose", space(group().with("keep", fixed(1)))),
    ]
}

fn space(group: crate::space::Group) -> Space {
    group.build().expect("a good space")
}

/// A study of 30 trials, three at a time; every now and then a fresh sampler has to agree.
fn replayable<S: Sampler>(make: &impl Fn() -> S, name: &str, space: &Space, kind: u64) {
    let mut sampler = make();
    let mut history = History::new();
    let mut stream = Stream::new(99, kind, name);
    for number in 0..30 {
        let ask = Ask { space, history: &history, number, seed: 5 };
        let suggestion = suggest(&mut sampler, &ask, name);
        if number % 9 == 8 || number == 28 {
            let fresh = suggest(&mut make(), &ask, name);
            assert_eq!(fresh, suggestion, "{name}: trial {number} depends on more than its history");
        }
        history.start(number, suggestion.point, suggestion.note);
        while history.running().len() > 2 {
            let running: Vec<u64> = history.running().keys().copied().collect();
            let number = running[stream.below(running.len())];
            let ended = end(&history, number, kind, &mut stream);
            history.tell(ended);
        }
    }
}

fn suggest<S: Sampler>(sampler: &mut S, ask: &Ask<'_>, name: &str) -> Suggestion {
    let suggestion =
        sampler.suggest(ask).unwrap_or_else(|e| panic!("{name}: no point for trial {}: {e}", ask.number));
    if let Err(error) = ask.space.check(&suggestion.point) {
        panic!("{name}: trial {} lies outside: {error}", ask.number);
    }
    suggestion
}

fn end(history: &History, number: u64, kind: u64, stream: &mut Stream) -> Told {
    let running = &history.running()[&number];
    let loss: f64 = running.point.iter().map(|(_, raw)| (raw - 0.3).abs().sqrt()).sum();
    let (point, note): (Point, u64) = (running.point.clone(), running.note);
    let mut told = Told { number, point, note, end: End::Complete, losses: vec![loss], constraints: vec![] };
    match (kind, stream.below(6)) {
        (1, 0) => told.losses = vec![f64::NAN],
        (1, 1) => told.losses = vec![f64::INFINITY],
        (1, 2) => told.losses = vec![-1e308],
        (1, 3) => (told.end, told.losses) = (End::Failed, vec![]),
        (1, 4) => told.end = End::Pruned { step: number },
        (2, _) => told.losses = vec![1.0],
        (0, part) => told.constraints = vec![part as f64 - 3.0],
        _ => {}
    }
    told
}
