//! From a request to places: pods that wait on their nodes for what they shall run.
//!
//! A gang's pods are made at once; the cluster's scheduler finds each a node, where it waits for a secret that does not
//! exist yet and so holds its place. When all have one, the gang has its seats. One gang of a driver is gathered at a time,
//! in the order they came; what two drivers hold in part each gives back after a while, so that neither waits for ever.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use rand::RngExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::pod::{WorkerPod, worker};
use super::spawner::Inner;
use super::status::Seen;
use super::watcher::Watcher;
use super::{ENGINE, api};
use crate::error::{Error, Result};
use crate::request::{GangRequest, Lease, LeaseId, Seat};
use crate::spawner::Launch;

/// How long after a refusal for want of quota it is tried again.
const QUOTA: Duration = Duration::from_secs(5);

/// How many pods are made at the same time.
const AT_ONCE: usize = 32;

/// Pods with a place each.
pub(super) struct Gathered {
    pub(super) lease: Lease,
    /// By slot.
    pub(super) pods: Vec<String>,
}

/// What came of waiting for places.
enum Settled {
    /// These pods have one, on these nodes.
    Seated(Vec<(String, String)>),
    /// Part of them has held places for too long, or one was turned away by its node.
    Again,
    /// Nobody waits any more, or the time is up.
    Over,
}

/// Waits for places on behalf of whoever holds the other end, which may go away.
pub(super) struct Waiting {
    pub(super) request: GangRequest,
    pub(super) answer: oneshot::Sender<Result<Gathered>>,
}

impl Inner {
    /// Gathers a gang and answers. What is not taken is given back before the next gang's turn.
    pub(super) async fn gather(&self, waiting: Waiting) {
        let Waiting { request, mut answer } = waiting;
        let deadline = Instant::now() + request.patience;
        let mut blocked = "other gangs of this driver stand before it".to_owned();
        let turn = tokio::select! {
            turn = tokio::time::timeout_at(deadline, self.turn.lock()) => turn.ok(),
            () = answer.closed() => return,
        };
        let mut left = Vec::new();
        while turn.is_some() && !answer.is_closed() && Instant::now() < deadline {
            let mut pods = Vec::new();
            let seated = self.try_once(&request, deadline, &mut answer, &mut pods, &mut blocked).await;
            match seated {
                Ok(Some(seats)) => {
                    let spare: Vec<String> = pods
                        .into_iter()
                        .filter(|pod| seats.iter().all(|(seated, _)| seated != pod))
                        .collect();
                    self.give_back(&spare).await;
                    let gathered = self.lease(&request, seats);
                    if let Err(Ok(gathered)) = answer.send(Ok(gathered)) {
                        self.give_back(&gathered.pods).await;
                    }
                    return;
                }
                Ok(None) => left = pods,
                Err(error) => {
                    let _ = answer.send(Err(error));
                    self.give_back(&pods).await;
                    return;
                }
            }
            if Instant::now() < deadline && !answer.is_closed() {
                self.give_back(&std::mem::take(&mut left)).await;
                // Not in step with whoever waits for the same places.
                let pause = QUOTA
                    .mul_f64(rand::rng().random_range(0.2..1.0))
                    .min(deadline.saturating_duration_since(Instant::now()));
                tokio::select! { () = tokio::time::sleep(pause) => {}, () = answer.closed() => {} }
            }
        }
        let (gang, waited) = (request.name.clone(), request.patience);
        let _ = answer.send(Err(Error::NoCapacity { gang, waited, blocked }));
        self.give_back(&left).await;
    }

    /// Makes the pods and waits for their places; the names of all it made are left in `pods`.
    async fn try_once(
        &self,
        request: &GangRequest,
        deadline: Instant,
        answer: &mut oneshot::Sender<Result<Gathered>>,
        pods: &mut Vec<String>,
        blocked: &mut String,
    ) -> Result<Option<Vec<(String, String)>>> {
        let gang = self.name_gang();
        let names: Vec<String> = (0..request.max_workers).map(|n| format!("{gang}-{n}")).collect();
        pods.clone_from(&names);
        if let Err(why) = self.make(request, &gang, &names, None).await {
            let Error::Engine { reason, .. } = &why else { return Err(why) };
            if !api::over_quota(reason) {
                return Err(why);
            }
            blocked.clone_from(reason);
            return Ok(None);
        }
        match self.settle(request, &names, deadline, answer, blocked).await {
            Settled::Seated(seats) => Ok(Some(seats)),
            Settled::Again | Settled::Over => Ok(None),
        }
    }

    /// Makes pods, all or an error: that of the first that could not be made.
    async fn make(
        &self,
        request: &GangRequest,
        gang: &str,
        names: &[String],
        nodes: Option<&[String]>,
    ) -> Result<()> {
        let excluded: BTreeSet<String> = self.closed().union(&request.excluded).cloned().collect();
        let request = GangRequest { excluded, ..request.clone() };
        let pods: Vec<WorkerPod<'_>> = names
            .iter()
            .enumerate()
            .map(|(n, name)| {
                let node = nodes.and_then(|nodes| nodes.get(n)).map(String::as_str);
                WorkerPod { name, gang, request: &request, node }
            })
            .collect();
        // A few at a time: a gang of hundreds must not fall on the API server at once.
        for some in pods.chunks(AT_ONCE) {
            let made = join_all(some.iter().map(|pod| self.make_one(pod))).await;
            made.into_iter().collect::<Result<Vec<()>>>()?;
        }
        Ok(())
    }

    async fn make_one(&self, pod: &WorkerPod<'_>) -> Result<()> {
        let what = format!("creating the pod `{}`", pod.name);
        let object = worker(&self.config, &self.place, pod)?;
        let made: Option<Pod> = api::create(&self.pods, &what, self.patience(), object).await?;
        let made = made.ok_or_else(|| Error::Engine {
            engine: ENGINE,
            what,
            reason: "there is one of that name".into(),
            advice: ": delete it; no other driver should have made it".into(),
        })?;
        self.watcher.add(&made);
        Ok(())
    }

    async fn settle(
        &self,
        request: &GangRequest,
        names: &[String],
        deadline: Instant,
        answer: &mut oneshot::Sender<Result<Gathered>>,
        blocked: &mut String,
    ) -> Settled {
        let until = deadline.min(Instant::now() + super::seconds(self.config.gather_seconds));
        loop {
            let within = until.saturating_duration_since(Instant::now());
            let settled = self.watcher.wait(within, |watcher| {
                let seen: Vec<_> = names.iter().map(|name| (name, watcher.look(name))).collect();
                let seated: Vec<_> = seen
                    .iter()
                    .filter_map(|(name, seen)| Some(((*name).clone(), seen.node.clone()?)))
                    .collect();
                let why = seen.iter().find_map(|(_, seen)| seen.unplaced.clone());
                let turned_away = seen.iter().find(|(_, seen)| seen.over()).map(|(_, seen)| seen.word());
                *blocked = match (&why, &turned_away) {
                    (_, Some(word)) => format!("a pod of it was turned away: {word}"),
                    (Some(why), _) => format!("{} of {} pods have a node: {why}", seated.len(), names.len()),
                    _ => format!("{} of {} pods have a node", seated.len(), names.len()),
                };
                if turned_away.is_some() {
                    return Some(Settled::Again);
                }
                // The rest has been looked at and found no room: it is not waited for.
                let rest = seen.iter().filter(|(_, seen)| seen.node.is_none());
                let settled = rest.clone().all(|(_, seen)| seen.unplaced.is_some());
                (seated.len() >= request.min_workers && settled).then_some(Settled::Seated(seated))
            });
            tokio::select! {
                settled = settled => match settled {
                    Some(settled) => return settled,
                    None if Instant::now() >= deadline => return Settled::Over,
                    // Those that hold nothing may as well go on waiting.
                    None if names.iter().any(|name| self.watcher.look(name).node.is_some()) => return Settled::Again,
                    None => {}
                },
                () = answer.closed() => return Settled::Over,
            }
        }
    }

    fn lease(&self, request: &GangRequest, mut places: Vec<(String, String)>) -> Gathered {
        places
            .sort_by(|(one, its), (other, others)| (its, one.len(), one).cmp(&(others, other.len(), other)));
        let mut seats: Vec<Seat> = Vec::new();
        for (slot, (_, node)) in places.iter().enumerate() {
            let local_slot = seats.iter().filter(|seat| seat.node == *node).count();
            let resources = request.per_worker.clone();
            // As the container counts them, which has no others.
            let gpus = (0..resources.gpu.units() as u32).collect();
            seats.push(Seat { slot, node: node.clone(), local_slot, resources, cpus: Vec::new(), gpus });
        }
        let lease = Lease { id: LeaseId(self.number()), seats };
        Gathered { lease, pods: places.into_iter().map(|(pod, _)| pod).collect() }
    }

    /// New pods for a lease whose first have run, on the same nodes.
    pub(super) async fn again(
        &self,
        lease: &Lease,
        request: &GangRequest,
        launch: &Launch,
    ) -> Result<Vec<String>> {
        let gang = self.name_gang();
        let names: Vec<String> = (0..lease.workers()).map(|n| format!("{gang}-{n}")).collect();
        let nodes: Vec<String> = lease.seats.iter().map(|seat| seat.node.clone()).collect();
        let placed = match self.make(request, &gang, &names, Some(&nodes)).await {
            Ok(()) => self.placed(&names, lease, launch).await,
            Err(error) => Err(error),
        };
        match placed {
            Ok(()) => Ok(names),
            Err(error) => {
                self.give_back(&names).await;
                Err(error)
            }
        }
    }

    /// Waits until each pod has its place.
    async fn placed(&self, names: &[String], lease: &Lease, launch: &Launch) -> Result<()> {
        let seen = |watcher: &Watcher| -> Vec<Seen> { names.iter().map(|name| watcher.look(name)).collect() };
        let decided = self.watcher.wait(self.start_patience(), |watcher| {
            let seen = seen(watcher);
            let over = seen.iter().any(Seen::over);
            (over || seen.iter().all(|seen| seen.node.is_some())).then_some(!over)
        });
        if decided.await == Some(true) {
            return Ok(());
        }
        let seen = seen(&self.watcher);
        let without = seen.iter().zip(&lease.seats).find(|(seen, _)| seen.node.is_none() || seen.over());
        let Some((seen, seat)) = without else { return Ok(()) };
        let source = std::io::Error::other(format!("it did not get its place again: {}", seen.word()));
        let (slot, node, program) = (seat.slot, seat.node.clone(), launch.command.program.clone());
        Err(Error::Launch { slot, node, program, source })
    }

    /// Deletes pods in which nothing runs.
    pub(super) async fn give_back(&self, pods: &[String]) {
        let deleted = join_all(pods.iter().map(|pod| api::delete(&self.pods, pod, self.patience(), 0))).await;
        for (pod, deleted) in pods.iter().zip(deleted) {
            if let Err(error) = deleted {
                tracing::warn!(pod, %error, "a pod is left behind; it goes with the driver's");
            }
            self.watcher.forget(pod);
        }
    }
}
