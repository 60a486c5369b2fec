//! Samplers: what to try next.
//!
//! A [`Sampler`] is a function of the study's history, the trial's number, the space and the study's seed. Whatever it
//! keeps besides is a cache: a fresh one that is given the same history suggests the same point, bit for bit, and the
//! [`conformance`] module holds every sampler to that. So a study is resumed by telling it what happened.
//!
//! | sampler | for |
//! |---|---|
//! | [`Auto`] | when in doubt |
//! | [`Random`], [`Sobol`] | a baseline; covering a space evenly |
//! | [`Grid`] | every combination of a countable space |
//! | [`Tpe`] | anything: mixed, conditional, several objectives, many trials |
//! | [`Gp`] | expensive trials, up to a few hundred |
//! | [`CmaEs`] | cheap trials of numbers, hundreds and more |
//!
//! [`Search`] asks and tells without a runner. All of this minimises; a study that maximises tells the negative.

mod auto;
mod cma;
pub mod conformance;
mod gp;
mod grid;
mod history;
mod judged;
mod random;
mod search;
mod sobol;
mod tpe;

pub use auto::Auto;
pub use cma::{CmaEs, Restart};
pub use gp::Gp;
pub use grid::Grid;
pub use history::{End, History, Running, Told};
pub use judged::Judge;
pub use random::Random;
pub use search::{Search, Trial};
pub use sobol::Sobol;
pub use tpe::Tpe;

use crate::error::Result;
use crate::space::{Point, Space};
use crate::stream::Stream;

/// Chooses the points of a study.
pub trait Sampler: Send {
    /// The point of the next trial.
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion>;

    /// What it is called in tables and logs.
    fn name(&self) -> &'static str;
}

impl<T: Sampler + ?Sized> Sampler for Box<T> {
    fn suggest(&mut self, ask: &Ask<'_>) -> Result<Suggestion> {
        (**self).suggest(ask)
    }

    fn name(&self) -> &'static str {
        (**self).name()
    }
}

/// What a sampler is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Where it may choose.
    pub space: &'a Space,
    /// What happened so far.
    pub history: &'a History,
    /// The number of the trial that asks.
    pub number: u64,
    /// The study's seed.
    pub seed: u64,
}

impl Ask<'_> {
    pub(crate) fn stream(&self, purpose: &str) -> Stream {
        Stream::new(self.seed, self.number, purpose)
    }
}

/// What a sampler answers.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Suggestion {
    /// What to try.
    pub point: Point,
    /// A note of the sampler's to itself: it comes back with the trial in the history.
    pub note: u64,
}

impl Suggestion {
    /// A suggestion without a note.
    pub fn new(point: Point) -> Self {
        Self { point, note: 0 }
    }
}

/// A point whose parameters are chosen one after the other, each once its branch is known to be taken.
pub(crate) fn fill(space: &Space, mut choose: impl FnMut(usize) -> f64) -> Point {
    complete(space, Point::empty(space.parameters().len()), |index, _| choose(index))
}

/// The same, with some values chosen already; those below branches that are not taken are cleared.
pub(crate) fn complete(
    space: &Space,
    mut point: Point,
    mut choose: impl FnMut(usize, &Point) -> f64,
) -> Point {
    for index in 0..space.parameters().len() {
        if !space.active(index, &point) {
            point.set(index, None);
        } else if point.get(index).is_none() {
            let raw = choose(index, &point);
            point.set(index, Some(raw));
        }
    }
    point
}
