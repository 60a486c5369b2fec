//! The client's side: a driver as a job of the cluster, which remembers it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::http::Dashboard;
use super::job::{self, Job};
use super::log::{self, Tail, Tails};
use super::node::{self, Node};
use super::package::{self, Package};
use super::{ENGINE, RayConfig};
use crate::engine::{Caps, Engine, JobId, JobSpec, JobStatus, LogPart, Submitted};
use crate::error::{Error, Result};

/// How long after the end of its grace a cancelled job may take to be gone.
const ENDED: Duration = Duration::from_secs(60);
/// How often the dashboard is asked while something is awaited.
const ASK: Duration = Duration::from_millis(100);
/// How often it is asked whether a job is over while its log is followed.
const OVER: Duration = Duration::from_millis(500);

/// Drivers as jobs of a cluster under Ray.
#[derive(Clone, Debug)]
pub struct RayEngine {
    config: RayConfig,
    dashboard: Dashboard,
    tails: Arc<Tails>,
}

/// The dashboard's answer about the cluster's nodes.
#[derive(Deserialize)]
struct Listed {
    data: ListedData,
}

#[derive(Deserialize)]
struct ListedData {
    result: ListedNodes,
}

#[derive(Deserialize)]
struct ListedNodes {
    result: Vec<Node>,
}

impl RayEngine {
    /// An engine that submits like this.
    pub fn new(config: RayConfig) -> Result<Self> {
        config.check()?;
        let dashboard = Dashboard::new(&config)?;
        Ok(Self { config, dashboard, tails: Arc::default() })
    }

    async fn find(&self, id: &JobId) -> Result<Option<Job>> {
        self.dashboard.find(&format!("/api/jobs/{id}")).await
    }

    async fn job(&self, id: &JobId) -> Result<Job> {
        self.find(id).await?.ok_or_else(|| job::unknown(id, self.dashboard.address()))
    }

    /// What no state of the cluster could ever seat is refused.
    async fn refuse_hopeless(&self, spec: &JobSpec) -> Result<()> {
        if self.config.autoscaling {
            return Ok(());
        }
        let listed: Listed = self.dashboard.get("/api/v0/nodes?detail=true").await?;
        let nodes = listed.data.result.result;
        node::feasible(
            node::named(&nodes).into_iter().map(|(name, node)| (name, node.total(), true)),
            &spec.room,
        )
    }

    /// Uploads the program and its files, unless they are there. Returns their address in the cluster.
    async fn upload(&self, package: Package) -> Result<String> {
        let package = Arc::new(package);
        let of = package.clone();
        let name = blocking(move || of.name()).await?;
        let path = format!("/api/packages/gcs/{name}");
        if !self.dashboard.has(&path).await? {
            let packed = blocking(move || package.pack()).await?;
            tracing::info!(name, bytes = packed.len(), "uploading the job's package");
            self.dashboard.put(&path, packed).await?;
        }
        Ok(format!("gcs://{name}"))
    }

    /// What is posted, for a package of this address.
    fn body(
        &self,
        spec: &JobSpec,
        program: Option<&str>,
        package: &str,
        variables: &str,
    ) -> serde_json::Value {
        let entrypoint = package::entrypoint(spec, program);
        // Ray ends a job that was told to stop after this long; a shorter grace is `cancel`'s own.
        let stop = spec.notice.as_secs().max(3).to_string();
        let mut body = json!({
            "submission_id": spec.id.as_str(),
            "entrypoint": entrypoint.to_string_lossy(),
            "runtime_env": {
                "working_dir": package,
                "py_modules": [variables],
                "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": stop},
            },
            "metadata": job::metadata(&spec.labels),
        });
        let own = node::bundle(&self.config.driver);
        for (name, amount) in own {
            match name.as_str() {
                "CPU" => body["entrypoint_num_cpus"] = amount.into(),
                "GPU" => body["entrypoint_num_gpus"] = amount.into(),
                "memory" => body["entrypoint_memory"] = (amount as u64).into(),
                _ => body["entrypoint_resources"][name] = amount.into(),
            }
        }
        body
    }

    fn check(spec: &JobSpec) -> Result<()> {
        if let Some(limit) = spec.time_limit {
            let problem =
                format!("Ray keeps no time limits, so it would run longer than {limit:?}: leave it out");
            return Err(Error::BadRequest { what: format!("the time limit of job `{}`", spec.id), problem });
        }
        Ok(())
    }

    /// Waits for the job's end.
    async fn ended(&self, id: &JobId, within: Duration) -> Result<Option<Job>> {
        let since = Instant::now();
        loop {
            let job = self.job(id).await?;
            if job.is_over() {
                return Ok(Some(job));
            }
            let left = within.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Ok(None);
            }
            sleep(left.min(ASK)).await;
        }
    }

    /// Kills the driver of a job that was told to stop and does not: by another job, on the same node, as there is no other way
    /// to reach it from here.
    async fn kill(&self, id: &JobId, job: &Job) -> Result<()> {
        let status = job.describe(id);
        let Some(node) = &job.driver_node_id else { return Ok(()) };
        let log = log::whole(&self.dashboard, node, id, self.config.request_patience()).await?;
        let Some(begins) = log::begins(&log) else { return Ok(()) };
        let name = format!("{id}-kill-{:08x}", rand::random::<u32>());
        tracing::info!(job = %id, "the grace is over: killing the driver");
        let body = json!({
            "submission_id": name,
            "entrypoint": format!("kill -9 -{}", begins.group),
            "entrypoint_resources": {format!("node:{}", status.nodes): 0.001},
        });
        match self.dashboard.post("/api/jobs/", &body).await? {
            Ok(()) => Ok(()),
            Err(refusal) => Err(self.dashboard.refused(format!("the end of job `{id}`"), &refusal)),
        }
    }

    /// What is left of the log of a job that is over.
    async fn rest(&self, id: &JobId, job: &Job, from: u64) -> Result<LogPart> {
        let log = match &job.driver_node_id {
            Some(node) => log::whole(&self.dashboard, node, id, self.config.request_patience()).await?,
            None => Vec::new(),
        };
        let own = log::own(&log);
        let bytes = own.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default().to_vec();
        let next = from + bytes.len() as u64;
        Ok(LogPart { end: bytes.is_empty() && job.is_over(), bytes, next })
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::SpawnerGone { engine: ENGINE, cause: error.to_string() }))
}

#[async_trait]
impl Engine for RayEngine {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn caps(&self) -> Caps {
        Caps { queues: false, preempts: false, many_hosts: true, time_limits: false }
    }

    fn render(&self, spec: &JobSpec) -> Result<String> {
        Self::check(spec)?;
        let package = Package::of(&self.config, spec)?;
        let name = format!("gcs://{}", package.name()?);
        let body = self.body(spec, package.program.as_deref(), &name, "gcs://<the driver's variables>");
        let mut text = format!("{body:#}\n");
        for place in package.places() {
            text += &format!("# in {name}: {place}\n");
        }
        Ok(text)
    }

    async fn submit(&self, spec: &JobSpec) -> Result<Submitted> {
        Self::check(spec)?;
        let engine_id = spec.id.to_string();
        if self.find(&spec.id).await?.is_some() {
            return Ok(Submitted { engine_id, new: false });
        }
        self.refuse_hopeless(spec).await?;
        let package = Package::of(&self.config, spec)?;
        let program = package.program.clone();
        let (variables, packed) = package::variables(&self.config, spec)?;
        let variables_path = format!("/api/packages/gcs/{variables}");
        let (package, ()) =
            tokio::try_join!(self.upload(package), self.dashboard.put(&variables_path, packed))?;
        let body = self.body(spec, program.as_deref(), &package, &format!("gcs://{variables}"));
        match self.dashboard.post("/api/jobs/", &body).await? {
            Ok(()) => Ok(Submitted { engine_id, new: true }),
            Err(refusal) if refusal.text.contains("already exists") => {
                Ok(Submitted { engine_id, new: false })
            }
            Err(refusal) => Err(self.dashboard.refused(format!("job `{}`", spec.id), &refusal)),
        }
    }

    async fn describe(&self, ids: &[JobId]) -> Result<Vec<JobStatus>> {
        if let [id] = ids {
            return Ok(vec![self.job(id).await?.describe(id)]);
        }
        let all: Vec<Job> = self.dashboard.get("/api/jobs/").await?;
        let find = |id: &JobId| all.iter().find(|job| job.submission_id.as_deref() == Some(id.as_str()));
        let describe = |id: &JobId| match find(id) {
            Some(job) => Ok(job.describe(id)),
            None => Err(job::unknown(id, self.dashboard.address())),
        };
        ids.iter().map(describe).collect()
    }

    async fn logs(&self, id: &JobId, from: u64, wait: Duration) -> Result<LogPart> {
        let since = Instant::now();
        let mut tail = self.tails.take(id, from);
        loop {
            let job = self.job(id).await?;
            if job.is_over() || wait.is_zero() {
                return self.rest(id, &job, from).await;
            }
            if let (None, Some(node)) = (&tail, &job.driver_node_id) {
                tail = Tail::open(&self.dashboard, node, id).await?;
            }
            let left = wait.saturating_sub(since.elapsed());
            let read = match &mut tail {
                Some(tail) => timeout(left.min(OVER), tail.read(from)).await,
                None => {
                    sleep(left.min(ASK)).await;
                    Ok(None)
                }
            };
            match (read, tail.take()) {
                (Ok(Some(bytes)), Some(read)) => {
                    self.tails.keep(id, read);
                    return Ok(LogPart { next: from + bytes.len() as u64, bytes, end: false });
                }
                // Its stream ended: the next look opens another, or finds that the job is over.
                (Ok(_), _) => {}
                (Err(_), waiting) => tail = waiting,
            }
            if since.elapsed() >= wait {
                if let Some(tail) = tail {
                    self.tails.keep(id, tail);
                }
                return Ok(LogPart { bytes: Vec::new(), next: from, end: false });
            }
        }
    }

    async fn cancel(&self, id: &JobId, grace: Duration) -> Result<JobStatus> {
        let now = self.job(id).await?;
        if now.is_over() {
            return Ok(now.describe(id));
        }
        if let Err(refusal) = self.dashboard.post(&format!("/api/jobs/{id}/stop"), &json!({})).await? {
            return Err(self.dashboard.refused(format!("the stop of job `{id}`"), &refusal));
        }
        if let Some(job) = self.ended(id, grace).await? {
            return Ok(job.describe(id));
        }
        let job = self.job(id).await?;
        self.kill(id, &job).await?;
        let ended = self.ended(id, ENDED).await?;
        ended.map(|job| job.describe(id)).ok_or(Error::Timeout {
            operation: "the end of a killed driver",
            waited: ENDED,
            detail: format!(": is node `{}` still there?", job.describe(id).nodes),
        })
    }

    async fn list(&self, labels: &BTreeMap<String, String>) -> Result<Vec<JobStatus>> {
        let mut all: Vec<Job> = self.dashboard.get("/api/jobs/").await?;
        all.sort_by_key(|job| job.start_time);
        let wanted = |job: &Job| {
            let has = job.labels();
            job.is_ours() && labels.iter().all(|(name, value)| has.get(name) == Some(value))
        };
        let id = |job: &Job| JobId::new(job.submission_id.clone()?).ok();
        Ok(all.iter().filter(|job| wanted(job)).filter_map(|job| Some(job.describe(&id(job)?))).collect())
    }
}
