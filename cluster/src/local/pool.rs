//! Workers that idle between two gangs: a trial that finds one starts in no time, with its libraries loaded.
//!
//! A worker's environment (its GPUs, its thread counts) was fixed when it started, so it is taken over only by the same
//! command on the same seat. Whoever else is seated where one idles has it ended first: an idler still holds GPU memory.

use std::sync::Arc;
use std::time::Duration;

use super::worker::{Fate, Worker};
use crate::request::Seat;
use crate::spawner::Launch;

#[derive(Debug)]
pub(super) struct Pool {
    max: usize,
    idle_for: Duration,
    idle: Vec<Idle>,
}

#[derive(Debug)]
struct Idle {
    worker: Arc<Worker>,
    seat: Seat,
    launch: Launch,
}

impl Pool {
    pub(super) fn new(max: usize, idle_for: Duration) -> Self {
        Self { max, idle_for, idle: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.idle.iter().filter(|idle| !idle.worker.has_ended()).count()
    }

    /// Keeps a whole gang, or gives back those it could not keep: one that has ended, or more than may idle.
    pub(super) fn park(
        &mut self,
        workers: Vec<Arc<Worker>>,
        seats: &[Seat],
        launch: &Launch,
    ) -> Result<(), Vec<Arc<Worker>>> {
        self.idle.retain(|idle| !idle.worker.has_ended());
        let room = self.idle.len() + workers.len() <= self.max;
        if !room || workers.is_empty() || !workers.iter().all(|worker| worker.park(self.idle_for)) {
            return Err(workers);
        }
        self.idle.extend(workers.into_iter().zip(seats).map(|(worker, seat)| Idle {
            worker,
            seat: seat.clone(),
            launch: launch.clone(),
        }));
        Ok(())
    }

    /// For each seat the worker that may be taken over, and those in the way, already ordered to end.
    pub(super) fn take(
        &mut self,
        seats: &[Seat],
        launch: &Launch,
    ) -> (Vec<Option<Arc<Worker>>>, Vec<Arc<Worker>>) {
        let mut take = |seat: &Seat| {
            let fits = |idle: &Idle| {
                !idle.worker.has_ended() && same_seat(&idle.seat, seat) && same_work(idle, seat, launch)
            };
            let at = self.idle.iter().position(fits)?;
            Some(self.idle.swap_remove(at).worker)
        };
        let taken: Vec<_> = seats.iter().map(&mut take).collect();
        let strangers = self.evict(|worker| seats.iter().any(|seat| in_the_way(&worker.seat, seat)));
        (taken, strangers)
    }

    /// Orders those to end and lets go of them.
    pub(super) fn evict(&mut self, which: impl Fn(&Worker) -> bool) -> Vec<Arc<Worker>> {
        let (out, stay): (Vec<Idle>, Vec<Idle>) =
            std::mem::take(&mut self.idle).into_iter().partition(|idle| which(&idle.worker));
        self.idle = stay;
        out.iter().for_each(|idle| idle.worker.end(Fate::Cancelled, Duration::ZERO));
        out.into_iter().map(|idle| idle.worker).collect()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Arc<Worker>> {
        self.idle.drain(..).map(|idle| idle.worker)
    }
}

fn same_seat(one: &Seat, other: &Seat) -> bool {
    (&one.node, &one.cpus, &one.gpus, &one.resources)
        == (&other.node, &other.cpus, &other.gpus, &other.resources)
}

fn same_work(idle: &Idle, seat: &Seat, launch: &Launch) -> bool {
    idle.launch.command == launch.command
        && idle.launch.slot_env.get(idle.seat.slot) == launch.slot_env.get(seat.slot)
}

/// Whether an idler holds something of this seat.
fn in_the_way(idle: &Seat, seat: &Seat) -> bool {
    let shares = |one: &[u32], other: &[u32]| one.iter().any(|unit| other.contains(unit));
    let both_want_memory = idle.resources.memory.0 > 0 && seat.resources.memory.0 > 0;
    let both_want_custom = idle.resources.customs().any(|(name, _)| !seat.resources.custom(name).is_zero());
    idle.node == seat.node
        && (shares(&idle.cpus, &seat.cpus)
            || shares(&idle.gpus, &seat.gpus)
            || both_want_memory
            || both_want_custom)
}
