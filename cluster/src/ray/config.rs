//! How a run is submitted to Ray, as a file says it. It is known to every build, so that one without the engine can say so.

use std::path::PathBuf;
#[cfg(feature = "ray")]
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::resource::Resources;

/// How a run is submitted, and how long the driver waits for what no longer answers:
/// `Ray(address: "http://head:8265", files: ["data"])`. Only the address has to be given.
///
/// The token is no part of it. Unless [`token_file`](Self::token_file) names a file that holds it, it is taken from
/// `RAY_AUTH_TOKEN`, else from the file that `RAY_AUTH_TOKEN_PATH` names, else from `~/.ray/auth_token`, as Ray's own tools
/// do; without any of them none is presented.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RayConfig {
    /// The dashboard, which serves Ray's Jobs API: `http://head:8265`, or `https://` behind a proxy that adds TLS.
    pub address: String,
    /// A file with the token.
    pub token_file: Option<PathBuf>,
    /// The authority to trust with `https`, as a PEM file; the system's if not given.
    pub authority: Option<PathBuf>,
    /// Files and folders that go along beside the program. Under this folder they keep their places, others go to the top.
    pub files: Vec<PathBuf>,
    /// Whether the program itself goes along, where it is given by its path. Otherwise it has to be there already.
    pub ship_program: bool,
    /// Variables of this environment that go along to the driver, by name: credentials for the storage, perhaps.
    pub variables: Vec<String>,
    /// What the driver takes for itself; it stands on the head node if nothing.
    pub driver: Resources,
    /// The Python that has `ray`, where the driver runs.
    pub python: String,
    /// Whether nodes may yet come: a gang that the present ones could not seat then waits in place of being refused.
    pub autoscaling: bool,
    /// How long a call of the dashboard may take.
    pub request_seconds: f64,
    /// How long a killed worker may still be there before its node is given up.
    pub kill_seconds: f64,
    /// How long a worker may take to start before the launch fails.
    pub start_seconds: f64,
}

impl Default for RayConfig {
    fn default() -> Self {
        Self {
            address: "http://127.0.0.1:8265".into(),
            token_file: None,
            authority: None,
            files: Vec::new(),
            ship_program: true,
            variables: Vec::new(),
            driver: Resources::none(),
            python: "python3".into(),
            autoscaling: false,
            request_seconds: 30.0,
            kill_seconds: 2.0,
            start_seconds: 60.0,
        }
    }
}

impl RayConfig {
    /// The defaults, at this address.
    #[must_use]
    pub fn at(address: impl Into<String>) -> Self {
        Self { address: address.into(), ..Self::default() }
    }

    /// Checks what can be without Ray.
    pub fn check(&self) -> Result<()> {
        let wrong = |what: &str, problem: String| Err(Error::BadRequest { what: what.into(), problem });
        let host = ["http://", "https://"].iter().find_map(|scheme| self.address.strip_prefix(scheme));
        if host.is_none_or(|host| host.is_empty() || host.starts_with(['/', ':'])) {
            let problem =
                format!("`{}` is no address of a dashboard: write `http://head:8265`", self.address);
            return wrong("engine.Ray.address", problem);
        }
        if self.python.is_empty() {
            return wrong("engine.Ray.python", "a program has a name; leave it out for `python3`".into());
        }
        for (what, seconds) in [
            ("engine.Ray.request_seconds", self.request_seconds),
            ("engine.Ray.kill_seconds", self.kill_seconds),
            ("engine.Ray.start_seconds", self.start_seconds),
        ] {
            if !(0.0..=86_400.0).contains(&seconds) {
                return wrong(what, format!("{seconds} is no time to wait: give seconds, at most a day"));
            }
        }
        Ok(())
    }
}

#[cfg(feature = "ray")]
impl RayConfig {
    pub(super) fn request_patience(&self) -> Duration {
        Duration::try_from_secs_f64(self.request_seconds).unwrap_or_default()
    }

    pub(super) fn kill_patience(&self) -> Duration {
        Duration::try_from_secs_f64(self.kill_seconds).unwrap_or_default()
    }

    pub(super) fn start_patience(&self) -> Duration {
        Duration::try_from_secs_f64(self.start_seconds).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_said_with_its_key() {
        assert!(RayConfig::default().check().is_ok());
        assert!(RayConfig::at("https://head.example/ray").check().is_ok());
        for (config, key) in [
            (RayConfig::at("head:8265"), "engine.Ray.address"),
            (RayConfig::at("http://:8265"), "engine.Ray.address"),
            (RayConfig { python: String::new(), ..RayConfig::default() }, "engine.Ray.python"),
            (RayConfig { kill_seconds: f64::NAN, ..RayConfig::default() }, "engine.Ray.kill_seconds"),
            (RayConfig { request_seconds: -1.0, ..RayConfig::default() }, "engine.Ray.request_seconds"),
        ] {
            assert!(config.check().unwrap_err().to_string().starts_with(key), "{key}");
        }
    }

    #[test]
    fn a_file_says_only_what_differs() {
        let config: RayConfig =
            serde_json::from_str(r#"{"address": "http://head:8265", "driver": "cpu: 1"}"#).unwrap();
        assert_eq!(config, RayConfig { driver: Resources::cpus(1), ..RayConfig::at("http://head:8265") });
        assert!(serde_json::from_str::<RayConfig>(r#"{"token": "secret"}"#).is_err());
    }
}
