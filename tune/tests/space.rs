//! Search spaces: the three faces make one tree, values stay inside, and what is wrong is named by its path.

use proptest::prelude::*;
use regatta_tune::space::open::Asked;
use regatta_tune::space::{
    Domain, Node, Point, Space, branches, choice, fixed, float, grid, group, int, normal,
};
use regatta_tune::{Error, SearchSpace};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, SearchSpace)]
#[space(crate = "regatta_tune")]
struct Config {
    #[space(1e-4..=1e-1, log)]
    lr: f64,
    #[space(choice = [64, 128, 256])]
    batch_size: usize,
    #[space(2..=8, step = 2)]
    layers: u8,
    #[space(0..=1)]
    dropout: Option<f32>,
    #[space(normal = (0, 2.5))]
    bias: f64,
    #[space(grid = [16, 32, 64])]
    width: u32,
    nesterov: bool,
    optimizer: Optimizer,
    #[serde(rename = "warm-up")]
    schedule: Schedule,
    #[space(fixed)]
    epochs: u64,
    #[space(fixed = "mnist")]
    data: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, SearchSpace)]
#[space(crate = "regatta_tune")]
#[serde(rename_all = "snake_case")]
enum Optimizer {
    AdamW,
    Sgd {
        #[space(0.0..=0.99)]
        momentum: f64,
    },
    Scheduled(Schedule),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, SearchSpace)]
#[space(crate = "regatta_tune")]
struct Schedule {
    #[space(1..=1000, log)]
    steps: u32,
}

/// The same, by the builders.
fn built() -> Space {
    let schedule = || group().with("steps", int(1..=1000).log());
    let optimizer = branches()
        .unit("adam_w")
        .with("sgd", group().with("momentum", float(0.0..=0.99)))
        .with("scheduled", schedule());
    group()
        .with("lr", float(1e-4..=1e-1).log())
        .with("batch_size", choice([64, 128, 256]))
        .with("layers", int(2..=8).step(2))
        .with("dropout", float(0.0..=1.0))
        .with("bias", normal(0.0, 2.5))
        .with("width", grid([16, 32, 64]))
        .with("nesterov", Node::Bool)
        .with("optimizer", optimizer)
        .with("warm-up", schedule())
        .with("epochs", Node::Keep)
        .with("data", fixed("mnist"))
        .build()
        .unwrap()
}

/// The same, in a file.
const FILE: &str = r#"Struct({
    "lr": Float(low: 1e-4, high: 0.1, log: true),
    "batch_size": Choice([64, 128, 256]),
    "layers": Int(low: 2, high: 8, step: 2),
    "dropout": Float(low: 0, high: 1),
    "bias": Normal(mean: 0, deviation: 2.5),
    "width": Grid([16, 32, 64]),
    "nesterov": Bool,
    "optimizer": Branch({
        "adam_w": Unit,
        "sgd": Struct({"momentum": Float(low: 0, high: 0.99)}),
        "scheduled": Struct({"steps": Int(low: 1, high: 1000, log: true)}),
    }),
    "warm-up": Struct({"steps": Int(low: 1, high: 1000, log: true)}),
    "epochs": Keep,
    "data": Fixed("mnist"),
})"#;

/// The point whose parameters all lie at the given places of the unit interval.
fn point(space: &Space, units: impl Fn(usize) -> f64) -> Point {
    let mut point = Point::empty(space.parameters().len());
    for (index, parameter) in space.parameters().iter().enumerate() {
        if space.active(index, &point) {
            point.set(index, Some(parameter.domain.raw(units(index))));
        }
    }
    point
}

#[test]
fn three_faces_one_tree() {
    let derived = Space::of::<Config>().unwrap();
    assert_eq!(derived, built());
    assert_eq!(derived, ron::from_str::<Space>(FILE).unwrap());
    let json = serde_json::to_string(&derived).unwrap();
    assert_eq!(serde_json::from_str::<Space>(&json).unwrap(), derived);
}

#[test]
fn a_trial_gets_the_users_own_type() {
    let space = built();
    let base = json!({"epochs": 7});
    for (unit, optimizer) in [
        (0.0, Optimizer::AdamW),
        (0.5, Optimizer::Sgd { momentum: 0.495 }),
        (1.0, Optimizer::Scheduled(Schedule { steps: 1000 })),
    ] {
        let point = point(&space, |_| unit);
        let config: Config = space.typed(&point, Some(&base)).unwrap();
        assert_eq!(config.optimizer, optimizer);
        assert_eq!((config.epochs, config.data.as_str()), (7, "mnist"));
        // And back: a configuration names its point.
        assert_eq!(space.point(&serde_json::to_value(&config).unwrap()).unwrap(), point);
    }
}

#[test]
fn errors_name_the_path() {
    let path = |node: Node| match group().with("a", group().with("b", node)).build().unwrap_err() {
        Error::Space { path, problem } => (path, problem),
        other => panic!("{other}"),
    };
    let wrong: [(Node, &str); 9] = [
        (float(1.0..=0.0).into(), "inverted"),
        (float(0.0..=1.0).log().into(), "above zero"),
        (float(0.0..=f64::INFINITY).into(), "not finite"),
        (float(0.0..=1.0).step(-1.0).into(), "step"),
        (int(0..=10).log().into(), "1 or above"),
        (int(0..=i64::MAX).into(), "2^53"),
        (choice(Vec::<u8>::new()), "nothing to choose"),
        (choice([1, 1]), "twice"),
        (grid([2, 1]), "rising"),
    ];
    for (node, text) in wrong {
        let (at, problem) = path(node);
        assert_eq!(at, "a.b");
        assert!(problem.contains(text), "{problem}");
    }
    let twice = group().with("a", int(1..=2)).with("a", int(1..=2)).build().unwrap_err().to_string();
    assert!(twice.contains("`a`") && twice.contains("twice"), "{twice}");
    let twice = ron::from_str::<Space>(r#"Struct({"a": Bool, "a": Bool})"#).unwrap_err().to_string();
    assert!(twice.contains("`a`") && twice.contains("twice"), "{twice}");
}

#[test]
fn a_config_that_does_not_fit_names_its_path() {
    let space = built();
    let text = |config| space.point(&config).unwrap_err().to_string();
    assert!(text(json!({"lr": 5.0})).contains("`lr`: 5.0 is not a number in 0.0001..=0.1, log"));
    assert!(text(json!({"batch_size": 100})).contains("one of [64, 128, 256]"));
    assert!(text(json!({"layers": 3})).contains("`layers`"));
    assert!(text(json!({"optimizer": {"sgd": {"momentum": 2}}})).contains("`optimizer.sgd.momentum`"));
    assert!(text(json!({"optimizer": "lion"})).contains("lion"));
    assert!(text(json!({"learning_rate": 0.1})).contains("`learning_rate`"));

    #[derive(Debug, Deserialize)]
    struct Other {
        #[expect(dead_code)]
        layers: String,
    }
    let wrong =
        space.typed::<Other>(&point(&space, |_| 0.5), Some(&json!({"epochs": 1}))).unwrap_err().to_string();
    assert!(wrong.contains("`layers`"), "{wrong}");
    let missing = space.config(&point(&space, |_| 0.5), None).unwrap_err().to_string();
    assert!(missing.contains("`epochs`"), "{missing}");
}

#[test]
fn a_file_narrows_what_the_program_declared() {
    let over = r#"Struct({
        "lr": Float(low: 1e-3, high: 1e-2, log: true),
        "batch_size": Choice([128]),
        "optimizer": Branch({"sgd": Struct({"momentum": Fixed(0.9)}), "scheduled": Unit}),
        "epochs": Int(low: 1, high: 3),
    })"#;
    let narrow = built().narrow(&ron::from_str(over).unwrap()).unwrap();
    let config: Config = narrow.typed(&point(&narrow, |_| 0.0), None).unwrap();
    assert!((config.lr - 1e-3).abs() < 1e-9);
    assert_eq!((config.batch_size, config.epochs), (128, 1));
    assert_eq!(config.optimizer, Optimizer::Sgd { momentum: 0.9 });
    assert!(narrow.find("optimizer.scheduled.steps").is_some());

    let text = |over: &str| built().narrow(&ron::from_str(over).unwrap()).unwrap_err().to_string();
    let near = text(r#"Struct({"batch_sise": Choice([128])})"#);
    assert!(near.contains("did you mean `batch_size`?"), "{near}");
    assert!(text(r#"Struct({"batch_size": Choice([100])})"#).contains("not among the choices"));
    assert!(text(r#"Struct({"optimizer": Float(low: 0, high: 1)})"#).contains("cannot stand for"));
    assert!(text(r#"Struct({"optimizer": Branch({"lion": Unit})})"#).contains("`optimizer.lion`"));
}

#[test]
fn define_by_run_discovers_the_space() {
    let mut space = Space::open();
    for number in 0..20 {
        let mut trial = Asked::new(&space, &Point::default(), 7, number);
        let lr = trial.float("lr", 1e-5..=1e-1).log().get().unwrap();
        assert!((1e-5..=1e-1).contains(&lr));
        let kind = trial.choice("kind", &["a", "b"]).unwrap();
        if kind == "b" {
            let width = trial.int("width", 1..=64).log().get().unwrap();
            assert_eq!(width, trial.int("width", 1..=64).log().get().unwrap(), "asked twice, answered alike");
        }
        let point = trial.finish(&mut space).unwrap();
        assert_eq!(point.get(2).is_some(), kind == "b");
    }
    assert_eq!(space.parameters().len(), 3);
    let mut trial = Asked::new(&space, &point(&space, |_| 0.5), 7, 99);
    assert!((trial.float("lr", 1e-5..=1e-1).log().get().unwrap() - 1e-3).abs() < 1e-9, "as suggested");
    let changed = trial.float("lr", 0.0..=1.0).get().unwrap_err().to_string();
    assert!(changed.contains("`lr`") && changed.contains("another name"), "{changed}");
}

fn domains() -> impl Strategy<Value = Domain> {
    let wide = -1e6..1e6f64;
    prop_oneof![
        (wide.clone(), 0.0..1e6f64, any::<bool>(), prop::option::of(1e-3..10.0f64)).prop_map(
            |(a, w, log, step)| {
                let log = log && step.is_none();
                let low = if log { a.abs() + 1e-9 } else { a };
                Domain::Float { low, high: low + w, log, step }
            }
        ),
        (-1000..1000i64, 0..5000i64, any::<bool>(), 1..7i64).prop_map(|(a, w, log, step)| {
            let low = if log { a.abs() + 1 } else { a };
            Domain::Int { low, high: low + w, log, step: if log { 1 } else { step } }
        }),
        (wide, 1e-3..1e3f64).prop_map(|(mean, deviation)| Domain::Normal { mean, deviation }),
        (1..40usize).prop_map(|n| Domain::Grid((0..n).map(|i| i as f64 * 1.5).collect())),
        (1..40usize).prop_map(|n| Domain::Category((0..n).map(|i| json!(i)).collect())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Wherever in the unit interval (or beyond), the value is inside; and a value's own place leads back to it.
    #[test]
    fn never_outside(domain in domains(), unit in prop_oneof![-0.5..1.5f64, Just(0.0), Just(1.0)]) {
        let raw = domain.raw(unit);
        prop_assert!(domain.contains(raw), "{raw} {domain}");
        let back = domain.raw(domain.unit(raw));
        let exact = domain.count().is_some();
        prop_assert!(if exact { back == raw } else { (back - raw).abs() <= 1e-9 * raw.abs().max(1.0) }, "{raw} {back}");
        if let Some((from, to)) = domain.cell(raw) {
            let at = domain.unit(raw);
            prop_assert!(from <= at && at <= to && (exact == (domain.count() == Some(1)) || from < to));
        }
    }
}
