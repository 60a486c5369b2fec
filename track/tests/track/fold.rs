//! The run's state equals the fold of its events, always: whatever the events, however they are grouped, and whenever
//! the run is interrupted.

use proptest::prelude::*;
use regatta_track::event::*;
use regatta_track::state::State;
use regatta_track::{Event, Metrics, Query, Store, StoreConfig};

use crate::{LONG, assert_sound, new_store};

fn cause() -> impl Strategy<Value = Option<Cause>> {
    prop_oneof![Just(None), "[a-z ]{0,8}".prop_map(|m| Some(Cause { rank: Some(1), ..Cause::new(m) }))]
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        Just(Outcome::Completed),
        Just(Outcome::Stopped),
        Just(Outcome::Interrupted),
        Just(Outcome::Failed)
    ]
}

fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => any::<i16>().prop_map(f64::from),
        1 => any::<f64>(),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-0.0), Just(0.0)],
    ]
}

fn metrics() -> impl Strategy<Value = Metrics> {
    prop::collection::vec(("[abc]|val/acc", number()), 0..4).prop_map(|figures| figures.into_iter().collect())
}

fn config() -> impl Strategy<Value = serde_json::Value> {
    (any::<f64>(), "[a-z\"]{0,5}").prop_map(|(lr, name)| serde_json::json!({"lr": lr, "name": name}))
}

fn event() -> BoxedStrategy<Event> {
    let id = || "step-[0-3]";
    prop_oneof![
        8 => (any::<u64>(), metrics()).prop_map(|(step, metrics)| Report { step, metrics }.into()),
        1 => "[a-z]{0,4}".prop_map(|name| RunCreated { experiment: "e".into(), name }.into()),
        1 => config().prop_map(|config| RunConfigured { config }.into()),
        1 => config().prop_map(|env| RunEnvironment { env }.into()),
        1 => (outcome(), cause()).prop_map(|(outcome, cause)| RunFinished { outcome, cause }.into()),
        2 => (0..5_u32, any::<u64>(), any::<u64>()).prop_map(|(world_size, generation, step)| AttemptStarted {
            world_size, generation, step, restored: None }.into()),
        1 => (outcome(), cause()).prop_map(|(outcome, cause)| AttemptEnded { outcome, cause }.into()),
        1 => any::<u32>().prop_map(|pid| WorkerJoined { host: "h".into(), pid, ..WorkerJoined::default() }.into()),
        1 => Just(WorkerLost { reason: "silent".into() }.into()),
        1 => any::<Option<i32>>().prop_map(|code| WorkerExited { code, signal: None }.into()),
        2 => (id(), any::<u64>(), metrics()).prop_map(|(id, step, metrics)| CheckpointCommitted {
            id, step, metrics, ..CheckpointCommitted::default() }.into()),
        1 => id().prop_map(|id| CheckpointDeleted { id, reason: "old".into() }.into()),
        1 => Just(Decision { by: "asha".into(), ..Decision::default() }.into()),
        1 => config().prop_map(|config| TrialCreated { config, ..Default::default() }.into()),
        1 => config().prop_map(|config| TrialConfigured { config }.into()),
        1 => any::<bool>().prop_map(|some| TrialPaused { checkpoint: some.then(|| "c".into()) }.into()),
        1 => Just(TrialResumed {}.into()),
        1 => (0..3_u32, config()).prop_map(|(from, config)| TrialCloned { from, config, checkpoint: None }.into()),
        1 => (outcome(), cause()).prop_map(|(outcome, cause)| TrialFinished { outcome, cause }.into()),
        1 => Just(LogTail { lines: vec!["x".into()] }.into()),
        1 => Just(StudyConfigured::default().into()),
        1 => Just(Event::Unknown(Unknown { kind: "new".into(), version: 1, body: vec![9] })),
    ]
    .boxed()
}

/// An append, or an interruption of the controller.
#[derive(Clone, Debug)]
enum Act {
    Append(Box<Draft>),
    Flush,
    Reopen,
}

fn act() -> impl Strategy<Value = Act> {
    let rank = prop_oneof![Just(None), (0..3_u32).prop_map(Some)];
    let trial = prop_oneof![Just(None), (0..3_u32).prop_map(Some)];
    let sequence = prop_oneof![Just(None), (0..6_u64).prop_map(Some)];
    let draft = (event(), any::<u32>(), 0..3_u32, rank, trial, sequence);
    let append = draft.prop_map(|(event, at, attempt, rank, trial, sequence)| {
        Act::Append(Box::new(Draft { at: Some(Timestamp(at.into())), attempt, rank, trial, sequence, event }))
    });
    prop_oneof![20 => append, 1 => Just(Act::Flush), 1 => Just(Act::Reopen)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_state_equals_the_fold_of_the_events(acts in prop::collection::vec(act(), 1..120)) {
        let dir = tempfile::tempdir().unwrap();
        let mut store = new_store(dir.path());
        let mut taken = std::collections::HashMap::new();
        let mut stored = Vec::new();
        for act in acts {
            match act {
                Act::Append(draft) => {
                    let seq = store.append((*draft).clone()).unwrap().seq();
                    // The test's own idea of what a repetition is.
                    let fresh = fresh(&mut taken, &draft);
                    prop_assert_eq!(seq.is_some(), fresh);
                    if fresh {
                        stored.push(draft);
                    }
                }
                Act::Flush => { store.flush(LONG).unwrap(); }
                Act::Reopen => {
                    store.close().unwrap();
                    drop(store);
                    store = Store::open(dir.path(), StoreConfig::default()).unwrap();
                }
            }
        }
        store.flush(LONG).unwrap();
        let mut reader = store.reader().unwrap();
        let mut snapshot = reader.snapshot().unwrap();
        let events = snapshot.events(&Query::default()).unwrap();
        prop_assert_eq!(events.len(), stored.len());
        for (e, draft) in events.iter().zip(&stored) {
            prop_assert_eq!(&rebuilt(e), &**draft);
        }
        prop_assert_eq!(State::fold(&events), snapshot.state().unwrap());
        drop(snapshot);
        assert_sound(dir.path());
    }
}

type Sender = (Option<u32>, u32, Option<u32>);

fn fresh(taken: &mut std::collections::HashMap<Sender, u64>, draft: &Draft) -> bool {
    let Some(sequence) = draft.sequence else { return true };
    let sender = (draft.trial, draft.attempt, draft.rank);
    if taken.get(&sender).is_some_and(|highest| sequence <= *highest) {
        return false;
    }
    taken.insert(sender, sequence);
    true
}

fn rebuilt(e: &Envelope) -> Draft {
    let (at, event) = (Some(e.at), e.event.clone());
    Draft { at, attempt: e.attempt, rank: e.rank, trial: e.trial, sequence: e.sequence, event }
}
