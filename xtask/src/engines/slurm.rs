//! A real Slurm of three nodes on this host. Its daemons want root and Debian 12.
//!
//! Packages are fetched with apt and unpacked into the cache; daemons run from there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::{EXAMPLE, bound, free_ports, kept, marked};
use crate::{cache, cargo, libtorch, root, sh};

const PACKAGES: [&str; 4] = ["slurmctld", "slurmd", "slurm-client", "munge"];
const NODES: usize = 3;
const CPUS: usize = 2;
/// The training that checks itself.
const SOAK: &str = "soak";
const READY: Duration = Duration::from_secs(60);

/// The unpacked packages, with all they need that this system has not.
fn unpacked() -> Result<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        bail!("Slurm's daemons start jobs for others: run this as root, in a container or a virtual machine");
    }
    let complete = |dir: &Path| match dir.join("complete").exists() {
        true => Ok(()),
        false => bail!("{} is not complete", dir.display()),
    };
    cache::install("slurm-debian-12", 200_000_000, complete, |dir| {
        eprintln!("fetching Slurm's packages (once)");
        let (debs, lists) = (dir.join("debs"), dir.join("lists"));
        fs::create_dir_all(debs.join("partial"))?;
        fs::create_dir_all(lists.join("partial"))?;
        let apt = |args: &[&str]| {
            let mut apt = Command::new("apt-get");
            apt.arg("-o").arg(format!("Dir::Cache::archives={}", debs.display()));
            apt.arg("-o").arg(format!("Dir::State::lists={}", lists.display()));
            apt.args([
                "-o",
                "APT::Sandbox::User=root",
                "-o",
                "Dir::Cache::pkgcache=",
                "-o",
                "Dir::Cache::srcpkgcache=",
                "-q",
            ]);
            sh(apt.args(args).stdout(Stdio::from(std::io::stderr())))
        };
        apt(&["update"])?;
        apt(&[&["install", "-y", "--no-install-recommends", "--download-only"][..], &PACKAGES].concat())?;
        for deb in fs::read_dir(&debs)?.flatten().map(|entry| entry.path()) {
            if deb.extension().is_some_and(|ending| ending == "deb") {
                sh(Command::new("dpkg").arg("-x").arg(&deb).arg(dir))?;
            }
        }
        fs::remove_dir_all(&debs)?;
        fs::remove_dir_all(&lists)?;
        fs::write(dir.join("complete"), "")?;
        Ok(())
    })
}

/// Starts a cluster, runs the tests of the engine and of the product on it, and takes it down whatever came of them.
pub(super) fn test(keep: bool) -> Result<()> {
    if keep {
        let cluster = Slurm::start()?;
        return kept(&cluster.environment());
    }
    libtorch::setup(false)?;
    // Of the whole workspace, as other chores build it, so that nothing is built twice.
    let programs = ["build", "--workspace", "--bin", EXAMPLE, "--example", SOAK];
    sh(cargo().args(programs))?;
    let tests = ["test", "--workspace", "--test", "slurm"];
    sh(cargo().args(tests).arg("--no-run"))?;
    let cluster = Slurm::start()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let debug = target.join("debug");
    let mut run = cargo();
    run.args(tests).args(["--no-fail-fast", "--", "--test-threads=1"]).envs(cluster.environment());
    run.env("REGATTA_TEST_EXAMPLE", debug.join(EXAMPLE));
    run.env("REGATTA_TEST_SOAK", debug.join("examples").join(SOAK));
    sh(&mut run)
}

/// A running Slurm: a controller and a few nodes, all on this host, as different nodes on different ports.
struct Slurm {
    packages: PathBuf,
    /// Its configuration, logs, process ids and state; removed with it.
    run: PathBuf,
    daemons: Vec<Child>,
}

impl Slurm {
    fn start() -> Result<Self> {
        let packages = unpacked()?;
        let run = std::env::temp_dir().join(format!("regatta-slurm-{}", std::process::id()));
        for folder in ["state", "log", "pid", "spool", "munge", "jobs", "private"] {
            fs::create_dir_all(run.join(folder))?;
        }
        let mut cluster = Self { packages, run, daemons: Vec::new() };
        cluster.configure()?;
        cluster.munge()?;
        cluster.daemon("slurmctld", "slurmctld-wlm", &["-D", "-c"])?;
        let stepd = cluster.packages.join("usr/sbin/slurmstepd-wlm").display().to_string();
        for number in 1..=NODES {
            let node = format!("n{number}");
            fs::create_dir_all(cluster.run.join("spool").join(&node))?;
            let args = ["-D", "-N", &node, "-d", &stepd];
            match number == NODES {
                true => cluster.private_daemon(&node, "slurmd-wlm", &args)?,
                false => cluster.daemon(&node, "slurmd-wlm", &args)?,
            }
        }
        cluster.wait("all nodes idle", |cluster| {
            let mut sinfo = cluster.command("sinfo");
            let out = sinfo
                .args(["-h", "-N", "-p", "main", "-t", "idle", "-o", "%N"])
                .stderr(Stdio::null())
                .output()?;
            Ok(String::from_utf8_lossy(&out.stdout).lines().count() == NODES)
        })?;
        Ok(cluster)
    }

    /// What its tools, and the tests, need in their environment.
    fn environment(&self) -> [(&'static str, String); 4] {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
        let at = self.packages.display();
        let libraries = libraries().map(|folder| format!("{at}{folder}")).join(":");
        [
            ("REGATTA_TEST_SLURM", self.run.display().to_string()),
            ("SLURM_CONF", self.run.join("slurm.conf").display().to_string()),
            ("PATH", format!("{at}/usr/bin:{at}/usr/sbin:{path}")),
            ("LD_LIBRARY_PATH", libraries),
        ]
    }

    fn program(&self, name: &str) -> PathBuf {
        let [bin, sbin] = ["usr/bin", "usr/sbin"].map(|folder| self.packages.join(folder).join(name));
        if bin.exists() { bin } else { sbin }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.program(program));
        command.envs(self.environment());
        command
    }

    /// Starts a daemon; its process id and what it says are kept under its name.
    fn daemon(&mut self, name: &str, program: &str, args: &[&str]) -> Result<()> {
        let program = self.program(program);
        let mut command = bound(program);
        command.args(args).envs(self.environment());
        self.start_daemon(name, command)
    }

    /// The same with a file system of its own at `private`: what is written there, no other node sees.
    fn private_daemon(&mut self, name: &str, program: &str, args: &[&str]) -> Result<()> {
        let mut command = bound("unshare");
        command.args(["--mount", "/bin/sh", "-c", "mount -t tmpfs regatta \"$0\" && exec \"$@\""]);
        command.arg(self.run.join("private")).arg(self.program(program)).args(args).envs(self.environment());
        self.start_daemon(name, command)
    }

    fn start_daemon(&mut self, name: &str, mut command: Command) -> Result<()> {
        let log = fs::File::create(self.run.join("log").join(format!("{name}.out")))?;
        let program = command.get_program().to_owned();
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program:?}"))?;
        fs::write(self.run.join("pid").join(name), child.id().to_string())?;
        self.daemons.push(child);
        Ok(())
    }

    /// A key and a socket of its own: the system's munge, if there is one, is left alone.
    fn munge(&mut self) -> Result<()> {
        let at = |name: &str| self.run.join("munge").join(name);
        let mut key = [0u8; 1024];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut key)?;
        fs::write(at("key"), key)?;
        fs::set_permissions(at("key"), fs::Permissions::from_mode(0o400))?;
        let socket = at("sock");
        let args = [
            ("key-file", "key"),
            ("socket", "sock"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        ]
        .map(|(option, name)| format!("--{option}={}", at(name).display()));
        let args: Vec<&str> =
            ["--foreground", "--force"].into_iter().chain(args.iter().map(String::as_str)).collect();
        self.daemon("munged", "munged", &args)?;
        self.wait("munged's socket", |_| Ok(socket.exists()))
    }

    fn configure(&self) -> Result<()> {
        let ports = free_ports(NODES + 1)?;
        let run = self.run.display();
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host = host.split('.').next().unwrap_or("localhost").to_owned();
        let mut text = format!(
            "ClusterName=regatta\nSlurmctldHost={host}(127.0.0.1)\nSlurmUser=root\nPluginDir={at}{plugins}\n\
             AuthType=auth/munge\nAuthInfo=socket={run}/munge/sock\nCredType=cred/munge\n\
             CommunicationParameters=NoInAddrAny,NoCtldInAddrAny\nSlurmctldPort={port}\n\
             StateSaveLocation={run}/state\nSlurmdSpoolDir={run}/spool/%n\n\
             SlurmctldPidFile={run}/pid/slurmctld.own\nSlurmdPidFile={run}/pid/%n.own\n\
             SlurmctldLogFile={run}/log/slurmctld\nSlurmdLogFile={run}/log/%n\n",
            at = self.packages.display(),
            plugins = libraries()[0],
            port = ports[0],
        );
        // A timeout for dead nodes far beyond any test: nothing here may depend on it.
        text += "SlurmctldTimeout=30\nSlurmdTimeout=300\nInactiveLimit=0\nKillWait=3\nMinJobAge=3600\nReturnToService=2\n\
                 MpiDefault=none\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
                 JobAcctGatherType=jobacct_gather/none\nAccountingStorageType=accounting_storage/none\n\
                 JobCompType=jobcomp/none\nSelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\n\
                 SchedulerType=sched/backfill\nSchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=5,sched_min_interval=0\n\
                 SlurmdParameters=config_overrides\nPreemptType=preempt/partition_prio\nPreemptMode=CANCEL\n\
                 SlurmctldParameters=preempt_send_user_signal\n";
        for (n, port) in ports[1..].iter().enumerate() {
            text += &format!(
                "NodeName=n{} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory=1000 State=UNKNOWN\n",
                n + 1
            );
        }
        text += &format!(
            "PartitionName=main Nodes=n[1-{NODES}] Default=YES MaxTime=60 State=UP PriorityTier=1 GraceTime=20\n"
        );
        text += &format!(
            "PartitionName=urgent Nodes=n[1-{NODES}] MaxTime=60 State=UP PriorityTier=10 PreemptMode=OFF\n"
        );
        fs::write(self.run.join("slurm.conf"), text)?;
        // Only to keep it from looking for control groups; nothing uses it.
        fs::write(self.run.join("cgroup.conf"), "CgroupPlugin=cgroup/v1\n")?;
        Ok(())
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let since = Instant::now();
        while !done(self)? {
            if since.elapsed() > READY {
                let logs = fs::read_dir(self.run.join("log"))?.flatten().map(|entry| entry.path());
                for log in logs {
                    eprintln!("{}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
                }
                bail!("{what}: not within {READY:?}; the logs are above");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Processes that live in this cluster's environment: daemons, steps, jobs.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("SLURM_CONF={}", self.run.join("slurm.conf").display());
        marked(&mark)
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let scancel =
            self.command("scancel").args(["--state=RUNNING"]).arg("--me").stderr(Stdio::null()).spawn();
        let _ = scancel.map(|mut child| child.wait());
        for daemon in &self.daemons {
            let _ = Pid::from_raw(daemon.id() as i32).map(|pid| kill_process(pid, Signal::TERM));
        }
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) {
            if self.daemons.iter_mut().all(|daemon| matches!(daemon.try_wait(), Ok(Some(_)))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.daemons.iter_mut().for_each(|daemon| {
            let _ = daemon.kill();
            let _ = daemon.wait();
        });
        let _ = fs::remove_dir_all(&self.run);
    }
}

/// Where Debian keeps its libraries, the plugins' folder first.
fn libraries() -> [String; 2] {
    let triple = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    [format!("{triple}/slurm-wlm"), triple]
}
