//! Reading what Slurm's tools print. Pure, so that it is tested without Slurm, on what 22.05 and newer print.

use crate::engine::JobState;
use crate::resource::Bytes;
use crate::spawner::Reason;

/// `n1`, `n[1-3,07]`, `a[1-2]b[3-4],c` as single names, in order. `None` where it is no list of nodes.
pub(super) fn hostnames(list: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    for part in split_outside_brackets(list) {
        let mut made = vec![String::new()];
        let mut rest = part;
        while let Some(open) = rest.find('[') {
            let close = open + rest[open..].find(']')?;
            let (before, numbers) = (&rest[..open], &rest[open + 1..close]);
            let numbers = numbers.split(',').map(range).collect::<Option<Vec<_>>>()?.concat();
            made = made
                .iter()
                .flat_map(|name| numbers.iter().map(move |n| format!("{name}{before}{n}")))
                .collect();
            rest = &rest[close + 1..];
        }
        made.iter_mut().for_each(|name| name.push_str(rest));
        names.extend(made);
    }
    (!names.iter().any(String::is_empty)).then_some(names)
}

fn split_outside_brackets(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    list.split(move |c| {
        depth += match c {
            '[' => 1,
            ']' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    })
}

/// `07-12` with the zeros kept, or a single number.
fn range(text: &str) -> Option<Vec<String>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (from.parse::<u64>().ok()?, to.parse::<u64>().ok()?);
    (first <= last && last - first < 1 << 20)
        .then(|| (first..=last).map(|n| format!("{n:0width$}", width = from.len())).collect())
}

/// `2(x3),4` as one number a node.
pub(super) fn per_node(list: &str) -> Option<Vec<u32>> {
    let mut counts = Vec::new();
    for part in list.split(',') {
        let (count, times) = match part.split_once("(x") {
            Some((count, times)) => (count, times.strip_suffix(')')?.parse::<usize>().ok()?),
            None => (part, 1),
        };
        counts.extend(std::iter::repeat_n(count.parse::<u32>().ok()?, times.min(1 << 20)));
    }
    Some(counts)
}

/// How many GPUs a generic-resource text names: `gpu:2`, `gpu:a100:4(S:0-1),nic:1`, `gres/gpu=2`, `(null)`.
pub(super) fn gpus(gres: &str) -> u32 {
    let one = |item: &str| -> Option<u32> {
        let item = item.trim().trim_start_matches("gres/").trim_start_matches("gres:");
        let item = item.split('(').next()?;
        let rest = item.strip_prefix("gpu")?;
        rest.rsplit([':', '=']).next()?.parse().ok()
    };
    split_outside_brackets(gres).filter_map(one).sum()
}

/// The value of a key in a line of `scontrol show -o`. A value ends before the next ` Word=`; keys are matched whole.
pub(super) fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let key = format!("{key}=");
    let at = line.match_indices(&key).find(|(at, _)| *at == 0 || line.as_bytes()[at - 1] == b' ')?.0;
    let value = &line[at + key.len()..];
    let is_key = |word: &str| {
        word.split_once('=').is_some_and(|(name, _)| name.starts_with(|c: char| c.is_ascii_uppercase()))
    };
    let end =
        value.match_indices(' ').find(|(at, _)| is_key(value[at + 1..].split(' ').next().unwrap_or("")));
    Some(value[..end.map_or(value.len(), |(at, _)| at)].trim_end())
}

/// A node as `scontrol show node -o` tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) memory: Bytes,
    pub(super) gpus: u32,
    pub(super) up: bool,
}

pub(super) fn nodes(text: &str) -> Vec<Node> {
    let node = |line: &str| {
        let state = field(line, "State")?.split(['+', '*', ' ']).next()?.to_owned();
        let gone = field(line, "State")?.contains('*');
        let memory = field(line, "RealMemory").and_then(|mib| mib.parse().ok()).unwrap_or(0);
        Some(Node {
            name: field(line, "NodeName")?.to_owned(),
            memory: Bytes::mib(memory),
            gpus: field(line, "Gres").map_or(0, gpus),
            up: !gone && !matches!(state.as_str(), "DOWN" | "FAIL" | "ERROR" | "UNKNOWN"),
        })
    };
    text.lines().filter_map(node).collect()
}

/// A line of `squeue -o '%i|%T|%r|%N'`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queued {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) reason: String,
    pub(super) nodes: String,
}

pub(super) fn queue(text: &str) -> Vec<Queued> {
    let line = |line: &str| {
        let mut parts = line.trim().splitn(4, '|').map(str::to_owned);
        Some(Queued { id: parts.next()?, state: parts.next()?, reason: parts.next()?, nodes: parts.next()? })
    };
    text.lines().filter_map(line).collect()
}

/// An ended job as `scontrol show job -o` or `sacct -P -o State,ExitCode,Reason` tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) state: String,
    pub(super) code: i32,
    pub(super) signal: i32,
    pub(super) reason: String,
}

pub(super) fn end_of_scontrol(line: &str) -> Option<End> {
    end(field(line, "JobState")?, field(line, "ExitCode")?, field(line, "Reason").unwrap_or(""))
}

pub(super) fn end_of_sacct(text: &str) -> Option<End> {
    let mut parts = text.lines().find(|line| line.contains('|'))?.split('|');
    end(parts.next()?, parts.next()?, parts.next().unwrap_or(""))
}

fn end(state: &str, code: &str, reason: &str) -> Option<End> {
    let (code, signal) = code.split_once(':')?;
    // `CANCELLED by 1000`, as sacct says it.
    let state = state.split_whitespace().next()?.trim_end_matches('+').to_owned();
    Some(End { state, code: code.parse().ok()?, signal: signal.parse().ok()?, reason: reason.to_owned() })
}

/// Whether Slurm will say no more of a job in this state.
pub(super) fn is_end(state: &str) -> bool {
    matches!(
        state,
        "COMPLETED"
            | "FAILED"
            | "CANCELLED"
            | "TIMEOUT"
            | "PREEMPTED"
            | "NODE_FAIL"
            | "BOOT_FAIL"
            | "OUT_OF_MEMORY"
            | "DEADLINE"
            | "REVOKED"
            | "LAUNCH_FAILED"
            | "RECONFIG_FAIL"
    )
}

/// How the job ended, in the one vocabulary.
pub(super) fn reason(end: &End, cancelled: bool) -> Reason {
    let word = || Reason::EngineError(format!("{} ({})", end.state, end.reason));
    match end.state.as_str() {
        "COMPLETED" => Reason::Succeeded,
        "FAILED" if end.reason == "BadConstraints" => Reason::NoCapacity,
        "FAILED" if end.signal > 0 => crate::engine::local::reason(128 + end.signal, cancelled),
        "FAILED" => crate::engine::local::reason(end.code, cancelled),
        "CANCELLED" => Reason::Cancelled,
        _ if cancelled => Reason::Cancelled,
        // Its time was up, or another's had come: either way it can go on where it saved.
        "PREEMPTED" | "TIMEOUT" => Reason::Preempted,
        "NODE_FAIL" | "BOOT_FAIL" => Reason::NodeLost,
        "DEADLINE" => Reason::NoCapacity,
        _ => word(),
    }
}

/// What keeps a pending job waiting, and whether waiting can help.
pub(super) fn why_pending(reason: &str) -> (JobState, bool) {
    let (text, hopeless) = match reason {
        "None" | "" => ("the scheduler has not looked at it yet", false),
        "Resources" => ("the nodes it needs are busy", false),
        "Priority" => ("jobs of higher priority stand before it", false),
        "PartitionDown" | "PartitionInactive" => ("its partition is closed for now", false),
        "ReqNodeNotAvail" => ("a node it needs is down or reserved", false),
        "Licenses" => ("licenses it needs are taken", false),
        "PartitionConfig" | "PartitionNodeLimit" => {
            ("its partition has not so many nodes, none so large, or lets no job run so long", true)
        }
        "PartitionTimeLimit" => ("its partition does not let jobs run so long", true),
        "BadConstraints" => ("no node of the partition has what it asks for", true),
        "AccountNotAllowed" | "InvalidAccount" => ("the account may not be used here", true),
        "QOSNotAllowed" | "InvalidQOS" => ("the quality of service may not be used here", true),
        "JobHeldUser" | "JobHeldAdmin" => ("it is held; `scontrol release` lets it go", false),
        limit if limit.ends_with("PerJobLimit") || limit.ends_with("PerJob") => {
            ("it asks for more than one job may", true)
        }
        _ => ("Slurm says", false),
    };
    (JobState::Queued(format!("{text} ({reason})")), hopeless)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_lists_are_unfolded() {
        let all = |list: &str| hostnames(list).unwrap().join(" ");
        assert_eq!(all("n1"), "n1");
        assert_eq!(all("n[1-3,7],login"), "n1 n2 n3 n7 login");
        assert_eq!(all("gpu[008-011]"), "gpu008 gpu009 gpu010 gpu011");
        assert_eq!(all("r[1-2]n[1-2]"), "r1n1 r1n2 r2n1 r2n2");
        assert_eq!(all("r[1-2]-ib0"), "r1-ib0 r2-ib0");
        for bad in ["", "n[1-", "n[3-1]", "n[a-b]", "a,,b"] {
            assert_eq!(hostnames(bad), None, "{bad}");
        }
    }

    #[test]
    fn counts_per_node_are_unfolded() {
        assert_eq!(per_node("2(x3),4").unwrap(), [2, 2, 2, 4]);
        assert_eq!(per_node("16").unwrap(), [16]);
        assert_eq!(per_node("2(x"), None);
    }

    #[test]
    fn gpus_are_counted_in_every_spelling() {
        for (text, count) in [
            ("(null)", 0),
            ("", 0),
            ("gpu:2", 2),
            ("gpu:a100:4(S:0-1)", 4),
            ("gpu:a100:4(S:0,2),nic:2", 4),
            ("gres/gpu=3", 3),
            ("gres/gpu:h100=8", 8),
            ("gpu:a:1,gpu:b:2", 3),
            ("nic:gpu:1", 0),
            ("gres:gpu:2", 2),
        ] {
            assert_eq!(gpus(text), count, "{text}");
        }
    }

    const JOB: &str = "JobId=1 JobName=t.sh UserId=root(0) Account=(null) JobState=FAILED Reason=NonZeroExitCode \
        Dependency=(null) Requeue=0 ExitCode=7:0 RunTime=00:00:00 NodeList=n1 Command=/a b/t.sh WorkDir=/tmp \
        Comment=hi there=x  StdErr=/tmp/t.out Power= TresPerNode=gres:gpu:2 ";

    #[test]
    fn fields_of_scontrol_are_found_whole() {
        assert_eq!(field(JOB, "JobState"), Some("FAILED"));
        assert_eq!(field(JOB, "State"), None, "not inside another key");
        assert_eq!(field(JOB, "Command"), Some("/a b/t.sh"));
        assert_eq!(field(JOB, "Comment"), Some("hi there=x"));
        assert_eq!(field(JOB, "Power"), Some(""));
        assert_eq!(field(JOB, "TresPerNode"), Some("gres:gpu:2"));
    }

    #[test]
    fn the_end_of_a_job_is_read_from_either_tool() {
        let by_scontrol = end_of_scontrol(JOB).unwrap();
        assert_eq!(by_scontrol, end_of_sacct("FAILED|7:0|NonZeroExitCode\n").unwrap());
        assert_eq!(reason(&by_scontrol, false), Reason::UserError { code: 7 });
        let reason_of = |text: &str, cancelled| reason(&end_of_sacct(text).unwrap(), cancelled);
        assert_eq!(reason_of("COMPLETED|0:0|None", false), Reason::Succeeded);
        assert_eq!(reason_of("CANCELLED by 1000|0:15|None", false), Reason::Cancelled);
        assert_eq!(reason_of("FAILED|75:0|NonZeroExitCode", false), Reason::Preempted);
        assert_eq!(reason_of("FAILED|75:0|NonZeroExitCode", true), Reason::Cancelled);
        assert_eq!(reason_of("FAILED|0:9|RaisedSignal:9", false), Reason::UserError { code: 137 });
        assert_eq!(reason_of("FAILED|0:1|BadConstraints", false), Reason::NoCapacity);
        assert_eq!(reason_of("TIMEOUT|0:15|TimeLimit", false), Reason::Preempted);
        assert_eq!(reason_of("PREEMPTED|0:15|None", false), Reason::Preempted);
        assert_eq!(reason_of("NODE_FAIL|0:0|NodeDown", false), Reason::NodeLost);
        assert_eq!(
            reason_of("OUT_OF_ME+|0:125|OutOfMemory", false),
            Reason::EngineError("OUT_OF_ME (OutOfMemory)".into())
        );
        assert!(end_of_sacct("").is_none());
    }

    #[test]
    fn nodes_are_read_with_their_state() {
        let text = "NodeName=n2 Arch=x86_64 CPUTot=2 Gres=gpu:2 RealMemory=1000 State=IDLE ThreadsPerCore=1 \n\
            NodeName=n3 Gres=(null) RealMemory=64000 State=MIXED+CLOUD Owner=N/A\n\
            NodeName=n4 Gres=(null) RealMemory=10 State=IDLE* Owner=N/A\n\
            NodeName=n5 Gres=(null) RealMemory=10 State=DOWN+DRAIN Reason=Not responding [slurm@2026-01-01T00:00:00]\n";
        let found = nodes(text);
        assert_eq!(found[0], Node { name: "n2".into(), memory: Bytes::mib(1000), gpus: 2, up: true });
        assert_eq!(found.iter().map(|node| node.up).collect::<Vec<_>>(), [true, true, false, false]);
    }

    #[test]
    fn waiting_that_cannot_help_is_told_from_waiting() {
        assert!(!why_pending("Resources").1 && !why_pending("Priority").1 && !why_pending("SomethingNew").1);
        assert!(why_pending("PartitionConfig").1 && why_pending("QOSMaxGRESPerJob").1);
        let queue = queue("7|PENDING|Resources|\n8|RUNNING|None|n[1-2]\nbroken\n");
        assert_eq!(
            (queue.len(), queue[1].nodes.as_str(), queue[0].reason.as_str()),
            (2, "n[1-2]", "Resources")
        );
        assert!(is_end("TIMEOUT") && !is_end("COMPLETING") && !is_end("SUSPENDED"));
    }
}
