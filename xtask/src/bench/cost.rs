//! The half of `bench train` that needs no model: what the trainer adds around a training loop, against Ray Train.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Args, Contestant, build, median, rounded};
use crate::{python, root};

const CASES: [&str; 3] = ["start", "report", "recovery"];
/// A case without a peer: what fault tolerance adds to a training without faults, in parts of its time.
const OVERHEAD: &str = "overhead";

/// Prints `{"case","ours_s","beyond_load_s","ray_s","vs_ray"}` a case. `beyond_load_s` leaves out what the dynamic linker takes to load
/// libtorch, once for the controller and once for the workers, as measured beside it. `report` also tells the controller's resident
/// memory beyond that of a process that has loaded libtorch and does nothing.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cases: Vec<&str> = CASES.into_iter().filter(|case| case.contains(&args.case)).collect();
    if cases.is_empty() && !OVERHEAD.contains(&args.case) {
        return Ok(());
    }
    let program = build("regatta", "cost")?;
    let program = Path::new(program.get_program());
    let scratch = std::env::temp_dir().join(format!("regatta-cost-{}", std::process::id()));
    if OVERHEAD.contains(&args.case) {
        let shares: Vec<f64> =
            (0..args.rounds).map(|_| Ok(measure(program, &scratch, OVERHEAD)?.0)).collect::<Result<_>>()?;
        println!("{}", json!({"case": OVERHEAD, "share": rounded(median(&shares))}));
    }
    if cases.is_empty() {
        return Ok(());
    }
    let mut peer = Command::new(python::RAY.python()?);
    let mut peer = Contestant::start("Ray", peer.arg(root().join("benches/peers/ray_train.py")))?;
    for case in cases {
        let (mut ours, mut beyond, mut ray, mut ratios, mut memory) =
            (vec![], vec![], vec![], vec![], vec![]);
        for round in 0..=args.rounds {
            let load = load(program)?;
            let (mine, resident) = measure(program, &scratch, case)?;
            let theirs = peer.number(case)?;
            if round == 0 {
                continue;
            }
            let loads = match case {
                "start" => 2.0,
                "recovery" => 1.0,
                _ => 0.0,
            };
            ours.push(mine);
            beyond.push(mine - loads * load.seconds);
            ray.push(theirs);
            ratios.push(theirs / mine);
            memory.push((resident - load.resident) / 1e6);
        }
        let mut line = json!({"case": case, "ours_s": rounded(median(&ours)), "beyond_load_s": rounded(median(&beyond)),
            "ray_s": rounded(median(&ray)), "vs_ray": rounded(median(&ratios))});
        if case == "report" {
            line["controller_mb"] = json!(rounded(median(&memory)));
        }
        println!("{line}");
    }
    Ok(())
}

/// What a process costs that loads libtorch and does nothing.
struct Load {
    seconds: f64,
    resident: f64,
}

fn load(program: &Path) -> Result<Load> {
    let begun = Instant::now();
    let mut command = Command::new(program);
    let mut child = command.arg("--version").stdout(Stdio::null()).spawn()?;
    let resident = peak(&mut child)?;
    ensure!(child.wait()?.success(), "--version failed");
    Ok(Load { seconds: begun.elapsed().as_secs_f64(), resident })
}

/// Runs a case; its figure, and the controller's peak of resident bytes.
fn measure(program: &Path, scratch: &Path, case: &str) -> Result<(f64, f64)> {
    std::fs::remove_dir_all(scratch).ok();
    std::fs::create_dir_all(scratch)?;
    let file = scratch.join("cost.ron");
    std::fs::write(&file, format!("(trainable: \"cost\", config: (case: {case}), scaling: (workers: 2))"))?;
    let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut command = Command::new(program);
    command.arg("train").arg(&file).arg("--storage").arg(scratch).args([
        "--name",
        case,
        "--progress",
        "none",
        "--json",
    ]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let resident = peak(&mut child)?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "{case} failed: {}", String::from_utf8_lossy(&out.stderr));
    let told: Value = serde_json::from_slice(&out.stdout).context("what the run printed is not JSON")?;
    let value = told["value"].as_f64().with_context(|| format!("{case} told no value: {told}"))?;
    std::fs::remove_dir_all(scratch).ok();
    Ok((if case == "start" { value - begun } else { value }, resident))
}

/// Watches a process to its end: the most it had resident, in bytes.
fn peak(child: &mut std::process::Child) -> Result<f64> {
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0.0f64;
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
        most = most.max(kilobytes.unwrap_or(0.0) * 1024.0);
        if text.contains("State:\tZ") || child.try_wait()?.is_some() {
            return Ok(most);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
