//! Which engine a run is placed by, as a file says it: `engine: Slurm(partition: "gpu", nodes: 2)`; and the way from there to
//! what the client needs, [`engine`], and to what the driver in its job needs, [`control`] and [`spawner`].
//!
//! To add an engine: a variant, and a line in each `match` below. Its configuration is plain data that every build knows; what
//! it does is behind a cargo feature of its name, without which it answers [`Error::NotBuilt`].

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::control::ControlConfig;
use crate::error::{Error, Result};
use crate::kubernetes::KubernetesConfig;
use crate::ray::RayConfig;
use crate::slurm::SlurmConfig;
use crate::spawner::Spawner;

/// An engine and how it is used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum EngineConfig {
    /// Processes of one host: the one the command is given on.
    #[default]
    Local,
    /// A job of a cluster under Slurm.
    Slurm(Box<SlurmConfig>),
    /// A job of a Ray cluster.
    Ray(Box<RayConfig>),
    /// Pods of a cluster that has Kubernetes.
    Kubernetes(Box<KubernetesConfig>),
}

impl From<SlurmConfig> for EngineConfig {
    fn from(config: SlurmConfig) -> Self {
        Self::Slurm(Box::new(config))
    }
}

impl From<RayConfig> for EngineConfig {
    fn from(config: RayConfig) -> Self {
        Self::Ray(Box::new(config))
    }
}

impl From<KubernetesConfig> for EngineConfig {
    fn from(config: KubernetesConfig) -> Self {
        Self::Kubernetes(Box::new(config))
    }
}

impl EngineConfig {
    /// The engine's name, as [`Engine::name`] gives it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Slurm(_) => "slurm",
            Self::Ray(_) => "ray",
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// Checks what can be without the engine.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Local => Ok(()),
            Self::Slurm(config) => config.check(),
            Self::Ray(config) => config.check(),
            Self::Kubernetes(config) => config.check(),
        }
    }

    /// Whether drivers see the files that the client sees, under the same names.
    #[must_use]
    pub fn shares_files(&self) -> bool {
        match self {
            Self::Local | Self::Slurm(_) => true,
            Self::Ray(_) => false,
            Self::Kubernetes(_) => false,
        }
    }
}

/// The engine for a client. Where an engine does not remember jobs and keep their logs itself, it does so in this folder.
pub fn engine(config: &EngineConfig, folder: &Path) -> Result<Arc<dyn Engine>> {
    config.check()?;
    Ok(match config {
        EngineConfig::Local => Arc::new(super::local::LocalEngine::new(folder)),
        #[cfg(feature = "slurm")]
        EngineConfig::Slurm(config) => Arc::new(crate::slurm::SlurmEngine::new((**config).clone(), folder)),
        #[cfg(feature = "ray")]
        EngineConfig::Ray(config) => Arc::new(crate::ray::RayEngine::new((**config).clone())?),
        #[cfg(feature = "kubernetes")]
        EngineConfig::Kubernetes(config) => {
            Arc::new(crate::kubernetes::KubernetesEngine::new((**config).clone()))
        }
        #[allow(unreachable_patterns, reason = "all engines are built in")]
        other => return Err(not_built(other)),
    })
}

/// How a driver opens its port, so that workers which this engine places reach it.
pub fn control(config: &EngineConfig) -> Result<ControlConfig> {
    Ok(match config {
        EngineConfig::Local => ControlConfig::default(),
        #[cfg(feature = "slurm")]
        EngineConfig::Slurm(_) => crate::slurm::control(),
        #[cfg(feature = "ray")]
        EngineConfig::Ray(_) => crate::ray::control(),
        #[cfg(feature = "kubernetes")]
        EngineConfig::Kubernetes(config) => crate::kubernetes::control(config)?,
        #[allow(unreachable_patterns, reason = "all engines are built in")]
        other => return Err(not_built(other)),
    })
}

/// What places workers for a driver that runs as this engine's job; an error where this process is none.
pub async fn spawner(config: &EngineConfig) -> Result<Arc<dyn Spawner>> {
    Ok(match config {
        EngineConfig::Local => {
            use crate::local::{LocalConfig, LocalSpawner};
            // It starts a thread and a process.
            let made = tokio::task::spawn_blocking(|| LocalSpawner::new(LocalConfig::default())).await;
            Arc::new(made.unwrap_or_else(|error| {
                Err(Error::SpawnerGone { engine: "local", cause: error.to_string() })
            })?)
        }
        #[cfg(feature = "slurm")]
        EngineConfig::Slurm(config) => {
            Arc::new(crate::slurm::SlurmSpawner::from_env((**config).clone()).await?)
        }
        #[cfg(feature = "ray")]
        EngineConfig::Ray(config) => Arc::new(crate::ray::RaySpawner::from_env((**config).clone()).await?),
        #[cfg(feature = "kubernetes")]
        EngineConfig::Kubernetes(config) => {
            Arc::new(crate::kubernetes::KubernetesSpawner::from_env((**config).clone()).await?)
        }
        #[allow(unreachable_patterns, reason = "all engines are built in")]
        other => return Err(not_built(other)),
    })
}

#[allow(dead_code, reason = "all engines are built in")]
fn not_built(config: &EngineConfig) -> Error {
    Error::NotBuilt { engine: config.name() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_data_in_every_build() {
        let text = r#"{"Slurm": {"partition": "gpu", "nodes": 2}}"#;
        let config: EngineConfig = serde_json::from_str(text).unwrap();
        let wanted = SlurmConfig { partition: Some("gpu".into()), nodes: Some(2), ..SlurmConfig::default() };
        assert_eq!(config, wanted.into());
        assert!(serde_json::from_str::<EngineConfig>(r#"{"Slurm": {"partitions": "gpu"}}"#).is_err());
        assert_eq!(EngineConfig::default(), serde_json::from_str("\"Local\"").unwrap());

        let built = engine(&config, Path::new("/nowhere"));
        if cfg!(feature = "slurm") {
            assert_eq!(built.unwrap().name(), config.name());
        } else {
            assert!(built.unwrap_err().to_string().contains("the cargo feature `slurm`"));
        }
    }
}
