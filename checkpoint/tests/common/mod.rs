//! A small model whose values follow from step and name, so that a mixture of two checkpoints cannot go unseen.
#![allow(dead_code, unreachable_pub)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta_checkpoint::*;

pub const LIMIT: Duration = Duration::from_secs(60);

/// A tensor of the model: its name, its type, its shape, and along which dimension it is sharded.
pub struct Spec {
    pub name: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub sharded: Option<usize>,
}

pub fn specs() -> Vec<Spec> {
    let spec = |name, dtype, shape: &[u64], sharded| Spec { name, dtype, shape: shape.to_vec(), sharded };
    vec![
        spec("embed.weight", Dtype::F32, &[37, 8], None),
        spec("layer.bias", Dtype::F16, &[5], None),
        spec("layer.weight", Dtype::BF16, &[16, 9], Some(1)),
        spec("momentum", Dtype::F32, &[301], Some(0)),
        spec("step", Dtype::I64, &[], None),
        spec("none", Dtype::F32, &[0, 3], None),
        spec("mask", Dtype::BOOL, &[1, 50], None),
    ]
}

/// All bytes of a tensor at a step.
pub fn content(spec: &Spec, step: u64) -> Vec<u8> {
    let bytes = spec.shape.iter().product::<u64>() * spec.dtype.size();
    let salt = spec.name.len() as u64 * 31 + step * 7919;
    (0..bytes).map(|i| ((i + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// The bytes of a part of a tensor, taken one element at a time: an oracle that shares no code with the crate.
pub fn cut(spec: &Spec, bytes: &[u8], region: &Region) -> Vec<u8> {
    let size = spec.dtype.size() as usize;
    let mut out = Vec::new();
    let total: u64 = region.shape.iter().product();
    for mut flat in 0..total {
        let mut at = vec![0; region.shape.len()];
        for d in (0..region.shape.len()).rev() {
            at[d] = flat % region.shape[d] + region.offset[d];
            flat /= region.shape[d];
        }
        let index = at.iter().zip(&spec.shape).fold(0, |index, (at, size)| index * size + at) as usize;
        out.extend_from_slice(&bytes[index * size..][..size]);
    }
    out
}

/// What a rank holds of the model at a step.
pub struct Local {
    pub items: Vec<(Spec, Placement, Vec<u8>)>,
}

impl Local {
    pub fn new(step: u64, rank: u32, world: u32) -> Local {
        let items = specs().into_iter().map(|spec| {
            let all = content(&spec, step);
            match spec.sharded {
                None => (spec, Placement::Replicated, all),
                Some(dim) => {
                    let region = Region::chunk(&spec.shape, dim, u64::from(rank), u64::from(world));
                    let mine = cut(&spec, &all, &region);
                    (spec, Placement::Part(region), mine)
                }
            }
        });
        Local { items: items.collect() }
    }

    pub fn tensors(&self) -> Vec<Tensor<'_>> {
        self.items
            .iter()
            .map(|(spec, placement, data)| Tensor {
                name: spec.name,
                dtype: spec.dtype,
                shape: &spec.shape,
                placement: placement.clone(),
                data,
            })
            .collect()
    }
}

pub fn state(step: u64, rank: u32) -> (u64, u32, f64) {
    (step, rank, step as f64 / 3.0)
}

/// Starts a save of the model on one rank.
pub fn start(saver: &mut Saver, step: u64, rank: u32, world: u32) -> Result<Saved> {
    let local = Local::new(step, rank, world);
    let tensors = local.tensors();
    saver.save(&Save::new(step, &tensors).state(1, &state(step, rank))?.metric("loss", 1.0 / step as f64))
}

/// Panics unless the checkpoint holds exactly the model at its step.
pub fn assert_whole(checkpoint: &Checkpoint) {
    let step = checkpoint.manifest().step;
    assert_eq!(checkpoint.manifest().tensors.len(), specs().len());
    for spec in specs() {
        assert!(
            *checkpoint.tensor(spec.name).unwrap() == content(&spec, step)[..],
            "{} at step {step}",
            spec.name
        );
    }
    for rank in 0..checkpoint.manifest().world_size {
        let found: (u64, u32, f64) = checkpoint.state(rank, 1, |_, state| Ok(state)).unwrap();
        assert_eq!(found, state(step, rank));
    }
}

pub fn config() -> SaverConfig {
    SaverConfig { min_split_bytes: 16, deadline_seconds: 60.0, ..SaverConfig::default() }
}

/// A saver for each rank of a group of threads.
pub fn build_all(
    config: &SaverConfig,
    store: &Arc<dyn Store>,
    coordinators: Vec<Arc<dyn Coordinator>>,
) -> Result<Vec<Saver>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = coordinators
            .into_iter()
            .map(|coordinator| scope.spawn(move || config.clone().build(store.clone(), coordinator)))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

pub fn group(world: u32) -> Vec<Arc<dyn Coordinator>> {
    LocalGroup::new(world).into_iter().map(|rank| Arc::new(rank) as Arc<dyn Coordinator>).collect()
}

/// Saves a step on all ranks and waits for all of them.
pub fn save_all(savers: &mut [Saver], step: u64) -> Vec<Result<SaveReport>> {
    let world = savers.len() as u32;
    let saved: Vec<_> =
        savers.iter_mut().enumerate().map(|(rank, saver)| start(saver, step, rank as u32, world)).collect();
    let outcomes = saved
        .into_iter()
        .map(|saved| saved?.wait(LIMIT).map(|report| report.expect("not skipped")))
        .collect();
    savers.iter().for_each(|saver| saver.finish(LIMIT).unwrap());
    outcomes
}

/// Waits for something that another thread brings about.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(1));
    }
}
