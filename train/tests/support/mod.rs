//! A crew that plays a script, with checkpoints that are real: what the controller is tested with, without a process.

#![allow(dead_code, unreachable_pub, reason = "every test program uses its own part")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use regatta_checkpoint::{Dtype, Save, SaverConfig, Solo, Tensor, store};
use regatta_cluster::{Cause, CauseKind, Failure};
use regatta_train::crew::{Crew, CrewEvent, Saying};
use regatta_train::metrics::Merge;
use regatta_train::wire::{Committed, Decision, Done, FromRank, RankReport, Start};
use regatta_train::{Result, TrainContext, Trainer};
use serde_json::Value;
use tokio::sync::mpsc;

/// What a scripted rank or crew does next.
#[derive(Clone)]
pub enum Move {
    /// A rank reports: its n-th report, at a step, with figures.
    Report(u32, u64, u64, &'static [(&'static str, f64, Merge)]),
    /// Rank 0 says what it took up: the newest checkpoint, or nothing.
    Restored,
    /// A checkpoint of this step is committed and told.
    Commit(u64),
    /// One is committed, and nobody is told.
    CommitUntold(u64),
    /// A save fails.
    SaveFails(u64),
    /// A rank is done, returning this.
    Done(u32, u64),
    /// The crew fails so.
    Fail(CauseKind, &'static str),
    /// All are done.
    Finish,
}

/// What was seen of a scripted crew.
#[derive(Default)]
pub struct Seen {
    pub starts: Vec<Start>,
    pub acknowledged: Vec<(u32, u64)>,
    pub decisions: Vec<Decision>,
    pub stops: usize,
}

/// A crew that does in each attempt what its script says, and then nothing until it is told to stop.
pub struct Scripted {
    world: u32,
    script: Box<dyn Fn(u32) -> Vec<Move> + Send>,
    /// What it does when it is told to stop; it says why by itself.
    on_stop: Vec<Move>,
    seen: Arc<Mutex<Seen>>,
    events: mpsc::UnboundedReceiver<CrewEvent>,
    sender: mpsc::UnboundedSender<CrewEvent>,
    sequences: BTreeMap<u32, u64>,
    start: Option<Start>,
    stopped: Option<regatta_train::StopReason>,
}

impl Scripted {
    pub fn new(world: u32, script: impl Fn(u32) -> Vec<Move> + Send + 'static) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let (on_stop, seen, sequences) = (Vec::new(), Arc::default(), BTreeMap::new());
        let script = Box::new(script);
        Scripted { world, script, on_stop, seen, events, sender, sequences, start: None, stopped: None }
    }

    pub fn on_stop(mut self, moves: &[Move]) -> Self {
        self.on_stop = moves.to_vec();
        self
    }

    pub fn seen(&self) -> Arc<Mutex<Seen>> {
        self.seen.clone()
    }

    fn say(&mut self, rank: u32, saying: Saying) {
        let sequence = self.sequences.entry(rank).or_insert(0);
        *sequence += 1;
        self.sender.send(CrewEvent::Said { rank, sequence: *sequence, saying }).unwrap();
    }

    fn save(&self, step: u64) -> Committed {
        let start = self.start.as_ref().unwrap();
        let config = SaverConfig { generation: Some(start.generation), ..SaverConfig::default() };
        let mut saver = config.build(store::open(&start.storage).unwrap(), Arc::new(Solo)).unwrap();
        let bytes = step.to_le_bytes().to_vec();
        let tensors = [Tensor::replicated("step", Dtype::U8, &[8], &bytes)];
        let saved = saver.save(&Save::new(step, &tensors).metric("loss", 1.0 / step as f64)).unwrap();
        let report = saved.wait(Duration::from_secs(60)).unwrap().unwrap();
        let metrics = [("loss", 1.0 / step as f64)].into();
        Committed { name: report.name.to_string(), step, bytes: 8, metrics, ..Committed::default() }
    }

    fn play(&mut self, moves: Vec<Move>) {
        for next in moves {
            match next {
                Move::Report(rank, index, step, figures) => {
                    let metrics =
                        figures.iter().map(|&(name, value, rule)| (name.into(), value, rule)).collect();
                    let report = RankReport { index, step, epoch: 0, metrics, seconds: index as f64 };
                    self.say(rank, Saying::Told(FromRank::Report(report)));
                }
                Move::Restored => {
                    let store = store::open(&self.start.as_ref().unwrap().storage).unwrap();
                    let newest =
                        regatta_checkpoint::recover::newest(store, regatta_checkpoint::Verify::Full).ok();
                    let newest = newest.map(|found| found.checkpoint.name().clone());
                    let (step, checkpoint) =
                        (newest.as_ref().map_or(0, |n| n.step), newest.map(|n| n.to_string()));
                    self.say(
                        0,
                        Saying::Told(FromRank::Restored {
                            checkpoint,
                            step,
                            reports: None,
                            damaged: Vec::new(),
                        }),
                    );
                }
                Move::Commit(step) => {
                    let committed = self.save(step);
                    self.say(0, Saying::Committed(committed));
                }
                Move::CommitUntold(step) => drop(self.save(step)),
                Move::SaveFails(step) => {
                    let error = Some("no space left on the disk".into());
                    self.say(0, Saying::Committed(Committed { step, error, ..Committed::default() }));
                }
                Move::Done(rank, value) => {
                    let stopped = self.stopped.clone();
                    let done = Done { value: Value::from(value), step: 0, stopped, checkpoint: None };
                    self.say(rank, Saying::Done(done));
                }
                Move::Fail(kind, message) => {
                    let start = self.start.as_ref().unwrap();
                    let (attempt, generation) = (start.attempt, start.generation);
                    let root = Cause { rank: 1, slot: 1, attempt, generation, kind, message: message.into() };
                    let mut failure = Failure::new(root, Vec::new());
                    failure.log_tail = vec!["the last line".into()];
                    self.sender.send(CrewEvent::Failed(Box::new(failure))).unwrap();
                }
                Move::Finish => self.sender.send(CrewEvent::Finished).unwrap(),
            }
        }
    }
}

#[async_trait]
impl Crew for Scripted {
    async fn launch(&mut self, start: Start) -> Result<()> {
        (self.sender, self.events) = mpsc::unbounded_channel();
        let attempt = start.attempt;
        self.seen.lock().unwrap().starts.push(start.clone());
        (self.start, self.stopped, self.sequences) = (Some(start), None, BTreeMap::new());
        let about = format!("{} x script", self.world);
        self.sender.send(CrewEvent::Started { world_size: self.world, about }).unwrap();
        let moves = (self.script)(attempt);
        self.play(moves);
        Ok(())
    }

    async fn next(&mut self) -> Option<CrewEvent> {
        self.events.recv().await
    }

    fn acknowledge(&mut self, rank: u32, sequence: u64) {
        self.seen.lock().unwrap().acknowledged.push((rank, sequence));
    }

    fn decide(&mut self, decision: &Decision) {
        self.seen.lock().unwrap().decisions.push(decision.clone());
        if let Decision::Stop(reason) = decision {
            self.stopped = Some(reason.clone());
            let moves = self.on_stop.clone();
            self.play(moves);
        }
    }

    async fn stop(&mut self, _: Duration) -> Result<()> {
        self.seen.lock().unwrap().stops += 1;
        Ok(())
    }
}

/// A training function that scripted crews do not run.
pub fn toy(_: &mut TrainContext, config: Value) -> Result<Value> {
    Ok(config)
}

/// A run named `one` of the experiment `toy` in a folder.
pub fn trainer(folder: &std::path::Path, crew: Scripted) -> Trainer {
    Trainer::new(toy, Value::from(1)).crew(crew).run("one").storage(folder.to_str().unwrap())
}
