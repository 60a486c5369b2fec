//! What the worker sees of its machine, for its hello.

use crate::proto::control::HostResources;

/// The processors this process may run on, the machine's memory and the GPUs it was given.
pub(super) fn resources() -> HostResources {
    HostResources {
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_bytes: memory().unwrap_or(0),
        gpus: std::env::var("CUDA_VISIBLE_DEVICES")
            .map(|devices| devices.split(',').filter(|d| !d.is_empty()).map(str::to_owned).collect())
            .unwrap_or_default(),
    }
}

fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
