//! libtorch: the user's own where one is set, else the one of the PyPI wheel, unpacked into the cache.
//!
//! The checkout's `.libtorch` is a link to it, and `.cargo/config.toml` points the build there, so nothing has to be
//! exported. The cache keeps the wheel's own layout (`torch/`, `nvidia/`), in which the libraries find each other.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::cache;
use crate::wheels::{self, Pin};

/// The version that tch is built for.
const VERSION: &str = "2.11.0";

/// What the build takes out of the wheels for a CPU, beside the headers.
const CPU_LIBRARIES: [&str; 7] = [
    "libtorch_cpu.so",
    "libtorch.so",
    "libtorch_global_deps.so",
    "libc10.so",
    "libgomp.so.1",
    "libcudart.so.13",
    "libcupti.so.13",
];

const PINS: [(&str, &str); 3] = [
    ("torch==2.11.0", "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a"),
    ("nvidia-cuda-runtime==13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cuda-cupti==13.0.85", "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"),
];

/// Which libtorch the build takes.
pub(crate) enum Source {
    /// `LIBTORCH_USE_PYTORCH`: the one of the Python that is active.
    Python,
    /// `LIBTORCH`: a folder of the user's.
    Own(PathBuf),
    /// The cache, through the checkout's link.
    Cache(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Python => write!(f, "libtorch {VERSION} of the active Python (LIBTORCH_USE_PYTORCH)"),
            Source::Own(dir) => write!(f, "libtorch {VERSION} at {} (LIBTORCH)", dir.display()),
            Source::Cache(dir) => write!(f, "libtorch {VERSION} at {}", dir.display()),
        }
    }
}

/// Makes libtorch available to every later build of this checkout. Costs nothing when it already is.
pub(crate) fn setup(cuda: bool) -> Result<Source> {
    let link = crate::root().join(".libtorch");
    if std::env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        check_python()?;
        return Ok(Source::Python);
    }
    // Cargo's configuration sets LIBTORCH to the link for this process too: that one is not the user's.
    if let Some(own) = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|own| *own != link) {
        check(&own).with_context(|| {
            format!(
                "LIBTORCH={} is not what the build needs; unset it to let setup fetch libtorch",
                own.display()
            )
        })?;
        check_compiler()?;
        return Ok(Source::Own(own));
    }
    if check(&link).is_ok() && (!cuda || link.join("lib/libtorch_cuda.so").exists()) {
        let dir = fs::canonicalize(&link).with_context(|| format!("cannot follow {}", link.display()))?;
        return Ok(Source::Cache(dir));
    }
    check_platform()?;
    check_compiler()?;
    let (name, bytes) = if cuda { ("cu130", 12_000_000_000) } else { ("cpu", 1_800_000_000) };
    let dir =
        cache::install(&format!("libtorch-{VERSION}-{name}"), bytes, check_install, |dir| fetch(dir, cuda))?;
    let torch = dir.join("torch");
    set_link(&torch, &link)?;
    Ok(Source::Cache(torch))
}

/// Downloads and unpacks into `dir`, and records every file with its size for later checks.
fn fetch(dir: &Path, cuda: bool) -> Result<()> {
    eprintln!("getting libtorch {VERSION} from its Python wheel, once for all checkouts");
    let downloads = dir.join("downloads");
    fs::create_dir(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
    let pins = PINS.map(|(requirement, hash)| Pin { requirement: requirement.into(), sha256: Some(hash) });
    wheels::download(&pins, &downloads)?;
    if cuda {
        let torch = wheels::list(&downloads)?
            .into_iter()
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("torch-")))
            .context("pip left no torch wheel")?;
        let more = wheels::requirements(&torch, "nvidia-")?.into_iter();
        let more: Vec<Pin> = more.map(|requirement| Pin { requirement, sha256: None }).collect();
        wheels::download(&more, &downloads)?;
    }
    for wheel in wheels::list(&downloads)? {
        wheels::unpack(&wheel, dir, |name| wanted(name, cuda))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))?;
    let torch = dir.join("torch");
    fs::write(torch.join("build-version"), format!("{VERSION}\n")).context("cannot write build-version")?;
    check(&torch)?;
    let mut sizes = String::new();
    record_sizes(dir, dir, &mut sizes)?;
    fs::write(dir.join("sizes"), sizes).context("cannot write the list of sizes")
}

fn wanted(name: &str, cuda: bool) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    if name.starts_with("torch/include/") {
        return true;
    }
    let library = name.contains("/lib/") && file.contains(".so") && file != "libtorch_python.so";
    library && (cuda || CPU_LIBRARIES.contains(&file))
}

fn record_sizes(root: &Path, dir: &Path, sizes: &mut String) -> Result<()> {
    let context = || format!("cannot list {}", dir.display());
    for entry in fs::read_dir(dir).with_context(context)? {
        let entry = entry.with_context(context)?;
        let meta = entry.metadata().with_context(context)?;
        if meta.is_dir() {
            record_sizes(root, &entry.path(), sizes)?;
        } else {
            let path = entry.path();
            let relative = path.strip_prefix(root).expect("below the root");
            sizes.push_str(&format!("{} {}\n", meta.len(), relative.display()));
        }
    }
    Ok(())
}

/// Whether the cache's folder holds every file at its size.
fn check_install(dir: &Path) -> Result<()> {
    let sizes = fs::read_to_string(dir.join("sizes"))?;
    for line in sizes.lines() {
        let (size, path) = line.split_once(' ').context("the list of sizes is damaged")?;
        let found = fs::metadata(dir.join(path)).with_context(|| format!("{path} is missing"))?.len();
        ensure!(size.parse() == Ok(found), "{path} has {found} bytes, not {size}");
    }
    check(&dir.join("torch"))
}

/// Whether `dir` is a libtorch that the build can take.
fn check(dir: &Path) -> Result<()> {
    for part in ["lib/libtorch_cpu.so", "lib/libc10.so", "include/ATen/ATen.h"] {
        ensure!(dir.join(part).exists(), "{} has no {part}", dir.display());
    }
    // libtorch's archives carry build-version, a Python installation version.py.
    let version = fs::read_to_string(dir.join("build-version")).ok();
    let python = || {
        let text = fs::read_to_string(dir.join("version.py")).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("__version__ = "))?;
        Some(line.trim_matches(['\'', '"']).to_owned())
    };
    match version.or_else(python) {
        Some(found) => ensure!(
            found.trim().split('+').next() == Some(VERSION),
            "{} is version {}, and {VERSION} is needed",
            dir.display(),
            found.trim()
        ),
        None => bail!("{} does not say its version (no build-version, no version.py)", dir.display()),
    }
    Ok(())
}

fn check_python() -> Result<()> {
    // The same interpreter that torch-sys asks.
    let python = if std::env::var_os("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
    let out = Command::new(python)
        .args(["-c", "import torch; print(torch.__version__)"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("LIBTORCH_USE_PYTORCH is set, and {python} cannot be started"))?;
    let version = String::from_utf8_lossy(&out.stdout).trim().to_owned();
    ensure!(
        out.status.success() && version.split('+').next() == Some(VERSION),
        "LIBTORCH_USE_PYTORCH is set, and {python} has {}, not torch {VERSION}: `{python} -m pip install torch=={VERSION}`, or \
         unset it to let setup fetch libtorch",
        if version.is_empty() { "no torch".into() } else { format!("torch {version}") }
    );
    check_compiler()
}

fn check_platform() -> Result<()> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "setup knows the wheel for Linux on x86-64 only: set LIBTORCH to a libtorch {VERSION} of your own"
    );
    Ok(())
}

fn check_compiler() -> Result<()> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let found = Command::new(&compiler).arg("--version").stdin(Stdio::null()).output();
    ensure!(
        found.is_ok_and(|o| o.status.success()),
        "no C++ compiler: `{compiler} --version` does not run. Install one (Debian and Ubuntu: apt-get install g++), or set CXX"
    );
    Ok(())
}

/// Replaces the link at once, so that a build beside this process finds the old one or the new one.
fn set_link(target: &Path, link: &Path) -> Result<()> {
    let context = || format!("cannot link {} to {}", link.display(), target.display());
    let fresh = link.with_file_name(format!(".libtorch.{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(target, &fresh).with_context(context)?;
    match fs::rename(&fresh, link) {
        Err(e) if e.kind() == io::ErrorKind::IsADirectory => {
            let _ = fs::remove_file(&fresh);
            bail!("{} is a folder of yours, not a link: move it away, or set LIBTORCH to it", link.display())
        }
        other => other.with_context(context),
    }
}
