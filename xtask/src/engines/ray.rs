//! A real Ray of three nodes on this host: distinct loopback addresses, folders and ports, and a token on every node.
//!
//! Never `ray stop`: it ends every Ray of the host by name. What is ended here are the sessions that were begun here.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{EXAMPLE, bound, free_ports, kept};
use crate::{cargo, libtorch, python, root, sh};

const NODES: usize = 3;
const READY: Duration = Duration::from_secs(180);
/// What every process that began here has in its environment, and the test is told its folder by.
const MARK: &str = "REGATTA_TEST_RAY";

/// Starts a cluster, runs the tests of the engine and of the product on it, and takes it down whatever came of them.
pub(super) fn test(keep: bool) -> Result<()> {
    if keep {
        let cluster = Ray::start()?;
        return kept(&cluster.environment());
    }
    libtorch::setup(false)?;
    // Of the whole workspace, as other chores build it, so that nothing is built twice.
    sh(cargo().args(["build", "--workspace", "--bin", EXAMPLE]))?;
    let tests = ["test", "--workspace", "--test", "ray"];
    sh(cargo().args(tests).arg("--no-run"))?;
    let cluster = Ray::start()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let mut run = cargo();
    run.args(tests).args(["--no-fail-fast", "--", "--test-threads=1"]).envs(cluster.environment());
    run.env("REGATTA_TEST_EXAMPLE", target.join("debug").join(EXAMPLE));
    sh(&mut run)
}

/// A running Ray: a head and two more nodes of one CPU each.
struct Ray {
    /// Its folders, logs and process ids; removed with it. Short, for the names of sockets are.
    run: PathBuf,
    bin: PathBuf,
    token: String,
    dashboard: u16,
    daemons: Vec<Child>,
}

impl Ray {
    fn start() -> Result<Self> {
        let python = python::RAY_CLUSTER.python()?;
        let bin = python.parent().unwrap_or(Path::new("")).to_path_buf();
        let run = std::env::temp_dir().join(format!("rray{}", std::process::id()));
        for folder in ["log", "pid", "jobs"] {
            fs::create_dir_all(run.join(folder))?;
        }
        let ports = free_ports(4 + 2 * NODES)?;
        let mut secret = [0u8; 16];
        fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
        let token = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut cluster = Self { run, bin, token, dashboard: ports[0], daemons: Vec::new() };
        let head = format!("{}:{}", address(0), ports[1]);
        for node in 0..NODES {
            let of_node = match node {
                0 => format!(
                    "--head --port={} --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port={} \
                     --ray-client-server-port={}",
                    ports[1], ports[0], ports[2]
                ),
                _ => format!("--address={head}"),
            };
            cluster.node(node, &of_node, &ports[4 + 2 * node..])?;
            if node == 0 {
                // The others would give up on a head that is not there yet.
                cluster.wait("the head", |cluster| Ok(cluster.alive() > 0))?;
            }
        }
        cluster.wait("all nodes", |cluster| Ok(cluster.alive() == NODES))?;
        Ok(cluster)
    }

    /// What the tests need in their environment.
    fn environment(&self) -> [(&'static str, String); 3] {
        [
            (MARK, self.run.display().to_string()),
            ("REGATTA_TEST_RAY_ADDRESS", format!("http://127.0.0.1:{}", self.dashboard)),
            ("RAY_AUTH_TOKEN", self.token.clone()),
        ]
    }

    /// Starts a node from a script of its own, by which a test can start it again. Ray's own command would not do: it names the
    /// folder in which the environment was made, and that was another.
    fn node(&mut self, number: usize, of_node: &str, ports: &[u16]) -> Result<()> {
        let (name, run) = (address(number), self.run.display());
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
        let script = format!(
            "echo $$ > '{run}/pid/{name}'\n\
             export {MARK}='{run}' REGATTA_TEST_NODE={name} PATH='{bin}':'{path}'\n\
             export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token} RAY_USAGE_STATS_ENABLED=0 \
             RAY_DASHBOARD_STARTUP_TIMEOUT_S={patience}\n\
             exec '{bin}/python' -m ray.scripts.scripts start --block --disable-usage-stats {of_node} --node-ip-address={name} \
             --num-cpus=1 --num-gpus=0 --object-store-memory=80000000 --temp-dir='{run}/{number}' \
             --dashboard-agent-listen-port={listen} --metrics-export-port={metrics} >>'{run}/log/{name}' 2>&1\n",
            bin = self.bin.display(),
            token = self.token,
            patience = READY.as_secs(),
            listen = ports[0],
            metrics = ports[1],
        );
        let file = self.run.join(format!("{name}.sh"));
        fs::write(&file, script)?;
        let mut command = bound("setsid");
        command.arg("/bin/sh").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        self.daemons.push(command.spawn().context("cannot start a node of Ray")?);
        Ok(())
    }

    /// How many nodes the dashboard counts.
    fn alive(&self) -> usize {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.dashboard))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let token = &self.token;
            write!(
                stream,
                "GET /api/v0/nodes?detail=true HTTP/1.0\r\nAuthorization: Bearer {token}\r\n\r\n"
            )?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        ask().map_or(0, |text| text.matches("\"state\": \"ALIVE\"").count())
    }

    fn wait(&mut self, what: &str, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let since = Instant::now();
        while !done(self)? {
            let ended = self.daemons.iter_mut().any(|daemon| !matches!(daemon.try_wait(), Ok(None)));
            if ended || since.elapsed() > READY {
                for log in fs::read_dir(self.run.join("log"))?.flatten().map(|entry| entry.path()) {
                    eprintln!("{}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
                }
                let why =
                    if ended { "a node of Ray has ended".into() } else { format!("not within {READY:?}") };
                bail!("{what}: {why}; the logs are above");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }

    /// Processes of the nodes' sessions, and of jobs and workers, which have sessions of their own.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.run.display());
        let started = fs::read_dir(self.run.join("pid")).into_iter().flatten().flatten();
        let sessions: Vec<String> = started
            .filter_map(|entry| Some(fs::read_to_string(entry.path()).ok()?.trim().to_owned()))
            .collect();
        let own = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let session = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(3));
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            session.is_some_and(|session| sessions.iter().any(|own| own == session))
                || environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
        };
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let this = std::process::id() as i32;
        pids.filter(|pid| *pid != this).filter(own).filter_map(Pid::from_raw).collect()
    }
}

/// A node's address, which Ray knows it by too.
fn address(number: usize) -> String {
    format!("127.0.0.{}", 10 + number)
}

impl Drop for Ray {
    fn drop(&mut self) {
        // One that was stopped does not hear anything else.
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::CONT);
            let _ = kill_process(pid, Signal::TERM);
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) && !self.processes().is_empty() {
            self.daemons.iter_mut().for_each(|daemon| drop(daemon.try_wait()));
            std::thread::sleep(Duration::from_millis(50));
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.daemons.iter_mut().for_each(|daemon| drop(daemon.wait()));
        let _ = fs::remove_dir_all(&self.run);
    }
}
