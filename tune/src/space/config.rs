//! Between a point and the configuration it stands for.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::tree::Node;
use super::{Point, Result, Space, join};
use crate::error::Error;

impl Space {
    /// The configuration of a point, in the shape of the tree. What the space keeps comes from `base`.
    pub fn config(&self, point: &Point, base: Option<&Value>) -> Result<Value> {
        if self.open {
            return Ok(Value::Object(
                self.values(point).map(|(path, value)| (path.to_owned(), value)).collect(),
            ));
        }
        let mut walk = Walk { space: self, point, next: 0 };
        walk.value("", &self.root, base, true).map(|value| value.unwrap_or(Value::Null))
    }

    /// The configuration of a point as the user's own type. The error names the path of what did not fit.
    pub fn typed<T: DeserializeOwned>(&self, point: &Point, base: Option<&Value>) -> Result<T> {
        let value = self.config(point, base)?;
        serde_path_to_error::deserialize(value)
            .map_err(|e| Error::config(e.path().to_string(), e.inner().to_string()))
    }

    /// The point that a configuration stands for. Parameters it does not mention are left without a value; so are those
    /// below branches that it does not take. Names that the space does not know are refused.
    pub fn point(&self, config: &Value) -> Result<Point> {
        let mut point = Point::empty(self.parameters.len());
        if self.open {
            for (path, value) in config.as_object().into_iter().flatten() {
                let index =
                    self.find(path).ok_or_else(|| Error::config(path, "the space has no such parameter"))?;
                point.set(index, Some(self.parameters[index].domain.parse(path, value)?));
            }
            return Ok(point);
        }
        self.read("", &self.root, config, &mut 0, &mut point)?;
        Ok(point)
    }

    /// The active parameters of a point and their values, flat.
    pub fn values<'a>(&'a self, point: &'a Point) -> impl Iterator<Item = (&'a str, Value)> {
        point.iter().map(|(index, raw)| {
            let parameter = &self.parameters[index];
            (parameter.path.as_str(), parameter.domain.json(raw))
        })
    }

    fn read(
        &self,
        path: &str,
        node: &Node,
        value: &Value,
        next: &mut usize,
        point: &mut Point,
    ) -> Result<()> {
        match node {
            Node::Fixed(_) | Node::Keep | Node::Unit => Ok(()),
            Node::Struct(fields) => {
                let map =
                    value.as_object().ok_or_else(|| Error::config(path, format!("{value} is not a map")))?;
                if let Some(name) = map.keys().find(|name| fields.get(name).is_none()) {
                    return Err(Error::config(join(path, name), "the space has no such name"));
                }
                for (name, node) in &fields.0 {
                    match map.get(name) {
                        Some(value) => self.read(&join(path, name), node, value, next, point)?,
                        None => *next += parameters(node),
                    }
                }
                Ok(())
            }
            Node::Branch(fields) => {
                let (taken, body) = match value {
                    Value::String(name) => (name.as_str(), &Value::Null),
                    Value::Object(map) if map.len() == 1 => {
                        map.iter().next().map(|(k, v)| (k.as_str(), v)).expect("one entry")
                    }
                    _ => return Err(Error::config(path, format!("{value} names no branch"))),
                };
                let raw = self.parameters[*next].domain.parse(path, &Value::from(taken))?;
                point.set(*next, Some(raw));
                *next += 1;
                for (name, node) in &fields.0 {
                    match name == taken && !body.is_null() {
                        true => self.read(&join(path, name), node, body, next, point)?,
                        false => *next += parameters(node),
                    }
                }
                Ok(())
            }
            _ => {
                point.set(*next, Some(self.parameters[*next].domain.parse(path, value)?));
                *next += 1;
                Ok(())
            }
        }
    }
}

/// How many parameters a node and all below it have.
fn parameters(node: &Node) -> usize {
    let sum = |fields: &super::Fields| fields.0.iter().map(|(_, node)| parameters(node)).sum::<usize>();
    match node {
        Node::Fixed(_) | Node::Keep | Node::Unit => 0,
        Node::Struct(fields) => sum(fields),
        Node::Branch(fields) => 1 + sum(fields),
        _ => 1,
    }
}

/// A walk over the tree in the order in which its parameters were numbered.
struct Walk<'a> {
    space: &'a Space,
    point: &'a Point,
    next: usize,
}

impl Walk<'_> {
    /// The value of a node; nothing for a node on a branch that was not taken, and for a unit.
    fn value(&mut self, path: &str, node: &Node, base: Option<&Value>, taken: bool) -> Result<Option<Value>> {
        if !taken {
            self.next += parameters(node);
            return Ok(None);
        }
        match node {
            Node::Unit => Ok(None),
            Node::Fixed(value) => Ok(Some(value.clone())),
            Node::Keep => {
                let missing = "the space keeps what the base configuration says, and that has no value here: give the \
                               base a value, or fix one in the space";
                base.cloned().map(Some).ok_or_else(|| Error::config(path, missing))
            }
            Node::Struct(fields) => {
                let mut map = Map::new();
                for (name, node) in &fields.0 {
                    let base = base.and_then(|b| b.get(name));
                    if let Some(value) = self.value(&join(path, name), node, base, true)? {
                        map.insert(name.clone(), value);
                    }
                }
                Ok(Some(Value::Object(map)))
            }
            Node::Branch(fields) => {
                let chosen = self.raw(path)? as usize;
                let mut value = None;
                for (branch, (name, node)) in fields.0.iter().enumerate() {
                    let base = base.and_then(|b| b.get(name));
                    let body = self.value(&join(path, name), node, base, branch == chosen)?;
                    if branch == chosen {
                        value = Some(match body {
                            None => Value::from(name.as_str()),
                            Some(body) => Value::Object(Map::from_iter([(name.clone(), body)])),
                        });
                    }
                }
                Ok(value)
            }
            _ => {
                let domain = &self.space.parameters[self.next].domain;
                Ok(Some(domain.json(self.raw(path)?)))
            }
        }
    }

    /// The raw value of the next parameter.
    fn raw(&mut self, path: &str) -> Result<f64> {
        let index = self.next;
        self.next += 1;
        let domain = &self.space.parameters[index].domain;
        match self.point.get(index) {
            Some(raw) if domain.contains(raw) => Ok(raw),
            Some(raw) => Err(Error::config(path, format!("{raw} is not {domain}"))),
            None => Err(Error::config(path, "no value")),
        }
    }
}
