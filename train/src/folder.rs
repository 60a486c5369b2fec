//! A run's folder: where it is, what it is called, and how it is found again.

use std::path::{Path, PathBuf};

use regatta_track::{Reader, copy};
use serde_json::Value;

use crate::config::{Experiment, RunConfig};
use crate::registry::{self, ReadError};
use crate::{Error, Result};

/// The resolved configuration, in the run's folder.
pub const CONFIG: &str = "config.ron";
/// Where runs lie whose storage is no folder.
const LOCAL: &str = "runs";

/// Where a run is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    /// Its experiment.
    pub experiment: String,
    /// Its name.
    pub name: String,
    /// Its own folder, absolute, on the controller's host.
    pub path: PathBuf,
    /// Where its checkpoints lie: the folder, or a URL.
    pub storage: String,
}

impl RunFolder {
    /// Where a new run of this configuration goes. Nothing is made yet.
    pub fn new(config: &RunConfig, trainable: &str) -> Result<Self> {
        let experiment = config.experiment.clone().unwrap_or_else(|| trainable.to_owned());
        let name = config.name.clone().unwrap_or_else(draw_name);
        plain("run.experiment", &experiment)?;
        plain("run.name", &name)?;
        Self::at(&config.storage, &experiment, &name)
    }

    fn at(storage: &str, experiment: &str, name: &str) -> Result<Self> {
        let url = is_url(storage);
        let root = if url { LOCAL } else { storage.trim_start_matches("file://") };
        let path = Path::new(root).join(experiment).join(name);
        let path = std::path::absolute(&path)
            .map_err(|source| Error::io(format!("find the folder of {}", path.display()), source))?;
        let storage = match url {
            true => format!("{}/{experiment}/{name}", storage.trim_end_matches('/')),
            false => path.to_string_lossy().into_owned(),
        };
        Ok(RunFolder { experiment: experiment.into(), name: name.into(), path, storage })
    }

    /// Finds a run by its folder, its name, its experiment and name, or its own URL. `config` says where runs lie. By its URL
    /// it is brought here from its storage, if what is here is not ahead of that.
    pub fn find(what: &str, config: &RunConfig) -> Result<Self> {
        if is_url(what) {
            return Self::fetch(what);
        }
        if is_run(Path::new(what)) {
            return Self::open(Path::new(what), config);
        }
        let root = if is_url(&config.storage) { LOCAL } else { config.storage.trim_start_matches("file://") };
        let root = Path::new(root);
        let (wanted, name) = what.rsplit_once('/').map_or((None, what), |(e, n)| (Some(e), n));
        let experiments = std::fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
        let mut found: Vec<PathBuf> = experiments
            .filter(|folder| {
                wanted.is_none_or(|wanted| folder.file_name().is_some_and(|name| name == wanted))
            })
            .map(|folder| folder.join(name))
            .filter(|folder| is_run(folder))
            .collect();
        found.sort();
        match (found.as_slice(), wanted) {
            ([one], _) => Self::open(one, config),
            ([], Some(experiment)) if is_url(&config.storage) => Self::at(&config.storage, experiment, name),
            ([], _) => Err(Error::NoSuchRun {
                name: what.into(),
                why: format!(
                    "it is no run's folder, and there is none of that name under {}",
                    root.display()
                ),
            }),
            (several, _) => {
                let all: Vec<String> = several.iter().map(|folder| folder.display().to_string()).collect();
                let why = format!("there are several: {}; say which by its folder", all.join(", "));
                Err(Error::NoSuchRun { name: what.into(), why })
            }
        }
    }

    /// A run's folder, as its own configuration tells of it. It may have been moved.
    fn open(folder: &Path, config: &RunConfig) -> Result<Self> {
        let path = std::path::absolute(folder)
            .map_err(|source| Error::io(format!("find the folder of {}", folder.display()), source))?;
        let stored = read_config(&path).map(|experiment| experiment.run).unwrap_or_else(|_| config.clone());
        let part = |path: Option<&Path>| {
            path.and_then(Path::file_name).map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
        };
        let name = stored.name.unwrap_or_else(|| part(Some(&path)));
        let experiment = stored.experiment.unwrap_or_else(|| part(path.parent()));
        let storage = match is_url(&stored.storage) {
            true => format!("{}/{experiment}/{name}", stored.storage.trim_end_matches('/')),
            false => path.to_string_lossy().into_owned(),
        };
        Ok(RunFolder { experiment, name, path, storage })
    }

    /// Brings a run here from its URL alone: `s3://bucket/runs/experiment/run`, its storage with its two names.
    fn fetch(url: &str) -> Result<Self> {
        let missing = |why: String| Error::NoSuchRun { name: url.into(), why };
        let parts = url.trim_end_matches('/').rsplit_once('/');
        let parts = parts.and_then(|(rest, name)| rest.rsplit_once('/').map(|(root, e)| (root, e, name)));
        let Some((root, experiment, name)) = parts.filter(|(root, ..)| is_url(root)) else {
            return Err(missing("a run's URL is its storage, then `/experiment/run`".into()));
        };
        plain("run.experiment", experiment)?;
        plain("run.name", name)?;
        let folder = Self::at(root, experiment, name)?;
        folder.bring_back().map_err(|error| match error {
            Error::Track(regatta_track::Error::Storage { why, .. }) => missing(why),
            other => other,
        })?;
        // A study's configuration says more than a training's: who drives it writes it.
        let stored = Reader::open(&folder.path)?.snapshot()?.run()?.unwrap_or_default();
        if stored.config.get("tune").is_some() {
            return Ok(folder);
        }
        let mut config = match read_config(&folder.path) {
            Ok(config) => config,
            Err(_) => stored_config(&folder.path)?,
        };
        config.run.experiment = Some(experiment.into());
        config.run.name = Some(name.into());
        config.run.storage = root.into();
        folder.write_config(&config)?;
        Ok(folder)
    }

    /// Brings the latest copy of the run's store from its storage, if that is ahead of what is here.
    pub fn bring_back(&self) -> Result<()> {
        match copy::restore(&*copy::open(&self.storage)?, &self.path) {
            // What is here is ahead of the copy.
            Err(regatta_track::Error::Exists { .. }) => Ok(()),
            // There is no copy yet, but a store.
            Err(regatta_track::Error::Storage { .. }) if is_run(&self.path) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    /// Whether checkpoints and copies go elsewhere.
    pub fn is_remote(&self) -> bool {
        is_url(&self.storage)
    }

    /// Whether a copy of the run's store is elsewhere: it may have been begun on another machine.
    pub fn has_copy(&self) -> Result<bool> {
        Ok(self.is_remote() && copy::latest(&*copy::open(&self.storage)?)?.is_some())
    }

    /// Makes the folder of a new run, and sees that it can be written to. Whether the name is in use says the folder, and
    /// for a run that is kept elsewhere also its storage.
    pub(crate) fn create(&self) -> Result<()> {
        let taken = |folder| Err(Error::RunExists { name: self.name.clone(), folder });
        if is_run(&self.path) {
            return taken(self.path.display().to_string());
        }
        if self.has_copy()? {
            return taken(self.storage.clone());
        }
        std::fs::create_dir_all(&self.path).map_err(|source| self.unwritable(source))
    }

    /// Writes the resolved configuration, which is also the proof that the folder can be written to. In one step, so that it
    /// is never there in part; what a power cut leaves of it is nothing, and then the run's store knows it.
    pub(crate) fn write_config(&self, experiment: &Experiment<Value>) -> Result<()> {
        let text = registry::to_ron(experiment)?;
        let temporary = self.path.join(format!(".{CONFIG}-{}", std::process::id()));
        std::fs::write(&temporary, text)
            .and_then(|()| std::fs::rename(&temporary, self.path.join(CONFIG)))
            .map_err(|source| self.unwritable(source))
    }

    fn unwritable(&self, source: std::io::Error) -> Error {
        let path = self.path.display();
        Error::io(
            format!("cannot write to the run's folder {path} (choose another place with run.storage)"),
            source,
        )
    }
}

/// The configuration that is stored in a run's folder: that of its file, or, if a power cut or somebody's hand has taken that
/// away, the one that the run's store remembers.
pub fn read_config(folder: &Path) -> Result<Experiment<Value>> {
    let path = folder.join(CONFIG);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim_matches(['\0', ' ', '\n']).is_empty() => text,
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(format!("read the run's configuration {}", path.display()), source));
        }
        _ => return stored_config(folder),
    };
    match registry::read(&text) {
        Ok(read) => Ok(read.experiment),
        // A run of another program's can still be looked at.
        Err(ReadError::Trainable(_)) => registry::parse::<Value>(&text)
            .map(|read| read.experiment)
            .map_err(|error| Error::other(format!("read {}", path.display()), error)),
        Err(error) => Err(Error::other(format!("read {}", path.display()), error)),
    }
}

/// The configuration with which a run was last begun, as its store remembers it.
fn stored_config(folder: &Path) -> Result<Experiment<Value>> {
    let run = Reader::open(folder)?.snapshot()?.run()?.unwrap_or_default();
    serde_json::from_value(run.config).map_err(|error| {
        let (file, folder) = (CONFIG, folder.display());
        Error::other(format!("read the configuration of the run in {folder}, which has no {file},"), error)
    })
}

/// Whether this is a run's folder.
pub fn is_run(folder: &Path) -> bool {
    Reader::finds(folder)
}

fn is_url(storage: &str) -> bool {
    (storage.contains("://") && !storage.starts_with("file://")) || storage.starts_with("memory:")
}

/// A name that is one folder, and safe in every URL and shell.
fn plain(path: &str, name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=100).contains(&name.len()) && name.chars().all(good) && !name.starts_with(['.', '-']) {
        return Ok(());
    }
    let why = format!(
        "{name:?} is no name: use up to 100 letters, digits, `-`, `_` and `.`, not beginning with `.` or `-`"
    );
    Err(Error::config(path, why))
}

const HOW: [&str; 32] = [
    "agile", "amber", "bold", "brave", "breezy", "bright", "brisk", "calm", "clever", "coral", "crisp",
    "deft", "eager", "fair", "fleet", "gentle", "golden", "hardy", "jolly", "keen", "lively", "lucky",
    "mellow", "nimble", "proud", "quick", "quiet", "silver", "steady", "sunny", "swift", "witty",
];
const WHO: [&str; 32] = [
    "albatross",
    "auk",
    "beaver",
    "cormorant",
    "curlew",
    "dolphin",
    "eider",
    "gannet",
    "grebe",
    "gull",
    "heron",
    "kestrel",
    "kingfisher",
    "loon",
    "mallard",
    "marlin",
    "merlin",
    "narwhal",
    "orca",
    "osprey",
    "otter",
    "pelican",
    "petrel",
    "plover",
    "puffin",
    "salmon",
    "seal",
    "skua",
    "swan",
    "tern",
    "turtle",
    "walrus",
];

/// A name that people can say: `brisk-otter-4f2a`.
pub fn draw_name() -> String {
    let drawn: u64 = rand::random();
    let (how, who) = (HOW[(drawn % 32) as usize], WHO[(drawn / 32 % 32) as usize]);
    format!("{how}-{who}-{:04x}", drawn >> 48)
}

#[cfg(test)]
mod tests {
    use super::*;
    use regatta_track::{Store, StoreConfig};

    fn config(storage: &Path) -> RunConfig {
        RunConfig { storage: storage.to_str().unwrap().into(), ..RunConfig::default() }
    }

    #[test]
    fn a_run_is_found_by_name_by_both_names_and_by_folder_even_if_moved() {
        let root = tempfile::tempdir().unwrap();
        let wanted = RunConfig { name: Some("one".into()), ..config(root.path()) };
        let folder = RunFolder::new(&wanted, "mnist").unwrap();
        assert_eq!(folder.path, root.path().join("mnist/one"));
        assert!(matches!(RunFolder::find("one", &wanted), Err(Error::NoSuchRun { .. })));
        folder.create().unwrap();
        let run = RunConfig { experiment: Some("mnist".into()), ..wanted.clone() };
        folder.write_config(&Experiment { run, ..Experiment::default() }).unwrap();
        // What a run that was killed at its very beginning left is none.
        std::fs::write(folder.path.join("run.db"), "").unwrap();
        folder.create().unwrap();
        Store::create(&folder.path, StoreConfig::default()).unwrap().close().unwrap();
        assert!(matches!(folder.create(), Err(Error::RunExists { .. })));
        for what in ["one", "mnist/one", folder.path.to_str().unwrap()] {
            assert_eq!(RunFolder::find(what, &wanted).unwrap(), folder);
        }

        let moved = root.path().join("elsewhere");
        std::fs::rename(&folder.path, &moved).unwrap();
        let found = RunFolder::find(moved.to_str().unwrap(), &wanted).unwrap();
        assert_eq!((found.name.as_str(), found.experiment.as_str(), &found.path), ("one", "mnist", &moved));
        assert_eq!(found.storage, moved.to_str().unwrap());
    }

    #[test]
    fn a_url_is_for_checkpoints_and_the_run_itself_is_local() {
        let config =
            RunConfig { storage: "s3://bucket/runs/".into(), name: Some("a".into()), ..RunConfig::default() };
        let folder = RunFolder::new(&config, "mnist").unwrap();
        assert_eq!(folder.storage, "s3://bucket/runs/mnist/a");
        assert_eq!(folder.path, std::env::current_dir().unwrap().join("runs/mnist/a"));
        assert!(folder.is_remote());
    }

    #[test]
    fn names_are_plain() {
        let named = |name: &str| RunConfig { name: Some(name.into()), ..RunConfig::default() };
        for wrong in ["", "a/b", "..", "-x", ".hidden", "a b", "naïve"] {
            let error = RunFolder::new(&named(wrong), "e").unwrap_err().to_string();
            assert!(error.starts_with("run.name: "), "{error}");
        }
        let drawn = draw_name();
        assert!(plain("run.name", &drawn).is_ok() && drawn.split('-').count() == 3, "{drawn}");
    }
}
