//! The watch over the other ranks' processes: one thread a group, asleep until somebody dies.

use crate::engine::{Layout, declare_lost};
use crate::{Error, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Tells the group when a process of it ends before its rank has left. Stops when dropped.
#[derive(Debug)]
pub(super) struct Monitor {
    stop: Arc<OwnedFd>,
    lost: Arc<Mutex<Vec<usize>>>,
    thread: Option<JoinHandle<()>>,
}

impl Monitor {
    /// Watches `processes`, one for each rank.
    pub(super) fn start(layout: Layout, rank: usize, processes: Vec<OwnedFd>) -> Result<Monitor> {
        let stop =
            eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| Error::io("make an event for the watch", e))?;
        let (stop, lost) = (Arc::new(stop), Arc::new(Mutex::new(Vec::new())));
        let others: Vec<_> = processes.into_iter().enumerate().filter(|(r, _)| *r != rank).collect();
        let (stopping, losses) = (stop.clone(), lost.clone());
        let thread = std::thread::Builder::new()
            .name(format!("regatta-watch-{rank}"))
            .stack_size(64 << 10)
            .spawn(move || watch(&layout, rank, others, &stopping, &losses))
            .map_err(|e| Error::io("start the watch over the ranks", e))?;
        Ok(Monitor { stop, lost, thread: Some(thread) })
    }

    /// The ranks whose process has ended.
    pub(super) fn lost(&self) -> Vec<usize> {
        self.lost.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }
}

fn watch(
    layout: &Layout,
    rank: usize,
    mut others: Vec<(usize, OwnedFd)>,
    stop: &OwnedFd,
    lost: &Mutex<Vec<usize>>,
) {
    loop {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        fds.extend(others.iter().map(|(_, process)| PollFd::new(process, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return tracing::error!("the watch over the ranks ended: {e}"),
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        let ended: Vec<bool> = fds[1..].iter().map(|f| !f.revents().is_empty()).collect();
        let mut ended = ended.into_iter();
        others.retain(|(peer, _)| {
            let gone = ended.next().unwrap_or(false);
            if gone {
                tracing::debug!(rank, peer, "a process ended");
                lost.lock().unwrap_or_else(|p| p.into_inner()).push(*peer);
                // Who has left before may end as it likes; whoever still needs it will see that it has left.
                if !layout.rank(*peer).has_left() {
                    declare_lost(layout, *peer, rank);
                }
            }
            !gone
        });
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Err(e) = rustix::io::write(&*self.stop, &1u64.to_ne_bytes()) {
            return tracing::warn!("stopping the watch over the ranks: {e}");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::warn!("the watch over the ranks panicked");
        }
    }
}
