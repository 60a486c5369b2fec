//! The ranks of an attempt as the controller sees them, whatever they are: worker processes of a gang, threads of this
//! process, or programs in another language.

use std::time::Duration;

use async_trait::async_trait;
use regatta_cluster::Failure;

use crate::Result;
use crate::wire::{Committed, Decision, Done, FromRank, Start};

/// What happens in a crew.
#[derive(Debug)]
#[non_exhaustive]
pub enum CrewEvent {
    /// All ranks are there and were started.
    Started {
        /// How many.
        world_size: u32,
        /// What connects them, for people: `2 x cpu, shm`.
        about: String,
    },
    /// A rank said something; to be acknowledged once it is safe.
    Said {
        /// Who.
        rank: u32,
        /// Its number among what this rank said in this attempt. There may be holes.
        sequence: u64,
        /// What.
        saying: Saying,
    },
    /// A line of a rank's log.
    Line {
        /// Who.
        rank: u32,
        /// The line.
        text: String,
    },
    /// The attempt is over: a rank failed. The others were ended.
    Failed(Box<Failure>),
    /// The attempt is over: all ranks are done.
    Finished,
}

/// What a rank says.
#[derive(Debug)]
pub enum Saying {
    /// A report or progress.
    Told(FromRank),
    /// A checkpoint was committed, or its save failed.
    Committed(Committed),
    /// The rank is done.
    Done(Done),
}

/// The ranks of a run. One attempt at a time.
#[async_trait]
pub trait Crew: Send {
    /// Gets room and starts an attempt. What happens then is heard from [`Crew::next`], beginning with
    /// [`CrewEvent::Started`].
    async fn launch(&mut self, start: Start) -> Result<()>;

    /// The next thing to know, or `None` when the attempt is over and all was told. May be dropped without losing anything.
    async fn next(&mut self) -> Option<CrewEvent>;

    /// What this rank said is safe, up to this number.
    fn acknowledge(&mut self, rank: u32, sequence: u64);

    /// Tells all ranks.
    fn decide(&mut self, decision: &Decision);

    /// Ends what still runs, by force after the grace, and gives back the room. Nothing of it is left when this returns.
    async fn stop(&mut self, grace: Duration) -> Result<()>;
}
