//! `bench train`: data-parallel training by two workers of this host, against PyTorch's DistributedDataParallel over gloo and
//! against one worker of ours.

use anyhow::Result;
use serde_json::json;

use super::{Args, Contestant, build, median, rounded};
use crate::{libtorch, python, root};

/// A case, and what one worker of ours is asked to be compared with.
const CASES: [(&str, Option<&str>); 2] =
    [("resnet18_2workers", Some("resnet18_1workers")), ("mlp_2workers", None)];

/// Prints `{"case","ours","ddp","one","vs_ddp","vs_linear"}` a case: figures are a second; `vs_linear` is ours in parts of twice what one
/// worker of ours does while the other core is idle. Ratios are medians over the rounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    libtorch::setup(false)?;
    let mut ours = Contestant::start("ours", build("mnist_resnet", "ddp")?.env("OMP_NUM_THREADS", "1"))?;
    let mut peer = std::process::Command::new(python::TORCH.python()?);
    peer.arg(root().join("benches/peers/ddp.py")).arg(root().join("examples/mnist_resnet/data"));
    let mut peer = Contestant::start("PyTorch", &mut peer)?;
    for (case, one) in CASES.iter().filter(|(case, _)| case.contains(&args.case)) {
        let (mut all, mut ddp, mut alone, mut vs_ddp, mut vs_linear) =
            (vec![], vec![], vec![], vec![], vec![]);
        for round in 0..=args.rounds {
            let mine = ours.number(case)?;
            let theirs = peer.number(case)?;
            let single = one.map(|one| ours.number(one)).transpose()?;
            if round == 0 {
                // Warms caches and allocators.
                continue;
            }
            all.push(mine);
            ddp.push(theirs);
            vs_ddp.push(mine / theirs);
            if let Some(single) = single {
                alone.push(single);
                vs_linear.push(mine / (2.0 * single));
            }
        }
        let middle = |figures: &[f64]| (!figures.is_empty()).then(|| rounded(median(figures)));
        let line = json!({
            "case": case, "ours": middle(&all), "ddp": middle(&ddp), "one": middle(&alone),
            "vs_ddp": middle(&vs_ddp), "vs_linear": middle(&vs_linear),
        });
        println!("{line}");
    }
    Ok(())
}
