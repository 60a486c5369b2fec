//! A run of threads, played to its end, and a toy model that is all integers.
#![allow(dead_code, unreachable_pub)]

use std::borrow::Cow;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use regatta_checkpoint::{Dtype, Placement};
use regatta_cluster::Failure;
use regatta_train::crew::{Crew, CrewEvent, Saying};
use regatta_train::threads::{Body, ThreadCrew};
use regatta_train::wire::{Committed, Decision, Done, FromRank, Restore, Start};
use regatta_train::{
    BoxError, CheckpointConfig, FailureConfig, Result, SavedPart, StateTensor, Stateful, StopConfig,
    StopReason, TrainContext,
};
use serde_json::Value;
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// A run: what to start, on how many threads, in a folder of its own.
pub struct Run {
    pub start: Start,
    pub world: usize,
    body: Body,
    folder: Arc<TempDir>,
}

impl Run {
    pub fn new(
        world: usize,
        body: impl Fn(&mut TrainContext, Value) -> Result<Value, BoxError> + Send + Sync + 'static,
    ) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let start = Start {
            experiment: "tests".into(),
            run: "run".into(),
            folder: folder.path().into(),
            storage: folder.path().to_str().unwrap().into(),
            attempt: 1,
            generation: 1,
            config: Value::Null,
            seed: 7,
            restore: Restore::Nothing,
            checkpoint: CheckpointConfig::default(),
            failure: FailureConfig { collective_deadline_seconds: 20.0, ..Default::default() },
            stop: StopConfig::default(),
            spent_seconds: 0.0,
            fast_dev_run: false,
            lockstep: false,
        };
        Run { start, world, body: Arc::new(body), folder }
    }

    /// The next attempt.
    pub fn again(mut self, restore: Restore) -> Self {
        self.start.attempt += 1;
        self.start.generation += 1;
        self.start.restore = restore;
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub async fn launch(self) -> Playing {
        let mut crew = ThreadCrew::new(self.world, self.body.clone());
        crew.launch(self.start.clone()).await.unwrap();
        Playing { run: self, crew, events: Vec::new() }
    }

    pub async fn play(self) -> End {
        self.launch().await.end().await
    }
}

/// A run under way.
pub struct Playing {
    pub run: Run,
    pub crew: ThreadCrew,
    events: Vec<CrewEvent>,
}

impl Playing {
    async fn next(&mut self) -> Option<&CrewEvent> {
        let event = tokio::time::timeout(SOON, self.crew.next()).await.expect("something happens")?;
        self.events.push(event);
        self.events.last()
    }

    /// Goes on until rank 0 has told such a thing.
    pub async fn until(&mut self, wanted: impl Fn(&FromRank) -> bool) {
        loop {
            match self.next().await.expect("the run is not over") {
                CrewEvent::Said { rank: 0, saying: Saying::Told(told), .. } if wanted(told) => return,
                _ => {}
            }
        }
    }

    pub async fn until_progress(&mut self, step: u64) {
        self.until(|told| matches!(told, FromRank::Progress(progress) if progress.step >= step)).await;
    }

    pub fn stop(&mut self, reason: StopReason) {
        self.crew.decide(&Decision::Stop(reason));
    }

    /// Goes on until the attempt has failed; gives back the run.
    pub async fn fail(mut self) -> (Run, Failure) {
        loop {
            match tokio::time::timeout(SOON, self.crew.next()).await.expect("something happens") {
                Some(CrewEvent::Failed(failure)) => return (self.run, *failure),
                Some(_) => {}
                None => panic!("it should have failed"),
            }
        }
    }

    pub async fn end(mut self) -> End {
        while self.next().await.is_some() {}
        End { run: self.run, events: self.events }
    }
}

/// What happened in a run.
pub struct End {
    pub run: Run,
    events: Vec<CrewEvent>,
}

impl End {
    pub fn finished(&self) {
        let last = self.events.last();
        assert!(matches!(last, Some(CrewEvent::Finished)), "{last:?}");
    }

    pub fn failed(self) -> Failure {
        match self.events.into_iter().next_back() {
            Some(CrewEvent::Failed(failure)) => *failure,
            other => panic!("it should have failed: {other:?}"),
        }
    }

    fn said(&self, by: u32) -> impl Iterator<Item = &Saying> {
        self.events.iter().filter_map(move |event| match event {
            CrewEvent::Said { rank, saying, .. } if *rank == by => Some(saying),
            _ => None,
        })
    }

    pub fn told(&self, by: u32) -> impl Iterator<Item = &FromRank> {
        self.said(by).filter_map(|saying| match saying {
            Saying::Told(told) => Some(told),
            _ => None,
        })
    }

    pub fn done(&self, by: u32) -> &Done {
        let done = self.said(by).find_map(|saying| match saying {
            Saying::Done(done) => Some(done),
            _ => None,
        });
        done.unwrap_or_else(|| panic!("rank {by} is not done: {:?}", self.events.last()))
    }

    pub fn commits(&self) -> Vec<&Committed> {
        let commits = self.said(0).filter_map(|saying| match saying {
            Saying::Committed(committed) => Some(committed),
            _ => None,
        });
        commits.collect()
    }
}

/// A model of integers: each step mixes in the step, and a number that all ranks make together.
#[derive(Clone)]
pub struct Weights(pub Arc<Mutex<Vec<u8>>>);

impl Weights {
    pub fn new(bytes: usize) -> Self {
        Weights(Arc::new(Mutex::new((0..bytes).map(|i| i as u8).collect())))
    }

    pub fn learn(&self, step: u64, sum: i64) {
        let mut weights = self.0.lock().unwrap();
        for (place, weight) in weights.iter_mut().enumerate() {
            *weight =
                weight.wrapping_mul(31).wrapping_add(step as u8).wrapping_add((sum + place as i64) as u8);
        }
    }

    pub fn hash(&self) -> String {
        blake3::hash(&self.0.lock().unwrap()).to_hex().to_string()
    }
}

impl Stateful for Weights {
    fn tensors(&self) -> Result<Vec<StateTensor<'_>>> {
        let bytes = self.0.lock().unwrap().clone();
        let shape = vec![bytes.len() as u64];
        let (name, placement) = (Cow::Borrowed("weights"), Placement::Replicated);
        Ok(vec![StateTensor { name, dtype: Dtype::U8, shape, placement, data: Box::new(bytes) }])
    }

    fn load(&mut self, saved: &dyn SavedPart) -> Result<()> {
        assert_eq!(saved.list().len(), 1, "{:?}", saved.list());
        *self.0.lock().unwrap() = saved.tensor("weights")?.into_owned();
        Ok(())
    }
}

/// Trains a model of integers with all ranks, for so many steps.
pub fn integers(
    steps: u64,
) -> impl Fn(&mut TrainContext, Value) -> Result<Value, BoxError> + Send + Sync + 'static {
    move |ctx, _| {
        let weights = Weights::new(100_000);
        let mut state = ctx.state().with("model", weights.clone());
        ctx.restore(&mut state)?;
        while state.step() < steps {
            let mut sum = [state.step() as i64 * (ctx.rank() as i64 + 1)];
            ctx.group().all_reduce(&mut sum, regatta_comm::ReduceOp::Sum)?;
            weights.learn(state.step(), sum[0]);
            ctx.step(&state)?;
        }
        Ok(weights.hash().into())
    }
}
