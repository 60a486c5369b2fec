//! The client's side: a driver as a batch job.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

use super::tool::{self, Tools};
use super::{ENGINE, SlurmConfig, script, text};
use crate::engine::folder::{self, Claim, JobFolder};
use crate::engine::{Caps, Engine, JobId, JobSpec, JobState, JobStatus, LogPart, Submitted, shell};
use crate::error::{Error, Result};

/// How long after the end of its grace a cancelled job may take to be gone.
const ENDED: Duration = Duration::from_secs(120);
/// How often Slurm's controller is asked while something is awaited, and a log is looked at.
const ASK: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

/// Drivers as jobs of a cluster under Slurm.
#[derive(Clone, Debug)]
pub struct SlurmEngine {
    config: SlurmConfig,
    tools: Tools,
    /// Where jobs are remembered and their logs lie: on storage that all nodes share.
    folder: PathBuf,
}

impl SlurmEngine {
    /// An engine that submits like this, and remembers jobs in a folder on storage that all nodes share.
    #[must_use]
    pub fn new(config: SlurmConfig, folder: impl Into<PathBuf>) -> Self {
        Self { tools: Tools::of(&config), config, folder: folder.into() }
    }

    async fn claim(&self, job: &JobFolder) -> Result<Claim> {
        let job = job.clone();
        let claimed = tokio::task::spawn_blocking(move || job.claim()).await;
        claimed.unwrap_or_else(|error| Err(Error::SpawnerGone { engine: ENGINE, cause: error.to_string() }))
    }

    /// A job of this name that a client submitted and died before it could note down its number.
    async fn orphan(&self, id: &JobId) -> Result<Option<String>> {
        let args = ["-h", "-t", "all", "--me", &format!("--name={id}"), "-o", "%i|%T|%r|%N"];
        let found = text::queue(&self.tools.ask("squeue", &args).await?);
        Ok(found.into_iter().map(|job| job.id).next())
    }

    async fn sbatch(&self, spec: &JobSpec, job: &JobFolder) -> Result<String> {
        let script = script::job(&self.config, spec, &job.file(""))?;
        let variables = shell::environment(&spec.command);
        let lines =
            shell::exports(variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())));
        job.set_labels(&spec.labels)?;
        job.write("env", &lines)?;
        let input = script.into_encoded_bytes();
        let said = self.tools.run("sbatch", vec!["--parsable".into()], input).await?;
        // `17`, or `17;cluster`.
        let number = said.out.trim().split(';').next().unwrap_or_default().to_owned();
        if !said.ok || number.is_empty() || number.bytes().any(|byte| !byte.is_ascii_digit()) {
            let _ = std::fs::remove_file(job.file("env"));
            return Err(tool::refused("sbatch", &said));
        }
        Ok(number)
    }

    /// Slurm takes jobs into its queue that could never run; such a one is taken out again.
    async fn refuse_hopeless(&self, number: &str) -> Result<()> {
        let queue = self.queue(std::slice::from_ref(&number.to_owned())).await?;
        let Some(job) = queue.get(number).filter(|job| job.state == "PENDING" || text::is_end(&job.state))
        else {
            return Ok(());
        };
        let (JobState::Queued(why), true) = text::why_pending(&job.reason) else { return Ok(()) };
        self.tools.run("scancel", vec![number.into()], Vec::new()).await?;
        let advice =
            ": ask for less, or for another partition; `sinfo -o '%P %D %c %m %G %l'` shows what there is";
        Err(Error::Engine {
            engine: ENGINE,
            what: format!("job {number}"),
            reason: why,
            advice: advice.into(),
        })
    }

    /// What the queue knows of these jobs, by number.
    async fn queue(&self, numbers: &[String]) -> Result<HashMap<String, text::Queued>> {
        let list = numbers.join(",");
        let args = ["-h", "-t", "all", "-j", &list, "-o", "%i|%T|%r|%N"].iter().map(Into::into).collect();
        let said = self.tools.run("squeue", args, Vec::new()).await?;
        if !said.ok && !said.err.contains("Invalid job id") {
            return Err(tool::refused("squeue", &said));
        }
        Ok(text::queue(&said.out).into_iter().map(|job| (job.id.clone(), job)).collect())
    }

    async fn status(
        &self,
        id: &JobId,
        known: (JobFolder, String),
        queued: Option<&text::Queued>,
    ) -> Result<JobStatus> {
        let (job, number) = known;
        let (state, word) = match queued {
            Some(queued) if queued.state == "PENDING" => {
                (text::why_pending(&queued.reason).0, queued.state.clone())
            }
            Some(queued) if !text::is_end(&queued.state) => (JobState::Running, queued.state.clone()),
            _ => match self.end(&number).await? {
                Some(end) => (JobState::Ended(text::reason(&end, job.has("cancelled"))), end.state),
                None => (JobState::Forgotten, "unknown to squeue, scontrol and sacct".into()),
            },
        };
        let nodes = queued.map_or_else(String::new, |queued| queued.nodes.clone());
        Ok(JobStatus { id: id.clone(), engine_id: number, state, word, nodes, labels: job.labels() })
    }

    /// How a job ended, from the controller's memory or from the accounts, where the site keeps them.
    async fn end(&self, number: &str) -> Result<Option<text::End>> {
        let tools = &self.tools;
        let args = ["show", "job", "-o", number].iter().map(Into::into).collect();
        let said = tools.run("scontrol", args, Vec::new()).await?;
        if let Some(end) = said.out.lines().find_map(text::end_of_scontrol) {
            return Ok(Some(end));
        }
        let args = ["-n", "-P", "-X", "-j", number, "-o", "State,ExitCode,Reason"];
        let said = tools.run("sacct", args.iter().map(Into::into).collect(), Vec::new()).await?;
        Ok(text::end_of_sacct(&said.out))
    }

    async fn one(&self, id: &JobId) -> Result<JobStatus> {
        let mut statuses = self.describe(std::slice::from_ref(id)).await?;
        statuses.pop().ok_or(Error::Over { what: "the job" })
    }

    /// Waits for the job's end; ending is enough, for a node that hangs keeps its job from being over.
    async fn ended(&self, id: &JobId, within: Duration) -> Result<Option<JobStatus>> {
        let since = tokio::time::Instant::now();
        loop {
            let status = self.one(id).await?;
            if status.state.is_over() {
                return Ok(Some(status));
            }
            let left = within.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            tokio::time::sleep(left.min(ASK / 5)).await;
        }
    }
}

#[async_trait]
impl Engine for SlurmEngine {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn caps(&self) -> Caps {
        Caps { queues: true, preempts: true, many_hosts: true, time_limits: true }
    }

    fn render(&self, spec: &JobSpec) -> Result<String> {
        let job = JobFolder::of(&self.folder, &spec.id);
        Ok(script::job(&self.config, spec, &job.file(""))?.to_string_lossy().into_owned())
    }

    async fn submit(&self, spec: &JobSpec) -> Result<Submitted> {
        let job = JobFolder::of(&self.folder, &spec.id);
        let _claim = self.claim(&job).await?;
        if let Some(engine_id) = job.engine_id() {
            return Ok(Submitted { engine_id, new: false });
        }
        // Only where a client began before may there be a job without a number.
        if job.has("env")
            && let Some(engine_id) = self.orphan(&spec.id).await?
        {
            job.write("engine_id", OsStr::new(&engine_id))?;
            return Ok(Submitted { engine_id, new: false });
        }
        let engine_id = self.sbatch(spec, &job).await?;
        job.write("engine_id", OsStr::new(&engine_id))?;
        if let Err(error) = self.refuse_hopeless(&engine_id).await {
            let _ = std::fs::remove_file(job.file("engine_id"));
            let _ = std::fs::remove_file(job.file("env"));
            return Err(error);
        }
        Ok(Submitted { engine_id, new: true })
    }

    async fn describe(&self, ids: &[JobId]) -> Result<Vec<JobStatus>> {
        let known = ids.iter().map(|id| JobFolder::existing(&self.folder, id, ENGINE));
        let known = known.collect::<Result<Vec<_>>>()?;
        if known.is_empty() {
            return Ok(Vec::new());
        }
        let numbers: Vec<String> = known.iter().map(|(_, number)| number.clone()).collect();
        let queue = self.queue(&numbers).await?;
        let mut statuses = Vec::new();
        for (id, known) in ids.iter().zip(known) {
            let queued = queue.get(&known.1);
            statuses.push(self.status(id, known, queued).await?);
        }
        Ok(statuses)
    }

    async fn logs(&self, id: &JobId, from: u64, wait: Duration) -> Result<LogPart> {
        let (job, _) = JobFolder::existing(&self.folder, id, ENGINE)?;
        let since = tokio::time::Instant::now();
        let mut asked: Option<tokio::time::Instant> = None;
        let mut over = false;
        loop {
            let (bytes, next) = job.log(from)?;
            if !bytes.is_empty() {
                return Ok(LogPart { bytes, next, end: false });
            }
            // It was over before this look, which found nothing: nothing will come.
            if over || since.elapsed() >= wait {
                return Ok(LogPart { bytes, next, end: over });
            }
            if asked.is_none_or(|at| at.elapsed() >= ASK) {
                over = self.one(id).await?.state.is_over();
                asked = Some(tokio::time::Instant::now());
                continue;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn cancel(&self, id: &JobId, grace: Duration) -> Result<JobStatus> {
        let (job, number) = JobFolder::existing(&self.folder, id, ENGINE)?;
        let now = self.one(id).await?;
        if now.state.is_over() {
            return Ok(now);
        }
        job.write("cancelled", OsStr::new(""))?;
        let tools = &self.tools;
        let scancel = |args: &[&str]| tools.run("scancel", args.iter().map(Into::into).collect(), Vec::new());
        if matches!(now.state, JobState::Running) {
            // To the driver alone: it ends its workers when they have saved.
            scancel(&["--batch", "--signal=TERM", &number]).await?;
            if let Some(status) = self.ended(id, grace).await? {
                return Ok(status);
            }
        }
        let said = scancel(&[&number]).await?;
        match self.ended(id, ENDED).await? {
            Some(status) => Ok(status),
            None => Err(tool::refused("scancel", &said)),
        }
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<JobStatus>> {
        self.describe(&folder::all(&self.folder, labels)?).await
    }
}
