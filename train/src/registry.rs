//! The trainables of a program, by name, so that a worker process finds the one it is to run. `#[regatta::trainable]` puts
//! them here.

use ron::error::SpannedError;
use ron::extensions::Extensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use regatta_cluster::engine::EngineConfig;

use crate::config::{CheckpointConfig, Experiment, FailureConfig, RunConfig, ScalingConfig, Trainable};
use crate::{BoxError, Error, Result, TrainContext};

/// A trainable of this program. Made by `#[regatta::trainable]`, not by hand.
pub struct Registration {
    /// The function's name.
    pub name: &'static str,
    /// The function's full name as the compiler gives it, by which `Trainer::new(function, ..)` finds its entry.
    pub type_name: fn() -> &'static str,
    /// Runs it with a configuration in JSON.
    pub run: fn(&mut TrainContext, Value) -> Result<Value, BoxError>,
    /// The configuration, read as the trainable's own type and written again: unknown keys and wrong types are errors
    /// with their path, defaults are filled in.
    pub normalise: fn(Value) -> Result<Value>,
    /// An experiment file of this trainable, read as RON with the trainable's own type for its configuration.
    pub parse: fn(&str) -> Result<Parsed, SpannedError>,
    /// The experiment as a file that `parse` reads.
    pub write: fn(&Experiment<Value>) -> Result<String>,
}

/// What an experiment file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Parsed {
    /// The experiment.
    pub experiment: Experiment<Value>,
    /// The paths of keys that the trainable's configuration does not know and its type silently passes over.
    pub ignored: Vec<String>,
}

inventory::collect!(Registration);

/// All trainables of the program, by name.
pub fn all() -> Vec<&'static Registration> {
    let mut all: Vec<_> = inventory::iter::<Registration>.into_iter().collect();
    all.sort_by_key(|entry| entry.name);
    all
}

/// The trainable of this name.
pub fn find(name: &str) -> Result<&'static Registration> {
    let all = all();
    match all.iter().find(|entry| entry.name == name) {
        Some(entry) => Ok(entry),
        None => Err(Error::UnknownTrainable {
            name: name.into(),
            known: all.iter().map(|entry| entry.name.to_owned()).collect(),
        }),
    }
}

/// The entry of this function.
pub(crate) fn of<F>(function: &F) -> Option<&'static Registration> {
    let name = std::any::type_name_of_val(function);
    all().into_iter().find(|entry| (entry.type_name)() == name)
}

pub(crate) fn known(names: &[String]) -> String {
    if names.is_empty() {
        "; it has none: put #[regatta::trainable] above a training function".into()
    } else {
        format!("; it has {}", names.join(", "))
    }
}

/// Runs a function with a configuration in JSON: what `#[trainable]` puts into [`Registration::run`].
pub fn run<C, T, E>(
    function: impl Fn(&mut TrainContext, C) -> Result<T, E>,
    context: &mut TrainContext,
    config: Value,
) -> Result<Value, BoxError>
where
    C: DeserializeOwned,
    T: Serialize,
    E: Into<BoxError>,
{
    let config = serde_path_to_error::deserialize(config)
        .map_err(|error| Error::config(format!("config.{}", error.path()), error.inner().to_string()))?;
    let value = function(context, config).map_err(Into::into)?;
    Ok(serde_json::to_value(value)?)
}

/// Reads and writes a configuration again: what `#[trainable]` puts into [`Registration::normalise`].
pub fn normalise<C: DeserializeOwned + Serialize>(config: Value) -> Result<Value> {
    let mut ignored = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(config, &mut track);
    let read = serde_ignored::deserialize(tracked, |path| ignored.push(tidy(&path)));
    let config: C = match read {
        Ok(config) => config,
        Err(error) => return Err(Error::config(below_config(&track.path().to_string()), error.to_string())),
    };
    if let Some(path) = ignored.first() {
        return Err(Error::config(below_config(path), "there is no such key"));
    }
    serde_path_to_error::serialize(&config, serde_json::value::Serializer)
        .map_err(|error| Error::config(below_config(&error.path().to_string()), error.inner().to_string()))
}

/// Reads an experiment file: what `#[trainable]` puts into [`Registration::parse`].
pub fn parse<C: DeserializeOwned + Serialize>(text: &str) -> Result<Parsed, SpannedError> {
    let options = ron_options();
    let mut reader = ron::Deserializer::from_str_with_options(text, &options)?;
    let mut ignored = Vec::new();
    let read = serde_ignored::deserialize(&mut reader, |path| ignored.push(tidy(&path)));
    let file: File<C> =
        read.and_then(|file| reader.end().map(|()| file)).map_err(|e| reader.span_error(e))?;
    let config = match file.config {
        Some(config) => serde_json::to_value(&config).map_err(|error| error.to_string()),
        // Left out, it is what it is by default, if all of it has defaults.
        None => normalise::<C>(Value::Object(Default::default())).map_err(|error| error.to_string()),
    };
    let config = config.map_err(|why| reader.span_error(ron::Error::Message(why)))?;
    let File { trainable, config: _, scaling, run, checkpoint, failure, engine } = file;
    let experiment = Experiment { trainable, config, scaling, run, checkpoint, failure, engine };
    Ok(Parsed { experiment, ignored })
}

/// Writes an experiment file: what `#[trainable]` puts into [`Registration::write`].
pub fn write<C: DeserializeOwned + Serialize>(experiment: &Experiment<Value>) -> Result<String> {
    let config: C = serde_path_to_error::deserialize(experiment.config.clone())
        .map_err(|error| Error::config(below_config(&error.path().to_string()), error.inner().to_string()))?;
    let Experiment { trainable, config: _, scaling, run, checkpoint, failure, engine } = experiment.clone();
    let typed = Experiment { trainable, config, scaling, run, checkpoint, failure, engine };
    let pretty = ron::ser::PrettyConfig::new().struct_names(false).extensions(extensions());
    ron_options()
        .to_string_pretty(&typed, pretty)
        .map_err(|error| Error::other("writing the experiment as RON", error))
}

/// Reads an experiment file, with the type of the trainable it names. A `Command`'s configuration is free.
pub fn read(text: &str) -> Result<Parsed, ReadError> {
    let head: Head = ron_options().from_str(text)?;
    match &head.trainable {
        Trainable::Function(name) => Ok((find(name)?.parse)(text)?),
        Trainable::Command(_) => Ok(parse::<Value>(text)?),
    }
}

/// The configuration as the experiment's trainable reads it; a `Command`'s is free, but has to have keys.
pub fn normalise_for(trainable: &Trainable, config: Value) -> Result<Value> {
    match (trainable, &config) {
        (Trainable::Function(name), _) => (find(name)?.normalise)(config),
        (Trainable::Command(_), Value::Object(_)) => Ok(config),
        (Trainable::Command(_), Value::Null) => Ok(Value::Object(Default::default())),
        (Trainable::Command(_), _) => {
            Err(Error::config("config", "a command's configuration is a map, as in (lr: 0.1)"))
        }
    }
}

/// Writes an experiment as a file that [`read`] reads.
pub fn to_ron(experiment: &Experiment<Value>) -> Result<String> {
    match &experiment.trainable {
        // A closure in this process has no entry; its configuration is written as it is.
        Trainable::Function(name) => match find(name) {
            Ok(entry) => (entry.write)(experiment),
            Err(_) => write::<Value>(experiment),
        },
        Trainable::Command(_) => write::<Value>(experiment),
    }
}

/// Why an experiment file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not RON, or not what is expected there.
    #[error(transparent)]
    Syntax(#[from] SpannedError),
    /// It names no trainable of this program.
    #[error(transparent)]
    Trainable(#[from] Error),
}

/// How experiment files are read: `Some` may be left out, and a variant that is all of a struct is written as one,
/// `Slurm(nodes: 2)`.
pub fn ron_options() -> ron::Options {
    ron::Options::default().with_default_extension(extensions())
}

fn extensions() -> Extensions {
    Extensions::IMPLICIT_SOME | Extensions::UNWRAP_VARIANT_NEWTYPES
}

#[derive(serde::Deserialize)]
struct Head {
    trainable: Trainable,
}

/// An experiment with the configuration left out, perhaps.
#[derive(serde::Deserialize)]
#[serde(rename = "Experiment", deny_unknown_fields, bound = "C: DeserializeOwned")]
struct File<C> {
    trainable: Trainable,
    #[serde(default = "none")]
    config: Option<C>,
    #[serde(default)]
    scaling: ScalingConfig,
    #[serde(default)]
    run: RunConfig,
    #[serde(default)]
    checkpoint: CheckpointConfig,
    #[serde(default)]
    failure: FailureConfig,
    #[serde(default)]
    engine: EngineConfig,
}

fn none<C>() -> Option<C> {
    None
}

/// A path without the marks that stand for `Some` and newtypes.
fn tidy(path: &serde_ignored::Path<'_>) -> String {
    path.to_string().split('.').filter(|part| *part != "?").collect::<Vec<_>>().join(".")
}

fn below_config(path: &str) -> String {
    if path.is_empty() || path == "." { "config".into() } else { format!("config.{path}") }
}

/// The configuration of a trainable that takes none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoConfig {}
