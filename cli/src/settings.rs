//! From what was typed to what is meant: file, then environment, then command line, each value typed against the
//! trainable's own configuration and remembered with where it came from.
//!
//! RON's own values forget enum variants, so the file is read with the trainable's type, turned into JSON, changed by path,
//! and read with the type again after every change: whatever is wrong is known to be that change's fault.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use regatta_train::registry::{self, Parsed, ReadError};
use regatta_train::{Error, Experiment};
use serde_json::Value;

use crate::place;
use crate::problem::{Outcome, Problem, advice};

/// Variables that set values: `REGATTA__config__lr=0.01`.
pub(crate) const PREFIX: &str = "REGATTA__";

/// The parts of an experiment.
const SECTIONS: [&str; 7] = ["trainable", "config", "scaling", "run", "checkpoint", "failure", "engine"];

/// Who set a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layer {
    Default,
    File(PathBuf, place::Place),
    Environment(String),
    CommandLine(String),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::Default => f.write_str("default"),
            Layer::File(path, at) => write!(f, "{}:{}:{}", path.display(), at.line, at.column),
            Layer::Environment(variable) => write!(f, "environment {variable}"),
            Layer::CommandLine(text) => write!(f, "command line {text}"),
        }
    }
}

/// One value to set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Override {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) layer: Layer,
}

impl Override {
    /// `optim.lr=0.01`, as it stands on the command line.
    pub(crate) fn parse(argument: &str) -> Outcome<Self> {
        match argument.split_once('=') {
            Some((path, text)) if !path.trim().is_empty() => Ok(Override {
                path: path.trim().into(),
                text: text.trim().into(),
                layer: Layer::CommandLine(argument.into()),
            }),
            _ => Err(Problem::usage(format!(
                "`{argument}` sets nothing: write `key=value`, as in `optim.lr=0.01`"
            ))),
        }
    }

    /// What an option of the command line stands for.
    pub(crate) fn option(option: &str, path: &str, text: impl Into<String>) -> Self {
        let text = text.into();
        Override { path: path.into(), layer: Layer::CommandLine(format!("{option} {text}")), text }
    }

    /// Those of the environment, in the order of their names.
    pub(crate) fn from_env(variables: impl IntoIterator<Item = (String, String)>) -> Vec<Self> {
        let mut found: Vec<Override> = variables
            .into_iter()
            .filter_map(|(name, text)| {
                let path = name.strip_prefix(PREFIX)?.replace("__", ".");
                Some(Override { path, text, layer: Layer::Environment(name) })
            })
            .collect();
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }
}

/// An experiment, and how it came about.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    file: PathBuf,
    text: String,
    experiment: Experiment<Value>,
    tree: Value,
    set: BTreeMap<String, Layer>,
}

impl Settings {
    /// Reads the file and applies what changes it, in order.
    pub(crate) fn load(file: &Path, overrides: &[Override]) -> Outcome<Self> {
        let text = std::fs::read_to_string(file).map_err(|error| {
            Problem::usage(format!("cannot read the experiment {}: {error}", file.display()))
        })?;
        let Parsed { experiment, ignored } =
            registry::read(&text).map_err(|error| unreadable(file, &text, error))?;
        let tree = tree(&experiment)?;
        let mut settings = Settings { file: file.into(), text, experiment, tree, set: BTreeMap::new() };
        if let Some(path) = ignored.first() {
            return Err(settings.unknown(path));
        }
        // A command's configuration has no type of its own to be read with; it has to have keys at least.
        settings.retype(settings.tree.clone()).map_err(|error| settings.located(error))?;
        for change in overrides {
            settings.apply(change)?;
        }
        settings.experiment.check().map_err(|error| settings.located(error))?;
        regatta_train::command::check(&settings.experiment).map_err(|error| settings.located(error))?;
        Ok(settings)
    }

    pub(crate) fn experiment(&self) -> &Experiment<Value> {
        &self.experiment
    }

    /// The whole experiment as JSON.
    pub(crate) fn tree(&self) -> &Value {
        &self.tree
    }

    /// Every value, with who set it.
    pub(crate) fn explain(&self) -> Vec<(String, Value, Layer)> {
        leaves(&self.tree)
            .into_iter()
            .map(|(path, value)| (path.clone(), value.clone(), self.layer(&path)))
            .collect()
    }

    fn layer(&self, path: &str) -> Layer {
        let mut part = Some(path);
        while let Some(here) = part {
            if let Some(layer) = self.set.get(here) {
                return layer.clone();
            }
            let place = place::find(&self.text, here).or_else(|| place::find(&self.text, &plain(here)));
            if let Some(place) = place
                && (here == path || !SECTIONS.contains(&here))
            {
                return Layer::File(self.file.clone(), place);
            }
            part = here.rsplit_once('.').map(|(parent, _)| parent);
        }
        Layer::Default
    }

    fn apply(&mut self, change: &Override) -> Outcome {
        let path =
            self.resolve(&change.path).map_err(|why| Problem::usage(format!("{}: {why}", change.layer)))?;
        let mut first = None;
        for value in values(&change.text, get(&self.tree, &path)) {
            let mut tree = self.tree.clone();
            set(&mut tree, &path, value);
            match self.retype(tree) {
                Ok((experiment, tree))
                    if get(&tree, &path).is_some() || path.starts_with("scaling.resources.") =>
                {
                    (self.experiment, self.tree) = (experiment, tree);
                    self.set.retain(|known, _| !known.starts_with(&format!("{path}.")));
                    self.set.insert(path, change.layer.clone());
                    return Ok(());
                }
                Ok(_) => return Err(self.no_such_key(&change.layer, &path)),
                Err(error) => first = first.or(Some(error)),
            }
        }
        let above = first.as_ref().is_some_and(|error| match error {
            // What does not fit is not the value but that it is there.
            Error::Config { path: at, .. } => path.starts_with(&format!("{at}.")),
            _ => false,
        });
        let why = first.map(|error| explain(&error)).unwrap_or_default();
        Err(match unknown_key(&why) || (above && get(&self.tree, &path).is_none()) {
            true => self.no_such_key(&change.layer, &path),
            false => Problem::usage(format!("{}: {why}", change.layer)),
        })
    }

    fn no_such_key(&self, layer: &Layer, path: &str) -> Problem {
        let known = self.names();
        let short = path.strip_prefix("config.").unwrap_or(path);
        Problem::usage(format!(
            "{layer}: there is no key `{short}`{}",
            advice(short, known.iter().map(String::as_str))
        ))
    }

    /// All that can be set, shortly named.
    fn names(&self) -> Vec<String> {
        let all = leaves(&self.tree).into_iter().map(|(path, _)| path);
        all.map(|path| plain(path.strip_prefix("config.").unwrap_or(&path))).collect()
    }

    /// The full path of what was named shortly.
    fn resolve(&self, named: &str) -> Result<String, String> {
        let first = named.split('.').next().unwrap_or(named);
        let below_config = format!("config.{named}");
        let full = SECTIONS.contains(&first);
        let short = get(&self.tree, &below_config).is_some();
        match (full, short) {
            (true, true) if named != "config" => Err(format!(
                "`{named}` may be `{below_config}` or the experiment's own `{named}`: set it in the file"
            )),
            (true, _) if get(&self.tree, named).is_some() => Ok(named.into()),
            (true, _) => {
                // `engine.nodes` is `engine.Slurm.nodes`.
                let all = leaves(&self.tree).into_iter().map(|(path, _)| path);
                let mut meant = all.filter(|path| !path.starts_with("config.") && plain(path) == named);
                Ok(meant.next().unwrap_or_else(|| named.into()))
            }
            (false, true) => Ok(below_config),
            (false, false) => {
                let paths: Vec<String> = leaves(&self.tree).into_iter().map(|(path, _)| path).collect();
                let ending = format!(".{named}");
                let inside = |path: &&String| path.starts_with("config.") && plain(path).ends_with(&ending);
                match paths.iter().filter(inside).collect::<Vec<_>>().as_slice() {
                    [one] => Ok((*one).clone()),
                    // A key that is not written while it has no value is found out by trying.
                    [] => Ok(below_config),
                    several => {
                        let all: Vec<&str> = several.iter().map(|path| path.as_str()).collect();
                        Err(format!("`{named}` may be {}: write more of it", all.join(" or ")))
                    }
                }
            }
        }
    }

    fn retype(&self, tree: Value) -> Result<(Experiment<Value>, Value), Error> {
        let mut experiment: Experiment<Value> = serde_path_to_error::deserialize(tree)
            .map_err(|error| Error::config(error.path().to_string(), error.inner().to_string()))?;
        experiment.config = registry::normalise_for(&experiment.trainable, experiment.config)?;
        let tree = serde_json::to_value(&experiment)
            .map_err(|error| Error::other("writing the experiment", error))?;
        Ok((experiment, tree))
    }

    /// An error about a value, with who set it.
    fn located(&self, error: Error) -> Problem {
        match &error {
            Error::Config { path, .. } => match self.layer(path) {
                Layer::Default => Problem::usage(format!("{}: {}", self.file.display(), explain(&error))),
                layer => Problem::usage(format!("{layer}: {}", explain(&error))),
            },
            _ => Problem::from(error),
        }
    }

    /// A key of the file's that its type passes over in silence.
    fn unknown(&self, path: &str) -> Problem {
        let place =
            place::find(&self.text, path).map_or(String::new(), |at| format!(":{}:{}", at.line, at.column));
        let (parent, key) = path.rsplit_once('.').unwrap_or(("", path));
        let known: Vec<&str> = match get(&self.tree, parent) {
            Some(Value::Object(map)) => map.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        Problem::usage(format!(
            "{}{place}: there is no key `{key}` in `{parent}`{}",
            self.file.display(),
            advice(key, known)
        ))
    }
}

fn tree(experiment: &Experiment<Value>) -> Outcome<Value> {
    serde_json::to_value(experiment)
        .map_err(|error| Problem::failed(format!("cannot write the experiment: {error}")))
}

/// An error in words, with what was probably meant.
fn explain(error: &Error) -> String {
    let text = error.to_string();
    let named: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    match (text.contains("expected one of") || text.contains("expected `")) && text.contains("unknown ") {
        true => match named.split_first() {
            Some((word, known)) => match crate::problem::meant(word, known.iter().copied()) {
                Some(meant) => format!("{text}; did you mean `{meant}`?"),
                None => text.clone(),
            },
            None => text.clone(),
        },
        false => text,
    }
}

fn unknown_key(why: &str) -> bool {
    why.contains("unknown field") || why.contains("there is no such key")
}

/// What is wrong with a file, with its place.
fn unreadable(file: &Path, text: &str, error: ReadError) -> Problem {
    let file = file.display();
    match error {
        ReadError::Trainable(error @ Error::UnknownTrainable { .. }) => {
            let Error::UnknownTrainable { name, known } = &error else { unreachable!("it was just matched") };
            let at = place::find(text, "trainable")
                .map_or(String::new(), |at| format!(":{}:{}", at.line, at.column));
            let meant = crate::problem::meant(name, known.iter().map(String::as_str));
            let meant = meant.map_or(String::new(), |meant| format!("; did you mean `{meant}`?"));
            Problem::usage(format!("{file}{at}: {error}{meant}"))
        }
        ReadError::Trainable(error) => Problem::usage(format!("{file}: {error}")),
        ReadError::Syntax(error) => {
            use ron::Error as E;
            // The end of the span is past what was read: a name is shown where it begins.
            let at = error.span.start;
            let (mut line, mut column) = (at.line, at.col);
            let mut back = |word: &str| {
                let found = text.lines().nth(error.span.end.line.saturating_sub(1)).and_then(|line| {
                    let end = line.char_indices().nth(error.span.end.col).map_or(line.len(), |(at, _)| at);
                    line[..end].rfind(word).map(|at| line[..at].chars().count() + 1)
                });
                if let Some(found) = found {
                    (line, column) = (error.span.end.line, found);
                }
            };
            let what = match &error.code {
                E::NoSuchStructField { expected, found, outer } => {
                    back(found);
                    let inside = outer.as_ref().map_or(String::new(), |outer| format!(" in `{outer}`"));
                    format!("there is no key `{found}`{inside}{}", advice(found, expected.iter().copied()))
                }
                E::NoSuchEnumVariant { expected, found, outer } => {
                    back(found);
                    let inside = outer.as_ref().map_or(String::new(), |outer| format!(" of `{outer}`"));
                    format!(
                        "there is no variant `{found}`{inside}{}",
                        advice(found, expected.iter().copied())
                    )
                }
                E::MissingStructField { field, outer } => {
                    let inside = outer.as_ref().map_or(String::new(), |outer| format!(" of `{outer}`"));
                    format!("the key `{field}`{inside} is missing")
                }
                other => other.to_string(),
            };
            Problem::usage(format!("{file}:{line}:{column}: {what}"))
        }
    }
}

/// What a text may mean, the likeliest first.
fn values(text: &str, present: Option<&Value>) -> Vec<Value> {
    let plain = Value::String(text.into());
    let read = read(text);
    let mut all = match present {
        Some(Value::String(_)) if !text.starts_with('"') => vec![plain, read],
        _ => vec![read, plain],
    };
    all.dedup();
    all
}

/// A value as JSON or RON: numbers, lists, `Steps(100)`, `(min: 1, max: 4)`, words.
fn read(text: &str) -> Value {
    if let Ok(value) = serde_json::from_str(text) {
        return value;
    }
    match text {
        "None" => return Value::Null,
        _ if text.chars().all(|c| c.is_alphanumeric() || "_-./".contains(c)) => {
            return Value::String(text.into());
        }
        _ => {}
    }
    if let Some((variant, inner)) = text.strip_suffix(')').and_then(|text| text.split_once('('))
        && !variant.is_empty()
        && variant.chars().all(|c| c.is_alphanumeric() || c == '_')
    {
        let inner = if inner.contains(':') { read(&format!("({inner})")) } else { read(inner.trim()) };
        return if variant == "Some" { inner } else { serde_json::json!({ variant: inner }) };
    }
    registry::ron_options().from_str(text).unwrap_or_else(|_| Value::String(text.into()))
}

/// A path without the names of enum variants, which stand in JSON as keys: `optim.Adam.lr` is `optim.lr` to people.
fn plain(path: &str) -> String {
    let variant = |part: &&str| !part.starts_with(|c: char| c.is_ascii_uppercase());
    path.split('.').filter(variant).collect::<Vec<_>>().join(".")
}

/// The value at a path.
pub(crate) fn get<'a>(tree: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').filter(|part| !part.is_empty()).try_fold(tree, |value, part| match value {
        Value::Object(map) => map.get(part),
        Value::Array(list) => list.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

fn set(tree: &mut Value, path: &str, value: Value) {
    let mut here = tree;
    for part in path.split('.') {
        if let (Value::Array(list), Ok(index)) = (&*here, part.parse::<usize>())
            && index < list.len()
        {
            here = &mut here[index];
            continue;
        }
        if let Value::String(resources) = &*here {
            *here = resources_map(resources);
        }
        if !here.is_object() {
            *here = Value::Object(Default::default());
        }
        here = &mut here[part];
    }
    *here = value;
}

/// Resources are written as one string, and are a map to whoever sets one of them.
fn resources_map(text: &str) -> Value {
    let pairs = text.split(',').filter_map(|item| item.split_once(':'));
    Value::Object(
        pairs.map(|(name, amount)| (name.trim().into(), Value::String(amount.trim().into()))).collect(),
    )
}

/// All values that have no keys below them, by path. A list is one value.
fn leaves(tree: &Value) -> Vec<(String, &Value)> {
    fn walk<'a>(path: &str, value: &'a Value, found: &mut Vec<(String, &'a Value)>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, found);
                }
            }
            _ => found.push((path.into(), value)),
        }
    }
    let mut found = Vec::new();
    walk("", tree, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_read_as_they_are_meant() {
        assert_eq!(read("0.01"), json!(0.01));
        assert_eq!(read("1e-3"), json!(0.001));
        assert_eq!(read("true"), json!(true));
        assert_eq!(read("[1, 2]"), json!([1, 2]));
        assert_eq!(read("Steps(100)"), json!({ "Steps": 100 }));
        assert_eq!(read("Adam(lr: 0.1, amsgrad: true)"), json!({ "Adam": { "lr": 0.1, "amsgrad": true } }));
        assert_eq!(read("(min: 1, max: 4)"), json!({ "min": 1, "max": 4 }));
        assert_eq!(read("Some(3)"), json!(3));
        assert_eq!(read("None"), Value::Null);
        assert_eq!(read("adam"), json!("adam"));
        assert_eq!(read("s3://bucket/x"), json!("s3://bucket/x"));
        assert_eq!(values("007", Some(&json!("x")))[0], json!("007"));
        assert_eq!(values("7", Some(&json!(1)))[0], json!(7));
    }

    #[test]
    fn variables_are_overrides_in_the_order_of_their_paths() {
        let variables = [("REGATTA__run__seed", "7"), ("REGATTA__config__optim__lr", "0.1"), ("HOME", "/")];
        let variables = variables.map(|(name, text)| (name.to_owned(), text.to_owned()));
        let found = Override::from_env(variables);
        assert_eq!(
            found.iter().map(|o| o.path.as_str()).collect::<Vec<_>>(),
            ["config.optim.lr", "run.seed"]
        );
    }

    #[test]
    fn what_sets_nothing_is_refused() {
        assert_eq!(Override::parse("lr").unwrap_err().code, 2);
        assert_eq!(Override::parse("=3").unwrap_err().code, 2);
        let set = Override::parse("a.b = x=y").unwrap();
        assert_eq!((set.path.as_str(), set.text.as_str()), ("a.b", "x=y"));
    }
}
