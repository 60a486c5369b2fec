//! Search spaces: one tree, three faces.
//!
//! A space is declared by `#[derive(SearchSpace)]` on the configuration's own type, by the builders of this module, or in
//! a file, which can also [narrow](Space::narrow) what the program declared. All of them make a [`Node`], and a
//! [`Space`] is a tree that was checked and flattened into [`Parameter`]s. Where the space is only known while a trial
//! runs, [`open`] discovers it.
//!
//! ```
//! use regatta_tune::space::{branches, choice, float, group, int};
//!
//! let space = group()
//!     .with("lr", float(1e-5..=1e-1).log())
//!     .with("batch_size", choice([64, 128, 256]))
//!     .with("optimizer", branches().unit("adam").with("sgd", group().with("momentum", float(0.0..=0.99))))
//!     .with("layers", int(1..=8))
//!     .build()?;
//! let paths: Vec<&str> = space.parameters().iter().map(|p| p.path.as_str()).collect();
//! assert_eq!(paths, ["lr", "batch_size", "optimizer", "optimizer.sgd.momentum", "layers"]);
//!
//! let wrong = group().with("lr", float(0.0..=1.0).log()).build().unwrap_err();
//! assert!(wrong.to_string().contains("`lr`"));
//! # Ok::<(), regatta_tune::Error>(())
//! ```

mod build;
mod config;
mod derive;
mod domain;
mod narrow;
pub mod open;
mod point;
mod tree;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

pub use build::{Branches, Float, Group, Int, branches, choice, fixed, float, grid, group, int, normal};
pub use derive::{Known, Number, SearchSpace};
pub use domain::Domain;
pub use point::Point;
pub use tree::{Fields, Node};

/// A checked search space.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Node", into = "Node")]
pub struct Space {
    root: Node,
    parameters: Vec<Parameter>,
    /// Discovered while trials run: every trial says which parameters it has.
    open: bool,
}

/// One parameter of a space.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Parameter {
    /// Its names from the root, joined by dots.
    pub path: String,
    /// What values it takes.
    pub domain: Domain,
    /// The branch it is below, if it is below one.
    pub parent: Option<Condition>,
}

/// A parameter is active where another, earlier one has this value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Condition {
    /// The index of the parameter that chooses.
    pub parameter: usize,
    /// The index of the branch that was chosen.
    pub branch: usize,
}

impl Space {
    /// Checks a tree. The error names the path of what is wrong.
    pub fn new(root: impl Into<Node>) -> Result<Self> {
        let root = root.into();
        let mut space = Self { root: Node::Unit, parameters: vec![], open: false };
        space.add(String::new(), &root, None)?;
        space.root = root;
        Ok(space)
    }

    /// The space of a type that derives [`SearchSpace`].
    pub fn of<T: SearchSpace>() -> Result<Self> {
        Self::new(T::node())
    }

    /// This space with what another tree names put in its place: the way a file narrows what a program declared. Groups
    /// are merged, of branches and choices those named remain, and anything else is replaced.
    pub fn narrow(&self, over: &Node) -> Result<Self> {
        Self::new(narrow::narrowed("", &self.root, over)?)
    }

    /// The tree.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// Its parameters, each after those it depends on.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The index of a parameter.
    pub fn find(&self, path: &str) -> Option<usize> {
        self.parameters.iter().position(|p| p.path == path)
    }

    /// Whether the space is discovered while trials run.
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a parameter's branch is taken in a point whose earlier parameters are set.
    pub fn active(&self, parameter: usize, point: &Point) -> bool {
        match self.parameters[parameter].parent {
            None => true,
            Some(of) => point.get(of.parameter) == Some(of.branch as f64),
        }
    }

    /// Whether all active parameters have a value inside their domain, and no other has any.
    pub fn check(&self, point: &Point) -> Result<()> {
        for (index, parameter) in self.parameters.iter().enumerate() {
            let wanted = self.active(index, point);
            match point.get(index) {
                Some(raw) if !wanted => {
                    return Err(Error::config(
                        &parameter.path,
                        format!("{raw} where its branch is not taken"),
                    ));
                }
                Some(raw) if !parameter.domain.contains(raw) => {
                    return Err(Error::config(&parameter.path, format!("{raw} is not {}", parameter.domain)));
                }
                None if wanted && !self.open => {
                    return Err(Error::config(&parameter.path, "no value"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, path: String, node: &Node, parent: Option<Condition>) -> Result<()> {
        let domain = match node {
            &Node::Float { low, high, log, step } => {
                Domain::Float { low, high, log, step: (step != 0.0).then_some(step) }
            }
            &Node::Normal { mean, deviation } => Domain::Normal { mean, deviation },
            &Node::Int { low, high, log, step } => Domain::Int { low, high, log, step },
            Node::Bool => Domain::Category(vec![Value::Bool(false), Value::Bool(true)]),
            Node::Choice(values) => Domain::Category(values.clone()),
            Node::Grid(values) => Domain::Grid(values.clone()),
            Node::Fixed(_) | Node::Keep | Node::Unit => return Ok(()),
            Node::Struct(fields) => {
                distinct(&path, fields)?;
                return fields
                    .0
                    .iter()
                    .try_for_each(|(name, node)| self.add(join(&path, name), node, parent));
            }
            Node::Branch(fields) => {
                distinct(&path, fields)?;
                let names = fields.0.iter().map(|(name, _)| Value::from(name.as_str())).collect();
                let selector = self.parameters.len();
                self.leaf(path.clone(), Domain::Category(names), parent)?;
                for (branch, (name, body)) in fields.0.iter().enumerate() {
                    self.add(join(&path, name), body, Some(Condition { parameter: selector, branch }))?;
                }
                return Ok(());
            }
        };
        self.leaf(path, domain, parent)
    }

    fn leaf(&mut self, path: String, domain: Domain, parent: Option<Condition>) -> Result<()> {
        domain.check(&path)?;
        let path = if path.is_empty() { ".".into() } else { path };
        if self.find(&path).is_some() {
            return Err(Error::space(&path, "two parameters have this path: names do not contain dots"));
        }
        self.parameters.push(Parameter { path, domain, parent });
        Ok(())
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

fn distinct(path: &str, fields: &Fields) -> Result<()> {
    for (i, (name, _)) in fields.0.iter().enumerate() {
        if name.is_empty() {
            return Err(Error::space(path, "a name is empty"));
        }
        if fields.0[..i].iter().any(|(earlier, _)| earlier == name) {
            return Err(Error::space(join(path, name), "this name is declared twice"));
        }
    }
    Ok(())
}

impl TryFrom<Node> for Space {
    type Error = Error;

    fn try_from(root: Node) -> Result<Self> {
        Self::new(root)
    }
}

impl From<Space> for Node {
    fn from(space: Space) -> Self {
        space.root
    }
}
