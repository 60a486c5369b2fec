//! Sharded, verified, atomic, asynchronous checkpoints on files and object stores.
//!
//! What it promises:
//! - A save that was acknowledged survives `kill -9` and a power cut, and verifies when it is read.
//! - The training step is stopped for one copy into memory that is used again; everything else is in the background.
//! - Resuming takes the newest checkpoint that verifies and names the damaged ones it passed over.
//! - Any number of ranks may resume what any other number saved.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use regatta_checkpoint::{Dtype, Save, SaverConfig, Solo, Tensor, Verify, recover, store};
//!
//! # fn main() -> regatta_checkpoint::Result<()> {
//! # let folder = tempfile::tempdir().unwrap();
//! # let path = folder.path().to_str().unwrap();
//! let store = store::open(path)?;
//! let mut saver = SaverConfig::default().build(store.clone(), Arc::new(Solo))?;
//!
//! let weights: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
//! let tensors = [Tensor::replicated("weights", Dtype::F32, &[2], &weights)];
//! let saved = saver.save(&Save::new(10, &tensors).state(1, &("epoch", 3))?.metric("loss", 0.5))?;
//! // ... the next training steps run here ...
//! saved.wait(Duration::from_secs(60))?;
//!
//! let found = recover::newest(store, Verify::Full)?;
//! assert_eq!(found.checkpoint.manifest().step, 10);
//! assert_eq!(*found.checkpoint.tensor("weights")?, weights);
//! let (key, epoch): (String, u64) = found.checkpoint.state(0, 1, |_, state| Ok(state))?;
//! assert_eq!((key.as_str(), epoch), ("epoch", 3));
//! # Ok(())
//! # }
//! ```
//!
//! # Layout
//! ```text
//! <root>/checkpoints/step-000123.g7.0001a2b3c4d5/   the step, the generation that wrote it, and a unique id
//!          shard-00000-of-00004.safetensors         readable on its own; parts of tensors are named `name@0:5,3:7`
//!          rank-00000.json                          the rank's own state
//!          MANIFEST.json                            which tensor is where; sizes, BLAKE3 a file, CRC32C a piece
//!          COMMIT                                   written last: the manifest's BLAKE3 and the generation
//!          pin.<owner>                              keeps the checkpoint from being collected
//! <root>/checkpoints/fence.g7                       generation 7 has begun: earlier ones cannot commit any more
//! <root>/LATEST                                     a hint for people and scripts; recovery does not read it
//! ```
//! All paths in the files are relative, so a moved folder still loads.
//!
//! # Map
//! [`Saver`] saves, [`recover`] and [`Checkpoint`] load, [`select`] matches a checkpoint with a model, [`retention`] and
//! [`collect`] clean up, [`export`] writes plain safetensors. Below are [`store`] (where), [`fs`] (file systems, one of
//! them a simulated disk that loses power) and [`coordinator`] (how ranks talk). The decisions of a commit are a pure
//! state machine, [`committer`].

pub mod catalog;
#[cfg(feature = "cli")]
pub mod cli;
pub mod collect;
mod commit;
pub mod committer;
pub mod conformance;
pub mod coordinator;
mod error;
pub mod export;
pub mod fs;
pub mod header;
mod load;
pub mod manifest;
pub mod names;
mod plan;
pub mod recover;
mod region;
pub mod retention;
mod saver;
pub mod select;
mod shard;
mod staging;
pub mod store;
mod tensor;

pub use coordinator::{Coordinator, LocalGroup, Solo};
pub use error::{Damage, Error, Result};
pub use load::{Checkpoint, Target, Verify};
pub use manifest::Encoding;
pub use names::CheckpointName;
pub use region::Region;
pub use retention::{Best, Mode, Retention};
pub use saver::{Save, SaveReport, Saved, Saver, SaverConfig, SaverStats, Ticket, WhenBusy};
pub use staging::{HostMemory, StagingAllocator, StagingMemory};
pub use store::Store;
pub use tensor::{Dtype, Placement, Tensor, TensorSource};
