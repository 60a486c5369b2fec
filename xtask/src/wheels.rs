//! Python wheels: fetched with pip, which checks their hashes, and unpacked without it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use zip::ZipArchive;

/// A wheel pinned to one file.
pub(crate) struct Pin {
    /// `name==version`
    pub(crate) requirement: String,
    /// The SHA-256 of the file, where it is pinned; otherwise pip checks the one its index gives.
    pub(crate) sha256: Option<&'static str>,
}

/// Downloads the wheels into `dir` with pip, whatever Python runs it.
pub(crate) fn download(pins: &[Pin], dir: &Path) -> Result<()> {
    let python = crate::python::interpreter()?;
    let mut pip = Command::new(&python);
    pip.env("TMPDIR", dir); // pip unpacks there: the disk whose space was checked.
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]);
    pip.args(["--disable-pip-version-check", "--python-version", "3.11", "--implementation", "cp"]);
    pip.arg("--platform").arg("manylinux2014_x86_64");
    for glibc in 17..=28 {
        pip.arg("--platform").arg(format!("manylinux_2_{glibc}_x86_64"));
    }
    let list = dir.join("requirements.txt");
    let lines: String = pins
        .iter()
        .map(|pin| match pin.sha256 {
            Some(hash) => format!("{} --hash=sha256:{hash}\n", pin.requirement),
            None => format!("{}\n", pin.requirement),
        })
        .collect();
    fs::write(&list, lines).with_context(|| format!("cannot write {}", list.display()))?;
    pip.arg("--dest").arg(dir).arg("--requirement").arg(&list);
    // pip's progress belongs on stderr: stdout is for results.
    pip.stdout(Stdio::from(io::stderr()));
    let status = pip.status().with_context(|| format!("cannot start {}", python.display()))?;
    if !status.success() {
        bail!(
            "pip could not download {}: its message is above. Without a network, set LIBTORCH to a libtorch of your own",
            pins.iter().map(|pin| pin.requirement.as_str()).collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

/// The wheels that lie in `dir`.
pub(crate) fn list(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut wheels = vec![];
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        if path.extension().is_some_and(|e| e == "whl") {
            wheels.push(path);
        }
    }
    wheels.sort();
    Ok(wheels)
}

/// Unpacks what `wanted` says from a wheel into `target`, with a progress bar.
pub(crate) fn unpack(wheel: &Path, target: &Path, wanted: impl Fn(&str) -> bool) -> Result<()> {
    let context = || format!("cannot unpack {}", wheel.display());
    let mut zip = open(wheel)?;
    let names: Vec<String> =
        names(&zip).with_context(context)?.into_iter().filter(|n| !n.ends_with('/') && wanted(n)).collect();
    let mut total = 0;
    for name in &names {
        total += zip.by_name(name).with_context(context)?.size();
    }
    let bar = ProgressBar::new(total).with_style(
        ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes}").expect("a valid template"),
    );
    bar.set_message(format!("unpacking {}", wheel.file_name().unwrap_or_default().to_string_lossy()));
    for name in &names {
        let mut entry = zip.by_name(name).with_context(context)?;
        let Some(inside) = entry.enclosed_name() else {
            bail!("{}: the path {name} leaves the wheel", wheel.display())
        };
        let path = target.join(inside);
        let write = || format!("cannot write {}", path.display());
        fs::create_dir_all(path.parent().expect("a file in a folder")).with_context(write)?;
        io::copy(&mut bar.wrap_read(&mut entry), &mut File::create(&path).with_context(write)?)
            .with_context(write)?;
    }
    bar.finish_and_clear();
    Ok(())
}

/// What a wheel requires, as `name==version`, where the name begins with `prefix`.
pub(crate) fn requirements(wheel: &Path, prefix: &str) -> Result<Vec<String>> {
    let context = || format!("cannot read the metadata of {}", wheel.display());
    let mut zip = open(wheel)?;
    let names = names(&zip).with_context(context)?;
    let name = names.iter().find(|n| n.ends_with(".dist-info/METADATA")).with_context(context)?;
    let mut text = String::new();
    zip.by_name(name).with_context(context)?.read_to_string(&mut text).with_context(context)?;
    Ok(text
        .lines()
        .filter_map(|line| line.strip_prefix("Requires-Dist: "))
        .map(|line| line.split(';').next().unwrap_or(line).replace(['(', ')', ' '], ""))
        .filter(|line| line.starts_with(prefix))
        .collect())
}

type Wheel = ZipArchive<File>;

fn open(wheel: &Path) -> Result<Wheel> {
    let context = || format!("cannot open the wheel {}", wheel.display());
    ZipArchive::new(File::open(wheel).with_context(context)?).with_context(context)
}

fn names(zip: &Wheel) -> Result<Vec<String>> {
    zip.file_names().map(|name| Ok(name?.into_owned())).collect()
}
