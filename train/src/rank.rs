//! One rank's run of a trainable, whether as a process or as a thread: what it returns, why it failed, and who else was the reason.

use std::any::Any;
use std::cell::RefCell;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use regatta_comm::{Error as CommError, ProcessGroup};
use serde_json::Value;

use crate::wire::Done;
use crate::{BoxError, Error, Result, TrainContext};

/// What is done to every context before its trainable is run. Libraries of tensors put theirs here, so that seeds are set and
/// random state is saved without the user's thinking of it.
pub struct Preparation(pub fn(&mut TrainContext) -> Result<()>);

inventory::collect!(Preparation);

/// How a rank ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Well.
    Done(Done),
    /// Not well.
    Failed {
        /// The error with its causes, the root last.
        message: String,
        /// The rank whose loss was the reason.
        peer: Option<u32>,
    },
}

/// Runs a trainable to its end.
pub(crate) fn run(
    context: &mut TrainContext,
    body: impl FnOnce(&mut TrainContext) -> Result<Value, BoxError>,
) -> Outcome {
    watch_panics();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        for preparation in inventory::iter::<Preparation> {
            (preparation.0)(context)?;
        }
        body(context)
    }));
    let end = match ran {
        Err(panic) => {
            return Outcome::Failed { message: panic_message(&*panic), peer: None };
        }
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if context.stopped_by(&*error) => Ok(Value::Null),
        Ok(Err(error)) => Err(error),
    };
    match end.and_then(|value| Ok(context.finish(value)?)) {
        Ok(done) => Outcome::Done(done),
        Err(error) => Outcome::Failed { peer: peer_of(&*error, context.group()), message: chain(&*error) },
    }
}

/// The error and what it came from, the root last. What a message repeats of its source is said once.
pub(crate) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// The rank whose loss this error is a consequence of.
fn peer_of(error: &(dyn StdError + 'static), group: &ProcessGroup) -> Option<u32> {
    let rank = group.rank();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(peer) = peer_in(error) {
            return Some(peer).filter(|peer| *peer as usize != rank);
        }
        next = error.source();
    }
    // Some wrappers hide what they hold but for its words. The group knows by whom it was ended, if it was.
    let health = group.health();
    let over = health.over?;
    let known = health.lost.first().copied().or_else(|| aborted_by(&over));
    known.filter(|peer| *peer != rank && chain(error).contains(&over)).map(|peer| peer as u32)
}

fn peer_in(error: &(dyn StdError + 'static)) -> Option<u32> {
    let comm = |error: &CommError| match error {
        CommError::PeerLost { rank, .. } => Some(*rank as u32),
        CommError::Aborted { by, .. } => Some(*by as u32),
        // Who was waited for in vain has more to do with it than who waited.
        CommError::Deadline { missing, .. } => missing.first().map(|rank| *rank as u32),
        _ => None,
    };
    let checkpoint = |error: &regatta_checkpoint::Error| match error {
        regatta_checkpoint::Error::Peer { rank, .. } => Some(*rank),
        _ => None,
    };
    match error.downcast_ref::<Error>() {
        Some(Error::Comm(error)) => comm(error),
        Some(Error::Checkpoint(error)) => checkpoint(error),
        Some(_) => None,
        None => {
            let plain = error.downcast_ref::<CommError>().and_then(comm);
            plain.or_else(|| error.downcast_ref::<regatta_checkpoint::Error>().and_then(checkpoint))
        }
    }
}

/// Who ended the group, from the words of [`CommError::Aborted`].
fn aborted_by(over: &str) -> Option<usize> {
    over.strip_prefix("rank ")?.split_once(" aborted ")?.0.parse().ok()
}

thread_local! {
    /// The last panic of this thread, with its place.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Lets panics be told with their place, besides what is done about them anyway.
fn watch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| format!(" at {}:{}", place.file(), place.line()));
            let text = format!("panicked{}: {}", place.unwrap_or_default(), payload(info.payload()));
            // A thread that is being torn down has no such place any more.
            PANIC.try_with(|panic| panic.replace(Some(text))).ok();
            before(info);
        }));
    });
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = payload(panic);
    let told = PANIC.with(|panic| panic.take()).filter(|told| told.ends_with(text));
    told.unwrap_or_else(|| format!("panicked: {text}"))
}

fn payload(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("with no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("while cooking")]
    struct Wrapped(#[source] Error);

    #[test]
    fn the_root_comes_last_and_nothing_twice() {
        let root = std::io::Error::other("no gas");
        let error = Wrapped(Error::io("light the stove", root));
        assert_eq!(chain(&error), "while cooking: light the stove: no gas");
    }

    #[test]
    fn a_lost_peer_is_found_in_any_wrapping() {
        let lost = || CommError::PeerLost { rank: 3, generation: 1, cause: "it died".into() };
        let seen = regatta_comm::thread::run(1, |group| {
            let boxed: BoxError = Box::new(lost());
            let wrapped = Wrapped(Error::Comm(lost()));
            let other = Error::other("reduce", Box::new(lost()) as BoxError);
            let none = Error::config("x", "y");
            [
                peer_of(&*boxed, &group),
                peer_of(&wrapped, &group),
                peer_of(&other, &group),
                peer_of(&none, &group),
            ]
        });
        assert_eq!(seen, [[Some(3), Some(3), Some(3), None]]);
    }

    #[test]
    fn who_aborted_is_read_from_the_groups_own_words() {
        let over = CommError::Aborted { by: 12, generation: 4, reason: "x".into() }.to_string();
        assert_eq!(aborted_by(&over), Some(12));
    }
}
