//! `regatta env`: what this machine has, and what this program can train.

use regatta_cluster::local::LocalNode;
use regatta_train::environment::Environment;
use regatta_train::registry;
use serde_json::json;

use crate::out;
use crate::problem::{Outcome, Problem};

pub(crate) fn run(json: bool) -> Outcome {
    let environment = Environment::capture(0);
    let resources = LocalNode::this_host().resources;
    let trainables: Vec<&str> = registry::all().iter().map(|entry| entry.name).collect();
    if json {
        let mut value = serde_json::to_value(&environment)
            .map_err(|error| Problem::failed(format!("cannot write the environment: {error}")))?;
        if let Some(map) = value.as_object_mut() {
            // There is no run, so there is no seed.
            map.remove("seed");
        }
        return out::json(json!({ "environment": value, "resources": resources, "trainables": trainables }));
    }
    let mut text = format!(
        "host        {}\nsystem      {}\nprocessor   {}\nto give     {resources}\n",
        environment.host, environment.os, environment.cpu
    );
    let list = |items: &[String]| if items.is_empty() { "none".into() } else { items.join(", ") };
    text += &format!("devices     {}\n", list(&environment.devices));
    let versions: Vec<String> =
        environment.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    text += &format!("versions    {}\n", list(&versions));
    if let Some(git) = &environment.git {
        let dirty = if git.dirty { " (dirty)" } else { "" };
        text += &format!("git         {} on {}{dirty}\n", git.commit, git.branch);
    }
    let trainables: Vec<String> = trainables.iter().map(|name| (*name).to_owned()).collect();
    let commands = "Command(\"...\") in any language";
    let known = if trainables.is_empty() {
        commands.into()
    } else {
        format!("{}, {commands}", trainables.join(", "))
    };
    out::text(&(text + &format!("trainables  {known}\n")))
}
