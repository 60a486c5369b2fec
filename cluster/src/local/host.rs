//! What this host has, and what a simulated one pretends to have.

use std::env;
use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity};

use crate::resource::{Bytes, Milli, Resources};

/// A node of the local spawner: this host, or a part of it under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// What leases call it.
    pub name: String,
    /// What may be given out on it.
    pub resources: Resources,
    /// The host's CPU behind each of the node's, for affinity; without one workers there are not bound.
    pub cpu_ids: Vec<usize>,
    /// What `CUDA_VISIBLE_DEVICES` calls each of the node's GPUs: numbers, or the driver's own list.
    pub gpu_ids: Vec<String>,
}

impl LocalNode {
    /// This host: the CPUs this process may run on, the GPUs it may see, the memory it may use.
    #[must_use]
    pub fn this_host() -> Self {
        let mut cpu_ids = allowed_cpus();
        // A container's quota may be less than its CPUs.
        let usable = std::thread::available_parallelism().map_or(1, usize::from);
        cpu_ids.truncate(usable.max(1));
        let gpu_ids = visible_gpus();
        let mut resources = Resources::cpus(cpu_ids.len().max(1) as u32).with_memory(memory());
        resources.gpu = Milli::whole(gpu_ids.len() as u32);
        Self { name: hostname(), resources, cpu_ids, gpu_ids }
    }

    /// A node in name only: it runs on this host, bound to nothing, and gives out what it is said to have.
    #[must_use]
    pub fn simulated(name: impl Into<String>, resources: Resources) -> Self {
        let gpu_ids = (0..resources.gpu.units()).map(|gpu| gpu.to_string()).collect();
        Self { name: name.into(), resources, cpu_ids: Vec::new(), gpu_ids }
    }
}

fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
        Err(_) => Vec::new(),
    }
}

/// The driver's own `CUDA_VISIBLE_DEVICES` where it is set, else every GPU with a device file.
fn visible_gpus() -> Vec<String> {
    match env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => listed_gpus(&list),
        Err(_) => {
            let is_gpu = |name: &str| {
                let number = name.strip_prefix("nvidia").unwrap_or("");
                !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
            };
            let files = fs::read_dir("/dev").into_iter().flatten().flatten();
            let count = files.filter(|file| file.file_name().to_str().is_some_and(is_gpu)).count();
            (0..count).map(|gpu| gpu.to_string()).collect()
        }
    }
}

/// As CUDA reads it: what stands after the first impossible entry is not seen.
fn listed_gpus(list: &str) -> Vec<String> {
    let possible = |id: &&str| !id.is_empty() && !id.starts_with('-') && *id != "NoDevFiles";
    list.split(',').map(str::trim).take_while(possible).map(str::to_owned).collect()
}

/// The host's memory, or the control group's limit where that is less.
fn memory() -> Bytes {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024);
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let limit = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max"));
    let limit = limit.ok().and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or(u64::MAX);
    Bytes(total.min(limit))
}

fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".into() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_something_to_give() {
        let host = LocalNode::this_host();
        assert!(host.resources.cpu >= Milli::ONE && host.resources.memory > Bytes::mib(64), "{host:?}");
        assert_eq!(host.cpu_ids.len() as u64, host.resources.cpu.units());
        assert_eq!(host.gpu_ids.len() as u64, host.resources.gpu.units());
    }

    #[test]
    fn gpus_are_listed_as_cuda_reads_them() {
        assert_eq!(listed_gpus("2, GPU-8f3a,MIG-1"), ["2", "GPU-8f3a", "MIG-1"]);
        assert_eq!(listed_gpus("0,-1,1"), ["0"]);
        assert!(listed_gpus("").is_empty());
    }
}
