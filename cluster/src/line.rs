//! An allocator with its callers waiting in line: for spawners that know all they have.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::allocator::{Allocator, Decision, RequestId};
use crate::error::{Error, Result};
use crate::request::{GangRequest, Lease, LeaseId};
use crate::resource::Resources;
use crate::spawner::NodeStatus;

/// The line and what it waits for.
#[derive(Debug)]
pub(crate) struct Line {
    engine: &'static str,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    allocator: Allocator,
    waiting: HashMap<RequestId, oneshot::Sender<Result<Lease>>>,
}

impl Line {
    pub(crate) fn new(
        engine: &'static str,
        nodes: impl IntoIterator<Item = (String, Resources)>,
    ) -> Result<Self> {
        let state = State { allocator: Allocator::new(nodes)?, waiting: HashMap::new() };
        Ok(Self { engine, state: Mutex::new(state) })
    }

    /// Waits for seats as long as the request's patience says. Dropped, it gives back what it was given.
    pub(crate) async fn acquire(&self, request: GangRequest) -> Result<Lease> {
        let (gang, waited) = (request.name.clone(), request.patience);
        let mut place = {
            let mut state = self.state();
            let request = state.allocator.request(request)?;
            let (sender, answer) = oneshot::channel();
            state.waiting.insert(request, sender);
            state.pump();
            Place { line: self, request, answer }
        };
        match tokio::time::timeout(waited, &mut place.answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::SpawnerGone {
                engine: self.engine,
                cause: "it was dropped while a gang waited".into(),
            }),
            Err(_) => {
                let blocked = self.state().allocator.blocked(place.request);
                Err(Error::NoCapacity { gang, waited, blocked })
            }
        }
    }

    pub(crate) fn release(&self, lease: LeaseId) {
        let mut state = self.state();
        state.allocator.release(lease);
        state.pump();
    }

    /// Opens or closes a node.
    pub(crate) fn set_up(&self, node: &str, up: bool) {
        let mut state = self.state();
        state.allocator.set_up(node, up);
        state.pump();
    }

    pub(crate) fn nodes(&self) -> Vec<NodeStatus> {
        self.state().allocator.nodes()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Hands the allocator's decisions to those who wait for them.
    fn pump(&mut self) {
        let mut again = true;
        while std::mem::take(&mut again) {
            for decision in self.allocator.decide() {
                match decision {
                    Decision::Granted { request, lease } => {
                        let id = lease.id;
                        let waiter = self.waiting.remove(&request);
                        if waiter.is_none_or(|waiter| waiter.send(Ok(lease)).is_err()) {
                            self.allocator.release(id);
                            again = true;
                        }
                    }
                    Decision::Refused { request, why } => {
                        if let Some(waiter) = self.waiting.remove(&request) {
                            let _ = waiter.send(Err(Error::Infeasible(why)));
                        }
                    }
                }
            }
        }
    }
}

/// A place in line, given back with whatever was granted to it if its holder goes away.
struct Place<'a> {
    line: &'a Line,
    request: RequestId,
    answer: oneshot::Receiver<Result<Lease>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let granted = self.answer.try_recv();
        let mut state = self.line.state();
        state.waiting.remove(&self.request);
        state.allocator.withdraw(self.request);
        if let Ok(Ok(lease)) = granted {
            state.allocator.release(lease.id);
        }
        state.pump();
    }
}
