//! The processes of a gang: what a gang's task asks of the spawner, none of which it waits for.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::GangSpec;
use super::actor::Inbound;
use crate::contract::{Contract, free_port};
use crate::proto::control as pb;
use crate::{Error, Launch, Lease, Spawner};

/// A lease and what runs on it.
pub(crate) struct Crew {
    pub(crate) spec: GangSpec,
    pub(crate) spawner: Arc<dyn Spawner>,
    pub(crate) lease: Lease,
    /// What every worker needs to call home.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) inbox: mpsc::Sender<Inbound>,
}

impl Crew {
    /// How many members the gang has.
    pub(crate) fn world(&self) -> u32 {
        self.lease.workers() as u32
    }

    fn local(&self, slot: u32) -> (u32, u32) {
        let seat = &self.lease.seats[slot as usize];
        let neighbours = self.lease.seats.iter().filter(|other| other.node == seat.node).count();
        (seat.local_slot as u32, neighbours as u32)
    }

    /// A member's place in a generation. Seats on one node stand together, so the slot serves as the rank.
    pub(crate) fn assign(&self, slot: u32, generation: u64) -> pb::Assign {
        let (local_rank, local_world) = self.local(slot);
        let run = self.spec.run.clone();
        pb::Assign { generation, run, rank: slot, world: self.world(), local_rank, local_world }
    }

    /// Ends what still runs of the attempt before, and makes the processes of this one.
    pub(crate) fn launch(&self, attempt: u32) {
        let (spawner, lease, inbox) = (self.spawner.clone(), self.lease.id, self.inbox.clone());
        let launch = self.command(attempt);
        let first = attempt == self.spec.attempt;
        tokio::spawn(async move {
            let launched = async {
                if !first {
                    spawner.kill(lease, Duration::ZERO).await?;
                }
                spawner.launch(lease, launch).await
            };
            match launched.await {
                Ok(mut events) => {
                    while let Some(event) = events.next().await {
                        if inbox.send(Inbound::Spawned { attempt, event }).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let slot = if let Error::Launch { slot, .. } = &error { *slot as u32 } else { 0 };
                    let reason = crate::error::chain(&error);
                    inbox.send(Inbound::NotLaunched { attempt, slot, reason }).await.ok();
                }
            }
        });
    }

    fn command(&self, attempt: u32) -> Launch {
        let mut command = self.spec.command.clone();
        for (name, value) in &self.environment {
            command = command.env(*name, value);
        }
        let mut launch = Launch::new(command).attempt(attempt);
        launch.logs.clone_from(&self.spec.logs);
        launch.slot_env = self.ranks(attempt);
        launch
    }

    /// The ranks as other frameworks name them, and a place for them to meet in a way of their own.
    fn ranks(&self, attempt: u32) -> Vec<BTreeMap<String, OsString>> {
        let contract = Contract {
            run_id: self.spec.run.clone(),
            restart: attempt.saturating_sub(1),
            max_restarts: None,
            local: self.spawner.engine() == "local",
            // Where there is none, nobody can meet; our own workers do not need it.
            port: free_port().unwrap_or(0),
        };
        contract.slots(&self.lease)
    }

    /// Ends whatever runs.
    pub(crate) fn kill(&self) {
        let (spawner, lease) = (self.spawner.clone(), self.lease.id);
        tokio::spawn(async move {
            if let Err(error) = spawner.kill(lease, Duration::ZERO).await {
                tracing::error!(%lease, error = crate::error::chain(&error), "could not end a gang's processes");
            }
        });
    }

    /// Ends whatever runs and gives the seats back.
    pub(crate) fn release(&self) {
        let (spawner, lease, inbox) = (self.spawner.clone(), self.lease.id, self.inbox.clone());
        tokio::spawn(async move {
            let released = spawner.release(lease).await;
            inbox.send(Inbound::Released(released)).await.ok();
        });
    }
}
