//! Which parameters matter; and the same beside Optuna's figures.

use regatta_tune::importance::importance;
use regatta_tune::sampler::{End, Random, Search, Told};
use regatta_tune::space::{Point, Space, branches, choice, float, group, int};

/// A study that both programs can be given: its points are multiples of irrational numbers, its loss a formula.
fn told(count: u64) -> Vec<Told> {
    let told = |i: u64| {
        let part = |a: f64| (i as f64 * a).fract();
        let (x, y, z) = (part(0.754_877_666), part(0.569_840_291), part(0.381_966_011));
        let (category, k) = ((i % 3) as f64, (1 + (i * 7) % 10) as f64);
        let lr = 1e-5 * 1e4f64.powf(y);
        let loss = (x - 0.3).powi(2) * 4.0
            + 0.5 * (lr.log10() + 3.0).abs()
            + if category == 2.0 { 0.4 } else { 0.0 }
            + 0.02 * k
            + 0.05 * z;
        let mut point = Point::empty(5);
        for (index, raw) in [x, lr, category, k, z].into_iter().enumerate() {
            point.set(index, Some(raw));
        }
        Told::complete(i, point, vec![loss])
    };
    (0..count).map(told).collect()
}

/// Optuna 5.0.0's `get_param_importances` with `PedAnovaImportanceEvaluator()` of the same trials, added to a study with
/// `create_trial` and the distributions Float(0, 1), Float(1e-5, 1e-1, log), Categorical(a, b, c), Int(1, 10) and Float(0, 1).
#[test]
fn shares_are_those_that_optuna_finds() {
    let space = group()
        .with("x", float(0.0..=1.0))
        .with("lr", float(1e-5..=1e-1).log())
        .with("c", choice(["a", "b", "c"]))
        .with("k", int(1..=10))
        .with("z", float(0.0..=1.0))
        .build()
        .unwrap();
    let optuna = [
        (50, [("lr", 0.6417), ("x", 0.1823), ("c", 0.0819), ("k", 0.0651), ("z", 0.0289)]),
        (200, [("lr", 0.5803), ("x", 0.3295), ("c", 0.0465), ("z", 0.0337), ("k", 0.0100)]),
        (1000, [("lr", 0.6318), ("x", 0.2889), ("c", 0.0536), ("k", 0.0161), ("z", 0.0096)]),
    ];
    for (count, expected) in optuna {
        let ours = importance(&space, &told(count), 0);
        let sum: f64 = ours.iter().map(|i| i.share).sum();
        assert!((sum - 1.0).abs() < 1e-9);
        for (path, share) in expected {
            let found = ours.iter().find(|i| i.path == path).unwrap().share;
            assert!(
                (found - share).abs() < 1e-3,
                "{count} trials: {path} has {found}, not {share}: {ours:?}"
            );
        }
        let first: Vec<&str> = ours[..2].iter().map(|i| i.path.as_str()).collect();
        assert_eq!(first, ["lr", "x"], "{count} trials");
    }
}

#[test]
fn what_cannot_be_known_has_no_share() {
    let space = group().with("x", float(0.0..=1.0)).with("one", choice(["only"])).build().unwrap();
    let mut point = Point::empty(2);
    point.set(0, Some(0.5));
    point.set(1, Some(0.0));
    let one = Told::complete(0, point.clone(), vec![1.0]);
    assert!(importance(&space, std::slice::from_ref(&one), 0).iter().all(|i| i.share == 0.0));
    let nan = Told::complete(1, point, vec![f64::NAN]);
    assert!(importance(&space, &[one, nan], 0).iter().all(|i| i.share == 0.0), "a NaN is no result");
}

fn four() -> Space {
    group()
        .with("lr", float(1e-5..=1e-1).log())
        .with("kind", choice(["a", "b", "c"]))
        .with("depth", int(1..=8))
        .with("seed", int(0..=1000))
        .build()
        .expect("a space")
}

/// What the loss depends on most comes first, and what it does not depend on comes last, where trials were drawn independently. (A sampler
/// that closes in on a category leaves little difference between the good trials and all.)
#[test]
fn what_matters_comes_first() {
    for seed in 0..3 {
        let mut search = Search::new(four(), Random, seed);
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

#[test]
fn little_is_said_of_little() {
    let (space, branchy) = (
        four(),
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
