//! The real control plane, worker's side included, on a simulated network and clock: partitions of either kind, messages
//! held back and let go, slow links, stopped and crashed workers. Many seeds: `REGATTA_SIM_SEEDS` sets how many.

mod support;

use std::cell::Cell;
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use regatta_cluster::gang::state::{Event, State};
use regatta_cluster::worker::{Connection, Orphan};
use regatta_cluster::*;
use support::FakeSpawner;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

const WORKERS: usize = 3;
const STEPS: u64 = 60;
const PORT: u16 = 9000;

/// A simulated connection as the server wants it.
struct Io(TcpStream);

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn dial() -> worker::Dial {
    Arc::new(|host| {
        Box::pin(async move {
            let stream = TcpStream::connect(host).await?;
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    })
}

/// The launch of one slot, as its host is told of it.
struct Birth {
    config: WorkerConfig,
    events: EventSender,
    slot: usize,
}

/// A host on which the workers of one slot run, one after the other; a fenced one may still be at it beside its successor.
async fn host(mut births: mpsc::UnboundedReceiver<Birth>) -> turmoil::Result {
    while let Some(Birth { mut config, events, slot }) = births.recv().await {
        config.dial = Some(dial());
        config.orphan = Orphan::Tell;
        tokio::spawn(async move {
            let (worker, session) = Worker::hosted(config);
            let session = tokio::spawn(session);
            let code = if work(&worker).await.is_ok() { 0 } else { 1 };
            session.abort();
            let reason = if code == 0 { Reason::Succeeded } else { Reason::UserError { code } };
            let exit = Exit { code: Some(code), signal: None, reason, tail: Vec::new() };
            events.send(WorkerEvent::Exited { slot, exit });
        });
    }
    Ok(())
}

/// The life of a worker: reports numbered steps, is told to stop, or loses its controller.
async fn work(worker: &Worker) -> Result<()> {
    loop {
        match worker.next_async().await? {
            Command::Assign(_) => worker.ready()?,
            Command::Start { generation, .. } => {
                for step in 0..STEPS {
                    if worker.is_over(generation) {
                        break;
                    }
                    worker.report(step, vec![0; 100])?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                if !worker.is_over(generation) {
                    worker.finished(Vec::new())?;
                }
            }
            Command::Stop { .. } => return Ok(()),
            _ => {}
        }
    }
}

/// What the owner of the gang wrote down.
#[derive(Default)]
struct Ledger {
    /// For each attempt and rank, the sequences and steps heard.
    heard: HashMap<(u32, u32), Vec<(u64, u64)>>,
    finished: HashMap<(u32, u32), usize>,
}

impl Ledger {
    fn enter(&mut self, message: &Message, seed: u64) {
        let key = (message.attempt, message.rank);
        assert_eq!(
            u64::from(message.attempt),
            message.generation,
            "seed {seed}: a generation an attempt here"
        );
        match message.body {
            MessageBody::Report { step, .. } => {
                let heard = self.heard.entry(key).or_default();
                assert_eq!(step, heard.len() as u64, "seed {seed}: {key:?} exactly once and in order");
                assert!(heard.last().is_none_or(|(last, _)| *last < message.sequence), "seed {seed}");
                heard.push((message.sequence, step));
            }
            MessageBody::Finished { .. } => *self.finished.entry(key).or_default() += 1,
            _ => panic!("unexpected message"),
        }
    }
}

/// The controller: runs the gang until it finishes, launching it again whenever it fails.
async fn controller(
    seed: u64,
    births: Vec<mpsc::UnboundedSender<Birth>>,
    done: Rc<Cell<u32>>,
) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let incoming = futures_util::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Io(stream));
        Some((accepted, listener))
    });
    let control = Control::serve(ControlConfig::default(), incoming, &format!("controller:{PORT}"))?;
    let (spawner, mut launches) = FakeSpawner::new();
    let forward = tokio::spawn(async move {
        while let Some(launched) = launches.recv().await {
            for (slot, birth) in births.iter().enumerate() {
                let config = launched.worker(slot as u32);
                birth.send(Birth { config, events: launched.events.clone(), slot }).ok();
            }
        }
    });
    let spec = support::spec(WORKERS).timing(Timing::default());
    let mut gang = Gang::launch(&control, spawner, spec).await?;
    let slots: Vec<u32> = (0..WORKERS as u32).collect();
    let mut fold = State::new(&slots);
    let mut ledger = Ledger::default();
    let mut rng = StdRng::seed_from_u64(seed);
    while let Some(event) = gang.next().await {
        match &event {
            GangEvent::Happened(happened) => {
                fold.apply(happened);
                match happened {
                    Event::Joined => gang.start(Begin::default())?,
                    Event::Failed(_) => gang.relaunch()?,
                    Event::Finished { .. } => gang.begin_stop(Duration::from_secs(5))?,
                    _ => {}
                }
            }
            GangEvent::Message(message) => {
                ledger.enter(message, seed);
                // A slow disk now and then.
                if rng.random_bool(0.02) {
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
                }
                gang.acknowledge(message)?;
            }
            _ => {}
        }
    }
    assert_eq!(fold.phase, regatta_cluster::gang::state::Phase::Stopped, "seed {seed}");
    for rank in 0..WORKERS as u32 {
        let key = (fold.attempt, rank);
        assert_eq!(ledger.heard.get(&key).map(Vec::len), Some(STEPS as usize), "seed {seed}: {key:?}");
        assert_eq!(ledger.finished.get(&key), Some(&1), "seed {seed}: {key:?}");
    }
    done.set(fold.attempt);
    // Nothing on this host runs after this, so what tells the workers' hosts that there are no more births ends first.
    forward.abort();
    forward.await.ok();
    Ok(())
}

#[derive(Clone, Copy)]
enum Fault {
    None,
    Partition,
    OneWayOut,
    OneWayIn,
    Hold,
    Slow,
}

/// Runs one seed; returns how many attempts it took.
fn simulate(seed: u64, faults: usize, kinds: &[Fault]) -> u32 {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut builder = turmoil::Builder::new();
    builder.rng_seed(seed).tick_duration(Duration::from_millis(5));
    builder.simulation_duration(Duration::from_secs(400)).tcp_capacity(4096);
    builder.max_message_latency(Duration::from_millis(20));
    let mut sim = builder.build();
    let done = Rc::new(Cell::new(0));
    let names: Vec<String> = (0..WORKERS).map(|slot| format!("worker-{slot}")).collect();
    let (births, hosts): (Vec<_>, Vec<_>) = (0..WORKERS).map(|_| mpsc::unbounded_channel()).unzip();
    // The hosts of the workers are there before the controller looks for them, and end with it.
    for (name, births) in names.iter().zip(hosts) {
        sim.client(name.as_str(), host(births));
    }
    sim.client("controller", controller(seed, births, done.clone()));

    let mut plan: Vec<(Duration, usize, Fault, Duration)> = (0..faults)
        .map(|_| {
            let at = Duration::from_millis(rng.random_range(0..4000));
            let lasts = Duration::from_millis(rng.random_range(10..7000));
            (at, rng.random_range(0..WORKERS), kinds[rng.random_range(0..kinds.len())], lasts)
        })
        .collect();
    let mut repairs: Vec<(Duration, usize, Fault)> = Vec::new();
    loop {
        let now = sim.elapsed();
        plan.retain(|(at, worker, fault, lasts)| {
            let due = *at <= now;
            if due {
                apply(&sim, &names[*worker], *fault);
                repairs.push((now + *lasts, *worker, *fault));
            }
            !due
        });
        repairs.retain(|(at, worker, fault)| {
            let due = *at <= now;
            if due {
                undo(&sim, &names[*worker], *fault);
            }
            !due
        });
        match sim.step() {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    assert!(done.get() > 0, "seed {seed}: the controller did not come to its end");
    done.get()
}

fn apply(sim: &turmoil::Sim<'_>, worker: &str, fault: Fault) {
    match fault {
        Fault::None => {}
        Fault::Partition => sim.partition(worker, "controller"),
        Fault::OneWayOut => sim.partition_oneway(worker, "controller"),
        Fault::OneWayIn => sim.partition_oneway("controller", worker),
        Fault::Hold => sim.hold(worker, "controller"),
        Fault::Slow => sim.set_link_max_message_latency(worker, "controller", Duration::from_millis(900)),
    }
}

fn undo(sim: &turmoil::Sim<'_>, worker: &str, fault: Fault) {
    match fault {
        Fault::None => {}
        Fault::Partition => sim.repair(worker, "controller"),
        Fault::OneWayOut => sim.repair_oneway(worker, "controller"),
        Fault::OneWayIn => sim.repair_oneway("controller", worker),
        Fault::Hold => sim.release(worker, "controller"),
        Fault::Slow => sim.set_link_max_message_latency(worker, "controller", Duration::from_millis(20)),
    }
}

fn seeds(default: u64) -> u64 {
    std::env::var("REGATTA_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

#[test]
fn without_faults_one_attempt_is_enough() {
    for seed in 0..3 {
        assert_eq!(simulate(seed, 0, &[Fault::None]), 1, "seed {seed}");
    }
}

#[test]
fn a_slow_network_is_not_taken_for_death() {
    for seed in 0..seeds(6) {
        assert_eq!(simulate(seed, 3, &[Fault::Slow]), 1, "seed {seed}");
    }
}

#[test]
fn whatever_the_network_does_every_report_of_an_attempt_counts_once() {
    let kinds = [Fault::Partition, Fault::OneWayOut, Fault::OneWayIn, Fault::Hold, Fault::Slow];
    let mut again = 0;
    for seed in 0..seeds(30) {
        again += u32::from(simulate(seed, 4, &kinds) > 1);
    }
    // The faults were hard enough that some gangs had to be launched again.
    assert!(again > 0);
}
