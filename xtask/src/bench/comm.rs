//! `bench comm`: all-reduce between processes of this host, against gloo (through PyTorch) and OpenMPI.

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{Args, Contestant, build, median, rounded};
use crate::{python, root};

const KINDS: [&str; 4] = ["shm2", "staged2", "shm4", "tcp2"];
const SIZES: [&str; 6] = ["1KB", "64KB", "1MB", "16MB", "100MB", "resnet18"];

/// Prints `{"case","ours_us","gloo_us","mpi_us","bound_us","vs_gloo","vs_mpi","vs_bound"}` a case. Our figure and MPI's are medians over
/// the rounds, gloo's is its best round; ratios are taken between these.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut ours = Contestant::start("ours", &mut build("regatta-comm", "allreduce")?)?;
    let mut gloo = [2, 4].map(|world| (world, gloo(world)));
    let mut mpi = mpi()?;
    for kind in KINDS {
        for size in SIZES {
            let case = format!("{kind}_{size}");
            if !case.contains(&args.case) {
                continue;
            }
            let world =
                kind.chars().last().and_then(|c| c.to_digit(10)).context("a case ends with its world")?;
            let gloo = gloo.iter_mut().find(|(w, _)| *w == world).context("no peer for this world")?;
            let gloo = gloo.1.as_mut().map_err(|e| anyhow::anyhow!("{e:#}"))?;
            let wire = if kind == "tcp2" { "tcp" } else { "shm" };
            let line = one(args.rounds, &case, &mut ours, size, gloo, mpi.crew(wire, world)?)?;
            println!("{line}");
        }
    }
    Ok(())
}

/// The interleaved rounds of one case.
fn one(
    rounds: usize,
    case: &str,
    ours: &mut Contestant,
    size: &str,
    gloo: &mut Contestant,
    mpi: Option<&mut Contestant>,
) -> Result<Value> {
    let (mut mine, mut bounds, mut theirs, mut mpis) = (vec![], vec![], vec![], vec![]);
    let mut mpi = mpi;
    for round in 0..=rounds {
        let answer = ours.ask(case)?;
        let us = answer["us"].as_f64().with_context(|| format!("no time for {case} in {answer}"))?;
        let other = gloo.number(size)?;
        let third = mpi.as_mut().map(|m| m.number(size)).transpose()?;
        if round == 0 {
            // Warms caches, pages and connections.
            continue;
        }
        mine.push(us);
        theirs.push(other);
        bounds.extend(answer["bound_us"].as_f64());
        mpis.extend(third);
    }
    let (us, best) = (median(&mine), theirs.iter().copied().fold(f64::INFINITY, f64::min));
    let middle = |figures: &[f64]| (!figures.is_empty()).then(|| median(figures));
    let (mpi, bound) = (middle(&mpis), middle(&bounds));
    Ok(json!({
        "case": case,
        "ours_us": rounded(us), "gloo_us": rounded(best), "mpi_us": mpi.map(rounded), "bound_us": bound.map(rounded),
        "vs_gloo": rounded(best / us), "vs_mpi": mpi.map(|m| rounded(m / us)), "vs_bound": bound.map(|b| rounded(us / b)),
    }))
}

fn gloo(world: u32) -> Result<Contestant> {
    let mut command = Command::new(python::TORCH.python()?);
    command.arg(root().join("benches/peers/allreduce_gloo.py")).arg(world.to_string());
    Contestant::start("gloo", &mut command)
}

/// OpenMPI's side: compiled here, one crew for each transport and world. Absent where there is no `mpicc`.
struct Mpi {
    program: Option<std::path::PathBuf>,
    crews: Vec<(String, Contestant)>,
}

fn mpi() -> Result<Mpi> {
    let source = root().join("benches/peers/allreduce_mpi.c");
    let program = root().join("target/allreduce_mpi");
    std::fs::create_dir_all(root().join("target")).context("cannot make target/")?;
    let built = Command::new("mpicc").args(["-O3", "-march=native", "-o"]).arg(&program).arg(source).status();
    match built {
        Ok(status) if status.success() => Ok(Mpi { program: Some(program), crews: vec![] }),
        Ok(status) => bail!("mpicc: {status}"),
        Err(e) => {
            eprintln!("no OpenMPI to compare with ({e}): install openmpi-bin and libopenmpi-dev");
            Ok(Mpi { program: None, crews: vec![] })
        }
    }
}

impl Mpi {
    fn crew(&mut self, wire: &str, world: u32) -> Result<Option<&mut Contestant>> {
        let Some(program) = &self.program else { return Ok(None) };
        let name = format!("{wire}{world}");
        if !self.crews.iter().any(|(n, _)| *n == name) {
            let mut mpirun = Command::new("mpirun");
            mpirun.args(["--allow-run-as-root", "--oversubscribe", "-np", &world.to_string()]);
            if wire == "tcp" {
                mpirun.args(["--mca", "pml", "ob1", "--mca", "btl", "tcp,self"]);
            }
            let crew = Contestant::start("MPI", mpirun.arg(program))?;
            self.crews.push((name.clone(), crew));
        }
        Ok(self.crews.iter_mut().find(|(n, _)| *n == name).map(|(_, crew)| crew))
    }
}
