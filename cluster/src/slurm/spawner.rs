//! The driver's side: gangs on the nodes of the job that the driver is the batch step of.
//!
//! An allocator of ours seats gangs on what Slurm gave the job; a worker is a step on its seat's node. A node that does not
//! end a worker within [`SlurmConfig::kill_seconds`] is closed until the job ends: what still runs there cannot be known.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::step::{Order, Step};
use super::tool::Tools;
use super::{ENGINE, SlurmConfig, script, text};
use crate::engine::shell;
use crate::env;
use crate::error::{Error, Result};
use crate::events::{EventSender, Events, queue};
use crate::line::Line;
use crate::local::output::{Log, Record};
use crate::request::{GangRequest, Lease, LeaseId, Seat};
use crate::resource::{Bytes, Milli, Resources};
use crate::spawner::{Launch, NodeStatus, Spawner, WorkerId};
use crate::token::Token;

/// Gangs as steps of the job this process runs in. Dropping it ends every worker, without waiting.
#[derive(Debug)]
pub struct SlurmSpawner {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SlurmConfig,
    tools: Tools,
    job: String,
    line: Line,
    gpus: HashMap<String, u32>,
    mark: String,
    started: AtomicU64,
    held: Mutex<BTreeMap<LeaseId, Held>>,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    steps: Vec<Arc<Step>>,
    launching: bool,
}

fn variable(name: &'static str) -> Result<String> {
    std::env::var(name).map_err(|_| Error::Environment {
        variable: name,
        problem:
            "is not set: this process is not the batch step of a Slurm job; submit it with the Slurm engine"
                .into(),
    })
}

impl SlurmSpawner {
    /// A spawner over the nodes of the job that this process is in.
    pub async fn from_env(config: SlurmConfig) -> Result<Self> {
        config.check()?;
        let tools = Tools::of(&config);
        let job = variable("SLURM_JOB_ID")?;
        let (list, cpus) = (variable("SLURM_JOB_NODELIST")?, variable("SLURM_JOB_CPUS_PER_NODE")?);
        let unreadable =
            |variable, text: &str| Error::Environment { variable, problem: format!("is `{text}`") };
        let names = text::hostnames(&list).ok_or_else(|| unreadable("SLURM_JOB_NODELIST", &list))?;
        let cpus = text::per_node(&cpus)
            .filter(|cpus| cpus.len() == names.len())
            .ok_or_else(|| unreadable("SLURM_JOB_CPUS_PER_NODE", &cpus))?;
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let (by_node, by_cpu) = (number("SLURM_MEM_PER_NODE"), number("SLURM_MEM_PER_CPU"));
        // What the job was given of GPUs; its batch step sees those of the first node, and nodes are given alike.
        let given = number("SLURM_GPUS_ON_NODE").and_then(|gpus| u32::try_from(gpus).ok());
        let shown = text::nodes(&tools.ask("scontrol", &["show", "node", "-o", &list]).await?);
        let mut nodes = Vec::new();
        for (name, cpus) in names.iter().zip(cpus) {
            let node = shown.iter().find(|node| node.name == *name);
            let all = node.map_or(Bytes(0), |node| node.memory);
            let memory = by_node
                .map(Bytes::mib)
                .or(by_cpu.map(|mib| Bytes::mib(mib * u64::from(cpus))))
                .unwrap_or(all);
            let mut resources = Resources::cpus(cpus).with_memory(memory);
            resources.gpu = Milli::whole(given.unwrap_or(0).min(node.map_or(0, |node| node.gpus)));
            nodes.push((name.clone(), resources));
        }
        let gpus =
            nodes.iter().map(|(name, resources)| (name.clone(), resources.gpu.units() as u32)).collect();
        let line = Line::new(ENGINE, nodes)?;
        shown.iter().filter(|node| !node.up).for_each(|node| line.set_up(&node.name, false));
        let mark = format!("{job}-{}-", std::process::id());
        let inner = Inner {
            config,
            tools,
            job,
            line,
            gpus,
            mark,
            started: AtomicU64::new(0),
            held: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

impl Inner {
    fn held(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unknown(lease: LeaseId, operation: &'static str) -> Error {
        Error::UnknownLease { lease, operation }
    }

    fn begin_launch(&self, id: LeaseId) -> Result<Lease> {
        let mut all = self.held();
        let held = all.get_mut(&id).ok_or_else(|| Self::unknown(id, "launching"))?;
        let running = held.steps.iter().filter(|step| !step.look().ended).count();
        if running > 0 || held.launching {
            return Err(Error::StillRunning { lease: id, running });
        }
        (held.launching, held.steps) = (true, Vec::new());
        Ok(held.lease.clone())
    }

    async fn launch(self: Arc<Self>, id: LeaseId, launch: Launch) -> Result<Events> {
        let lease = self.begin_launch(id)?;
        let (sender, events) = queue();
        let started = self.start_all(&lease, &launch, &sender).await;
        let given_up = match self.held().get_mut(&id) {
            Some(held) => {
                held.launching = false;
                false
            }
            None => true,
        };
        match started {
            Ok(_) if !given_up => Ok(events),
            Ok(steps) => {
                self.end_all(&steps, Duration::ZERO).await;
                self.line.release(id);
                Err(Self::unknown(id, "launching"))
            }
            Err((steps, error)) => {
                self.end_all(&steps, Duration::ZERO).await;
                if given_up {
                    self.line.release(id);
                }
                Err(error)
            }
        }
    }

    /// Starts a step on every seat and waits until each worker runs, or it is known that one never will.
    async fn start_all(
        &self,
        lease: &Lease,
        launch: &Launch,
        events: &EventSender,
    ) -> Result<Vec<Arc<Step>>, (Vec<Arc<Step>>, Error)> {
        let mut steps: Vec<Arc<Step>> = Vec::new();
        for seat in &lease.seats {
            match self.start_one(lease, seat, launch, events) {
                Ok(step) => steps.push(step.clone()),
                Err(error) => return Err((steps, error)),
            }
            if let Some(held) = self.held().get_mut(&lease.id) {
                held.steps.clone_from(&steps);
            }
        }
        let deadline = Instant::now() + self.config.start_patience();
        for step in &steps {
            let left = deadline.saturating_duration_since(Instant::now());
            let decided = step.wait(left, super::step::Seen::decided).await;
            let seen = step.look();
            if seen.step.is_none() {
                let why = if decided {
                    seen.why_not()
                } else {
                    format!("no answer within {:?}", self.config.start_patience())
                };
                let source = std::io::Error::other(why);
                let (slot, node, program) = (step.slot, step.node.clone(), step.program.clone());
                return Err((steps.clone(), Error::Launch { slot, node, program, source }));
            }
        }
        Ok(steps)
    }

    fn start_one(
        &self,
        lease: &Lease,
        seat: &Seat,
        launch: &Launch,
        events: &EventSender,
    ) -> Result<Arc<Step>> {
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let id = WorkerId(format!("{}{number}", self.mark));
        let nonce = Token::random().expose()[..16].to_owned();
        let log =
            launch.logs.as_ref().map(|folder| Log::open(folder, launch.attempt, seat.slot)).transpose()?;
        let mut variables = environment(lease, seat, launch);
        variables.extend([script::variable(env::WORKER, &id.0)]);
        let mut command = launch.command.clone();
        // Where the driver stands, unless said otherwise: a step begins elsewhere on some sites.
        command.cwd = command.cwd.or_else(|| std::env::current_dir().ok());
        let program = command.program.clone();
        let mut srun = Command::new(self.tools.path("srun"));
        srun.env_clear()
            .envs(super::tool::KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        let gpus = self.gpus.get(&seat.node).copied().unwrap_or(0);
        srun.args(script::srun(seat, gpus, &format!("worker-{}", seat.slot)));
        let order = Order {
            slot: seat.slot,
            node: seat.node.clone(),
            program: program.clone(),
            id,
            script: script::step(&nonce, &command, &variables),
            nonce,
            record: Record { log, ..Record::default() },
            events: events.clone(),
        };
        let (slot, node) = (seat.slot, seat.node.clone());
        Step::start(srun, order).map_err(|source| Error::Launch { slot, node, program, source })
    }

    /// Sends a signal to the steps that have begun; those that have not lose their `srun`.
    async fn signal(&self, steps: &[Arc<Step>], signal: &str) {
        let mut args = vec![OsString::from(format!("--signal={signal}"))];
        for step in steps {
            let seen = step.look();
            match (&seen.step, seen.ended) {
                (_, true) => {}
                (Some(number), _) => args.push(format!("{}.{number}", self.job).into()),
                (None, _) => step.kill_srun(),
            }
        }
        if args.len() > 1 {
            // Its word does not count, the ends do: it complains where a step ended meanwhile.
            let asked = self.tools.run("scancel", args, Vec::new());
            match tokio::time::timeout(self.config.kill_patience(), asked).await {
                Ok(Err(error)) => tracing::warn!(%error, "could not signal steps"),
                Ok(Ok(_)) => {}
                Err(_) => tracing::warn!(patience = ?self.config.kill_patience(), "scancel took too long"),
            }
        }
    }

    async fn all_ended(steps: &[Arc<Step>], within: Duration) -> bool {
        let deadline = Instant::now() + within;
        for step in steps {
            let left = deadline.saturating_duration_since(Instant::now());
            if !step.wait(left, |seen| seen.ended).await {
                return false;
            }
        }
        true
    }

    /// Ends the steps; afterwards each has told its end, and nodes that did not obey are closed.
    async fn end_all(&self, steps: &[Arc<Step>], grace: Duration) {
        let running: Vec<Arc<Step>> = steps.iter().filter(|step| !step.look().ended).cloned().collect();
        if running.is_empty() {
            return;
        }
        running.iter().for_each(|step| step.cancelled());
        if !grace.is_zero() {
            self.signal(&running, "TERM").await;
            if Self::all_ended(&running, grace).await {
                return;
            }
        }
        self.signal(&running, "KILL").await;
        if Self::all_ended(&running, self.config.kill_patience()).await {
            return;
        }
        for step in running.iter().filter(|step| !step.look().ended) {
            tracing::warn!(
                node = step.node,
                slot = step.slot,
                "a node does not end a worker; it is not used any more"
            );
            self.line.set_up(&step.node, false);
            step.give_up();
        }
        Self::all_ended(&running, self.config.kill_patience()).await;
    }
}

/// What the worker finds in its environment: the driver's own variables, the seat's, the command's, the slot's.
fn environment(lease: &Lease, seat: &Seat, launch: &Launch) -> BTreeMap<OsString, OsString> {
    let command = &launch.command;
    let mut variables =
        shell::environment(&crate::spawner::WorkerCommand { env: BTreeMap::new(), ..command.clone() });
    variables.extend([
        script::variable(env::SLOT, seat.slot.to_string()),
        script::variable(env::SLOTS, lease.workers().to_string()),
        script::variable(env::LOCAL_SLOT, seat.local_slot.to_string()),
        script::variable(env::ATTEMPT, launch.attempt.to_string()),
        script::variable(env::NODE, &seat.node),
    ]);
    variables.remove(std::ffi::OsStr::new("CUDA_VISIBLE_DEVICES"));
    if script::names_gpus(seat) {
        let gpus: Vec<String> = seat.gpus.iter().map(u32::to_string).collect();
        variables.extend([script::variable("CUDA_VISIBLE_DEVICES", gpus.join(","))]);
    }
    if !seat.resources.cpu.is_zero() {
        let threads = seat.resources.cpu.units().max(1).to_string();
        variables.extend(env::THREADS.map(|name| script::variable(name, &threads)));
    }
    variables.extend(command.env.iter().map(|(name, value)| script::variable(name, value)));
    let own = launch.slot_env.get(seat.slot).into_iter().flatten();
    variables.extend(own.map(|(name, value)| script::variable(name, value)));
    variables
}

#[async_trait]
impl Spawner for SlurmSpawner {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    fn nodes(&self) -> Vec<NodeStatus> {
        self.inner.line.nodes()
    }

    async fn acquire(&self, request: GangRequest) -> Result<Lease> {
        let lease = self.inner.line.acquire(request).await?;
        let held = Held { lease: lease.clone(), steps: Vec::new(), launching: false };
        self.inner.held().insert(lease.id, held);
        Ok(lease)
    }

    async fn launch(&self, lease: LeaseId, launch: Launch) -> Result<Events> {
        // In a task of its own it runs to its end even if nobody waits for it any more.
        let launched = tokio::spawn(self.inner.clone().launch(lease, launch)).await;
        launched.unwrap_or_else(|error| {
            Err(Error::SpawnerGone { engine: ENGINE, cause: format!("a launch did not end: {error}") })
        })
    }

    async fn kill(&self, lease: LeaseId, grace: Duration) -> Result<()> {
        let steps = {
            let held = self.inner.held();
            held.get(&lease).ok_or_else(|| Inner::unknown(lease, "killing"))?.steps.clone()
        };
        self.inner.end_all(&steps, grace).await;
        Ok(())
    }

    async fn release(&self, lease: LeaseId) -> Result<()> {
        let (steps, launching) = match self.inner.held().get(&lease) {
            Some(held) => (held.steps.clone(), held.launching),
            None => return Ok(()),
        };
        if launching {
            // The launch finds the lease gone, ends what it started and frees the seats.
            self.inner.held().remove(&lease);
            steps.iter().for_each(|step| step.kill_srun());
            return Ok(());
        }
        self.inner.end_all(&steps, Duration::ZERO).await;
        if self.inner.held().remove(&lease).is_some() {
            self.inner.line.release(lease);
        }
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut scancel = Command::new(self.tools.path("scancel"));
        scancel.arg("--signal=KILL");
        let mut any = false;
        for step in held.values().flat_map(|held| &held.steps).filter(|step| !step.look().ended) {
            step.cancelled();
            match step.look().step {
                Some(number) => {
                    scancel.arg(format!("{}.{number}", self.job));
                    any = true;
                }
                None => step.kill_srun(),
            }
        }
        if any {
            // Started and left: the job's end would end the steps too.
            let _ = scancel.spawn();
        }
    }
}
