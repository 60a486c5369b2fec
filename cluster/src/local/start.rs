//! From a seat to a running process: its environment, its limits, its log, its attendant.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::CpuSet;

use super::attendant::{Attendant, Office};
use super::host::LocalNode;
use super::output::{Log, Record};
use super::sys::{ChildSetup, on_child};
use super::worker::{Post, Worker};
use crate::env;
use crate::error::{Error, Result};
use crate::events::EventSender;
use crate::request::Seat;
use crate::spawner::{Launch, WorkerEvent, WorkerId};

/// One worker's start.
pub(super) struct Start<'a> {
    pub(super) launch: &'a Launch,
    pub(super) seat: &'a Seat,
    pub(super) slots: usize,
    pub(super) node: &'a LocalNode,
    pub(super) pin: bool,
    pub(super) id: WorkerId,
    /// How many the spawner started before it.
    pub(super) number: u64,
}

/// Opens what a worker needs to work for a gang.
pub(super) fn post(launch: &Launch, slot: usize, events: &EventSender) -> Result<Post> {
    let log = launch.logs.as_ref().map(|folder| Log::open(folder, launch.attempt, slot)).transpose()?;
    let record = Arc::new(Mutex::new(Record { log, ..Record::default() }));
    Ok(Post { slot, events: events.clone(), record })
}

impl Start<'_> {
    /// Spawns the worker, with an attendant, and tells of it.
    pub(super) fn run(self, office: &Office, post: Post) -> Result<Arc<Worker>> {
        let events = post.events.clone();
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| self.failed(io::Error::from(error)))?;
        let seat = self.seat;
        let cgroup = office.cgroup.as_ref();
        let cgroup =
            cgroup.and_then(|all| all.worker(&format!("w{}", self.number), seat.resources.memory).ok());
        let mut child = match office.launcher.spawn(self.command()) {
            Some(Ok(child)) => child,
            Some(Err(error)) => return Err(self.failed(error)),
            None => {
                let cause = "its spawning thread is gone".into();
                return Err(Error::SpawnerGone { engine: super::ENGINE, cause });
            }
        };
        let pid = child.id();
        office.sentinel.remember(pid);
        let (slot, id) = (self.seat.slot, self.id.clone());
        let worker = Arc::new(Worker::new(id.clone(), pid, self.seat.clone(), post, bell));
        events.send(WorkerEvent::Started { slot, worker: id, pid: Some(pid), reused: false });
        if let Err((unattended, error)) = Attendant::start(worker.clone(), child, cgroup, office.clone()) {
            child = unattended;
            let _ = child.kill();
            office.sentinel.forget(pid);
            let _ = child.wait();
            worker.set_ended();
            return Err(self.failed(error));
        }
        Ok(worker)
    }

    fn failed(&self, source: io::Error) -> Error {
        let (slot, node) = (self.seat.slot, self.seat.node.clone());
        Error::Launch { slot, node, program: self.launch.command.program.clone(), source }
    }

    fn command(&self) -> Command {
        let wanted = &self.launch.command;
        let mut command = Command::new(&wanted.program);
        command.args(&wanted.args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if !wanted.inherit_env {
            command.env_clear();
        }
        command.envs(self.environment()).envs(&wanted.env);
        command.envs(self.launch.slot_env.get(self.seat.slot).into_iter().flatten());
        // The mark by which its processes are found must not be lost.
        command.env(env::WORKER, &self.id.0);
        if let Some(cwd) = &wanted.cwd {
            command.current_dir(cwd);
        }
        let cpus = if self.pin { self.cpu_set() } else { None };
        on_child(&mut command, ChildSetup { parent: std::process::id(), cpus });
        command
    }

    fn environment(&self) -> BTreeMap<&'static str, OsString> {
        let seat = self.seat;
        let mut vars: BTreeMap<&str, OsString> = BTreeMap::from([
            (env::SLOT, seat.slot.to_string().into()),
            (env::SLOTS, self.slots.to_string().into()),
            (env::LOCAL_SLOT, seat.local_slot.to_string().into()),
            (env::ATTEMPT, self.launch.attempt.to_string().into()),
            (env::NODE, seat.node.clone().into()),
            ("CUDA_VISIBLE_DEVICES", self.visible_gpus().into()),
        ]);
        // Device files are numbered by the bus; a list that the driver was given means its own order.
        if std::env::var_os("CUDA_VISIBLE_DEVICES").is_none() {
            vars.insert("CUDA_DEVICE_ORDER", "PCI_BUS_ID".into());
        }
        if !seat.resources.cpu.is_zero() {
            let threads = seat.resources.cpu.units().max(1).to_string();
            vars.extend(env::THREADS.map(|name| (name, threads.clone().into())));
        }
        vars
    }

    /// Empty where the seat has no GPU: a worker must not take what another was given.
    fn visible_gpus(&self) -> String {
        let id = |&gpu: &u32| self.node.gpu_ids.get(gpu as usize).cloned().unwrap_or_else(|| gpu.to_string());
        self.seat.gpus.iter().map(id).collect::<Vec<_>>().join(",")
    }

    fn cpu_set(&self) -> Option<CpuSet> {
        let mut set = CpuSet::new();
        for &cpu in &self.seat.cpus {
            set.set(*self.node.cpu_ids.get(cpu as usize)?);
        }
        (set.count() > 0).then_some(set)
    }
}
