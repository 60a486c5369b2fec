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
}

impl From<Order> for Input {
    fn from(order: Order) -> Self {
        match order {
            Order::Stop(reason) => Input::Stop(reason),
            Order::Kill => Input::Kill,
            Order::Save => Input::Save,
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

    /// Asks for a checkpoint.
    pub fn save(&self) {
        self.orders.send(Order::Save).ok();
    }
}
