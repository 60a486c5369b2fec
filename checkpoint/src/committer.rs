//! What rank 0 does with the ranks' reports, as a pure state machine: no store, clock or thread in here. One input, one
//! action; `saver` performs the actions.
//!
//! Invariants, cited by name in tests:
//! - CM-1: the manifest is written only when every rank reported success and the pieces cover every tensor exactly.
//! - CM-2: COMMIT is asked for only after the manifest is written and the fence was found not to be newer.
//! - CM-3: success is reported only after COMMIT, ours byte for byte, was sealed, and after that all files were still there.
//! - CM-4: every failure leads to giving the folder up, and the first reason is the one reported.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::manifest::{Commit, FileEntry, Manifest, Piece, SCHEMA, TensorEntry};
use crate::region::Region;
use crate::tensor::Dtype;

/// A piece as the rank that wrote it reports it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WrittenPiece {
    /// The tensor.
    pub tensor: String,
    /// Its element type.
    pub dtype: Dtype,
    /// Its global shape.
    pub shape: Vec<u64>,
    /// Which part of it was written.
    pub region: Region,
    /// Where its bytes start in the shard.
    pub start: u64,
    /// The CRC32C of its bytes.
    pub crc32c: u32,
}

/// What a rank wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankReport {
    /// The shard.
    pub shard: FileEntry,
    /// What is in it.
    pub pieces: Vec<WrittenPiece>,
    /// The rank's state.
    pub state: FileEntry,
    /// The hash of the list of replicated tensors, which has to be the same on all ranks.
    pub replicated: String,
    /// What the rank's caller gave beside tensors and state; rank 0's counts.
    #[serde(with = "crate::manifest::metrics")]
    pub metrics: BTreeMap<String, f64>,
}

/// What a rank tells rank 0: its report, or why it has none.
pub type Outcome = Result<RankReport, String>;

/// What a checkpoint is called and whose it is.
#[derive(Debug, Clone)]
pub struct Head {
    /// The folder's name.
    pub name: crate::names::CheckpointName,
    /// The checkpoint before.
    pub parent: Option<String>,
    /// When it was begun, in milliseconds since 1970.
    pub created_ms: u64,
    /// The version of the ranks' states.
    pub state_version: u32,
}

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The action was done.
    Done,
    /// The action failed.
    Failed(String),
    /// The newest generation that was found.
    Fence(u64),
    /// A COMMIT was there already, with these bytes.
    Exists(Vec<u8>),
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Create MANIFEST.json with these bytes.
    WriteManifest(Vec<u8>),
    /// Find the newest generation.
    ReadFence,
    /// Create COMMIT with these bytes.
    WriteCommit(Vec<u8>),
    /// Make folder and parent last.
    Seal,
    /// Look whether these files are all there, with these sizes. A collector that took this save for dead may have
    /// removed them, and its own marker after them, while this process was suspended.
    Check(Vec<(String, u64)>),
    /// Put an aborted COMMIT in the way of a late one, and remove the folder.
    GiveUp,
    /// It is over.
    Finish(Verdict),
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Verdict {
    /// The checkpoint is there and lasts.
    Committed,
    /// There is no checkpoint.
    Failed {
        /// The rank on which it failed first.
        rank: u32,
        /// Why.
        reason: String,
    },
    /// This generation was superseded by that one.
    Fenced(u64),
}

#[derive(Debug, PartialEq)]
enum State {
    Manifest,
    Fence,
    Commit,
    Sealing,
    Checking,
    GivingUp(Verdict),
    Over,
}

/// The state machine.
#[derive(Debug)]
pub struct Committer {
    state: State,
    generation: u64,
    commit: Vec<u8>,
    files: Vec<(String, u64)>,
}

impl Committer {
    /// Starts with all ranks' outcomes, in the order of ranks.
    pub fn start(head: &Head, outcomes: Vec<Outcome>) -> (Committer, Action) {
        let mut committer = Committer {
            state: State::Manifest,
            generation: head.name.generation,
            commit: Vec::new(),
            files: Vec::new(),
        };
        let action = match merge(head, outcomes) {
            Ok(manifest) => {
                let bytes = manifest.to_bytes();
                committer.files = manifest.files.iter().map(|file| (file.name.clone(), file.size)).collect();
                committer.files.push((crate::names::MANIFEST.to_owned(), bytes.len() as u64));
                committer.commit = Commit::of(&bytes, head.name.generation).to_bytes();
                Action::WriteManifest(bytes)
            }
            Err((rank, reason)) => committer.give_up(Verdict::Failed { rank, reason }),
        };
        (committer, action)
    }

    /// Takes what became of the last action and says the next.
    pub fn next(&mut self, input: Input) -> Action {
        let state = std::mem::replace(&mut self.state, State::Over);
        let (state, action) = match (state, input) {
            (State::Manifest, Input::Done) => (State::Fence, Action::ReadFence),
            (State::Fence, Input::Fence(newest)) if newest > self.generation => {
                return self.give_up(Verdict::Fenced(newest));
            }
            (State::Fence, Input::Fence(_)) => (State::Commit, Action::WriteCommit(self.commit.clone())),
            (State::Commit, Input::Done) => (State::Sealing, Action::Seal),
            // A lost reply to our own request looks like somebody else's COMMIT, but has our bytes.
            (State::Commit, Input::Exists(bytes)) if bytes == self.commit => (State::Sealing, Action::Seal),
            (State::Commit, Input::Exists(bytes)) => return self.give_up(self.lost_to(&bytes)),
            (State::Sealing, Input::Done) => {
                (State::Checking, Action::Check(std::mem::take(&mut self.files)))
            }
            (State::Checking, Input::Done) => (State::Over, Action::Finish(Verdict::Committed)),
            (State::GivingUp(verdict), _) => (State::Over, Action::Finish(verdict)),
            (_, Input::Failed(reason)) => return self.give_up(Verdict::Failed { rank: 0, reason }),
            (state, input) => {
                let reason = format!("{input:?} does not answer what was asked in {state:?}");
                return self.give_up(Verdict::Failed { rank: 0, reason });
            }
        };
        self.state = state;
        action
    }

    fn give_up(&mut self, verdict: Verdict) -> Action {
        self.state = State::GivingUp(verdict);
        Action::GiveUp
    }

    fn lost_to(&self, other: &[u8]) -> Verdict {
        match Commit::parse(other) {
            Ok(commit) if commit.generation > self.generation => Verdict::Fenced(commit.generation),
            _ => Verdict::Failed { rank: 0, reason: "another COMMIT is in the folder already".to_owned() },
        }
    }
}

/// Puts the ranks' reports together; on a contradiction, says on which rank and what.
fn merge(head: &Head, outcomes: Vec<Outcome>) -> Result<Manifest, (u32, String)> {
    let mut manifest = Manifest {
        schema: SCHEMA,
        step: head.name.step,
        generation: head.name.generation,
        name: head.name.to_string(),
        world_size: outcomes.len() as u32,
        parent: head.parent.clone(),
        created_ms: head.created_ms,
        metrics: BTreeMap::new(),
        state_version: head.state_version,
        files: Vec::new(),
        tensors: BTreeMap::new(),
    };
    let mut replicated: Option<String> = None;
    for (rank, outcome) in (0..).zip(outcomes) {
        let report = outcome.map_err(|reason| (rank, reason))?;
        if rank == 0 {
            manifest.metrics = report.metrics;
        }
        if replicated.get_or_insert_with(|| report.replicated.clone()) != &report.replicated {
            return Err((
                rank,
                "its list of replicated tensors (names, types, shapes) is not that of rank 0".to_owned(),
            ));
        }
        let file = manifest.files.len();
        manifest.files.extend([report.shard, report.state]);
        for piece in report.pieces {
            let tensor = manifest.tensors.entry(piece.tensor.clone()).or_insert_with(|| TensorEntry {
                dtype: piece.dtype,
                shape: piece.shape.clone(),
                pieces: Vec::new(),
            });
            if (tensor.dtype, &tensor.shape) != (piece.dtype, &piece.shape) {
                let reason = format!(
                    "tensor `{}` is {}{:?} here, {}{:?} on an earlier rank",
                    piece.tensor, piece.dtype, piece.shape, tensor.dtype, tensor.shape
                );
                return Err((rank, reason));
            }
            tensor.pieces.push(Piece {
                file,
                start: piece.start,
                region: piece.region,
                crc32c: piece.crc32c,
            });
        }
    }
    manifest.check().map_err(|reason| (0, reason))?;
    Ok(manifest)
}
