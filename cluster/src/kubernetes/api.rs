//! The API server: how it is reached, and what its refusals mean.

use std::time::Duration;

use kube::api::{Api, DeleteParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{ENGINE, KubernetesConfig};
use crate::error::{Error, Result, chain};

/// The port of an API server's refusals, by its code.
const UNAUTHORIZED: u16 = 401;
const FORBIDDEN: u16 = 403;
const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const INVALID: u16 = 422;

/// A client for the cluster that the kubeconfig names, or the one this process is in.
pub(super) async fn connect(config: &KubernetesConfig) -> Result<Client> {
    let found = match &config.context {
        // Inside a cluster there is no kubeconfig, and no context to choose.
        Some(context) if Kubeconfig::read().is_ok() => {
            let options =
                KubeConfigOptions { context: Some(context.clone()), ..KubeConfigOptions::default() };
            Config::from_kubeconfig(&options).await.map_err(|error| chain(&error))
        }
        _ => Config::infer().await.map_err(|error| chain(&error)),
    };
    let unusable = |reason: String| Error::Engine {
        engine: ENGINE,
        what: "its configuration".into(),
        reason,
        advice: ": `kubectl config view --minify` shows what is in use; `KUBECONFIG` names the file".into(),
    };
    let mut found = found.map_err(unusable)?;
    found.connect_timeout = Some(super::seconds(config.api_seconds));
    Client::try_from(found).map_err(|error| unusable(chain(&error)))
}

/// Makes an answer of the API server come in time, or an error that says what was asked.
pub(super) async fn ask<T>(
    what: &str,
    within: Duration,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(within, answer).await {
        Ok(answer) => answer.map_err(|error| refused(what, &error)),
        Err(_) => Err(silent(what, within)),
    }
}

/// As [`ask`], with `None` where there is no such thing.
pub(super) async fn ask_for<T>(
    what: &str,
    within: Duration,
    answer: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>> {
    match tokio::time::timeout(within, answer).await {
        Ok(Err(error)) if code(&error) == Some(NOT_FOUND) => Ok(None),
        Ok(answer) => answer.map(Some).map_err(|error| refused(what, &error)),
        Err(_) => Err(silent(what, within)),
    }
}

/// Creates an object; `None` where one of its name is there already.
pub(super) async fn create<K>(api: &Api<K>, what: &str, within: Duration, object: Value) -> Result<Option<K>>
where
    K: Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
{
    let object = serde_json::from_value(object).map_err(|error| Error::Engine {
        engine: ENGINE,
        what: what.to_owned(),
        reason: error.to_string(),
        advice: ": look at `pod` and `container` of the Kubernetes configuration".into(),
    })?;
    let params = kube::api::PostParams::default();
    match tokio::time::timeout(within, api.create(&params, &object)).await {
        Ok(Err(error)) if code(&error) == Some(CONFLICT) => Ok(None),
        Ok(answer) => answer.map(Some).map_err(|error| refused(what, &error)),
        Err(_) => Err(silent(what, within)),
    }
}

/// Deletes a pod, with so many seconds to end by itself; 0 does not wait for its node. One that is not there is no error.
pub(super) async fn delete<K>(api: &Api<K>, name: &str, within: Duration, seconds: u32) -> Result<()>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let params = DeleteParams { grace_period_seconds: Some(seconds), ..DeleteParams::background() };
    ask_for(&format!("deleting `{name}`"), within, api.delete(name, &params)).await?;
    Ok(())
}

fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn silent(what: &str, within: Duration) -> Error {
    Error::Engine {
        engine: ENGINE,
        what: what.to_owned(),
        reason: format!("no answer within {within:?}"),
        advice: ": is the API server up? `kubectl cluster-info` tells".into(),
    }
}

/// The error of what was not done, in the API server's words and with what they mean.
pub(super) fn refused(what: &str, error: &kube::Error) -> Error {
    let (reason, advice) = match error {
        kube::Error::Api(status) => {
            let advice = match status.code {
                UNAUTHORIZED => {
                    ": the token or certificate is wrong or has expired; log in again, or see the user in `kubectl config view`"
                }
                FORBIDDEN if over_quota(&status.message) => {
                    ": `kubectl describe resourcequota` shows what is used; end something, or ask for less"
                }
                FORBIDDEN if status.message.contains("PodSecurity") => {
                    ": the namespace wants more security; say it in `pod` and `container` of the Kubernetes configuration"
                }
                FORBIDDEN => {
                    ": the right is missing; `kubectl auth can-i --list` shows those there are, and the manifest of the Kubernetes page grants what is needed"
                }
                INVALID => ": look at the Kubernetes configuration, `pod` and `container` in it above all",
                NOT_FOUND => ": does the namespace exist? `kubectl get namespaces` lists them",
                _ => "",
            };
            (status.message.clone(), advice)
        }
        other => {
            (chain(other), ": is the API server up, and reachable from here? `kubectl cluster-info` tells")
        }
    };
    Error::Engine { engine: ENGINE, what: what.to_owned(), reason, advice: advice.into() }
}

/// Whether this refusal means that there is no room under a quota, now.
pub(super) fn over_quota(message: &str) -> bool {
    message.contains("exceeded quota")
}

/// Whether the API server refused for want of a right.
pub(super) fn is_forbidden(error: &kube::Error) -> bool {
    code(error) == Some(FORBIDDEN)
}
