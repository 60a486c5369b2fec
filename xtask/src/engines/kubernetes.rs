//! A real Kubernetes on this host: etcd, the API server, its controllers and its scheduler. The nodes are the tests' own, which
//! run pods as processes. Wants Debian 12.
//!
//! The API server is to be had as source only: it is fetched with apt, with a Go to build it, and what is left is in the cache.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::{bound, free_ports, kept, marked};
use crate::{cache, cargo, sh};

const PACKAGES: [&str; 4] = ["etcd-server", "kubernetes-client", "golang-1.19-go", "golang-1.19-src"];
const SOURCE: &str = "kubernetes";
/// The release whose packages these are.
const RELEASE: &str = "bookworm";
const READY: Duration = Duration::from_secs(120);
/// What every process that began here has in its environment, and the tests are told the folder by.
const MARK: &str = "REGATTA_TEST_KUBERNETES";

/// Builds in the folder `work` and leaves the programs in `bin` beside it. Debian's changes to the source concern kubectl, which
/// comes ready; the one file that its build generates, and that is not in the source, is generated here as there.
const BUILD: &str = r#"set -e
export GOROOT="$PWD/work/root/usr/lib/go-1.19" GOPATH="$PWD/work/go" GOCACHE="$PWD/work/cache" HOME="$PWD/work"
export GO111MODULE=off GOFLAGS= GOENV=off CGO_ENABLED=0
bin="$PWD/bin" go="$GOROOT/bin/go" source="$GOPATH/src/k8s.io/kubernetes"
mkdir -p "$source" "$bin"
tar -xf "$1" --strip-components=1 -C "$source"
cd "$source"
"$go" build -o "$HOME/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
tagged=$(grep -lr --include='*.go' '^// *+k8s:openapi-gen=' vendor/k8s.io/*/ pkg cmd plugin |
  grep -v '^vendor/k8s.io/\(code-generator\|sample-\)' | xargs -n1 dirname | LC_ALL=C sort -u)
PATH="$GOROOT/bin:$PATH" "$HOME/openapi-gen" -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt \
  -i "$(for folder in $tagged; do printf '%s' "k8s.io/kubernetes/$folder,"; done | sed 's/,$//')" \
  -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi -r "$HOME/report"
version=k8s.io/kubernetes/vendor/k8s.io/component-base/version
"$go" build -o "$bin/" -ldflags "-s -w -X $version.gitVersion=v$2 -X $version.gitMajor=1 -X $version.gitMinor=20" \
  ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler
"$go" build -o "$bin/make-key" "$GOROOT/src/crypto/tls/generate_cert.go"
"#;

/// The programs, fetched and built when they are not there yet.
fn installed() -> Result<PathBuf> {
    let complete = |dir: &Path| match dir.join("complete").exists() {
        true => Ok(()),
        false => bail!("{} is not complete", dir.display()),
    };
    cache::install("kubernetes-debian-12", 5_000_000_000, complete, |dir| {
        eprintln!("fetching Kubernetes and building it (once; some six minutes of two processors)");
        let work = dir.join("work");
        fetch(&work)?;
        for deb in with_ending(&work, ".deb")? {
            sh(Command::new("dpkg").arg("-x").arg(&deb).arg(work.join("root")))?;
        }
        let Some(source) = with_ending(&work, ".orig.tar.gz")?.pop() else { bail!("apt brought no source") };
        // `kubernetes_1.20.5+really1.20.2.orig.tar.gz`.
        let name = source.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = name.trim_start_matches("kubernetes_").trim_end_matches(".orig.tar.gz");
        let version = version.rsplit("really").next().unwrap_or(version);
        sh(Command::new("/bin/sh").args(["-c", BUILD, "build"]).arg(&source).arg(version).current_dir(dir))?;
        for program in ["etcd", "kubectl"] {
            fs::copy(work.join("root/usr/bin").join(program), dir.join("bin").join(program))?;
        }
        // Go writes its cache so that its owner cannot remove it by accident.
        sh(Command::new("chmod").args(["-R", "u+w"]).arg(&work))?;
        fs::remove_dir_all(&work)?;
        fs::write(dir.join("complete"), "")?;
        Ok(())
    })
}

/// The packages and the source, with lists of apt's that are not the system's; from where the system's own packages come.
fn fetch(work: &Path) -> Result<()> {
    fs::create_dir_all(work.join("lists/partial"))?;
    fs::create_dir_all(work.join("root"))?;
    let at = |name: &str| work.join(name).display().to_string();
    let own = [
        format!("Dir::State::Lists={}", at("lists")),
        "Dir::Cache::pkgcache=".into(),
        "Dir::Cache::srcpkgcache=".into(),
        "APT::Sandbox::User=root".into(),
    ];
    let sources = [format!("Dir::Etc::SourceList={}", at("sources.list")), "Dir::Etc::SourceParts=-".into()];
    let apt = |more: &[String], args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(own.iter().chain(more).flat_map(|option| ["-o", option])).arg("-q").args(args);
        // What is downloaded lies where it runs.
        apt.current_dir(work).stderr(Stdio::inherit());
        apt
    };
    let quietly = |mut apt: Command| sh(apt.stdout(Stdio::from(std::io::stderr())));
    quietly(apt(&[], &["update"]))?;
    let targets =
        ["indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages", "Component: main"];
    let known = apt(&[], &targets).output().context("cannot ask apt-get")?;
    let known = String::from_utf8_lossy(&known.stdout).into_owned();
    let wanted = format!(" {RELEASE}");
    let Some(archive) = known.lines().find_map(|line| line.strip_suffix(&wanted)) else {
        bail!("apt knows no archive of Debian {RELEASE}, from which Kubernetes is built; it knows:\n{known}");
    };
    let both = ["deb", "deb-src"].map(|kind| format!("{kind} {archive} {RELEASE} main\n"));
    fs::write(work.join("sources.list"), both.concat())?;
    quietly(apt(&sources, &["update"]))?;
    quietly(apt(&sources, &[&["download"][..], &PACKAGES].concat()))?;
    quietly(apt(&sources, &["source", "--download-only", SOURCE]))
}

fn with_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>> {
    let all = fs::read_dir(folder)?.flatten().map(|entry| entry.path());
    Ok(all.filter(|path| path.to_string_lossy().ends_with(ending)).collect())
}

/// Starts a cluster without nodes, runs the tests of the engine on it, and takes it down whatever came of them.
pub(super) fn test(keep: bool) -> Result<()> {
    if keep {
        let cluster = Kubernetes::start()?;
        return kept(&cluster.environment());
    }
    // Of the whole workspace, as other chores build it, so that nothing is built twice.
    let tests = ["test", "--workspace", "--test", "kubernetes"];
    sh(cargo().args(tests).arg("--no-run"))?;
    let cluster = Kubernetes::start()?;
    let mut run = cargo();
    run.args(tests).args(["--no-fail-fast", "--", "--test-threads=1"]).envs(cluster.environment());
    sh(&mut run)
}

/// A running Kubernetes without nodes.
struct Kubernetes {
    programs: PathBuf,
    /// Its data, logs, keys and kubeconfigs; removed with it.
    run: PathBuf,
    daemons: Vec<Child>,
}

impl Kubernetes {
    fn start() -> Result<Self> {
        let programs = installed()?.join("bin");
        let run = std::env::temp_dir().join(format!("regatta-kubernetes-{}", std::process::id()));
        for folder in ["log", "pid"] {
            fs::create_dir_all(run.join(folder))?;
        }
        fs::set_permissions(&run, fs::Permissions::from_mode(0o700))?;
        let mut cluster = Self { programs, run, daemons: Vec::new() };
        let ports = free_ports(5)?;
        let [etcd, peers, server, controllers, scheduler] = ports[..] else { bail!("five ports") };
        cluster.access(server)?;
        cluster.etcd(etcd, peers)?;
        cluster.server(server, etcd)?;
        cluster.wait("the API server", |cluster| cluster.kubectl(&["get", "--raw", "/readyz"]))?;
        let kubeconfig = cluster.flag("kubeconfig", "admin.kubeconfig");
        let common = |port: u16| {
            let own = ["--leader-elect=false", "--bind-address=127.0.0.1", "--port=0"].map(str::to_owned);
            let mut args = vec![kubeconfig.clone(), format!("--secure-port={port}")];
            args.extend(own);
            args
        };
        let mut args = common(controllers);
        args.push(cluster.flag("service-account-private-key-file", "key.pem"));
        args.push(cluster.flag("root-ca-file", "certs/apiserver.crt"));
        cluster.daemon("kube-controller-manager", &args)?;
        cluster.daemon("kube-scheduler", &common(scheduler))?;
        // Controllers that run have made this.
        let account = ["get", "serviceaccount", "default", "--namespace=default"];
        cluster.wait("the controllers", |cluster| cluster.kubectl(&account))?;
        Ok(cluster)
    }

    /// What the tests, and kubectl, need in their environment.
    fn environment(&self) -> [(&'static str, String); 3] {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
        [
            (MARK, self.run.display().to_string()),
            ("KUBECONFIG", self.run.join("admin.kubeconfig").display().to_string()),
            ("PATH", format!("{}:{path}", self.programs.display())),
        ]
    }

    /// An administrator and a user without any rights, by tokens nobody else knows; and the key that service accounts' are
    /// signed with.
    fn access(&self, port: u16) -> Result<()> {
        let mut tokens = String::new();
        for (name, group) in [("admin", "system:masters"), ("user", "")] {
            let mut secret = [0u8; 16];
            fs::File::open("/dev/urandom")?.read_exact(&mut secret)?;
            let token: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
            tokens += &format!("{token},{name},{name},{group}\n");
            let server = json!({
                "server": format!("https://127.0.0.1:{port}"), "certificate-authority": self.run.join("certs/apiserver.crt"),
            });
            let kubeconfig = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "test",
                "clusters": [{ "name": "test", "cluster": server }],
                "users": [{ "name": "test", "user": { "token": token } }],
                "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            });
            fs::write(self.run.join(format!("{name}.kubeconfig")), kubeconfig.to_string())?;
        }
        fs::write(self.run.join("tokens.csv"), tokens)?;
        let mut key = Command::new(self.programs.join("make-key"));
        sh(key.args(["-host", "127.0.0.1"]).current_dir(&self.run).stderr(Stdio::null()))
    }

    fn etcd(&mut self, port: u16, peers: u16) -> Result<()> {
        let (own, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        let mut args = vec!["--name=regatta".to_owned(), self.flag("data-dir", "etcd")];
        args.extend(["listen-client-urls", "advertise-client-urls"].map(|flag| format!("--{flag}={own}")));
        args.extend(
            ["listen-peer-urls", "initial-advertise-peer-urls"].map(|flag| format!("--{flag}={peers}")),
        );
        args.push(format!("--initial-cluster=regatta={peers}"));
        // Nothing here outlives the test.
        args.push("--unsafe-no-fsync".to_owned());
        self.daemon("etcd", &args)
    }

    fn server(&mut self, port: u16, etcd: u16) -> Result<()> {
        let key = |flag: &str| self.flag(flag, "key.pem");
        let mut args = vec![
            format!("--etcd-servers=http://127.0.0.1:{etcd}"),
            format!("--secure-port={port}"),
            // It makes itself a certificate there.
            self.flag("cert-dir", "certs"),
            self.flag("token-auth-file", "tokens.csv"),
            key("service-account-key-file"),
            key("service-account-signing-key-file"),
        ];
        let others = [
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            // Its own address is no endpoint: pods here need none, and loopback addresses are not taken for any.
            "--endpoint-reconciler-type=none",
            "--authorization-mode=RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--kubelet-preferred-address-types=InternalIP",
        ];
        args.extend(others.map(str::to_owned));
        self.daemon("kube-apiserver", &args)
    }

    /// A flag that names a file of this run's.
    fn flag(&self, flag: &str, file: &str) -> String {
        format!("--{flag}={}", self.run.join(file).display())
    }

    /// Starts a daemon; its process id is kept under its name.
    fn daemon(&mut self, program: &str, args: &[String]) -> Result<()> {
        let log = fs::File::create(self.run.join("log").join(program))?;
        let mut command = bound(self.programs.join(program));
        command.args(args).envs(self.environment()).current_dir(&self.run);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
        fs::write(self.run.join("pid").join(program), child.id().to_string())?;
        self.daemons.push(child);
        Ok(())
    }

    fn kubectl(&self, args: &[&str]) -> Result<bool> {
        let mut kubectl = Command::new(self.programs.join("kubectl"));
        kubectl.args(args).envs(self.environment()).env("HOME", &self.run);
        Ok(kubectl.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let since = Instant::now();
        while !done(self)? {
            if since.elapsed() > READY {
                for log in fs::read_dir(self.run.join("log"))?.flatten().map(|entry| entry.path()) {
                    eprintln!("{}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
                }
                bail!("{what}: not within {READY:?}; the logs are above");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Processes that live in this cluster's environment: daemons, and pods.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.run.display());
        marked(&mark)
    }
}

impl Drop for Kubernetes {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(pid, Signal::KILL);
        }
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        let _ = fs::remove_dir_all(&self.run);
    }
}
