//! `bench step`: one training step in one process, against PyTorch's, and an optimiser step against tch's.

use anyhow::Result;
use serde_json::json;

use super::{Args, Contestant, build, median, rounded};
use crate::{libtorch, python, root};

/// A case, and whose answer to which case it is compared with.
const CASES: [(&str, Peer, &str); 4] = [
    ("resnet18_cpu_f32", Peer::PyTorch, "resnet18_cpu_f32"),
    ("resnet18_cpu_bf16", Peer::PyTorch, "resnet18_cpu_bf16"),
    ("mlp_cpu", Peer::PyTorch, "mlp_cpu"),
    ("adam_resnet18", Peer::Tch, "adam_resnet18_tch"),
];

#[derive(PartialEq)]
enum Peer {
    PyTorch,
    Tch,
}

/// Prints `{"case","ours","peer","ratio"}` a case: figures are a second, the ratio is the median over the rounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    libtorch::setup(false)?;
    let mut ours = build("mnist_resnet", "step")?;
    let script = root().join("benches/peers/step.py");
    let data = root().join("examples/mnist_resnet/data");
    let mut peer = std::process::Command::new(python::TORCH.python()?);
    peer.arg(script).arg(data);
    // One thread each: what is compared is the step, not how two cores are shared with the neighbours.
    let mut ours = Contestant::start("ours", ours.env("OMP_NUM_THREADS", "1"))?;
    let mut peer = Contestant::start("PyTorch", peer.env("OMP_NUM_THREADS", "1"))?;
    for (case, whose, asked) in CASES.iter().filter(|(case, ..)| case.contains(&args.case)) {
        let (mut a, mut b, mut ratios) = (vec![], vec![], vec![]);
        for round in 0..=args.rounds {
            let left = ours.number(case)?;
            let right = if *whose == Peer::Tch { ours.number(asked)? } else { peer.number(asked)? };
            if round > 0 {
                // The first round warms caches and allocators.
                a.push(left);
                b.push(right);
                ratios.push(left / right);
            }
        }
        let line = json!({"case": case, "ours": rounded(median(&a)), "peer": rounded(median(&b)), "ratio": rounded(median(&ratios))});
        println!("{line}");
    }
    Ok(())
}
