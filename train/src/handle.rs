//! Giving orders to a run from outside: a signal, a tuner, another thread.

use tokio::sync::mpsc;

use crate::controller::Input;
use crate::wire::StopReason;

/// What a run is ordered.
#[derive(Debug)]
pub(crate) enum Order {
    Stop(StopReason),
    Kill,
    Save,
    GoOn(u64),
}

impl Order {
    /// What it is to the run's machine. Leave to go on concerns the ranks alone.
    pub(crate) fn input(self) -> Option<Input> {
        match self {
            Order::Stop(reason) => Some(Input::Stop(reason)),
            Order::Kill => Some(Input::Kill),
            Order::Save => Some(Input::Save),
            Order::GoOn(_) => None,
        }
    }
}

/// Gives orders to a run. May be cloned, sent, and kept beyond the run's end, when its orders have no effect.
#[derive(Debug, Clone)]
pub struct RunHandle {
    orders: mpsc::UnboundedSender<Order>,
}

impl RunHandle {
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Order>) {
        let (orders, ordered) = mpsc::unbounded_channel();
        (RunHandle { orders }, ordered)
    }

    /// Asks the run to finish its step, save and end. The first reason counts.
    pub fn stop(&self, reason: StopReason) {
        self.orders.send(Order::Stop(reason)).ok();
    }

    /// Ends the run at once. What was done since its last checkpoint is lost.
    pub fn kill(&self) {
        self.orders.send(Order::Kill).ok();
    }

    /// Lets the ranks go on after this report of the run (its iteration), if they wait after each: see
    /// [`Trainer::lockstep`](crate::Trainer::lockstep).
    pub fn go_on(&self, iteration: u64) {
        self.orders.send(Order::GoOn(iteration)).ok();
    }

    /// Asks for a checkpoint.
    pub fn save(&self) {
        self.orders.send(Order::Save).ok();
    }
}
