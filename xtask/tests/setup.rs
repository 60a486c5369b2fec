//! `cargo xtask setup` against a pip of the test's own: what it installs, and what it says and leaves when it cannot.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

#[test]
fn installs_once_and_links_the_checkout() {
    let world = World::new(GOOD_PIP);
    let out = world.setup();
    assert!(out.status.success(), "{}", stderr(&out));
    let torch = world.cache().join("libtorch-2.11.0-cpu/torch");
    assert_eq!(fs::read_link(world.root().join(".libtorch")).unwrap(), torch);
    assert_eq!(fs::read_to_string(torch.join("build-version")).unwrap(), "2.11.0\n");
    assert!(torch.join("include/ATen/ATen.h").exists());
    assert!(!torch.join("lib/libtorch_python.so").exists(), "takes only what is needed");
    assert!(torch.join("../nvidia/cu13/lib/libcudart.so.13").exists());
    assert!(!torch.join("../downloads").exists());

    assert!(world.setup().status.success());
    assert_eq!(world.downloads(), 1, "the second setup has nothing to do");

    fs::write(torch.join("lib/libc10.so"), "").unwrap();
    fs::remove_file(world.root().join(".libtorch")).unwrap();
    assert!(world.setup().status.success());
    assert_eq!(world.downloads(), 2, "a file of the wrong size is found, and all of it is made anew");
}

#[test]
fn two_at_once_take_turns() {
    let world = World::new(GOOD_PIP);
    let children: Vec<Child> = (0..2).map(|_| world.command().spawn().unwrap()).collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", stderr(&out));
    }
    assert_eq!(world.downloads(), 1);
}

#[test]
fn an_interrupted_setup_is_cleaned_up_by_the_next() {
    let world = World::new("mkdir -p \"$WORLD/began\"; exec sleep 60");
    let mut first = world.command().process_group(0).spawn().unwrap();
    wait_for(&world.path("began"));
    let group = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
    first.wait().unwrap();
    assert!(world.cache().join("libtorch-2.11.0-cpu.partial").exists());
    world.write_pip(GOOD_PIP);
    let out = world.setup();
    assert!(out.status.success(), "{}", stderr(&out));
    assert!(!world.cache().join("libtorch-2.11.0-cpu.partial").exists());
}

#[test]
fn without_a_network_it_says_so_and_leaves_nothing() {
    let world = World::new("echo 'No matching distribution found' >&2; exit 1");
    world.fails_with(&["pip could not download torch==2.11.0", "set LIBTORCH"]);
}

#[test]
fn without_pip_it_says_what_to_install() {
    let world = World::new(GOOD_PIP);
    for name in ["python3", "python"] {
        fs::write(world.path("bin").join(name), "#!/bin/sh\nexit 1\n").unwrap();
        executable(&world.path("bin").join(name));
    }
    world.fails_with(&["python3 with pip was not found", "apt-get install python3-pip"]);
}

#[test]
fn a_wheel_without_the_library_is_refused() {
    let world = World::new(GOOD_PIP);
    fs::write(world.path("wheels/torch-2.11.0.whl"), wheel(&[("torch/include/ATen/ATen.h", "x")])).unwrap();
    world.fails_with(&["has no lib/libtorch_cpu.so"]);
}

#[test]
fn a_libtorch_of_the_users_own_is_checked() {
    let world = World::new(GOOD_PIP);
    let own = world.path("own");
    let setup = || world.command().env("LIBTORCH", &own).output().unwrap();
    let out = setup();
    assert!(!out.status.success());
    assert!(stderr(&out).contains("has no lib/libtorch_cpu.so"), "{}", stderr(&out));
    for file in ["lib/libtorch_cpu.so", "lib/libc10.so", "include/ATen/ATen.h", "build-version"] {
        fs::create_dir_all(own.join(file).parent().unwrap()).unwrap();
        fs::write(own.join(file), "2.10.0+cpu").unwrap();
    }
    let out = setup();
    assert!(!out.status.success());
    assert!(stderr(&out).contains("is version 2.10.0+cpu, and 2.11.0 is needed"), "{}", stderr(&out));
    fs::write(own.join("build-version"), "2.11.0+cpu").unwrap();
    let out = setup();
    assert!(out.status.success(), "{}", stderr(&out));
    assert_eq!(world.downloads(), 0);
    assert!(!world.root().join(".libtorch").exists());
}

#[test]
fn a_python_without_torch_is_named() {
    let world = World::new("echo \"ModuleNotFoundError: No module named 'torch'\" >&2; exit 1");
    let out = world.command().env("LIBTORCH_USE_PYTORCH", "1").output().unwrap();
    assert!(!out.status.success());
    assert!(stderr(&out).contains("has no torch, not torch 2.11.0"), "{}", stderr(&out));
}

#[test]
fn a_full_disk_is_noticed_before_the_download() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    }
    let world = World::new(GOOD_PIP);
    fs::create_dir_all(world.cache()).unwrap();
    let mount = |args: &[&str]| Command::new(args[0]).args(&args[1..]).arg(world.cache()).status();
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).is_ok_and(|s| s.success()) {
        eprintln!("skipped: this machine lets nobody mount");
        return;
    }
    let out = world.setup();
    mount(&["umount"]).unwrap();
    assert!(!out.status.success());
    assert!(stderr(&out).contains("GB are needed: make room, or set REGATTA_CACHE"), "{}", stderr(&out));
    assert_eq!(world.downloads(), 0);
}

/// What pip would do: the wheels appear in the folder behind `--dest`. Slow enough that a second setup meets the first.
const GOOD_PIP: &str = r#"
while [ "$1" != "--dest" ]; do shift; done
echo download >> "$WORLD/downloads"
sleep 0.3
cp "$WORLD"/wheels/*.whl "$2""#;

/// A checkout, a cache and a Python of the test's own.
struct World(TempDir);

impl World {
    fn new(pip: &str) -> Self {
        let world = Self(TempDir::new().unwrap());
        for dir in ["root", "bin", "wheels"] {
            fs::create_dir(world.path(dir)).unwrap();
        }
        fs::write(world.root().join("Cargo.toml"), "[workspace]\n").unwrap();
        let torch = [
            ("torch/include/ATen/ATen.h", "header"),
            ("torch/lib/libtorch_cpu.so", "cpu"),
            ("torch/lib/libc10.so", "c10"),
            ("torch/lib/libtorch_python.so", "python"),
        ];
        fs::write(world.path("wheels/torch-2.11.0.whl"), wheel(&torch)).unwrap();
        let runtime = [("nvidia/cu13/lib/libcudart.so.13", "runtime")];
        fs::write(world.path("wheels/nvidia_cuda_runtime.whl"), wheel(&runtime)).unwrap();
        world.write_pip(pip);
        world
    }

    fn write_pip(&self, pip: &str) {
        let script = format!(
            "#!/bin/sh\nif [ \"$3\" = --version ]; then echo 'pip 23 from x (python 3.11)'; exit 0; fi\n{pip}\n"
        );
        let path = self.path("bin/python3");
        fs::write(&path, script).unwrap();
        executable(&path);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("root")
    }

    fn cache(&self) -> PathBuf {
        self.path("cache")
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command.arg("setup").current_dir(self.root()).env("PATH", path).env("WORLD", self.0.path());
        command.env("REGATTA_CACHE", self.cache()).env_remove("VIRTUAL_ENV");
        command.env_remove("LIBTORCH").env_remove("LIBTORCH_USE_PYTORCH");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn setup(&self) -> Output {
        self.command().output().unwrap()
    }

    fn downloads(&self) -> usize {
        fs::read_to_string(self.path("downloads")).unwrap_or_default().lines().count()
    }

    /// One message with all of `parts`, and nothing half-installed.
    fn fails_with(&self, parts: &[&str]) {
        let out = self.setup();
        assert!(!out.status.success());
        let text = stderr(&out);
        assert_eq!(text.matches("error: ").count(), 1, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        assert!(!self.root().join(".libtorch").exists());
        let left: Vec<_> = fs::read_dir(self.cache())
            .map(|dir| {
                dir.map(|e| e.unwrap().file_name()).filter(|n| n != "libtorch-2.11.0-cpu.lock").collect()
            })
            .unwrap_or_default();
        assert!(left.is_empty(), "left in the cache: {left:?}");
    }
}

fn wheel(files: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(vec![]);
    let mut zip = ZipWriter::new(&mut bytes);
    for (name, text) in files {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
    bytes.into_inner()
}

fn executable(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn stderr(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} did not appear", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
