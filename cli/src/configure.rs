//! `regatta config check|print|explain|schema`.

use regatta_train::registry;
use serde_json::{Map, Value, json};

use crate::args::{Config, Source};
use crate::out::{self, table};
use crate::problem::Outcome;
use crate::settings::{Layer, Override, Settings};

/// The settings of a file, of this process's environment and of overrides.
pub(crate) fn load(source: &Source, options: Vec<Override>) -> Outcome<Settings> {
    // A variable that is not UTF-8 sets nothing of ours.
    let variables = std::env::vars_os()
        .filter_map(|(name, text)| Some((name.into_string().ok()?, text.into_string().ok()?)));
    let mut changes = Override::from_env(variables);
    for argument in &source.overrides {
        changes.push(Override::parse(argument)?);
    }
    changes.extend(options);
    Settings::load(&source.file, &changes)
}

pub(crate) fn run(command: &Config, json: bool) -> Outcome {
    match command {
        Config::Check(source) => {
            let settings = load(source, Vec::new())?;
            match json {
                true => out::json(json!({ "ok": true, "trainable": settings.experiment().trainable })),
                false => out::text(&format!("{}: ok\n", source.file.display())),
            }
        }
        Config::Print(source) => {
            let settings = load(source, Vec::new())?;
            match json {
                true => out::json(json!({ "experiment": settings.tree() })),
                false => out::text(&(registry::to_ron(settings.experiment())? + "\n")),
            }
        }
        Config::Explain(source) => explain(&load(source, Vec::new())?, json),
        Config::Schema(source) => {
            let settings = load(source, Vec::new())?;
            out::json(schema(&settings))
        }
    }
}

fn explain(settings: &Settings, json: bool) -> Outcome {
    let values = settings.explain();
    if json {
        let values: Vec<Value> = values
            .iter()
            .map(|(key, value, layer)| json!({ "key": key, "value": value, "from": layer.to_string() }))
            .collect();
        return out::json(json!({ "values": values }));
    }
    let mut rows = vec![["key", "value", "from"].map(str::to_owned)];
    rows.extend(values.iter().map(|(key, value, layer)| [key.clone(), value.to_string(), layer.to_string()]));
    out::text(&table(&rows))
}

/// A JSON schema as best it can be had: the types are those of the values there are, since the configuration's own type
/// gives none. A value that is not set has no type here.
fn schema(settings: &Settings) -> Value {
    let layers = settings.explain();
    let default = |path: &str| layers.iter().any(|(key, _, layer)| key == path && *layer == Layer::Default);
    let mut schema = described("", settings.tree(), &default);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(format!("experiment with {}", settings.experiment().trainable));
    schema["$comment"] =
        json!("types are read off the values of this file and the defaults; null is a value not set");
    schema
}

fn described(path: &str, value: &Value, default: &dyn Fn(&str) -> bool) -> Value {
    let mut schema = match value {
        Value::Object(map) => {
            let mut properties = Map::new();
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                properties.insert(key.clone(), described(&path, value, default));
            }
            return json!({ "type": "object", "properties": properties });
        }
        Value::Null => json!({}),
        Value::Bool(_) => json!({ "type": "boolean" }),
        Value::Number(number) if number.is_f64() => json!({ "type": "number" }),
        Value::Number(_) => json!({ "type": "integer" }),
        Value::String(_) => json!({ "type": "string" }),
        Value::Array(_) => json!({ "type": "array" }),
    };
    if default(path) {
        schema["default"] = value.clone();
    }
    schema
}
