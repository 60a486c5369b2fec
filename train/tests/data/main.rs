//! The data half of the crate through its public API.

mod datasets;
mod loader;
mod order;
mod sampler;
mod stream;

use regatta_train::data::{Epoch, Loader, LoaderConfig, Shard};

/// The loaders of all ranks over `0..len`.
pub(crate) fn ranks(len: usize, world: usize, config: &LoaderConfig) -> Vec<Loader<Vec<usize>>> {
    (0..world)
        .map(|rank| {
            let shard = Shard { rank, world, seed: 7 };
            Loader::new((0..len).collect::<Vec<_>>(), config.clone(), shard).unwrap()
        })
        .collect()
}

/// The next batch of each rank, with its weight; `None` when all have come to the end, which must be together.
pub(crate) fn step(epochs: &mut [Epoch<'_, Vec<usize>>]) -> Option<Vec<Vec<usize>>> {
    let batches: Vec<_> = epochs.iter_mut().map(|epoch| epoch.next().transpose().unwrap()).collect();
    assert!(batches.iter().all(|batch| batch.is_some() == batches[0].is_some()), "ranks differ: {batches:?}");
    batches.into_iter().collect()
}
