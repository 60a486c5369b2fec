//! Samplers: all conform; the grid is complete; Sobol points are even; TPE and Gp find what they should.

use regatta_tune::pareto;
use regatta_tune::sampler::{
    Ask, Auto, CmaEs, End, Gp, Grid, History, Random, Restart, Sampler, Search, Sobol, Told, Tpe, conformance,
};
use regatta_tune::space::{Space, branches, choice, float, group, int};
use serde_json::{Value, json};

#[test]
fn random_conforms() {
    conformance::check(|| Random);
}

#[test]
fn sobol_conforms() {
    conformance::check(|| Sobol);
}

#[test]
fn tpe_conforms() {
    conformance::check(Tpe::default);
    conformance::check(|| Tpe::default().joint(false));
}

#[test]
fn gp_conforms() {
    conformance::check(|| Gp::default().spread(128));
}

#[test]
fn cma_es_conforms() {
    conformance::check(CmaEs::default);
    conformance::check(|| CmaEs::default().adaptive());
    conformance::check(|| CmaEs::default().warm().population(4).restart(Restart::Bipop));
}

#[test]
fn auto_conforms() {
    conformance::check(Auto::default);
}

/// A process learns from the first trials of any space with one objective, categories and branches included; long studies
/// of numbers go on with CMA-ES; several objectives are for TPE.
#[test]
fn auto_chooses_by_the_study() {
    let (numbers, mixed) = (line(), line_and_choice());
    let suggested = |space: &Space, told: u64, objectives: usize, sampler: &mut dyn Sampler| {
        let mut history = History::new();
        for number in 0..told {
            let point = Random.suggest(&Ask { space, history: &history, number, seed: 4 }).unwrap().point;
            let loss: f64 = point.iter().map(|(_, raw)| (raw - 1.0).powi(2)).sum();
            history.tell(Told::complete(number, point, vec![loss; objectives]));
        }
        sampler.suggest(&Ask { space, history: &history, number: told, seed: 4 }).unwrap()
    };
    let cases: [(&Space, u64, usize, Box<dyn Sampler>); 5] = [
        (&numbers, 12, 1, Box::<Gp>::default()),
        (&mixed, 12, 1, Box::<Gp>::default()),
        (&mixed, 12, 2, Box::<Tpe>::default()),
        (&numbers, 250, 1, Box::new(CmaEs::default().warm())),
        (&mixed, 250, 1, Box::new(CmaEs::default().warm())),
    ];
    for (space, told, objectives, mut expected) in cases {
        let auto = suggested(space, told, objectives, &mut Auto::default());
        assert_eq!(auto, suggested(space, told, objectives, &mut *expected), "{told} {objectives}");
    }
}

/// What a process can say nothing about is left to CMA-ES, once there are enough losses to tell.
#[test]
fn auto_leaves_chance_to_cma_es() {
    let space = line();
    let by_cma = |told: u64, loss: fn(u64, f64) -> f64| {
        let mut history = History::new();
        for number in 0..told {
            let point =
                Random.suggest(&Ask { space: &space, history: &history, number, seed: 4 }).unwrap().point;
            let raw = point.get(0).unwrap();
            history.tell(Told::complete(number, point, vec![loss(number, raw)]));
        }
        let ask = Ask { space: &space, history: &history, number: told, seed: 4 };
        let [auto, gp] =
            [&mut Auto::default() as &mut dyn Sampler, &mut Gp::default()].map(|s| s.suggest(&ask).unwrap());
        assert_eq!(auto.note != 0, auto != gp, "{told}");
        auto.note != 0
    };
    let chance = |number: u64, _: f64| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f64;
    assert!(by_cma(60, chance));
    assert!(!by_cma(20, chance));
    assert!(!by_cma(60, |_, x| (x - 1.0).powi(2)));
}

#[test]
fn cma_es_converges() {
    let found = median((0..5).map(|seed| minimum(CmaEs::default(), 400, seed)).collect());
    assert!(found < 1e-9, "{found}");
}

#[test]
fn gp_closes_in() {
    let found = median((0..5).map(|seed| minimum(Gp::default(), 25, seed)).collect());
    assert!(found < 1e-3, "{found}");
}

fn line() -> Space {
    group().with("x", float(-5.0..=5.0)).with("y", float(-5.0..=5.0)).build().unwrap()
}

fn line_and_choice() -> Space {
    group().with("x", float(-5.0..=5.0)).with("kind", choice(["a", "b", "c"])).build().unwrap()
}

fn sphere(config: &Value) -> f64 {
    let at = |name: &str| config[name].as_f64().unwrap();
    (at("x") - 1.0).powi(2) + (at("y") + 2.0).powi(2)
}

fn minimum(sampler: impl Sampler + 'static, trials: usize, seed: u64) -> f64 {
    let mut search = Search::new(line(), sampler, seed);
    for _ in 0..trials {
        let trial = search.ask().unwrap();
        search.tell(trial.number, &[sphere(&trial.config)]).unwrap();
    }
    search.best().unwrap().1
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[test]
fn the_grid_is_complete_and_ends() {
    let space = group()
        .with("a", int(1..=3))
        .with("o", branches().unit("p").with("q", group().with("m", choice(["x", "y"]))))
        .with("s", float(0.0..=1.0).step(0.5))
        .build()
        .unwrap();
    assert_eq!(Grid::size(&space).unwrap(), 3 * 3 * 3);
    let mut search = Search::new(space, Grid, 0);
    let mut seen: Vec<String> = vec![];
    for _ in 0..27 {
        seen.push(search.ask().unwrap().config.to_string());
    }
    assert!(search.ask().unwrap_err().to_string().contains("all 27 points"));
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 27);
    let uncountable = Grid::size(&line()).unwrap_err().to_string();
    assert!(uncountable.contains("`x`") && uncountable.contains("step"), "{uncountable}");
}

/// The first 256 points of a scrambled Sobol sequence have one in every cell of any 16 by 16 grid: random ones do not.
#[test]
fn sobol_points_are_even() {
    let space = line();
    let history = History::new();
    for seed in 0..5 {
        let mut cells = [[0; 16]; 16];
        for number in 0..256 {
            let ask = Ask { space: &space, history: &history, number, seed };
            let point = Sobol.suggest(&ask).unwrap().point;
            let cell = |k: usize| (((point.get(k).unwrap() + 5.0) / 10.0 * 16.0) as usize).min(15);
            cells[cell(0)][cell(1)] += 1;
        }
        assert!(cells.iter().flatten().all(|n| *n == 1), "{cells:?}");
    }
}

#[test]
fn tpe_beats_random() {
    let (tpe, random): (Vec<f64>, Vec<f64>) =
        (0..9).map(|seed| (minimum(Tpe::default(), 80, seed), minimum(Random, 80, seed))).unzip();
    assert!(median(tpe.clone()) < 0.3 * median(random.clone()), "{tpe:?} {random:?}");
}

#[test]
fn tpe_learns_which_branch_is_good() {
    let body = |high| group().with("x", float(0.0..=high));
    let space = group().with("o", branches().with("a", body(1.0)).with("b", body(2.0))).build().unwrap();
    let mut search = Search::new(space, Tpe::default(), 3);
    for _ in 0..60 {
        let trial = search.ask().unwrap();
        let loss = match &trial.config["o"] {
            o if o.get("a").is_some() => 1.0 + o["a"]["x"].as_f64().unwrap(),
            o => (o["b"]["x"].as_f64().unwrap() - 1.5).abs(),
        };
        search.tell(trial.number, &[loss]).unwrap();
    }
    let late = search.history().told()[30..].iter().filter(|t| t.point.get(0) == Some(1.0)).count();
    assert!(late >= 24, "{late} of 30 on the good branch");
    assert!(search.best().unwrap().1 < 0.1);
}

#[test]
fn constraints_are_kept_to() {
    let mut search = Search::new(line(), Tpe::default(), 3);
    for _ in 0..80 {
        let trial = search.ask().unwrap();
        let x = trial.config["x"].as_f64().unwrap();
        search.constrain(trial.number, &[2.0 - x]).unwrap(); // x >= 2, where the best x would be 1
        search.tell(trial.number, &[sphere(&trial.config)]).unwrap();
    }
    let (best, loss) = search.best().unwrap();
    assert!(best["x"].as_f64().unwrap() >= 2.0);
    assert!((1.0..1.7).contains(&loss), "{loss}");
}

/// The best x is not allowed; the process learns where the bound is and ends close to it.
#[test]
fn the_gaussian_process_learns_its_constraints() {
    let mut search = Search::new(line(), Gp::default().spread(256), 1);
    for _ in 0..40 {
        let trial = search.ask().unwrap();
        let x = trial.config["x"].as_f64().unwrap();
        search.constrain(trial.number, &[2.0 - x]).unwrap();
        search.tell(trial.number, &[sphere(&trial.config)]).unwrap();
    }
    let (best, loss) = search.best().unwrap();
    assert!(best["x"].as_f64().unwrap() >= 2.0);
    assert!((1.0..1.1).contains(&loss), "{loss}");
}

/// Eight trials at once: those that run are imagined to have ended, so that nobody follows them.
#[test]
fn the_gaussian_process_spreads_its_running_trials() {
    let mut search = Search::new(line(), Gp::default().spread(256), 2);
    for _ in 0..15 {
        let trial = search.ask().unwrap();
        search.tell(trial.number, &[sphere(&trial.config)]).unwrap();
    }
    let points: Vec<[f64; 2]> = (0..8)
        .map(|_| search.ask().unwrap().config)
        .map(|config| ["x", "y"].map(|name| config[name].as_f64().unwrap()))
        .collect();
    for (i, a) in points.iter().enumerate() {
        for b in &points[..i] {
            let apart = (a[0] - b[0]).hypot(a[1] - b[1]);
            assert!(apart > 1e-3, "{points:?}");
        }
    }
}

#[test]
fn several_objectives_spread_along_the_front() {
    let space = group().with("x", float(0.0..=2.0)).with("y", float(0.0..=2.0)).build().unwrap();
    let volume = |sampler: Box<dyn Sampler>| {
        let mut search = Search::new(space.clone(), sampler, 1);
        for _ in 0..100 {
            let trial = search.ask().unwrap();
            let at = |name: &str| trial.config[name].as_f64().unwrap();
            let (x, y) = (at("x"), at("y"));
            search.tell(trial.number, &[x * x + y, (x - 1.0).powi(2) + y]).unwrap();
        }
        let losses: Vec<&[f64]> = search.history().told().iter().map(|t| t.losses.as_slice()).collect();
        pareto::hypervolume(&losses, &[2.0, 2.0])
    };
    let (tpe, random) = (volume(Box::<Tpe>::default()), volume(Box::new(Random)));
    assert!(tpe > random + 0.05, "{tpe} {random}");
}

#[test]
fn enqueued_and_foreign_trials_count() {
    let mut search = Search::new(line(), Tpe::default(), 1);
    search.enqueue(&json!({"x": 1.0, "y": -2.0})).unwrap();
    search.enqueue(&json!({"x": 2.0})).unwrap();
    assert_eq!(search.ask().unwrap().config, json!({"x": 1.0, "y": -2.0}));
    assert_eq!(search.ask().unwrap().config["x"], 2.0);
    assert!(search.enqueue(&json!({"z": 0})).is_err());
    let known: Vec<(Value, [f64; 1])> = (0..30)
        .map(|i| json!({"x": 1.0 + 0.1 * f64::from(i % 3), "y": 0.3 * f64::from(i) - 5.0}))
        .map(|c| (c.clone(), [sphere(&c)]))
        .collect();
    search.warm_start(known.iter().map(|(c, l)| (c, l.as_slice()))).unwrap();
    let next = search.ask().unwrap();
    assert_eq!(next.number, 32);
    assert!((next.config["x"].as_f64().unwrap() - 1.1).abs() < 2.0, "{}", next.config);
    search.tell(0, &[0.0]).unwrap();
    let twice = search.tell(0, &[0.0]).unwrap_err().to_string();
    assert!(twice.contains("trial 0 does not run"), "{twice}");
}

#[test]
fn failed_trials_are_avoided_not_forgotten() {
    let mut search = Search::new(line(), Tpe::default(), 2);
    let mut failed = vec![];
    for _ in 0..100 {
        let trial = search.ask().unwrap();
        let fails = trial.config["x"].as_f64().unwrap() > 0.0;
        failed.push(fails);
        match fails {
            true => search.end(trial.number, End::Failed, &[]).unwrap(),
            false => search.tell(trial.number, &[trial.config["y"].as_f64().unwrap().abs()]).unwrap(),
        }
    }
    let late = failed[50..].iter().filter(|f| **f).count();
    assert!(late < 15, "{late} of 50 fail");
}

/// A table of 40 trials: each is tried once, the good ones early.
#[test]
fn tpe_chooses_among_given_points() {
    let space = line();
    let points: Vec<_> = (0..40)
        .map(|i| json!({"x": f64::from(i % 8) - 3.0, "y": f64::from(i / 8) - 4.0}))
        .map(|config| space.point(&config).unwrap())
        .collect();
    let mut firsts = vec![];
    for seed in 0..9 {
        let mut search = Search::new(space.clone(), Tpe::default().among(points.clone()), seed);
        let mut losses = vec![];
        for _ in 0..40 {
            let trial = search.ask().unwrap();
            assert!(points.contains(&trial.point));
            losses.push(sphere(&trial.config));
            search.tell(trial.number, &[losses[losses.len() - 1]]).unwrap();
        }
        assert!(search.ask().unwrap_err().to_string().contains("all 40 points"));
        let mut tried: Vec<String> =
            search.history().told().iter().map(|t| format!("{:?}", t.point)).collect();
        tried.sort();
        tried.dedup();
        assert_eq!(tried.len(), 40);
        firsts.push(losses.iter().position(|loss| *loss == 0.0).expect("all were tried") as f64);
    }
    assert!(median(firsts.clone()) < 17.0, "{firsts:?}");
}

/// Cost is told by the incremental cache: ten thousand trials, and then a fresh sampler says the same.
#[test]
fn a_long_history_is_replayed_bit_for_bit() {
    let space = line();
    let mut history = History::new();
    let mut tpe = Tpe::default();
    for number in 0..1500 {
        let ask = Ask { space: &space, history: &history, number, seed: 9 };
        let suggestion = tpe.suggest(&ask).unwrap();
        if number % 500 == 499 {
            assert_eq!(Tpe::default().suggest(&ask).unwrap(), suggestion);
        }
        let (x, y) = (suggestion.point.get(0).unwrap(), suggestion.point.get(1).unwrap());
        history.tell(Told::complete(number, suggestion.point, vec![(x - 1.0).powi(2) + y.abs()]));
    }
}

#[test]
fn pareto_knows_fronts_and_volumes() {
    let points = [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0], [4.0, 4.0]];
    assert_eq!(pareto::front(&points), [0, 1, 2, 4]);
    assert_eq!(pareto::ranks(&points), [0, 0, 0, 1, 0, 2]);
    assert_eq!(pareto::hypervolume(&points, &[4.0, 4.0]), 6.0);
    // Inclusion and exclusion, by hand: 8 + 8 - 4 for two cubes that overlap.
    let cubes = [[0.0, 0.0, 2.0], [0.0, 2.0, 0.0]];
    assert_eq!(
        pareto::hypervolume(&cubes, &[2.0, 4.0, 4.0]),
        2.0 * 4.0 * 2.0 + 2.0 * 2.0 * 4.0 - 2.0 * 2.0 * 2.0
    );
    // In more dimensions, against counting: points on an integer lattice dominate whole cells.
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 60) as f64 % 5.0
    };
    for _ in 0..20 {
        let points: Vec<[f64; 4]> = (0..8).map(|_| [next(), next(), next(), next()]).collect();
        let cells = (0..625u32).filter(|c| {
            let cell = [c % 5, c / 5 % 5, c / 25 % 5, c / 125].map(f64::from);
            points.iter().any(|p| p.iter().zip(cell).all(|(p, c)| *p <= c))
        });
        assert_eq!(pareto::hypervolume(&points, &[5.0; 4]), cells.count() as f64);
    }
    assert_eq!(pareto::best(&points, 2).len(), 2);
}
