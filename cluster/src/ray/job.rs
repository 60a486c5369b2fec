//! What Ray says about a job, in the one vocabulary.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ENGINE;
use super::http::shorten;
use crate::engine::local;
use crate::engine::{JobId, JobState, JobStatus};
use crate::spawner::Reason;

/// The name of a label among a job's metadata, which may hold others' too.
const LABEL: &str = "regatta-label:";
/// What every job of ours has among its metadata.
pub(super) const OURS: &str = "regatta";

/// A job as the Jobs API describes it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Job {
    pub(super) submission_id: Option<String>,
    pub(super) status: String,
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    pub(super) error_type: Option<String>,
    #[serde(default)]
    pub(super) start_time: Option<u64>,
    #[serde(default)]
    pub(super) metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) driver_node_id: Option<String>,
    #[serde(default)]
    pub(super) driver_agent_http_address: Option<String>,
    #[serde(default)]
    pub(super) driver_exit_code: Option<i32>,
}

/// The labels as metadata.
pub(super) fn metadata(labels: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::from([(OURS.to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    metadata.extend(labels.iter().map(|(name, value)| (format!("{LABEL}{name}"), value.clone())));
    metadata
}

impl Job {
    pub(super) fn is_over(&self) -> bool {
        matches!(self.status.as_str(), "SUCCEEDED" | "FAILED" | "STOPPED")
    }

    pub(super) fn is_ours(&self) -> bool {
        self.metadata.as_ref().is_some_and(|metadata| metadata.contains_key(OURS))
    }

    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let all = self.metadata.iter().flatten();
        all.filter_map(|(name, value)| Some((name.strip_prefix(LABEL)?.to_owned(), value.clone()))).collect()
    }

    fn said(&self) -> String {
        shorten(self.message.as_deref().unwrap_or_default())
    }

    fn state(&self) -> JobState {
        match self.status.as_str() {
            "PENDING" => JobState::Queued(self.said()),
            "RUNNING" => JobState::Running,
            _ => JobState::Ended(self.reason()),
        }
    }

    fn reason(&self) -> Reason {
        let kind = self.error_type.as_deref().unwrap_or_default();
        match (self.status.as_str(), self.driver_exit_code, kind) {
            ("SUCCEEDED", ..) => Reason::Succeeded,
            ("STOPPED", ..) => Reason::Cancelled,
            (_, Some(code), _) if code < 0 => local::reason(128 - code, false),
            (_, Some(code), _) => local::reason(code, false),
            (_, None, "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE") => Reason::NoCapacity,
            (_, None, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT") => Reason::StartTimeout,
            (_, None, "JOB_SUPERVISOR_ACTOR_DIED") if self.said().to_lowercase().contains("node") => {
                Reason::NodeLost
            }
            _ => Reason::EngineError(self.said()),
        }
    }

    pub(super) fn describe(&self, id: &JobId) -> JobStatus {
        let agent = self.driver_agent_http_address.as_deref().unwrap_or_default();
        let agent = agent.trim_start_matches("http://");
        JobStatus {
            id: id.clone(),
            engine_id: self.submission_id.clone().unwrap_or_else(|| id.to_string()),
            state: self.state(),
            word: self.status.clone(),
            nodes: agent.rsplit_once(':').map_or(agent, |(host, _)| host).to_owned(),
            labels: self.labels(),
        }
    }
}

/// The error that Ray has no such job.
pub(super) fn unknown(id: &JobId, address: &str) -> crate::Error {
    crate::Error::UnknownJob { engine: ENGINE, job: id.clone(), folder: address.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(text: &str) -> Job {
        serde_json::from_str(text).unwrap()
    }

    fn ended(status: &str, code: Option<i32>, kind: Option<&str>, message: &str) -> Reason {
        let job = Job {
            status: status.into(),
            driver_exit_code: code,
            error_type: kind.map(Into::into),
            message: Some(message.into()),
            ..Job::default()
        };
        match job.describe(&JobId::new("a").unwrap()).state {
            JobState::Ended(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_end_has_its_reason() {
        assert_eq!(ended("SUCCEEDED", Some(0), None, ""), Reason::Succeeded);
        assert_eq!(ended("STOPPED", None, None, "stopped"), Reason::Cancelled);
        let failed = |code| ended("FAILED", Some(code), Some("JOB_ENTRYPOINT_COMMAND_ERROR"), "");
        assert_eq!(failed(7), Reason::UserError { code: 7 });
        assert_eq!(failed(75), Reason::Preempted);
        assert_eq!(failed(-9), Reason::UserError { code: 137 });
        let without = |kind, message| ended("FAILED", None, Some(kind), message);
        assert_eq!(without("JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE", ""), Reason::NoCapacity);
        assert_eq!(without("JOB_SUPERVISOR_ACTOR_START_TIMEOUT", ""), Reason::StartTimeout);
        assert_eq!(without("JOB_SUPERVISOR_ACTOR_DIED", "the Node died"), Reason::NodeLost);
        assert_eq!(without("RUNTIME_ENV_SETUP_FAILURE", "no"), Reason::EngineError("no".into()));
    }

    #[test]
    fn a_job_is_described_as_ray_has_it() {
        // As Ray 2.60 answers.
        let running = job(r#"{"type": "SUBMISSION", "job_id": "03000000", "submission_id": "mnist-1",
            "driver_info": {"id": "03000000", "node_ip_address": "10.0.0.4", "pid": "5"}, "status": "RUNNING",
            "entrypoint": "x", "message": "Job is currently running.", "error_type": null, "start_time": 17,
            "end_time": null, "metadata": {"regatta": "0.1.0", "regatta-label:run": "mnist", "job_name": "x"},
            "runtime_env": {}, "driver_agent_http_address": "http://10.0.0.4:52365",
            "driver_node_id": "abc", "driver_exit_code": null}"#);
        let status = running.describe(&JobId::new("mnist-1").unwrap());
        assert_eq!((status.state, status.nodes.as_str()), (JobState::Running, "10.0.0.4"));
        assert_eq!(status.labels, BTreeMap::from([("run".to_owned(), "mnist".to_owned())]));
        assert!(running.is_ours() && !running.is_over());
        assert_eq!(metadata(&status.labels)["regatta-label:run"], "mnist");
        let theirs =
            job(r#"{"status": "PENDING", "submission_id": null, "metadata": null, "message": "waits"}"#);
        assert!(!theirs.is_ours());
        assert_eq!(theirs.describe(&JobId::new("a").unwrap()).state, JobState::Queued("waits".into()));
    }
}
