//! A real Kubernetes on this host: an API server with its scheduler and its garbage collector. The tests are its nodes.
//!
//! Nobody offers the servers of Kubernetes as a package that runs by itself, so they are built from Debian's source package
//! with Debian's Go, once, in the cache: some minutes of two cores.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::free_ports;
use crate::{cache, cargo, sh};

/// The suite these packages are of; a newer system's may lack them.
const SUITE: &str = "bookworm";
const PACKAGES: [&str; 3] = ["etcd-server", "golang-1.19-go", "golang-1.19-src"];
const GO: &str = "usr/lib/go-1.19";
const SERVERS: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler"];
const READY: Duration = Duration::from_secs(120);

/// etcd and the servers, built where they are not there yet.
fn built() -> Result<PathBuf> {
    let complete = |dir: &Path| match SERVERS.iter().all(|server| dir.join("bin").join(server).exists()) {
        true => Ok(()),
        false => bail!("{} is not complete", dir.display()),
    };
    cache::install("kubernetes-1.20-debian-12", 8_000_000_000, complete, |dir| {
        eprintln!("fetching and building the servers of Kubernetes (once; some minutes)");
        let (work, bin) = (dir.join("work"), dir.join("bin"));
        for folder in [&work.join("lists/partial"), &work.join("debs/partial"), &bin] {
            fs::create_dir_all(folder)?;
        }
        let sources = work.join("sources.list");
        let from = format!("http://deb.debian.org/debian {SUITE} main");
        fs::write(&sources, format!("deb {from}\ndeb-src {from}\n"))?;
        let apt = |args: &[&str]| {
            let mut apt = Command::new("apt-get");
            for (option, value) in [
                ("Dir::Etc::sourcelist", sources.display().to_string()),
                ("Dir::Etc::sourceparts", "/dev/null".into()),
                ("Dir::State::lists", work.join("lists").display().to_string()),
                ("Dir::Cache::archives", work.join("debs").display().to_string()),
                ("Dir::Cache::pkgcache", String::new()),
                ("Dir::Cache::srcpkgcache", String::new()),
                ("APT::Sandbox::User", "root".into()),
            ] {
                apt.arg("-o").arg(format!("{option}={value}"));
            }
            sh(apt.arg("-q").args(args).current_dir(&work).stdout(Stdio::from(std::io::stderr())))
        };
        apt(&["update"])?;
        apt(&[&["download"][..], &PACKAGES].concat())?;
        apt(&["source", "--download-only", "kubernetes"])?;
        let files = |ending: &str| -> Result<Vec<PathBuf>> {
            let all = fs::read_dir(&work)?.flatten().map(|entry| entry.path());
            Ok(all.filter(|path| path.to_string_lossy().ends_with(ending)).collect())
        };
        for deb in files(".deb")? {
            sh(Command::new("dpkg").arg("-x").arg(&deb).arg(&work))?;
        }
        for archive in files(".orig.tar.gz")? {
            sh(Command::new("tar").arg("xzf").arg(&archive).current_dir(&work))?;
        }
        let mut source = fs::read_dir(&work)?.flatten().map(|entry| entry.path());
        let source = source.find(|path| path.join("cmd/kube-apiserver").exists());
        make(&work, &source.context("the source package has no kube-apiserver")?, &bin)?;
        fs::rename(work.join("usr/bin/etcd"), bin.join("etcd"))?;
        key(&work, dir)?;
        // The sources and Go's own cache are ten times what is kept.
        fs::remove_dir_all(&work).context("cannot remove what it was built from")
    })
}

/// Builds the servers, by the project's own make, which generates a part of their sources.
fn make(work: &Path, source: &Path, bin: &Path) -> Result<()> {
    let gopath = source.join(".go");
    fs::create_dir_all(gopath.join("src/k8s.io"))?;
    std::os::unix::fs::symlink("../../..", gopath.join("src/k8s.io/kubernetes"))?;
    let what = SERVERS.map(|server| format!("cmd/{server}")).join(" ");
    let mut make = go(work, "make");
    make.current_dir(source).arg(format!("WHAT={what}")).env("GOPATH", &gopath);
    sh(make.stdout(Stdio::from(std::io::stderr())))?;
    for server in SERVERS {
        fs::copy(source.join("_output/bin").join(server), bin.join(server))
            .with_context(|| format!("{server} was not built"))?;
    }
    Ok(())
}

/// The key that tokens of service accounts would be signed with: the API server wants one.
fn key(work: &Path, dir: &Path) -> Result<()> {
    let mut generate = go(work, "go");
    generate
        .arg("run")
        .arg(work.join(GO).join("src/crypto/tls/generate_cert.go"))
        .args(["--host", "127.0.0.1"]);
    sh(generate.current_dir(dir).env("GO111MODULE", "off"))?;
    fs::rename(dir.join("key.pem"), dir.join("accounts.key"))?;
    fs::remove_file(dir.join("cert.pem"))?;
    Ok(())
}

fn go(work: &Path, program: &str) -> Command {
    let (root, path) = (work.join(GO), std::env::var("PATH").unwrap_or_default());
    let mut command =
        Command::new(if program == "go" { root.join("bin/go").into_os_string() } else { program.into() });
    command.env("PATH", format!("{}:{path}", root.join("bin").display())).env("GOROOT", root);
    // Nothing of it is left in the home of whoever runs this.
    command.env("HOME", work.join("home")).env("GOCACHE", work.join("go-cache")).env("CGO_ENABLED", "0");
    command
}

/// Starts a cluster, runs the engine's tests on it, and takes it down whatever came of them.
pub(super) fn test(keep: bool) -> Result<()> {
    let tests = ["test", "--workspace", "--test", "kubernetes"];
    if !keep {
        sh(cargo().args(tests).arg("--no-run"))?;
    }
    let cluster = Cluster::start()?;
    if keep {
        println!("export REGATTA_TEST_KUBERNETES='{}'", cluster.address);
        eprintln!(
            "the API server runs until Enter is pressed; its tokens are in {}",
            cluster.run.join("tokens").display()
        );
        std::io::stdin().read_line(&mut String::new())?;
        return Ok(());
    }
    let mut run = cargo();
    run.args(tests).args(["--", "--test-threads=1"]).env("REGATTA_TEST_KUBERNETES", &cluster.address);
    sh(&mut run)
}

/// A running control plane without nodes.
struct Cluster {
    address: String,
    /// Its data, certificates and logs; removed with it.
    run: PathBuf,
    servers: Vec<Child>,
}

impl Cluster {
    fn start() -> Result<Self> {
        let built = built()?;
        let run = std::env::temp_dir().join(format!("regatta-kubernetes-{}", std::process::id()));
        fs::create_dir_all(&run)?;
        let ports = free_ports(5)?;
        let [etcd, peer, api, scheduler, manager] = ports[..] else { bail!("five ports") };
        let address = format!("https://127.0.0.1:{api}");
        let mut cluster = Self { address, run, servers: Vec::new() };
        cluster.etcd(&built, etcd, peer)?;
        cluster.api(&built, etcd, api)?;
        let kubeconfig = cluster.kubeconfig()?;
        let common = |port: u16| {
            vec![
                format!("--kubeconfig={}", kubeconfig.display()),
                "--leader-elect=false".into(),
                "--port=0".into(),
                format!("--secure-port={port}"),
                "--bind-address=127.0.0.1".into(),
            ]
        };
        cluster.server(&built, "kube-scheduler", common(scheduler))?;
        let mut args = common(manager);
        args.push("--controllers=garbagecollector".into());
        cluster.server(&built, "kube-controller-manager", args)?;
        Ok(cluster)
    }

    fn etcd(&mut self, built: &Path, port: u16, peer: u16) -> Result<()> {
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
        let args = [
            format!("--data-dir={}", self.run.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            // What is lost with the host is nobody's.
            "--unsafe-no-fsync".to_owned(),
        ];
        self.server(built, "etcd", args.to_vec())
    }

    fn api(&mut self, built: &Path, etcd: u16, port: u16) -> Result<()> {
        // Users, as the tests know them.
        let tokens = "admin-token,admin-token,1,system:masters\nuser-token,user-token,2\ndriver-token,driver-token,3\n";
        let (file, key) = (self.run.join("tokens"), built.join("accounts.key"));
        fs::write(&file, tokens)?;
        let args = [
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--cert-dir={}", self.run.join("certificates").display()),
            format!("--token-auth-file={}", file.display()),
            "--authorization-mode=RBAC".to_owned(),
            "--anonymous-auth=false".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", key.display()),
            format!("--service-account-signing-key-file={}", key.display()),
            "--service-cluster-ip-range=10.199.0.0/24".to_owned(),
            // Service accounts need a controller of their own; the nodes are never tainted, for none is watched.
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".to_owned(),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
        ];
        self.server(built, "kube-apiserver", args.to_vec())?;
        let since = Instant::now();
        // It listens before it is ready, and is asked by nobody but the tests: they try again. Its port is what is waited for.
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            self.look(since)?;
        }
        Ok(())
    }

    fn kubeconfig(&self) -> Result<PathBuf> {
        let text = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": self.address, "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "it", "user": { "token": "admin-token" } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        });
        let path = self.run.join("kubeconfig");
        fs::write(&path, text.to_string())?;
        Ok(path)
    }

    fn server(&mut self, built: &Path, name: &str, args: Vec<String>) -> Result<()> {
        let log = fs::File::create(self.run.join(format!("{name}.log")))?;
        let mut command = Command::new(built.join("bin").join(name));
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.servers.push(command.spawn().with_context(|| format!("cannot start {name}"))?);
        Ok(())
    }

    /// Waits a moment; an error once it has been too long, or a server has ended.
    fn look(&mut self, since: Instant) -> Result<()> {
        std::thread::sleep(Duration::from_millis(100));
        let ended = self.servers.iter_mut().any(|server| !matches!(server.try_wait(), Ok(None)));
        if !ended && since.elapsed() < READY {
            return Ok(());
        }
        for log in fs::read_dir(&self.run)?.flatten().map(|entry| entry.path()) {
            if log.extension().is_some_and(|ending| ending == "log") {
                let text = fs::read_to_string(&log).unwrap_or_default();
                let tail: Vec<&str> = text.lines().rev().take(20).collect();
                eprintln!("{}:\n{}", log.display(), tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        bail!("Kubernetes did not start within {READY:?}; the ends of its logs are above")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The last started first: none of them then misses another.
        for server in self.servers.iter_mut().rev() {
            let _ = server.kill();
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.run);
    }
}
