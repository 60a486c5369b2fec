//! Laying one tree over another: what a configuration file says about a space that the program declared.

use super::Result;
use super::tree::{Fields, Node};
use crate::error::Error;

/// The base with everything that `over` names put in its place. Groups are merged; of branches only those named remain.
pub(super) fn narrowed(path: &str, base: &Node, over: &Node) -> Result<Node> {
    match (base, over) {
        (Node::Struct(base), Node::Struct(over)) => {
            let mut merged = base.clone();
            for (name, node) in &over.0 {
                let at = super::join(path, name);
                let slot = merged.0.iter_mut().find(|(n, _)| n == name);
                let slot = slot.ok_or_else(|| unknown(&at, name, base))?;
                slot.1 = narrowed(&at, &slot.1, node)?;
            }
            Ok(Node::Struct(merged))
        }
        (Node::Branch(base), Node::Branch(over)) => {
            let mut kept = Fields::default();
            for (name, node) in &over.0 {
                let at = super::join(path, name);
                let body = base.get(name).ok_or_else(|| unknown(&at, name, base))?;
                // `Unit` names a branch and leaves what is below it alone.
                let body = if *node == Node::Unit { body.clone() } else { narrowed(&at, body, node)? };
                kept.0.push((name.clone(), body));
            }
            Ok(Node::Branch(kept))
        }
        (Node::Choice(base), Node::Choice(over)) => match over.iter().find(|v| !base.contains(v)) {
            Some(value) => {
                Err(Error::space(path, format!("{value} is not among the choices that the program offers")))
            }
            None => Ok(Node::Choice(over.clone())),
        },
        (Node::Struct(_) | Node::Branch(_), _) if !matches!(over, Node::Fixed(_) | Node::Keep) => {
            Err(Error::space(path, format!("{} cannot stand for {}", kind(over), kind(base))))
        }
        (_, Node::Struct(_) | Node::Branch(_)) if *base != Node::Keep => {
            Err(Error::space(path, format!("{} cannot stand for {}", kind(over), kind(base))))
        }
        (_, over) => Ok(over.clone()),
    }
}

fn unknown(path: &str, name: &str, among: &Fields) -> Error {
    let names = || among.0.iter().map(|(n, _)| n.as_str());
    let near = names().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let hint = match near.filter(|n| strsim::jaro_winkler(n, name) > 0.7) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are: {}", names().collect::<Vec<_>>().join(", ")),
    };
    Error::space(path, format!("the program's space has no `{name}`; {hint}"))
}

fn kind(node: &Node) -> &'static str {
    match node {
        Node::Struct(_) => "a group of parameters",
        Node::Branch(_) => "a choice of branches",
        Node::Choice(_) | Node::Bool => "a choice of values",
        Node::Fixed(_) | Node::Keep | Node::Unit => "a fixed value",
        Node::Float { .. } | Node::Normal { .. } | Node::Int { .. } | Node::Grid(_) => "a number",
    }
}
