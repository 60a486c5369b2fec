//! The trainables of a program, by name, so that a worker process finds the one it is to run. `#[regatta::trainable]` puts
//! them here.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

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
    pub normalise: fn(Value) -> Result<Value, serde_path_to_error::Error<serde_json::Error>>,
    /// An experiment file of this trainable, read as RON with the trainable's own type for its configuration.
    pub parse: fn(&str) -> std::result::Result<crate::Experiment<Value>, ron::error::SpannedError>,
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
pub fn normalise<C: DeserializeOwned + Serialize>(
    config: Value,
) -> Result<Value, serde_path_to_error::Error<serde_json::Error>> {
    let config: C = serde_path_to_error::deserialize(config)?;
    serde_path_to_error::serialize(&config, serde_json::value::Serializer)
}

/// Reads an experiment file: what `#[trainable]` puts into [`Registration::parse`].
pub fn parse<C: DeserializeOwned + Serialize>(
    text: &str,
) -> std::result::Result<crate::Experiment<Value>, ron::error::SpannedError> {
    let read: crate::Experiment<C> = ron::from_str(text)?;
    let config = serde_json::to_value(&read.config).unwrap_or(Value::Null);
    let crate::Experiment { trainable, config: _, scaling, run, checkpoint, failure } = read;
    Ok(crate::Experiment { trainable, config, scaling, run, checkpoint, failure })
}
