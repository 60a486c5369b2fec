//! The one thread that ever spawns workers.
//!
//! PDEATHSIG fires when the *thread* that forked ends, not the process: a worker spawned from a pool of threads would be
//! killed when the pool shrinks. So there is one thread for it, which lives as long as the spawner.

use std::io;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

type Job = (Command, mpsc::SyncSender<io::Result<Child>>);

#[derive(Clone, Debug)]
pub(super) struct Launcher {
    jobs: mpsc::Sender<Option<Job>>,
    gone: Arc<AtomicBool>,
}

/// Says that the thread ends, before it has ended and the kernel kills its children.
struct Farewell(Arc<AtomicBool>);

impl Drop for Farewell {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

impl Launcher {
    pub(super) fn start() -> io::Result<Self> {
        let (jobs, orders) = mpsc::channel::<Option<Job>>();
        let gone = Arc::new(AtomicBool::new(false));
        let farewell = Farewell(gone.clone());
        thread::Builder::new().name("regatta-spawn".into()).spawn(move || {
            let _farewell = farewell;
            while let Ok(Some((mut command, reply))) = orders.recv() {
                if let Err(mpsc::SendError(Ok(mut orphan))) = reply.send(command.spawn()) {
                    let _ = orphan.kill();
                    let _ = orphan.wait();
                }
            }
        })?;
        Ok(Self { jobs, gone })
    }

    /// Spawns; `None` where the thread is gone.
    pub(super) fn spawn(&self, command: Command) -> Option<io::Result<Child>> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.jobs.send(Some((command, reply))).ok()?;
        answer.recv().ok()
    }

    /// Whether the thread has ended, and every worker with it.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::SeqCst)
    }

    /// Ends the thread, as a crash of it would.
    pub(super) fn end(&self) {
        let _ = self.jobs.send(None);
    }
}
