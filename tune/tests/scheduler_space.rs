//! Populations change configurations of real spaces, and never leave them.

use proptest::prelude::*;
use regatta_tune::scheduler::{Config, Draw, Perturb};
use regatta_tune::space::{Point, Space, branches, choice, float, grid, group, int, normal};
use serde_json::{Value, json};

fn space() -> Space {
    group()
        .with("lr", float(1e-5..=1e-1).log())
        .with("dropout", float(0.0..=0.5).step(0.1))
        .with("layers", int(1..=8))
        .with("width", int(16..=512).step(16))
        .with("shift", normal(0.0, 1.0))
        .with("batch", choice([64, 128, 256]))
        .with("depth", grid([1.0, 2.0, 4.0]))
        .with("optimizer", branches().unit("adam").with("sgd", group().with("momentum", float(0.0..=0.99))))
        .build()
        .expect("a good space")
}

/// Whether a flat configuration has a value of its domain for every active parameter and for no other.
fn fits(space: &Space, config: &Config) -> bool {
    let mut point = Point::empty(space.parameters().len());
    for (index, parameter) in space.parameters().iter().enumerate() {
        let domain = &parameter.domain;
        let raw = config.get(&parameter.path).map(|value| {
            let places = (0..=1000).map(|i| domain.raw(f64::from(i) / 1e3));
            match domain.count() {
                Some(_) => places.into_iter().find(|raw| domain.json(*raw) == *value).unwrap_or(f64::MAX),
                None => value.as_f64().unwrap_or(f64::MAX),
            }
        });
        point.set(index, raw);
    }
    space.check(&point).is_ok() && config.len() == point.iter().count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_change_leaves_the_space(seed: u64, factor in prop_oneof![Just(0.8), Just(1.2), 0.01..100.0]) {
        let space = space();
        let mut draw = Draw::new(seed, 0);
        let mut config = space.settle(Config::new(), &mut draw);
        prop_assert!(fits(&space, &config), "{config:?}");
        for _ in 0..4 {
            for name in Perturb::parameters(&space, &config) {
                let value = match draw.chance(0.3) {
                    true => space.sample(&name, draw.unit()),
                    false => space.neighbour(&name, &config[&name], factor),
                };
                config.insert(name, value);
            }
            config = space.settle(config, &mut draw);
            prop_assert!(fits(&space, &config), "{config:?}");
        }
    }
}

#[test]
fn neighbours_are_near_and_end_at_the_bounds() {
    let space = space();
    let next = |name: &str, value: Value, factor| space.neighbour(name, &value, factor);
    assert_eq!(next("lr", json!(0.09), 1.2), json!(0.1));
    assert_eq!((next("layers", json!(2), 1.2), next("layers", json!(2), 0.8)), (json!(3), json!(1)));
    assert_eq!((next("layers", json!(8), 1.2), next("layers", json!(1), 0.8)), (json!(8), json!(1)));
    assert_eq!((next("width", json!(160), 1.2), next("batch", json!(128), 0.8)), (json!(192), json!(64)));
    assert_eq!(
        (next("depth", json!(4), 1.2), next("optimizer", json!("adam"), 1.2)),
        (json!(4), json!("sgd"))
    );
}

#[test]
fn a_branch_newly_taken_is_filled_and_one_left_is_cleared() {
    let (space, mut draw) = (space(), Draw::new(1, 1));
    let mut config = space.settle(Config::from([("optimizer".to_owned(), json!("sgd"))]), &mut draw);
    assert!(config.contains_key("optimizer.sgd.momentum"));
    config.insert("optimizer".to_owned(), json!("adam"));
    assert!(!space.settle(config, &mut draw).contains_key("optimizer.sgd.momentum"));
    assert!(Perturb::place(&space, "batch", &json!(64)).is_none(), "a category has no order");
    assert_eq!(Perturb::place(&space, "shift", &json!(0.0)), Some(0.5));
}
