//! Between points, the flat configurations that schedulers see, and the whole ones that trials get.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::scheduler::Config;
use crate::space::{Node, Point, Space};

/// What was chosen, by path.
pub(super) fn flat(space: &Space, point: &Point) -> Config {
    space.values(point).map(|(path, value)| (path.to_owned(), value)).collect()
}

/// The point of a flat configuration.
pub(super) fn point_of(space: &Space, config: &Config) -> Result<Point> {
    let mut point = Point::empty(space.parameters().len());
    for (path, value) in config {
        let unknown = || Error::config(path, "the space has no such parameter");
        let index = space.find(path).ok_or_else(unknown)?;
        point.set(index, Some(space.parameters()[index].domain.parse(path, value)?));
    }
    Ok(point)
}

/// A point bit for bit, for the log: JSON's readers round.
pub(super) fn bits(point: &Point, len: usize) -> Vec<u64> {
    (0..len).map(|index| point.get(index).unwrap_or(f64::NAN).to_bits()).collect()
}

/// The point of bits in JSON.
pub(super) fn of_bits(bits: &Value) -> Option<Point> {
    let mut point = Point::default();
    for (index, bits) in bits.as_array()?.iter().enumerate() {
        let raw = f64::from_bits(bits.as_u64()?);
        point.set(index, (!raw.is_nan()).then_some(raw));
    }
    Some(point)
}

/// What the space chose, and all that it says nothing of from the base.
pub(super) fn full(space: &Space, base: &Value, chosen: Value) -> Value {
    if space.is_open() { chosen } else { laid_over(space.root(), base, chosen) }
}

fn laid_over(node: &Node, base: &Value, chosen: Value) -> Value {
    match (node, base, chosen) {
        (Node::Struct(fields), Value::Object(base), Value::Object(mut chosen)) => {
            let mut all: Map<String, Value> = base.clone();
            for (name, node) in &fields.0 {
                if let Some(value) = chosen.remove(name) {
                    let below = base.get(name).cloned().unwrap_or(Value::Null);
                    all.insert(name.clone(), laid_over(node, &below, value));
                }
            }
            Value::Object(all)
        }
        // A branch is another shape: nothing of the base's fits into it.
        (_, _, chosen) => chosen,
    }
}

/// What differs between two spaces, a line a parameter.
pub(super) fn differences(before: &Space, now: &Space) -> String {
    let mut lines = Vec::new();
    for parameter in before.parameters() {
        match now.find(&parameter.path) {
            None => lines.push(format!("  - {}: {}", parameter.path, parameter.domain)),
            Some(index) if now.parameters()[index].domain != parameter.domain => {
                let now = &now.parameters()[index].domain;
                lines.push(format!("  ~ {}: it was {}, and is {now}", parameter.path, parameter.domain));
            }
            Some(_) => {}
        }
    }
    for parameter in now.parameters().iter().filter(|p| before.find(&p.path).is_none()) {
        lines.push(format!("  + {}: {}", parameter.path, parameter.domain));
    }
    if lines.is_empty() {
        lines.push("  its parameters are the same, in another order or with other fixed values".into());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::space::{branches, float, group};

    #[test]
    fn what_the_space_says_nothing_of_is_the_bases() {
        let optim = branches().with("Sgd", group().with("lr", float(0.0..=1.0))).unit("Adam");
        let space = group().with("optim", optim).build().unwrap();
        let base = json!({ "epochs": 3, "optim": { "Sgd": { "lr": 0.5 } } });
        let chosen = full(&space, &base, json!({ "optim": "Adam" }));
        assert_eq!(chosen, json!({ "epochs": 3, "optim": "Adam" }));
    }

    #[test]
    fn points_come_back_to_the_bit() {
        let mut point = Point::empty(3);
        point.set(0, Some(0.1 + 0.2));
        point.set(2, Some(-1e-300));
        let text = serde_json::to_string(&bits(&point, 3)).unwrap();
        assert_eq!(of_bits(&serde_json::from_str(&text).unwrap()), Some(point));
    }
}
