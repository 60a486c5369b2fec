//! `bench train`: data-parallel training by two workers of this host, against PyTorch's DistributedDataParallel over gloo and
//! against one worker of ours.

use anyhow::Result;
use serde_json::json;

use super::{Args, Contestant, build, median, rounded};
use crate::{libtorch, python, root};

/// A case, and the others of ours that it is compared with: one worker alone, and no look for values that are not finite.
const CASES: [(&str, Option<[&str; 2]>); 2] = [
    ("resnet18_2workers", Some(["resnet18_1workers", "resnet18unchecked_2workers"])),
    ("mlp_2workers", None),
];

/// Prints `{"case","ours","ddp","one","vs_ddp","vs_linear","check_cost"}` a case: figures are a second; `vs_linear` is ours in parts of twice
/// what one worker of ours does while the other core is idle, `check_cost` the share of a step that the look for values that are not finite
/// takes. Ratios are medians over the rounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    libtorch::setup(false)?;
    let mut ours = Contestant::start("ours", build("regatta-torch", "ddp")?.env("OMP_NUM_THREADS", "1"))?;
    let mut peer = std::process::Command::new(python::TORCH.python()?);
    peer.arg(root().join("benches/peers/ddp.py"));
    let mut peer = Contestant::start("PyTorch", &mut peer)?;
    for (case, others) in CASES.iter().filter(|(case, _)| case.contains(&args.case)) {
        let (mut all, mut ddp, mut alone) = (vec![], vec![], vec![]);
        let (mut vs_ddp, mut vs_linear, mut check) = (vec![], vec![], vec![]);
        for round in 0..=args.rounds {
            let mine = ours.number(case)?;
            let theirs = peer.number(case)?;
            let figures = match others {
                Some([one, unchecked]) => Some((ours.number(one)?, ours.number(unchecked)?)),
                None => None,
            };
            if round == 0 {
                // Warms caches and allocators.
                continue;
            }
            all.push(mine);
            ddp.push(theirs);
            vs_ddp.push(mine / theirs);
            if let Some((one, unchecked)) = figures {
                alone.push(one);
                vs_linear.push(mine / (2.0 * one));
                check.push(1.0 - mine / unchecked);
            }
        }
        let middle = |figures: &[f64]| (!figures.is_empty()).then(|| rounded(median(figures)));
        let line = json!({
            "case": case, "ours": middle(&all), "ddp": middle(&ddp), "one": middle(&alone),
            "vs_ddp": middle(&vs_ddp), "vs_linear": middle(&vs_linear), "check_cost": middle(&check),
        });
        println!("{line}");
    }
    Ok(())
}
