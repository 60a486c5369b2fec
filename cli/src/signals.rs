//! SIGINT and SIGTERM, for commands that wait.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::problem::{Outcome, Problem};

/// Both of them.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Outcome<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Problem::failed(format!("cannot listen to signals: {error}")))
        };
        Ok(Signals {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next of either.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
