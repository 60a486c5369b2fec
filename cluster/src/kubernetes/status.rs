//! What a pod's status means: a pure reading, the same for drivers and workers.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::quantity::thousandths;
use crate::engine::{JobState, local};
use crate::resource::Bytes;
use crate::spawner::{Exit, Reason, WorkerEvent};

/// How long after the end of its grace a pod may still be there on a node that answers; clocks may differ by some of it.
const OBEYED: SignedDuration = SignedDuration::from_secs(90);

/// A pod as it was last seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) uid: String,
    /// Where it was placed.
    pub(super) node: Option<String>,
    /// Why the scheduler has found no node for it.
    pub(super) unplaced: Option<String>,
    /// Why its container does not run yet, by Kubernetes' word and in its sentence.
    pub(super) waiting: Option<(String, String)>,
    /// Its container runs.
    pub(super) running: bool,
    /// Its container has ended, or never will begin.
    pub(super) end: Option<End>,
    /// It is being deleted.
    pub(super) leaving: bool,
    /// It should have been gone long ago.
    pub(super) overdue: bool,
    /// Who disturbs it, by Kubernetes' word.
    pub(super) disturbed: Option<String>,
    /// The API server has it no more.
    pub(super) gone: bool,
    pub(super) memory: Bytes,
    pub(super) phase: String,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct End {
    pub(super) code: Option<i32>,
    /// Kubernetes' word for it, the pod's before the container's.
    pub(super) word: String,
    pub(super) message: String,
}

/// Reads a pod.
pub(super) fn read(pod: &Pod) -> Seen {
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let container = status.container_statuses.as_ref().and_then(|all| all.first());
    let state = container.and_then(|container| container.state.clone()).unwrap_or_default();
    let condition = |kind: &str, value: &str| {
        let all = status.conditions.iter().flatten();
        all.clone().find(|condition| condition.type_ == kind && condition.status == value).cloned()
    };
    let node = spec.and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
    let unplaced = condition("PodScheduled", "False").filter(|_| node.is_none());
    let unplaced = unplaced.map(|condition| condition.message.or(condition.reason).unwrap_or_default());
    let leaves = pod.metadata.deletion_timestamp.as_ref();
    let waiting = state.waiting.as_ref().map(|waiting| {
        (waiting.reason.clone().unwrap_or_default(), waiting.message.clone().unwrap_or_default())
    });
    let over = matches!(phase.as_str(), "Succeeded" | "Failed");
    Seen {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        unplaced,
        waiting: waiting.filter(|_| !over),
        running: state.running.is_some(),
        end: end(container, &state, &status, over),
        leaving: leaves.is_some(),
        overdue: leaves.is_some_and(|at| Timestamp::now().duration_since(at.0) > OBEYED),
        disturbed: condition("DisruptionTarget", "True").and_then(|condition| condition.reason),
        gone: false,
        memory: memory_limit(pod),
        node,
        phase,
    }
}

fn end(
    container: Option<&ContainerStatus>,
    state: &ContainerState,
    status: &k8s_openapi::api::core::v1::PodStatus,
    over: bool,
) -> Option<End> {
    let of_pod = status.reason.clone().unwrap_or_default();
    if let Some(ended) = &state.terminated {
        let word = if of_pod.is_empty() { ended.reason.clone().unwrap_or_default() } else { of_pod };
        let message = ended.message.clone().or(status.message.clone()).unwrap_or_default();
        return Some(End { code: Some(ended.exit_code), word, message });
    }
    // Old kubelets call a pod failed while its container still runs.
    if !over || container.is_some_and(|_| state.running.is_some()) {
        return None;
    }
    Some(End { code: None, word: of_pod, message: status.message.clone().unwrap_or_default() })
}

fn memory_limit(pod: &Pod) -> Bytes {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limits =
        containers.filter_map(|container| container.resources.as_ref()?.limits.as_ref()?.get("memory"));
    let bytes = limits.filter_map(|quantity| thousandths(&quantity.0)).next().unwrap_or(0) / 1000;
    Bytes(u64::try_from(bytes).unwrap_or(u64::MAX))
}

impl Seen {
    /// Whether nothing of it runs, or will.
    pub(super) fn over(&self) -> bool {
        self.end.is_some() || self.gone
    }

    /// Kubernetes' own word for how it stands.
    pub(super) fn word(&self) -> String {
        let end = self.end.as_ref().map(|end| (&end.word, &end.message));
        let waiting = self.waiting.as_ref().map(|(word, message)| (word, message));
        let (word, message) = match end.or(waiting) {
            Some((word, message)) => (word.as_str(), message.lines().next().unwrap_or_default()),
            None => ("", self.unplaced.as_deref().unwrap_or_default()),
        };
        let leaving = if self.leaving && self.end.is_none() { "Terminating" } else { "" };
        let disturbed = self.disturbed.as_deref().unwrap_or_default();
        let words = [self.phase.as_str(), leaving, disturbed, word, message];
        words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(", ")
    }

    /// Why it will never run, where that is plain.
    pub(super) fn hopeless(&self) -> Option<String> {
        let (word, message) = self.waiting.as_ref()?;
        let hopeless = [
            "InvalidImageName",
            "ErrImageNeverPull",
            "ImagePullBackOff",
            "CreateContainerError",
            "RunContainerError",
            "ImageInspectError",
            "RegistryUnavailable",
        ];
        hopeless.contains(&word.as_str()).then(|| match message.as_str() {
            "" => word.clone(),
            message => format!("{word}: {message}"),
        })
    }

    /// How it ended, in the one vocabulary.
    pub(super) fn reason(&self, cancelled: bool) -> Reason {
        let end = self.end.clone().unwrap_or_default();
        let by_engine = self.disturbed.as_deref().and_then(meaning).or_else(|| meaning(&end.word));
        match (end.code, by_engine) {
            (Some(0), _) => Reason::Succeeded,
            (Some(_), _) if end.word == "OOMKilled" => {
                Reason::OutOfMemory { limit: self.memory, used: self.memory }
            }
            (Some(code), _) if cancelled => local::reason(code, true),
            (None, _) if cancelled => Reason::Cancelled,
            (_, Some(reason)) => reason,
            (Some(code), None) => local::reason(code, false),
            (None, None) => Reason::EngineError(self.word()),
        }
    }

    /// Where a driver's pod stands.
    pub(super) fn state(&self, cancelled: bool) -> JobState {
        // A node that is lost will never say how it ended. Clusters before 1.26 do not say either that it is: there it shows
        // by a pod that ought to be gone.
        let given_up = self.disturbed.as_deref().and_then(meaning) == Some(Reason::NodeLost);
        let lost = self.leaving && self.end.is_none() && (given_up || self.overdue);
        match self {
            _ if lost => JobState::Ended(Reason::NodeLost),
            Self { end: Some(_), .. } => JobState::Ended(self.reason(cancelled)),
            Self { running: true, .. } | Self { leaving: true, .. } => JobState::Running,
            Self { node: None, .. } => JobState::Queued(match self.unplaced.as_deref() {
                None | Some("") => "the scheduler has not looked at it yet".into(),
                Some(why) => format!("no node has room for it: {why}"),
            }),
            Self { waiting: Some((word, message)), .. }
                if word != "ContainerCreating" && word != "PodInitializing" =>
            {
                JobState::Queued(format!("its container cannot be started yet: {word}: {message}"))
            }
            _ => JobState::Queued("its container is being made".into()),
        }
    }

    /// A worker's end as its gang hears it.
    pub(super) fn worker_end(
        &self,
        slot: usize,
        cancelled: bool,
        given_up: bool,
        tail: Vec<String>,
    ) -> WorkerEvent {
        let node = self.node.as_deref().unwrap_or("?");
        if given_up {
            let cause = format!("node `{node}` did not end it when told to: it hangs or is gone");
            return WorkerEvent::Lost { slot, cause };
        }
        let (code, signal) = match self.end.as_ref().and_then(|end| end.code) {
            Some(code) if code > 128 => (None, Some(code - 128)),
            Some(code) => (Some(code), None),
            None if cancelled => (None, Some(9)),
            None => {
                let cause = match self.gone {
                    true => format!("its pod on node `{node}` was deleted ({})", self.word()),
                    false => format!("its pod on node `{node}` failed ({})", self.word()),
                };
                return WorkerEvent::Lost { slot, cause };
            }
        };
        let reason = match self.reason(cancelled) {
            _ if cancelled => Reason::Cancelled,
            // We did not send it, so somebody else wants the place.
            Reason::UserError { code: 143 } => Reason::Preempted,
            Reason::NodeLost => {
                let cause = format!("its node `{node}` was given up ({})", self.word());
                return WorkerEvent::Lost { slot, cause };
            }
            // A worker has no such contract: only a driver asks to be resumed.
            Reason::Preempted if code == Some(crate::engine::EXIT_RESUMABLE) && self.disturbed.is_none() => {
                Reason::UserError { code: crate::engine::EXIT_RESUMABLE }
            }
            reason => reason,
        };
        WorkerEvent::Exited { slot, exit: Exit { code, signal, reason, tail } }
    }
}

/// What Kubernetes' word for an end means, where it was not the program's own doing.
fn meaning(word: &str) -> Option<Reason> {
    Some(match word {
        // Its time was up, or its place was wanted: either way it can go on where it saved.
        "DeadlineExceeded"
        | "Evicted"
        | "Preempting"
        | "Preempted"
        | "Terminated"
        | "Shutdown"
        | "NodeShutdown"
        | "PreemptionByScheduler"
        | "PreemptionByKubeScheduler"
        | "EvictionByEvictionAPI"
        | "TerminationByKubelet" => Reason::Preempted,
        "NodeLost" | "DeletionByTaintManager" | "DeletionByPodGC" | "ContainerStatusUnknown" => {
            Reason::NodeLost
        }
        "NodeAffinity" | "UnexpectedAdmissionError" | "NodePorts" | "PodToleratesNodeTaints" => {
            Reason::NoCapacity
        }
        word if word.starts_with("OutOf") => Reason::NoCapacity,
        _ => return None,
    })
}
