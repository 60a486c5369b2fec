//! The cache that all checkouts of a user share: where it is, and how two processes keep out of each other's way.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// `$REGATTA_CACHE`, else `$XDG_CACHE_HOME/regatta`, else `~/.cache/regatta`.
pub(crate) fn dir() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    if let Some(dir) = set("REGATTA_CACHE") {
        return std::path::absolute(&dir)
            .with_context(|| format!("REGATTA_CACHE={} is no path", dir.display()));
    }
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    match base {
        Some(base) => Ok(base.join("regatta")),
        None => bail!("no folder for the cache: set REGATTA_CACHE, XDG_CACHE_HOME or HOME"),
    }
}

/// Installs `name` into the cache unless `complete` says that it is there: `make` fills a folder that becomes
/// `<cache>/<name>` only when `make` succeeded. Two processes take turns; what an interrupted one left is removed.
pub(crate) fn install(
    name: &str,
    bytes_needed: u64,
    complete: impl Fn(&Path) -> Result<()>,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let cache = dir()?;
    let target = cache.join(name);
    if complete(&target).is_ok() {
        return Ok(target);
    }
    fs::create_dir_all(&cache).with_context(|| {
        format!("cannot create the cache {}: set REGATTA_CACHE to a folder you can write", cache.display())
    })?;
    let _lock = lock(&cache.join(format!("{name}.lock")))?;
    if complete(&target).is_ok() {
        return Ok(target); // Another process made it while this one waited.
    }
    let partial = cache.join(format!("{name}.partial"));
    for stale in [&partial, &target] {
        if stale.exists() {
            fs::remove_dir_all(stale)
                .with_context(|| format!("cannot remove the stale {}", stale.display()))?;
        }
    }
    check_space(&cache, bytes_needed)?;
    fs::create_dir(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    let made = make(&partial).and_then(|()| {
        fs::rename(&partial, &target)
            .with_context(|| format!("cannot rename {} to {}", partial.display(), target.display()))?;
        complete(&target)
    });
    if made.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    made.map(|()| target)
}

/// Holds an exclusive lock until the file is dropped, or the process dies.
fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => eprintln!("waiting for another setup that holds {}", path.display()),
        Err(TryLockError::Error(e)) => {
            return Err(e).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    // The holder downloads hundreds of megabytes: half an hour is long enough for a slow line, short enough to end.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30 * 60);
    while file.try_lock().is_err() {
        if std::time::Instant::now() > deadline {
            bail!("another setup has held {} for 30 minutes: end it and try again", path.display());
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    Ok(file)
}

fn check_space(at: &Path, needed: u64) -> Result<()> {
    let stat =
        rustix::fs::statvfs(at).with_context(|| format!("cannot read the free space of {}", at.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < needed {
        bail!(
            "{} has {:.1} GB free and {:.1} GB are needed: make room, or set REGATTA_CACHE to a folder on a larger disk",
            at.display(),
            free as f64 / 1e9,
            needed as f64 / 1e9
        );
    }
    Ok(())
}
