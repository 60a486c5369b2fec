//! A training that checks itself, for hours if need be: `cargo xtask chaos` breaks it on purpose, and `cargo xtask bench resume`
//! compares its last weights with and without interruptions. Its value is the BLAKE3 of the final weights.
//!
//! A sample that is not counted exactly once an epoch, or a rank whose weights are not those of the others, ends it with an
//! error.

use std::time::Duration;

use regatta::prelude::*;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Config {
    samples: usize,
    epochs: u64,
    /// Over all ranks, so that a crew of another size makes the same steps.
    global_batch: usize,
    width: i64,
    /// Slows every step down, so that there is time to break something.
    step_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Config { samples: 1_000, epochs: 3, global_batch: 64, width: 64, step_ms: 0 }
    }
}

const FEATURES: i64 = 32;

/// Samples that follow from their place: the place, what the network sees of it, and its class.
fn numbers(len: usize) -> impl Dataset<Batch = (Vec<usize>, Tensor, Tensor)> {
    from_fn(len, Ok::<_, BoxError>).map(|places| {
        let feature = |place: usize, at: i64| ((place as i64 * 31 + at * 17) % 101) as f32 / 50.0 - 1.0;
        let x: Vec<f32> =
            places.iter().flat_map(|&place| (0..FEATURES).map(move |at| feature(place, at))).collect();
        let y: Vec<i64> = places.iter().map(|place| (place % 10) as i64).collect();
        Ok((places, Tensor::from_slice(&x).view([-1, FEATURES]), Tensor::from_slice(&y)))
    })
}

#[regatta::trainable]
fn soak(ctx: &mut TrainContext, cfg: Config) -> Result<String> {
    let device = ctx.device();
    let vs = nn::VarStore::new(device);
    let first = nn::linear(vs.root() / "first", FEATURES, cfg.width, Default::default());
    let second = nn::linear(vs.root() / "second", cfg.width, 10, Default::default());
    let model = ctx.data_parallel(&vs)?;
    let mut data =
        ctx.loader_with(numbers(cfg.samples), LoaderConfig::global_batch_size(cfg.global_batch))?;
    let mut opt = Adam::new(&vs, 1e-3);
    let seen = Tracked::new(vec![0u8; cfg.samples]);
    let mut state = ctx.state().model(&vs).optimizer(&opt).data(&data).with("seen", seen.clone());
    ctx.restore(&mut state)?;
    for epoch in state.epochs(cfg.epochs) {
        let mut last = 0.0;
        for batch in data.epoch(epoch) {
            let (places, x, y) = batch?;
            let hidden = x.to_device(device).apply(&first).relu().dropout(0.1, true);
            let loss = hidden.apply(&second).cross_entropy_for_logits(&y.to_device(device));
            opt.zero_grad()?;
            model.backward(&loss)?;
            opt.step()?;
            let mut counts = vec![0u8; cfg.samples];
            places.iter().for_each(|&place| counts[place] += 1);
            ctx.group().all_reduce(&mut counts, regatta_comm::ReduceOp::Sum)?;
            seen.update(|seen| seen.iter_mut().zip(&counts).for_each(|(all, new)| *all += new));
            std::thread::sleep(Duration::from_millis(cfg.step_ms));
            last = f64::try_from(&loss)?;
            ctx.step(&state)?;
        }
        if let Some((place, times)) = seen.get().iter().enumerate().find(|(_, times)| **times != 1) {
            return Err(format!("sample {place} was counted {times} times in epoch {epoch}").into());
        }
        seen.set(vec![0; cfg.samples]);
        model.verify_replicas()?;
        ctx.report(metrics! { epoch, loss: mean(last) }).checkpoint(&state)?;
    }
    let mut hash = blake3::Hasher::new();
    for tensor in regatta::torch::state::model(&vs) {
        hash.update(&tensor.bytes()?);
    }
    Ok(hash.finalize().to_hex().to_string())
}

fn main() -> ExitCode {
    regatta::main()
}
