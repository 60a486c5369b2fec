//! Signals to a run or a study: the first SIGINT or SIGTERM stops it gracefully, the second ends it at once, and the
//! preemption signal stops it as preempted. Handlers are there only while this guard is; what was there before comes back.
//!
//! Workers are in process groups of their own, so a terminal's Ctrl-C comes to the controller alone.

mod sys;

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::config::PreemptionSignal;
use crate::wire::StopReason;
use crate::{Error, Result};

/// What a signal asks for, given how many asked to stop before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// To stop with everything saved.
    Stop(StopReason),
    /// To end at once.
    Kill,
}

fn wish(signal: i32, preemption: i32, asked: &mut u32) -> Wish {
    if signal == preemption && signal != libc::SIGTERM {
        return Wish::Stop(StopReason::Preempted);
    }
    *asked += 1;
    match *asked {
        1 if signal == preemption => Wish::Stop(StopReason::Preempted),
        1 => Wish::Stop(StopReason::User),
        _ => Wish::Kill,
    }
}

impl PreemptionSignal {
    fn number(self) -> i32 {
        match self {
            PreemptionSignal::Usr1 => libc::SIGUSR1,
            PreemptionSignal::Usr2 => libc::SIGUSR2,
            PreemptionSignal::Term => libc::SIGTERM,
        }
    }
}

/// Passes signals on for as long as it lives.
pub struct Signals {
    _handlers: sys::Handlers,
    task: tokio::task::JoinHandle<()>,
}

impl Signals {
    /// Takes over this process's signals, inside of a runtime. Only one run or study of a process can have them.
    pub fn pass_on(preemption: PreemptionSignal, to: impl Fn(Wish) + Send + 'static) -> Result<Self> {
        let failed = |source| Error::io("handle signals", source);
        let preemption = preemption.number();
        let mut signals = vec![libc::SIGINT, libc::SIGTERM];
        if !signals.contains(&preemption) {
            signals.push(preemption);
        }
        let (reader, handlers) = sys::Handlers::install(&signals).map_err(failed)?;
        let mut reader = UnixStream::from_std(reader).map_err(failed)?;
        let task = tokio::spawn(async move {
            let (mut asked, mut byte) = (0, [0_u8]);
            while reader.read_exact(&mut byte).await.is_ok() {
                to(wish(i32::from(byte[0]), preemption, &mut asked));
            }
        });
        Ok(Signals { _handlers: handlers, task })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn taken() -> io::Error {
    io::Error::other("another run of this process handles its signals already: let one of them do it for all")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_wish_to_stop_is_one_to_kill_but_a_preemption_is_none() {
        let mut asked = 0;
        let usr2 = libc::SIGUSR2;
        assert_eq!(wish(usr2, usr2, &mut asked), Wish::Stop(StopReason::Preempted));
        assert_eq!(wish(libc::SIGINT, usr2, &mut asked), Wish::Stop(StopReason::User));
        assert_eq!(wish(usr2, usr2, &mut asked), Wish::Stop(StopReason::Preempted));
        assert_eq!(wish(libc::SIGTERM, usr2, &mut asked), Wish::Kill);

        let (mut asked, term) = (0, libc::SIGTERM);
        assert_eq!(wish(term, term, &mut asked), Wish::Stop(StopReason::Preempted));
        assert_eq!(wish(term, term, &mut asked), Wish::Kill);
    }
}
