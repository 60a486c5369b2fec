//! The cluster runtime's figures, one JSON line each on standard output:
//!
//! - `gang_start` {ms}: from asking for a gang of 2 until both have joined, processes included (median of the rounds);
//! - `report_roundtrip` {us}: a worker's report to the gang's owner, whose decision comes back (median);
//! - `controller_rss` {mb}: the driver's memory with a gang of 2 at work.
//!
//! This program is its own worker.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_cluster::local::{LocalConfig, LocalSpawner};
use regatta_cluster::*;

const STARTS: usize = 30;
const ROUNDTRIPS: usize = 3000;
const DEADLINE: Duration = Duration::from_secs(30);

type Fallible<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    if WorkerConfig::is_worker() {
        return worker();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { tokio::time::timeout(DEADLINE * 4, driver()).await? })
}

fn worker() -> Fallible<()> {
    let worker = Worker::from_env()?;
    loop {
        match worker.next(DEADLINE)? {
            Command::Assign(_) => worker.ready()?,
            Command::Start { .. } => {
                let mut times = Vec::with_capacity(ROUNDTRIPS);
                for step in 0..ROUNDTRIPS as u64 {
                    let began = Instant::now();
                    worker.report(step, vec![0; 64])?;
                    while !matches!(worker.next(DEADLINE)?, Command::Decide { .. }) {}
                    times.push(began.elapsed());
                }
                worker.finished((median(times).as_nanos() as u64).to_le_bytes().to_vec())?;
            }
            Command::Stop { .. } => return Ok(()),
            _ => {}
        }
    }
}

async fn driver() -> Fallible<()> {
    let control = Control::bind(ControlConfig::default()).await?;
    let spawner = Arc::new(LocalSpawner::new(LocalConfig::default())?);
    let mut starts = Vec::with_capacity(STARTS);
    for round in 0..STARTS {
        let began = Instant::now();
        let gang = join(&control, &spawner, &format!("start-{round}"), 2).await?;
        starts.push(began.elapsed());
        gang.stop(Duration::from_secs(5)).await?;
    }
    line("gang_start", "ms", median(starts).as_secs_f64() * 1e3)?;

    let mut gang = join(&control, &spawner, "roundtrip", 1).await?;
    gang.start(Begin::default())?;
    let nanos = loop {
        let Some(event) = gang.next().await else { return Err("the gang ended".into()) };
        if let Some(failure) = event.failure() {
            return Err(failure.clone().into());
        }
        let GangEvent::Message(message) = event else { continue };
        match &message.body {
            MessageBody::Finished { payload } => break u64::from_le_bytes(payload.as_slice().try_into()?),
            _ => gang.decide(message.rank, message.generation, vec![1])?,
        }
        gang.acknowledge(&message)?;
    };
    gang.stop(Duration::from_secs(5)).await?;
    line("report_roundtrip", "us", nanos as f64 / 1e3)?;

    let gang = join(&control, &spawner, "memory", 2).await?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kib: f64 = rss.trim().trim_end_matches(" kB").parse()?;
    line("controller_rss", "mb", kib / 1024.0)?;
    gang.stop(Duration::from_secs(5)).await?;
    Ok(())
}

async fn join(control: &Control, spawner: &Arc<LocalSpawner>, run: &str, workers: usize) -> Fallible<Gang> {
    let request = GangRequest::new(run, workers, "cpu: 1".parse()?);
    let spec = GangSpec::new(run, request, WorkerCommand::myself()?);
    let mut gang = Gang::launch(control, spawner.clone(), spec).await?;
    gang.joined(drop).await?;
    Ok(gang)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn line(case: &str, unit: &str, value: f64) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{{\"case\":\"{case}\",\"{unit}\":{value:.3}}}")
}
