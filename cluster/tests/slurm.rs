//! Gangs on a real Slurm, and what befalls them. This program is the job's driver and its own worker.
//!
//! Skipped unless `REGATTA_TEST_SLURM` names the folder of a running cluster, as `cargo xtask test-engines slurm` sets it up:
//! nodes `n1` to `n3` of two CPUs on this host, the process id of each node's daemon in `pid/<node>`, partitions `main` and,
//! with the right to preempt it, `urgent`.

mod gangs;
mod nodes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gangs::{PATIENCE, RECOVERED, ROLE, SECRET, Watched, driver, now, run, say, worker};
use libtest_mimic::{Arguments, Trial};
use nodes::{Node, alive, environment_of, pids};
use regatta_cluster::engine::{Engine, JobSpec, JobState, conformance};
use regatta_cluster::slurm::{SlurmConfig, SlurmEngine, SlurmSpawner};
use regatta_cluster::*;

const CLUSTER: &str = "REGATTA_TEST_SLURM";

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("conform") => run(async {
            let spawner = SlurmSpawner::from_env(SlurmConfig::default()).await.unwrap();
            regatta_cluster::conformance::all(&spawner).await;
            say("it conforms");
        }),
        Ok("driver") => run(drive()),
        Ok(_) => worker(),
        Err(_) => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os(CLUSTER).expect("a cluster")).join("jobs")
}

// The driver.

async fn drive() {
    let control = Control::bind(slurm::control()).await.unwrap();
    let spawner = SlurmSpawner::from_env(SlurmConfig::default()).await.unwrap();
    driver(control, Arc::new(spawner), &std::env::var("SLURMD_NODENAME").unwrap(), folder().join("logs"))
        .await;
}

// The tests.

fn trials() -> Vec<Trial> {
    let here = std::env::var_os(CLUSTER).is_some();
    let trial = |name: &str, test: fn() -> std::pin::Pin<Box<dyn Future<Output = ()>>>| {
        Trial::test(name, move || {
            nodes::settle(PATIENCE);
            run(test());
            Ok(())
        })
        .with_ignored_flag(!here)
    };
    vec![
        trial("the_engine_conforms", || Box::pin(regatta_cluster::engine::conformance::all(engine()))),
        trial("the_spawner_conforms", || Box::pin(spawner_conforms())),
        trial("a_killed_worker_is_replaced", || Box::pin(worker_killed())),
        trial("a_killed_node_is_replaced", || Box::pin(node_fails(Node::kill))),
        trial("a_node_that_hangs_is_replaced", || Box::pin(node_fails(Node::stop))),
        trial("a_killed_driver_takes_its_workers_with_it", || Box::pin(driver_killed())),
        trial("cancelling_leaves_nothing_behind", || Box::pin(cancelled())),
        trial("a_preempted_driver_is_told_and_resumable", || Box::pin(preempted())),
        trial("what_can_never_run_is_refused_at_once", || Box::pin(no_capacity())),
        trial("secrets_stand_nowhere", || Box::pin(secrets())),
        trial("the_first_line_comes_soon", || Box::pin(latency())),
    ]
}

fn engine() -> Arc<dyn Engine> {
    Arc::new(SlurmEngine::new(SlurmConfig::default(), folder()))
}

/// This program in another role, on so many nodes.
fn job(role: &str, nodes: usize) -> JobSpec {
    gangs::job(role, nodes, Resources::cpus(2))
}

async fn spawner_conforms() {
    let mut watched = Watched::submit(engine(), job("conform", 2)).await;
    watched.line("it conforms").await;
    assert_eq!(conformance::ended(&*watched.engine, &watched.spec.id).await, Reason::Succeeded);
}

async fn worker_killed() {
    let mut watched = Watched::submit(engine(), job("driver", 2)).await;
    watched.line("stepping 1 at ").await;
    let (node, pid) = watched.rank(1, 1).await;
    let since = now();
    nodes::signal(pid, rustix::process::Signal::KILL);
    let took = watched.recovered(2, since).await;
    assert!(
        watched
            .line("failed 1 at ")
            .await
            .contains(&format!("on {node}: rank 1 (slot 1, attempt 1) was killed by signal 9"))
    );
    assert!(took < RECOVERED, "{took:?}");
    assert_eq!(watched.cancel().await, JobState::Ended(Reason::Cancelled));
}

async fn node_fails(how: fn(&Node)) {
    let mut spec = job("driver", 2);
    spec.spare_nodes = 1;
    let mut watched = Watched::submit(engine(), spec).await;
    watched.line("stepping 1 at ").await;
    let (driver, (node, _)) = (watched.line("driver ").await, watched.rank(1, 1).await);
    assert!(!driver.ends_with(&node), "the driver stands on {node} too");
    let node = Node::find(&node);
    let since = now();
    how(&node);
    let took = watched.recovered(2, since).await;
    assert_ne!(watched.rank(1, 2).await.0, node.name);
    assert_ne!(watched.rank(0, 2).await.0, node.name);
    node.restore();
    watched.cancel().await;
    assert!(took < RECOVERED, "{took:?}");
}

async fn driver_killed() {
    let mut watched = Watched::submit(engine(), job("driver", 2)).await;
    watched.line("stepping 1 at ").await;
    let ranks = [watched.rank(0, 1).await.1, watched.rank(1, 1).await.1];
    let driver = watched.line("driver ").await.split(' ').next().unwrap().parse().unwrap();
    nodes::signal(driver, rustix::process::Signal::KILL);
    let reason = conformance::ended(&*watched.engine, &watched.spec.id).await;
    assert_eq!(reason, Reason::UserError { code: 137 });
    nodes::gone(&ranks, PATIENCE);
}

async fn cancelled() {
    let mut watched = Watched::submit(engine(), job("driver", 2)).await;
    watched.line("stepping 1 at ").await;
    let ranks = [watched.rank(0, 1).await.1, watched.rank(1, 1).await.1];
    let other = engine();
    let status = other.cancel(&watched.spec.id, Duration::from_secs(1)).await.unwrap();
    assert_eq!(status.state, JobState::Ended(Reason::Cancelled), "{status:?}");
    nodes::gone(&ranks, PATIENCE);
}

async fn preempted() {
    let mut spec = job("", 3);
    spec.command = regatta_cluster::conformance::sh(
        "trap 'echo told; exit 75' USR2; echo ready; while :; do sleep 0.05; done",
    );
    let mut low = Watched::submit(engine(), spec).await;
    low.line("ready").await;
    let mut urgent = job("", 3);
    urgent.command = regatta_cluster::conformance::sh("echo urgent");
    let urgently = SlurmEngine::new(
        SlurmConfig { partition: Some("urgent".into()), ..SlurmConfig::default() },
        folder(),
    );
    conformance::submit(&urgently, &urgent).await;
    let reason = conformance::ended(&*low.engine, &low.spec.id).await;
    assert!(conformance::log(&*low.engine, &low.spec.id).await.contains("told"), "it ended with {reason:?}");
    assert_eq!(reason, Reason::Preempted);
    assert_eq!(conformance::ended(&urgently, &urgent.id).await, Reason::Succeeded);
}

async fn no_capacity() {
    let refusal = async |spec: JobSpec, config: SlurmConfig| {
        let since = Instant::now();
        let error = SlurmEngine::new(config, folder()).submit(&spec).await.unwrap_err().to_string();
        assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
        error
    };
    let config = SlurmConfig::default;
    let error = refusal(job("driver", 9), config()).await;
    assert!(error.contains("its partition has not so many nodes") && error.contains("sinfo"), "{error}");
    let mut fat = job("driver", 1);
    fat.room.per_worker = Resources::cpus(99);
    let error = refusal(fat, config()).await;
    assert!(error.contains("none so large") || error.contains("configuration is not available"), "{error}");
    let error = refusal(job("driver", 1), SlurmConfig { partition: Some("none".into()), ..config() }).await;
    assert!(error.contains("nvalid partition"), "{error}");
    let long = JobSpec { time_limit: Some(Duration::from_secs(7 * 86_400)), ..job("driver", 1) };
    let error = refusal(long, config()).await;
    assert!(error.contains("so long") || error.contains("time limit"), "{error}");
    // Nothing of them stays in the queue.
    assert!(nodes::tool("squeue", &["-h", "-o", "%j"]).lines().all(|name| !name.starts_with("conformance")));
}

async fn secrets() {
    let mut watched = Watched::submit(engine(), job("driver", 2)).await;
    watched.line("stepping 1 at ").await;
    let number =
        watched.engine.describe(std::slice::from_ref(&watched.spec.id)).await.unwrap()[0].engine_id.clone();
    let (_, pid) = watched.rank(1, 1).await;
    assert!(environment_of(pid).contains(SECRET), "the worker has what it was given");
    let token = watched.engine.render(&watched.spec).unwrap();
    let mut shown = vec![token, nodes::tool("scontrol", &["show", "job", "-dd", &number])];
    shown.push(nodes::tool("scontrol", &["write", "batch_script", &number, "-"]));
    shown.push(nodes::tool("squeue", &["-o", "%all"]));
    shown.push(nodes::tool("squeue", &["-s", "-o", "%all"]));
    shown.extend(
        pids()
            .into_iter()
            .map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()),
    );
    assert!(shown[1].contains(&watched.spec.id.to_string()), "{}", shown[1]);
    // The run's token reached the worker by the same way as the secret, and shows no more than it does.
    assert!(shown.iter().all(|text| !text.contains(SECRET)), "a secret is shown");
    assert!(
        !folder().join(watched.spec.id.as_str()).join("env").exists(),
        "the file is gone once it was read"
    );
    watched.cancel().await;
    assert!(alive(std::process::id() as i32));
}

/// What the house adds to what Slurm itself takes, side by side.
async fn latency() {
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for _ in 0..5 {
        let since = now();
        let script = "#!/bin/sh\nsrun -N2 -n2 --export=NONE /bin/sh -c 'date +first%s%3N'\n";
        let out = folder().join(format!("bare-{since}"));
        std::fs::write(out.with_extension("sh"), script).unwrap();
        let (file, log) = (out.with_extension("sh").display().to_string(), out.display().to_string());
        nodes::tool("sbatch", &["-N2", "--ntasks-per-node=1", "-c2", "-o", &log, &file]);
        let first = nodes::eventually(PATIENCE, || {
            let text = std::fs::read_to_string(&out).unwrap_or_default();
            text.lines().find_map(|line| line.strip_prefix("first")?.parse::<u128>().ok())
        });
        theirs.push(first - since);
        nodes::all_idle(PATIENCE);

        let since = now();
        let mut watched = Watched::submit(engine(), job("driver", 2)).await;
        let stepping: u128 = watched.line("stepping 1 at ").await.parse().unwrap();
        ours.push(stepping - since);
        watched.cancel().await;
        nodes::all_idle(PATIENCE);
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    let added = ours[2].saturating_sub(theirs[2]);
    eprintln!(
        "submit to the third step: {} ms; sbatch to the first line of a bare srun: {} ms; added: {added} ms",
        ours[2], theirs[2]
    );
    // The promise is 500 ms on an idle machine; the figure is printed. How far from idle it is, the bare srun tells.
    assert!(added < 1000 + 3 * theirs[2], "{added} ms");
}
