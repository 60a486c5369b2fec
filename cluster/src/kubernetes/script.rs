//! What the shells in the pods do. Everything a worker runs, and every variable of it, comes through its secret.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use super::pod::STEP;
use crate::engine::shell;
use crate::env;
use crate::error::{Error, Result};
use crate::request::{Lease, Seat};
use crate::spawner::{Launch, WorkerCommand, WorkerId};

/// Runs its arguments as a child that hears the signals the shell is sent, and ends as it ends. The first process of a
/// container ignores every signal it has no handler for, and programs do not expect that of theirs.
pub(super) const INIT: &str = r#"child= told=
tell() { told=$1; [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null; }
trap 'tell TERM' TERM
trap 'tell INT' INT
trap 'tell HUP' HUP
trap 'tell USR1' USR1
trap 'tell USR2' USR2
"$@" </dev/null &
child=$!
[ -z "$told" ] || tell "$told"
while :; do
  wait "$child"; code=$?
  # More than 128 is the child's end by a signal, or only a signal to this shell.
  [ "$code" -gt 128 ] || break
  kill -s 0 "$child" 2>/dev/null && continue
  wait "$child" 2>/dev/null; again=$?
  [ "$again" -eq 127 ] || code=$again
  break
done
exit "$code"
"#;

/// What a worker's container begins with: it exists once its secret does.
pub(super) const WAIT: &str = "step=$REGATTA_STEP; unset REGATTA_STEP; eval \"$step\"";

/// The most that Linux takes as one variable, with something to spare.
const LONGEST: usize = 120 << 10;

/// One worker's part of a launch.
pub(super) struct Part<'a> {
    pub(super) lease: &'a Lease,
    pub(super) seat: &'a Seat,
    pub(super) launch: &'a Launch,
    pub(super) id: &'a WorkerId,
    /// What rank 0's pod is called in the DNS.
    pub(super) first: &'a str,
}

/// What a worker's shell does; what it says on the way stands on lines that begin with the record separator and a word
/// nobody else knows.
pub(super) fn step(part: &Part<'_>, nonce: &str) -> Result<String> {
    let command = &part.launch.command;
    let variables = environment(part);
    let mut script =
        shell::exports(variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())));
    let say = |script: &mut OsString, rest: &str| script.push(format!("printf '\\036{nonce} {rest}\\n'"));
    if let Some(cwd) = &command.cwd {
        script.push("cd ");
        script.push(shell::quote(cwd.as_os_str()));
        script.push(" || { ");
        say(&mut script, "refused the folder cannot be entered in its container");
        script.push("; exit 126; }\n");
    }
    // A path must be executable; a bare name must be found.
    let program = command.program.as_os_str();
    let by_path = program.to_string_lossy().contains('/');
    script.push(if by_path { "[ -x " } else { "command -v " });
    script.push(shell::quote(program));
    script.push(if by_path { " ] || { " } else { " >/dev/null 2>&1 || { " });
    say(&mut script, "refused there is no such program in its image, or it may not be executed");
    script.push("; exit 127; }\n");
    say(&mut script, "started");
    script.push("\nset -- ");
    script.push(shell::words(std::iter::once(program).chain(command.args.iter().map(OsString::as_os_str))));
    script.push("\n");
    script.push(INIT);
    let script = super::pod::text("what a worker runs", &script)?;
    if script.len() > LONGEST {
        let problem = format!(
            "its arguments and variables have {} bytes, and a container's shell takes {LONGEST}; pass files instead",
            script.len()
        );
        return Err(Error::BadRequest { what: format!("worker {} on Kubernetes", part.seat.slot), problem });
    }
    Ok(script)
}

/// Variables that mean this very pod, or that every pod has from Kubernetes itself.
fn own(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let of_pod =
        ["REGATTA_POD", "REGATTA_HOST_ADDR", "REGATTA_NAMESPACE", "REGATTA_JOB", "KUBERNETES_", STEP];
    of_pod.iter().any(|start| name.starts_with(start)) || matches!(&*name, "HOSTNAME" | "KUBECONFIG")
}

/// What the worker finds in its environment: the driver's own variables, the seat's, the command's, the slot's.
fn environment(part: &Part<'_>) -> BTreeMap<OsString, OsString> {
    let Part { lease, seat, launch, .. } = *part;
    let command = &launch.command;
    let mut variables = shell::environment(&WorkerCommand { env: BTreeMap::new(), ..command.clone() });
    variables.retain(|name, _| !own(name));
    let mut set = |name: &str, value: &OsStr| {
        variables.insert(name.into(), value.to_owned());
    };
    set(env::SLOT, seat.slot.to_string().as_ref());
    set(env::SLOTS, lease.workers().to_string().as_ref());
    set(env::LOCAL_SLOT, seat.local_slot.to_string().as_ref());
    set(env::ATTEMPT, launch.attempt.to_string().as_ref());
    set(env::NODE, seat.node.as_ref());
    set(env::WORKER, part.id.0.as_ref());
    if !seat.resources.cpu.is_zero() {
        let threads = seat.resources.cpu.units().max(1).to_string();
        env::THREADS.iter().for_each(|name| set(name, threads.as_ref()));
    }
    command.env.iter().for_each(|(name, value)| set(name, value));
    for (name, value) in launch.slot_env.get(seat.slot).into_iter().flatten() {
        set(name, value);
    }
    alone(part, &mut variables);
    variables
}

/// A pod is a host of its own, with an address and GPUs that begin at 0, wherever it stands. So programs that ask which of
/// a host's workers they are, and where the first host is, are told that.
fn alone(part: &Part<'_>, variables: &mut BTreeMap<OsString, OsString>) {
    let Part { lease, seat, first, .. } = *part;
    // The device plugin says which devices the container has; a list from the driver's node would hide them.
    variables.remove(OsStr::new("CUDA_VISIBLE_DEVICES"));
    if seat.gpus.is_empty() {
        variables.insert("CUDA_VISIBLE_DEVICES".into(), OsString::new());
    }
    let of_node = lease.nodes().first().map(|node| OsString::from(*node));
    let mut say = |name: &str, value: String| {
        if let Some(known) = variables.get_mut(OsStr::new(name)) {
            *known = value.into();
        }
    };
    say("LOCAL_RANK", "0".into());
    say("LOCAL_WORLD_SIZE", "1".into());
    say("GROUP_RANK", seat.slot.to_string());
    say("GROUP_WORLD_SIZE", lease.workers().to_string());
    if variables.get(OsStr::new("MASTER_ADDR")).is_some_and(|address| Some(address) == of_node.as_ref()) {
        variables.insert("MASTER_ADDR".into(), first.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process, kill_process_group};

    use super::*;

    /// The shells of this host: images have one or the other.
    fn shells() -> impl Iterator<Item = &'static str> {
        ["/bin/sh", "/bin/bash"].into_iter().filter(|shell| std::path::Path::new(shell).exists())
    }

    fn init(shell: &str, script: &str) -> Child {
        let mut command = Command::new(shell);
        command.args(["-c", INIT, "regatta", "/bin/sh", "-c", script]);
        command.stdout(Stdio::piped()).process_group(0).spawn().unwrap()
    }

    #[test]
    fn a_shell_ends_as_its_program_does() {
        for shell in shells() {
            for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
            {
                assert_eq!(init(shell, script).wait().unwrap().code(), Some(code), "{shell}: {script}");
            }
        }
    }

    #[test]
    fn a_signal_to_the_shell_is_one_to_its_program() {
        for shell in shells() {
            for (signal, name) in [(Signal::TERM, "TERM"), (Signal::USR2, "USR2")] {
                let script = format!("trap 'exit 75' {name}; echo ready; while :; do sleep 0.02; done");
                let mut child = init(shell, &script);
                BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
                kill_process(Pid::from_child(&child), signal).unwrap();
                assert_eq!(child.wait().unwrap().code(), Some(75), "{shell}: {name}");
            }
            // One that does not listen is not given up.
            let mut child = init(shell, "trap '' TERM; echo ready; sleep 0.5; exit 3");
            let pid = Pid::from_child(&child);
            BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
            kill_process(pid, Signal::TERM).unwrap();
            assert_eq!(child.wait().unwrap().code(), Some(3), "{shell}");
            kill_process_group(pid, Signal::KILL).ok();
        }
    }
}
