//! What `#[derive(SearchSpace)]` stands on.

use super::tree::Node;

/// A configuration that knows its search space. Derive it:
///
/// ```
/// use regatta_tune::SearchSpace;
/// use regatta_tune::space::Space;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, SearchSpace)]
/// #[space(crate = "regatta_tune")] // only where the facade is not used
/// struct Config {
///     #[space(1e-4..=1e-1, log)]
///     lr: f64,
///     #[space(choice = [64, 128, 256])]
///     batch_size: usize,
///     optimizer: Optimizer,
///     #[space(fixed)]
///     epochs: u64,
/// }
///
/// #[derive(Serialize, Deserialize, SearchSpace)]
/// #[space(crate = "regatta_tune")]
/// enum Optimizer {
///     Adam,
///     Sgd {
///         #[space(0.0..=0.99)]
///         momentum: f64,
///     },
/// }
///
/// assert_eq!(Space::of::<Config>()?.parameters().len(), 4);
/// # Ok::<(), regatta_tune::Error>(())
/// ```
///
/// A field says how it is searched: `#[space(low..=high)]` with `log` or `step = x`, `#[space(normal = (mean,
/// deviation))]`, `#[space(choice = [..])]`, `#[space(grid = [..])]`, `#[space(fixed)]` for the base configuration's
/// value and `#[space(fixed = x)]` for another. A field without `#[space]` has a type that derives `SearchSpace` itself,
/// or is a `bool`. Names follow serde's `rename` and `rename_all`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how it is searched",
    note = "give the field a `#[space(low..=high)]`, `#[space(choice = [..])]` or `#[space(fixed)]`, or derive `SearchSpace` for its type"
)]
pub trait SearchSpace {
    /// The tree of this type.
    fn node() -> Node;
}

/// A type of this program that derives [`SearchSpace`], so that a tuner finds the space of a trainable's configuration. Made
/// by the derive.
pub struct Known {
    /// The type's full name.
    pub type_name: fn() -> &'static str,
    /// Its tree.
    pub node: fn() -> Node,
}

inventory::collect!(Known);

impl Known {
    /// The tree of the type of this name, if it is known.
    #[must_use]
    pub fn find(type_name: &str) -> Option<Node> {
        let known = inventory::iter::<Known>.into_iter().find(|known| (known.type_name)() == type_name)?;
        Some((known.node)())
    }
}

impl SearchSpace for bool {
    fn node() -> Node {
        Node::Bool
    }
}

/// A number that can be searched between two bounds.
#[diagnostic::on_unimplemented(message = "`{Self}` is not a number that a range can be given for")]
pub trait Number: Sized {
    /// The node of a range, with its options.
    fn between(low: Self, high: Self, log: bool, step: Option<Self>) -> Node;
}

macro_rules! floats {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn between(low: Self, high: Self, log: bool, step: Option<Self>) -> Node {
                // By its decimal digits: 0.1f32 is meant as 0.1.
                let wide = |v: $t| v.to_string().parse().unwrap_or(f64::from(v));
                Node::Float { low: wide(low), high: wide(high), log, step: step.map_or(0.0, wide) }
            }
        }
    )*};
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Number for $t {
            fn between(low: Self, high: Self, log: bool, step: Option<Self>) -> Node {
                // What does not fit an i64 is beyond +-2^53 too, and refused there.
                let wide = |v: $t| i64::try_from(v).unwrap_or(i64::MAX);
                Node::Int { low: wide(low), high: wide(high), log, step: step.map_or(1, wide) }
            }
        }
    )*};
}

floats!(f32, f64);
integers!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);
