//! The texts that go to Slurm: a job's script, and what a step's shell reads from its standard input. No value of a
//! variable, and so no secret, is in the former; the latter nobody can look at.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use super::{LAUNCH_NODE, SlurmConfig};
use crate::engine::{JobSpec, shell};
use crate::env;
use crate::error::{Error, Result};
use crate::placement::Placement;
use crate::spawner::WorkerCommand;

/// The job's script: the driver as its batch step, in the middle of the nodes its workers will have.
pub(super) fn job(config: &SlurmConfig, spec: &JobSpec, folder: &Path) -> Result<OsString> {
    let mut script = OsString::from("#!/bin/sh\n");
    for option in options(config, spec, folder)? {
        script.push(format!("#SBATCH {option}\n"));
    }
    let file = shell::quote(folder.join("env").as_os_str());
    script.push(
        "# The driver's variables lie in a file for its owner's eyes only, which goes once it is read.\n. ",
    );
    script.push(&file);
    script.push(" || exit 71\nrm -f ");
    script.push(&file);
    script.push("\n");
    if let Some(cwd) = &spec.command.cwd {
        script.push("cd ");
        script.push(shell::quote(cwd.as_os_str()));
        script.push(" || exit 72\n");
    }
    script.push("exec ");
    let words = std::iter::once(&spec.command.program).chain(&spec.command.args);
    script.push(shell::words(words.map(OsString::as_os_str)));
    script.push("\n");
    Ok(script)
}

/// The options of sbatch, in its long form.
fn options(config: &SlurmConfig, spec: &JobSpec, folder: &Path) -> Result<Vec<String>> {
    let log = folder.join("driver.log");
    let mut options = vec![
        format!("--job-name={}", spec.id),
        format!("--output={}", pattern(&log)),
        "--open-mode=append".to_owned(),
        // A run is resumed as a new job: a requeue waits for minutes, and would run the driver twice.
        "--no-requeue".to_owned(),
        // A node that fails must not end the job: the driver goes on with a spare one.
        "--no-kill".to_owned(),
        // All that sbatch itself was given, which is next to nothing. `NONE` would have the node ask a login shell for more,
        // which takes seconds.
        "--export=ALL".to_owned(),
        format!("--signal=B:USR2@{}", spec.notice.as_secs().clamp(1, 65_535)),
    ];
    let named = [
        ("partition", &config.partition),
        ("account", &config.account),
        ("qos", &config.qos),
        ("constraint", &config.constraint),
        ("reservation", &config.reservation),
    ];
    options.extend(named.iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?))));
    if let Some(limit) = spec.time_limit.or(config.time_limit()) {
        let minutes = limit.as_secs().div_ceil(60).max(1);
        options.push(format!("--time={minutes}"));
    }
    if !spec.room.excluded.is_empty() {
        let nodes: Vec<&str> = spec.room.excluded.iter().map(String::as_str).collect();
        options.push(format!("--exclude={}", nodes.join(",")));
    }
    options.extend(room(config, spec)?);
    options.extend(config.options.iter().cloned());
    match options.iter().find(|option| option.contains(['\n', '\r'])) {
        Some(option) => {
            let problem = "an option is one line".to_owned();
            Err(Error::BadRequest { what: format!("the Slurm option {option:?}"), problem })
        }
        None => Ok(options),
    }
}

/// A file name as sbatch reads it, where `%` begins a pattern.
fn pattern(path: &Path) -> String {
    let text = path.to_string_lossy().replace('%', "%%");
    if text.contains([' ', '"', '\'', '#']) { format!("\"{text}\"") } else { text }
}

/// What the workers want, as Slurm counts: whole CPUs a task, GPUs and memory a node.
fn room(config: &SlurmConfig, spec: &JobSpec) -> Result<Vec<String>> {
    let (room, gangs, spare) = (&spec.room, spec.gangs.max(1), spec.spare_nodes.max(config.spare));
    let each = &room.per_worker;
    let of_gang = room.max_workers.max(1);
    let workers = of_gang * gangs;
    // Over how many nodes they go, and how many of them are on each.
    let laid_out = match room.placement {
        // Each gang on a node of its own, or several on each of fewer nodes.
        Placement::StrictPack => {
            let nodes = config.nodes.unwrap_or(gangs).clamp(1, gangs);
            Some((nodes, of_gang * gangs.div_ceil(nodes)))
        }
        // No more nodes than one gang needs: the gangs share them.
        Placement::StrictSpread => Some((of_gang, gangs)),
        Placement::Pack | Placement::Spread => {
            config.nodes.map(|nodes| (nodes, workers.div_ceil(nodes.max(1))))
        }
    };
    let mut options = Vec::new();
    let cpus = |workers: usize| (each.cpu.thousandths() * workers as u64).div_ceil(1000).max(1);
    let gpus = |workers: usize| (each.gpu.thousandths() * workers as u64).div_ceil(1000);
    let mib = each.memory.0.div_ceil(1 << 20);
    match laid_out {
        Some((nodes, on_each)) => {
            options.push(format!("--nodes={}", nodes + spare));
            options.push("--ntasks-per-node=1".to_owned());
            options.push(format!("--cpus-per-task={}", cpus(on_each)));
            options.extend((gpus(on_each) > 0).then(|| format!("--gres=gpu:{}", gpus(on_each))));
            options.extend((mib > 0).then(|| format!("--mem={}M", mib * on_each as u64)));
        }
        None if spare > 0 || gpus(1) > 0 || mib > 0 => {
            let problem = "spare nodes, GPUs and memory are asked for by the node: say over how many `nodes` the workers \
                           go, or place them strictly"
                .to_owned();
            return Err(Error::BadRequest {
                what: format!("the room of gang `{}` on Slurm", room.name),
                problem,
            });
        }
        None => {
            options.push(format!("--ntasks={workers}"));
            options.push(format!("--cpus-per-task={}", cpus(1)));
        }
    }
    Ok(options)
}

/// What the shell of a worker's step reads: the variables, the folder, the program; and what it says on the way, on lines
/// that begin with the record separator and a word nobody else knows.
pub(super) fn step(
    nonce: &str,
    command: &WorkerCommand,
    variables: &BTreeMap<OsString, OsString>,
) -> OsString {
    let mut script = OsString::from("regatta_step() {\ntrap : TERM INT HUP USR1 USR2\n");
    script.push(shell::exports(variables.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))));
    script.push(format!(
        "case \"${{{addr}:-}}\" in *{LAUNCH_NODE}*)\n\
         case \"$SLURM_LAUNCH_NODE_IPADDR\" in *:*) ip=\"[$SLURM_LAUNCH_NODE_IPADDR]\";; *) ip=$SLURM_LAUNCH_NODE_IPADDR;; esac\n\
         export {addr}=\"${{{addr}%%{LAUNCH_NODE}*}}$ip${{{addr}#*{LAUNCH_NODE}}}\";;\nesac\n",
        addr = env::ADDR
    ));
    let say = |script: &mut OsString, rest: &str| script.push(format!("printf '\\036{nonce} {rest}"));
    let program = command.program.as_os_str();
    if let Some(cwd) = &command.cwd {
        script.push("cd ");
        script.push(shell::quote(cwd.as_os_str()));
        script.push(" || { ");
        say(&mut script, "refused the folder cannot be entered on this node\\n'; exit 126; }\n");
    }
    // A path must be executable; a bare name must be found.
    let by_path = program.to_string_lossy().contains('/');
    script.push(if by_path { "[ -x " } else { "command -v " });
    script.push(shell::quote(program));
    script.push(if by_path { " ] || { " } else { " >/dev/null 2>&1 || { " });
    say(
        &mut script,
        "refused there is no such program on this node, or it may not be executed\\n'; exit 127; }\n",
    );
    script.push(
        "/bin/sh -c 'printf \"\\036%s started %s %s\\n\" \"$0\" \"$SLURM_STEP_ID\" \"$$\"; exec \"$@\"' ",
    );
    script.push(nonce);
    script.push(" ");
    script.push(shell::words(std::iter::once(program).chain(command.args.iter().map(OsString::as_os_str))));
    script.push(" </dev/null\ncode=$?\n");
    say(&mut script, "exited %s\\n' \"$code\"\nexit \"$code\"\n}\nregatta_step\n");
    script
}

/// The arguments of srun for one worker on one node.
pub(super) fn srun(seat: &crate::request::Seat, gpus_of_node: u32, name: &str) -> Vec<String> {
    let want = &seat.resources;
    let mut args: Vec<String> = [
        "--nodes=1",
        "--ntasks=1",
        "--export=NONE",
        "--unbuffered",
        "--quiet",
        "--kill-on-bad-exit=0",
        "--mpi=none",
    ]
    .map(str::to_owned)
    .into();
    args.push(format!("--nodelist={}", seat.node));
    args.push(format!("--job-name={name}"));
    args.push(format!("--cpus-per-task={}", want.cpu.thousandths().div_ceil(1000).max(1)));
    args.push(format!("--mem={}", want.memory.0.div_ceil(1 << 20)));
    // Whole units are Slurm's to keep apart. It knows no parts: those share, and are told apart by what we set.
    let parts = !want.cpu.fraction().is_zero() || want.cpu.is_zero() || !want.gpu.fraction().is_zero();
    args.push(if parts { "--overlap" } else { "--exact" }.to_owned());
    match (want.gpu.is_zero(), parts) {
        (true, _) => args.push("--gres=none".to_owned()),
        (false, true) => args.push(format!("--gres=gpu:{gpus_of_node}")),
        (false, false) => args.push(format!("--gres=gpu:{}", want.gpu.units())),
    }
    args.extend(["/bin/sh".to_owned(), "-s".to_owned()]);
    args
}

/// Whether the seat's GPUs are named by us: Slurm names them where it gives out whole ones.
pub(super) fn names_gpus(seat: &crate::request::Seat) -> bool {
    seat.resources.gpu.is_zero() || !seat.resources.gpu.fraction().is_zero()
}

/// A variable and its value.
pub(super) fn variable(name: &str, value: impl AsRef<OsStr>) -> (OsString, OsString) {
    (name.into(), value.as_ref().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;
    use crate::engine::JobId;
    use crate::request::GangRequest;
    use crate::resource::Resources;

    fn spec(room: GangRequest) -> JobSpec {
        let command =
            WorkerCommand::new("/opt/my program").arg("--lr").arg("it's 0.1").env("TOKEN", "secret");
        JobSpec::new(JobId::new("mnist-1").unwrap(), command, room)
    }

    fn rendered(config: &SlurmConfig, spec: &JobSpec) -> String {
        job(config, spec, Path::new("/shared/100%/jobs/mnist-1")).unwrap().into_string().unwrap()
    }

    #[test]
    fn a_job_asks_for_what_its_workers_want() {
        let each: Resources = "cpu: 4, gpu: 2, memory: 8GiB".parse().unwrap();
        let mut room = GangRequest::new("g", 4, each).placement(Placement::StrictSpread).exclude("n7");
        let config = SlurmConfig {
            partition: Some("main".into()),
            options: vec!["--nice=5".into()],
            ..SlurmConfig::default()
        };
        let mut wanted =
            JobSpec { spare_nodes: 1, time_limit: Some(Duration::from_secs(90)), ..spec(room.clone()) };
        let script = rendered(&config, &wanted);
        for option in [
            "--job-name=mnist-1",
            "--output=/shared/100%%/jobs/mnist-1/driver.log",
            "--no-requeue",
            "--no-kill",
            "--export=ALL",
            "--signal=B:USR2@60",
            "--partition=main",
            "--time=2",
            "--exclude=n7",
            "--nodes=5",
            "--ntasks-per-node=1",
            "--cpus-per-task=4",
            "--gres=gpu:2",
            "--mem=8192M",
            "--nice=5",
        ] {
            assert!(script.contains(&format!("\n#SBATCH {option}\n")), "{option} is not in\n{script}");
        }
        assert!(script.ends_with("exec '/opt/my program' '--lr' 'it'\\''s 0.1'\n"), "{script}");
        assert!(!script.contains("secret") && !script.contains("TOKEN"), "{script}");

        room.placement = Placement::StrictPack;
        wanted = spec(room);
        let script = rendered(&config, &wanted);
        assert!(
            script.contains("--nodes=1\n")
                && script.contains("--cpus-per-task=16\n")
                && script.contains("gpu:8\n")
        );
        wanted.room = GangRequest::new("g", 3, Resources::cpus(1));
        assert!(rendered(&config, &wanted).contains("#SBATCH --ntasks=3\n"));
        wanted.spare_nodes = 1;
        let error = job(&config, &wanted, Path::new("/x")).unwrap_err().to_string();
        assert!(error.contains("say over how many `nodes`"), "{error}");
        let config = SlurmConfig {
            nodes: Some(2),
            options: vec!["--a\n#SBATCH --b".into()],
            ..SlurmConfig::default()
        };
        assert!(job(&config, &wanted, Path::new("/x")).is_err());
    }

    #[test]
    fn a_job_of_several_gangs_has_room_for_all_of_them() {
        let asked = |placement, nodes, gangs| {
            let each: Resources = "cpu: 2, gpu: 1".parse().unwrap();
            let room = GangRequest::new("g", 3, each).placement(placement);
            let script = rendered(&SlurmConfig { nodes, ..SlurmConfig::default() }, &spec(room).gangs(gangs));
            let option = |name: &str| {
                let start = format!("#SBATCH --{name}=");
                script.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("none").to_owned()
            };
            [option("nodes"), option("cpus-per-task"), option("gres")].join(" ")
        };
        assert_eq!(asked(Placement::StrictSpread, None, 4), "3 8 gpu:4");
        assert_eq!(asked(Placement::StrictPack, None, 4), "4 6 gpu:3");
        assert_eq!(asked(Placement::StrictPack, Some(2), 4), "2 12 gpu:6");
        assert_eq!(asked(Placement::StrictPack, Some(9), 1), "1 6 gpu:3");
        assert_eq!(asked(Placement::Pack, Some(2), 4), "2 12 gpu:6");
    }

    fn seat(resources: &str) -> crate::request::Seat {
        let resources = resources.parse().unwrap();
        crate::request::Seat {
            slot: 0,
            node: "n2".into(),
            local_slot: 0,
            resources,
            cpus: vec![],
            gpus: vec![1],
        }
    }

    #[test]
    fn whole_units_are_slurms_to_keep_apart_and_parts_are_shared() {
        let whole = srun(&seat("cpu: 2, gpu: 1, memory: 1GiB"), 4, "w").join(" ");
        assert!(whole.contains("--exact --gres=gpu:1 ") && whole.contains("--mem=1024 "), "{whole}");
        assert!(whole.contains("--nodelist=n2 ") && whole.ends_with("/bin/sh -s"), "{whole}");
        let part = srun(&seat("cpu: 0.5, gpu: 0.5"), 4, "w").join(" ");
        assert!(part.contains("--overlap --gres=gpu:4 ") && part.contains("--cpus-per-task=1 "), "{part}");
        assert!(
            names_gpus(&seat("cpu: 1"))
                && names_gpus(&seat("gpu: 0.5"))
                && !names_gpus(&seat("cpu: 1, gpu: 2"))
        );
    }

    /// Runs a step's text as its shell would.
    fn ran(command: &WorkerCommand, variables: &[(&str, &str)]) -> (String, Option<i32>) {
        let variables = variables.iter().map(|(name, value)| variable(name, value)).collect();
        let script = step("nonce", command, &variables);
        let mut shell = Command::new("/bin/sh");
        shell.arg("-s").env("SLURM_STEP_ID", "3").env("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7");
        let mut shell = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut shell.stdin.take().unwrap(), script.as_encoded_bytes()).unwrap();
        let said = shell.wait_with_output().unwrap();
        (String::from_utf8(said.stdout).unwrap(), said.status.code())
    }

    #[test]
    fn a_step_tells_its_start_and_its_end_and_dials_the_launching_node() {
        let command = WorkerCommand::new("/bin/sh").args(["-c", "printf \"$X at $REGATTA_ADDR\"; exit 7"]);
        let address = format!("http://{LAUNCH_NODE}:4711");
        let (said, code) = ran(&command, &[("X", "it's"), (env::ADDR, &address)]);
        assert!(said.starts_with("\u{1e}nonce started 3 "), "{said}");
        assert!(said.ends_with("it's at http://10.0.0.7:4711\u{1e}nonce exited 7\n"), "{said}");
        assert_eq!(code, Some(7));
        let (said, _) = ran(&command, &[(env::ADDR, "http://driver:1")]);
        assert!(said.contains(" at http://driver:1"), "an address that was given stays: {said}");
    }

    #[test]
    fn a_step_whose_program_or_folder_is_not_there_refuses() {
        let (said, code) = ran(&WorkerCommand::new("/nowhere/x"), &[]);
        assert!(
            said.starts_with("\u{1e}nonce refused there is no such program") && code == Some(127),
            "{said}"
        );
        let (said, _) = ran(&WorkerCommand::new("no-such-program-anywhere"), &[("PATH", "/bin")]);
        assert!(said.contains("refused"), "{said}");
        let command = WorkerCommand { cwd: Some("/nowhere".into()), ..WorkerCommand::new("/bin/true") };
        assert!(ran(&command, &[]).0.contains("refused the folder"), "{said}");
        assert!(ran(&WorkerCommand::new("true"), &[("PATH", "/bin:/usr/bin")]).0.contains("exited 0"));
    }
}
