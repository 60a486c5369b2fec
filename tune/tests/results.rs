//! Figures over trials: which is best in which sense, and how they leave the house.

use regatta_tune::results::{Direction, History, Scope, best, over_seeds, ranked, sparkline, table};
use serde_json::{Value, json};

use Direction::{Maximize, Minimize};

fn trial(number: u32, losses: &[f64]) -> History {
    History::new(number).series("loss", losses.iter().copied().zip(1..))
}

fn order(trials: &[History], direction: Direction, scope: Scope) -> Vec<u32> {
    ranked(trials, "loss", direction, scope).iter().map(|(trial, _)| trial.number).collect()
}

#[test]
fn each_scope_has_its_own_best_and_what_is_not_a_number_is_last() {
    let trials = [
        trial(0, &[1.0, 9.0, 2.0]),
        trial(1, &[3.0, 3.0, 3.0]),
        trial(2, &[f64::NAN, 0.5, f64::NAN]),
        trial(3, &[]),
    ];
    assert_eq!(order(&trials, Minimize, Scope::Last), [0, 1, 2]);
    assert_eq!(order(&trials, Minimize, Scope::Best), [2, 0, 1]);
    assert_eq!(order(&trials, Minimize, Scope::Average), [1, 0, 2]);
    assert_eq!(order(&trials, Minimize, Scope::LastAverage(2)), [1, 0, 2]);
    assert_eq!(order(&trials, Maximize, Scope::Last), [1, 0, 2]);
    assert_eq!(order(&trials, Maximize, Scope::Best), [0, 1, 2]);
    assert_eq!(best(&trials[2..], "loss", Minimize, Scope::Last), None, "neither a number nor a report");
    assert_eq!(best(&trials, "unknown", Minimize, Scope::Last), None);
}

#[test]
fn seeds_are_one_result_with_a_spread() {
    let run = |number, lr: f64, seed: u32, loss| trial(number, &[loss]).config("lr", lr).config("seed", seed);
    let trials = [
        run(0, 0.1, 0, 4.0),
        run(1, 0.2, 0, 1.0),
        run(2, 0.1, 1, 2.0),
        run(3, 0.2, 1, 2.0),
        run(4, 0.3, 0, f64::NAN),
    ];
    let groups = over_seeds(&trials, "seed", "loss", Minimize, Scope::Last);
    let figures: Vec<_> =
        groups.iter().map(|group| (group.trials.clone(), group.mean, group.behind)).collect();
    assert_eq!(figures[..2], [(vec![1, 3], 1.5, 0.0), (vec![0, 2], 3.0, 1.5)]);
    assert!((groups[0].deviation - 0.5f64.sqrt()).abs() < 1e-12 && groups[2].mean.is_nan());
    assert_eq!(groups[0].config, [("lr".to_owned(), json!(0.2))].into());
    let up = over_seeds(&trials[..4], "seed", "loss", Maximize, Scope::Last);
    assert_eq!((up[0].mean, up[1].behind), (3.0, 1.5));
}

#[test]
fn sparklines_keep_their_width_and_their_gaps() {
    assert_eq!(sparkline([0.0, 1.0, f64::NAN, 7.0], 10), "▁▂ █");
    assert_eq!(sparkline((0..80).map(f64::from), 8), "▁▂▃▄▅▆▇█");
    assert_eq!(sparkline([3.0, 3.0], 10), "▁▁");
    assert_eq!(sparkline([f64::NAN], 10), " ");
    assert_eq!(sparkline([], 10), "");
}

#[test]
fn tables_are_written_so_that_others_read_them() {
    let mut failed = History::new(1).config("note", "a \"quoted\", long\nnote");
    (failed.state, failed.error) = ("failed".into(), Some("out of memory".into()));
    let mut done = trial(0, &[0.5, 0.25]).series("accuracy", [(f64::INFINITY, 2)]).config("lr", 0.1);
    done.state = "completed".into();
    let table = table(&[failed, done], "loss", Minimize, Scope::Last);
    let expected = "trial,state,steps,loss,loss/best,loss/last,accuracy,config/lr,config/note,error\n\
                    0,completed,2,0.25,0.25,0.25,Infinity,0.1,,\n\
                    1,failed,,,,,,,\"a \"\"quoted\"\", long\nnote\",out of memory\n";
    assert_eq!(table.csv(), expected);
    let json = table.json();
    assert_eq!(
        (&json[0]["accuracy"], &json[1]["loss"], &json[1]["state"]),
        (&json!("Infinity"), &Value::Null, &json!("failed"))
    );
}
