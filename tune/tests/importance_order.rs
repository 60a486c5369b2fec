//! Which parameters matter.

use regatta_tune::importance::importance;
use regatta_tune::sampler::{End, Random, Search, Told, Tpe};
use regatta_tune::space::{Space, branches, choice, float, group, int};

fn space() -> Space {
    group()
        .with("lr", float(1e-5..=1e-1).log())
        .with("kind", choice(["a", "b", "c"]))
        .with("depth", int(1..=8))
        .with("seed", int(0..=1000))
        .build()
        .expect("a space")
}

/// What the loss depends on most comes first, whoever chose the trials; what it does not depend on comes last.
#[test]
fn what_matters_comes_first() {
    for seed in 0..3 {
        for mut search in [Search::new(space(), Random, seed), Search::new(space(), Tpe::default(), seed)] {
            for _ in 0..300 {
                let trial = search.ask().unwrap();
                let lr = trial.config["lr"].as_f64().unwrap().log10();
                let kind = if trial.config["kind"] == "b" { 0.0 } else { 0.5 };
                let depth = 0.01 * trial.config["depth"].as_f64().unwrap();
                search.tell(trial.number, &[(lr + 3.0).powi(2) + kind + depth]).unwrap();
            }
            let found = importance(search.space(), search.history().told(), 0);
            assert_eq!(found[0].path, "lr", "{found:?}");
            let share = |path: &str| found.iter().find(|i| i.path == path).expect("every parameter").share;
            assert!(share("kind") > share("seed") && share("lr") > 3.0 * share("seed"), "{found:?}");
            assert!((found.iter().map(|i| i.share).sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }
}

#[test]
fn little_is_said_of_little() {
    let (space, branchy) = (
        space(),
        group()
            .with("o", branches().unit("p").with("q", group().with("m", float(0.0..=1.0))))
            .build()
            .unwrap(),
    );
    assert!(importance(&space, &[], 0).iter().all(|i| i.share == 0.0));
    let mut search = Search::new(branchy, Random, 1);
    for _ in 0..40 {
        let trial = search.ask().unwrap();
        let loss = trial.config["o"].get("q").map_or(2.0, |q| q["m"].as_f64().unwrap());
        search.tell(trial.number, &[loss]).unwrap();
    }
    let mut told: Vec<Told> = search.history().told().to_vec();
    let found = importance(search.space(), &told, 0);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|i| i.share.is_finite() && i.share > 0.0), "{found:?}");
    // Trials that failed or have no number say nothing.
    told[0].end = End::Failed;
    told[1].losses = vec![f64::NAN];
    assert_eq!(importance(search.space(), &told, 0), importance(search.space(), &told[2..], 0));
}
