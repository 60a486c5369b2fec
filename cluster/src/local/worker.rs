//! A worker process as the rest of the spawner sees it: who it works for now, and what has been ordered of it.
//!
//! Its [attendant](super::attendant), a thread of its own, is the only one that touches the process; everyone else leaves
//! word on the desk and rings. Whoever waits for its end waits on `ended`.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::output::Record;
use crate::events::EventSender;
use crate::request::Seat;
use crate::resource::Bytes;
use crate::spawner::{WorkerEvent, WorkerId};

/// Longer than any driver lives, and short enough to be added to a time.
pub(super) const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What a worker is doing for a gang: gone while it idles in the pool.
#[derive(Clone, Debug)]
pub(super) struct Post {
    pub(super) slot: usize,
    pub(super) events: EventSender,
    /// Of its own lock, which the attendant alone takes: a disk that hangs must not hold up the desk.
    pub(super) record: Arc<Mutex<Record>>,
}

/// What ends it, decided before it has ended; the first word stands.
#[derive(Clone, Debug)]
pub(super) enum Fate {
    Cancelled,
    OutOfMemory { limit: Bytes, used: Bytes },
    Lost(String),
}

#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) post: Option<Post>,
    pub(super) fate: Option<Fate>,
    /// Ordered to end: SIGKILL comes then.
    pub(super) kill_at: Option<Instant>,
    /// Idle: it is ended then.
    pub(super) idle_until: Option<Instant>,
    pub(super) ended: bool,
}

#[derive(Debug)]
pub(super) struct Worker {
    pub(super) id: WorkerId,
    pub(super) pid: u32,
    pub(super) seat: Seat,
    desk: Mutex<Desk>,
    bell: OwnedFd,
    ended: watch::Sender<bool>,
}

impl Worker {
    pub(super) fn new(id: WorkerId, pid: u32, seat: Seat, post: Post, bell: OwnedFd) -> Self {
        let desk = Mutex::new(Desk { post: Some(post), ..Desk::default() });
        Self { id, pid, seat, desk, bell, ended: watch::Sender::new(false) }
    }

    /// The desk. A panic of another holder leaves it as good as it was: every field stands for itself.
    pub(super) fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Orders its end: SIGTERM now, SIGKILL after `grace`. A second order can only be sooner.
    pub(super) fn end(&self, fate: Fate, grace: Duration) {
        let mut desk = self.desk();
        if desk.ended {
            return;
        }
        desk.fate.get_or_insert(fate);
        let at = Instant::now() + grace.min(FOR_EVER);
        desk.kill_at = Some(desk.kill_at.map_or(at, |before| before.min(at)));
        drop(desk);
        self.ring();
    }

    /// Takes it off its gang, to idle so long; `false` where it has ended or is about to.
    pub(super) fn park(&self, idle: Duration) -> bool {
        let mut desk = self.desk();
        if desk.ended || desk.kill_at.is_some() || desk.fate.is_some() {
            return false;
        }
        desk.post = None;
        desk.idle_until = Some(Instant::now() + idle.min(FOR_EVER));
        drop(desk);
        self.ring();
        true
    }

    /// Puts it to work again; gives the post back where it has ended or is about to.
    pub(super) fn reuse(&self, post: Post) -> Result<(), Post> {
        let mut desk = self.desk();
        if desk.ended || desk.kill_at.is_some() || desk.fate.is_some() {
            return Err(post);
        }
        let (slot, worker, pid) = (post.slot, self.id.clone(), Some(self.pid));
        post.events.send(WorkerEvent::Started { slot, worker, pid, reused: true });
        desk.post = Some(post);
        desk.idle_until = None;
        drop(desk);
        self.ring();
        Ok(())
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }

    /// Whether it ended by then.
    pub(super) async fn wait_end(&self, deadline: Instant) -> bool {
        let mut ended = self.ended.subscribe();
        let waited = tokio::time::timeout_at(deadline.into(), ended.wait_for(|ended| *ended)).await;
        waited.is_ok_and(|ended| ended.is_ok())
    }

    /// The same for a thread outside of any runtime.
    pub(super) fn wait_end_blocking(&self, deadline: Instant) -> bool {
        while !self.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.has_ended()
    }

    pub(super) fn set_ended(&self) {
        self.ended.send_replace(true);
    }
}
