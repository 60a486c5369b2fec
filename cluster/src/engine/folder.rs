//! A folder for each job, on storage that the client and the driver share: the engine's memory of what was submitted.
//!
//! `env` (mode 0600) holds the driver's variables until the driver has read them, `engine_id` what the engine calls the job,
//! `labels.json` what it was submitted with, `cancelled` that its end was wanted, `driver.log` what the driver wrote.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::job::JobId;
use crate::error::{Error, Result};

/// How long another client may take to submit the same job.
const CLAIM: Duration = Duration::from_secs(60);
/// The most that is read of a log at once.
const LOG_PART: u64 = 1 << 20;

/// One job's folder.
#[derive(Clone, Debug)]
pub(crate) struct JobFolder {
    path: PathBuf,
}

/// The sole right to submit a job; given up when dropped.
#[derive(Debug)]
pub(crate) struct Claim(#[allow(dead_code, reason = "the lock lives as long as the file is open")] File);

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { operation, path, source }
}

impl JobFolder {
    pub(crate) fn of(all: &Path, id: &JobId) -> Self {
        Self { path: all.join(id.as_str()) }
    }

    /// The folder of a job that was submitted, or the error that it was not.
    pub(crate) fn existing(all: &Path, id: &JobId, engine: &'static str) -> Result<(Self, String)> {
        let folder = Self::of(all, id);
        match folder.engine_id() {
            Some(engine_id) => Ok((folder, engine_id)),
            None => Err(Error::UnknownJob { engine, job: id.clone(), folder: all.to_owned() }),
        }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes the folder and takes the sole right to submit. Blocks while another client submits.
    pub(crate) fn claim(&self) -> Result<Claim> {
        fs::create_dir_all(&self.path).map_err(failed("create the folder of a job", &self.path))?;
        let path = self.file("lock");
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let file = opened.map_err(failed("open", &path))?;
        let since = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Claim(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if since.elapsed() < CLAIM => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => return Err(failed("lock", &path)(error.into())),
            }
        }
    }

    /// What the engine calls the job, once it was submitted.
    pub(crate) fn engine_id(&self) -> Option<String> {
        let id = fs::read_to_string(self.file("engine_id")).ok()?;
        Some(id.trim().to_owned())
    }

    /// Writes a file whole or not at all, for its owner's eyes only.
    pub(crate) fn write(&self, name: &str, content: &OsStr) -> Result<()> {
        let (path, partial) = (self.file(name), self.file(&format!("{name}.partial")));
        let write = || {
            let _ = fs::remove_file(&partial);
            let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&partial)?;
            file.write_all(content.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &path)
        };
        write().map_err(failed("write", &path))
    }

    pub(crate) fn set_labels(&self, labels: &BTreeMap<String, String>) -> Result<()> {
        let text = serde_json::to_string(labels).unwrap_or_default();
        self.write("labels.json", OsStr::new(&text))
    }

    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.file("labels.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file(name).exists()
    }

    /// What the driver wrote from this byte on, and where the next piece begins.
    pub(crate) fn log(&self, from: u64) -> Result<(Vec<u8>, u64)> {
        let path = self.file("driver.log");
        let mut bytes = Vec::new();
        let read = |bytes: &mut Vec<u8>| {
            let mut file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
                opened => opened?,
            };
            file.seek(SeekFrom::Start(from))?;
            file.take(LOG_PART).read_to_end(bytes)
        };
        read(&mut bytes).map_err(failed("read the log", &path))?;
        let next = from + bytes.len() as u64;
        Ok((bytes, next))
    }
}

/// The jobs that were submitted with all these labels, oldest first.
pub(crate) fn all(folder: &Path, labels: &BTreeMap<String, String>) -> Result<Vec<JobId>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed("list the jobs in", folder))?,
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Ok(id) = JobId::new(entry.file_name().to_string_lossy()) else { continue };
        let job = JobFolder::of(folder, &id);
        let since = fs::metadata(job.file("engine_id")).and_then(|meta| meta.modified());
        let has = job.labels();
        if let Ok(since) = since
            && labels.iter().all(|(name, value)| has.get(name) == Some(value))
        {
            found.push((since, id));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, id)| id).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_job_is_submitted_with_is_for_its_owner_only_and_found_again() {
        let all_jobs = tempfile::tempdir().unwrap();
        let id = JobId::new("job-1").unwrap();
        let job = JobFolder::of(all_jobs.path(), &id);
        let claim = job.claim().unwrap();
        job.write("env", OsStr::new("export TOKEN='secret'\n")).unwrap();
        assert_eq!(fs::metadata(job.file("env")).unwrap().permissions().mode() & 0o777, 0o600);
        let labels = BTreeMap::from([("run".to_owned(), "mnist".to_owned())]);
        job.set_labels(&labels).unwrap();
        assert!(all(all_jobs.path(), &labels).unwrap().is_empty(), "not submitted yet");
        job.write("engine_id", OsStr::new("17\n")).unwrap();
        drop(claim);
        assert_eq!(all(all_jobs.path(), &labels).unwrap(), std::slice::from_ref(&id));
        assert_eq!(JobFolder::existing(all_jobs.path(), &id, "test").unwrap().1, "17");
        let other = BTreeMap::from([("run".to_owned(), "other".to_owned())]);
        assert!(all(all_jobs.path(), &other).unwrap().is_empty());
    }
}
