//! Calls of the dashboard: the token on each, a deadline on each, and what each refusal means.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::{ENGINE, RayConfig};
use crate::error::{Error, Result, chain};
use crate::token::Token;

/// The most of an answer's text that stands in an error.
const SHOWN: usize = 400;

/// The dashboard of one cluster.
#[derive(Clone, Debug)]
pub(super) struct Dashboard {
    client: Client,
    address: String,
    token: Option<Token>,
    patience: Duration,
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: String,
}

impl Dashboard {
    pub(super) fn new(config: &RayConfig) -> Result<Self> {
        // A program that has chosen its own cryptography keeps it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = Client::builder().connect_timeout(config.request_patience()).no_proxy();
        let unusable = |reason: String| Error::Tls { side: "the Ray engine", reason };
        if let Some(path) = &config.authority {
            let pem = read(path)?;
            let authority = Certificate::from_pem(&pem)
                .map_err(|error| unusable(format!("{}: {}", path.display(), chain(&error))))?;
            client = client.tls_certs_only([authority]);
        }
        let client = client.build().map_err(|error| unusable(chain(&error)))?;
        let address = config.address.trim_end_matches('/').to_owned();
        let token = token(config, |name| std::env::var_os(name).map(PathBuf::from))?;
        Ok(Self { client, address, token, patience: config.request_patience() })
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.address));
        match &self.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        }
    }

    /// Sends a request and waits for the head of the answer; a refusal that the caller may understand is his.
    async fn send(&self, request: RequestBuilder) -> Result<Result<Response, Refusal>> {
        let answer = match tokio::time::timeout(self.patience, request.send()).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(self.unreachable(chain(&error.without_url()))),
            Err(_) => return Err(self.unreachable(format!("no answer within {:?}", self.patience))),
        };
        let status = answer.status();
        if status.is_success() {
            return Ok(Ok(answer));
        }
        let text = tokio::time::timeout(self.patience, answer.text()).await;
        let text = text.ok().and_then(Result::ok).unwrap_or_default();
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Err(self.unauthorized(&text));
        }
        Ok(Err(Refusal { status, text }))
    }

    fn unreachable(&self, reason: String) -> Error {
        let advice = "is the cluster up, and is this the address of its dashboard (port 8265 unless chosen otherwise)?";
        Error::Unreachable { engine: ENGINE, address: self.address.clone(), reason, advice }
    }

    fn unauthorized(&self, text: &str) -> Error {
        let reason = match self.token {
            Some(_) => format!("it does not know the token that was presented ({})", shorten(text)),
            None => format!("it wants a token and none was found ({})", shorten(text)),
        };
        let advice =
            "put the cluster's token into RAY_AUTH_TOKEN, or name a file that holds it as `token_file`";
        Error::Unauthorized { engine: ENGINE, address: self.address.clone(), reason, advice }
    }

    /// An answer to a question that the dashboard has no reason to refuse.
    pub(super) fn refused(&self, what: impl Into<String>, refusal: &Refusal) -> Error {
        let (what, reason) = (what.into(), format!("{}: {}", refusal.status, shorten(&refusal.text)));
        let advice = match refusal.status {
            StatusCode::NOT_FOUND => format!(": is {} the dashboard of a Ray cluster?", self.address),
            _ => String::new(),
        };
        Error::Engine { engine: ENGINE, what, reason, advice }
    }

    /// Reads an answer as JSON.
    async fn read<T: DeserializeOwned>(&self, what: &str, answer: Response) -> Result<T> {
        let bytes = match tokio::time::timeout(self.patience, answer.bytes()).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Err(self.unreachable(chain(&error.without_url()))),
            Err(_) => {
                return Err(self.unreachable(format!("the answer did not end within {:?}", self.patience)));
            }
        };
        serde_json::from_slice(&bytes).map_err(|error| Error::Engine {
            engine: ENGINE,
            what: what.to_owned(),
            reason: format!(
                "its answer cannot be read ({error}): {}",
                shorten(&String::from_utf8_lossy(&bytes))
            ),
            advice: format!(": is {} the dashboard of a Ray cluster?", self.address),
        })
    }

    /// Asks; `None` where there is no such thing.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.send(self.request(Method::GET, path)).await? {
            Ok(answer) => self.read(path, answer).await.map(Some),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(None),
            Err(refusal) => Err(self.refused(format!("`GET {path}`"), &refusal)),
        }
    }

    /// Asks for what must be there.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let missing = Refusal { status: StatusCode::NOT_FOUND, text: "there is no such page".into() };
        self.find(path).await?.ok_or_else(|| self.refused(format!("`GET {path}`"), &missing))
    }

    /// Whether there is such a thing.
    pub(super) async fn has(&self, path: &str) -> Result<bool> {
        match self.send(self.request(Method::GET, path)).await? {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Ok(false),
            Err(refusal) => Err(self.refused(format!("`GET {path}`"), &refusal)),
        }
    }

    pub(super) async fn put(&self, path: &str, body: Vec<u8>) -> Result<()> {
        let size = body.len();
        match self.send(self.request(Method::PUT, path).body(body)).await? {
            Ok(_) => Ok(()),
            Err(refusal) => Err(self.refused(format!("a package of {size} bytes (`PUT {path}`)"), &refusal)),
        }
    }

    pub(super) async fn post(&self, path: &str, body: &serde_json::Value) -> Result<Result<(), Refusal>> {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        Ok(self.send(request.body(body.to_string())).await?.map(drop))
    }

    /// An answer that is read while it grows.
    pub(super) async fn stream(&self, path: &str) -> Result<Result<Response, Refusal>> {
        self.send(self.request(Method::GET, path)).await
    }
}

/// The token, from where Ray's own tools look for it.
fn token(config: &RayConfig, variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Option<Token>> {
    let trimmed = |text: &str| Some(text.trim()).filter(|text| !text.is_empty()).map(Token::new);
    let of_file = |file: &Path| Ok(trimmed(&String::from_utf8_lossy(&read(file)?)));
    if let Some(file) = &config.token_file {
        return of_file(file);
    }
    if let Some(token) = variable("RAY_AUTH_TOKEN").and_then(|text| trimmed(&text.to_string_lossy())) {
        return Ok(Some(token));
    }
    let at_home = || variable("HOME").map(|home| home.join(".ray/auth_token")).filter(|file| file.exists());
    match variable("RAY_AUTH_TOKEN_PATH").or_else(at_home) {
        Some(file) => of_file(&file),
        None => Ok(None),
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|source| Error::File { operation: "read", path: path.to_owned(), source })
}

/// What a person needs of an answer: of a Python traceback its last line.
pub(super) fn shorten(text: &str) -> String {
    let text = text.trim();
    let text = match text.starts_with("Traceback") {
        true => text.lines().last().unwrap_or(text),
        false => text,
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_where_rays_own_tools_look() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = home.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        };
        let found = |config: &RayConfig, set: &[(&str, PathBuf)]| {
            let look = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
            token(config, look).map(|token| token.map(|token| token.expose().to_owned()))
        };
        let config = RayConfig::default();
        let at_home = ("HOME", home.path().to_owned());
        assert_eq!(found(&config, std::slice::from_ref(&at_home)).unwrap(), None);
        file(".ray/auth_token", "at home\n");
        assert_eq!(found(&config, std::slice::from_ref(&at_home)).unwrap().unwrap(), "at home");
        let by_path = ("RAY_AUTH_TOKEN_PATH", file("by-path", "by path"));
        assert_eq!(found(&config, &[at_home.clone(), by_path.clone()]).unwrap().unwrap(), "by path");
        let set = ("RAY_AUTH_TOKEN", PathBuf::from("set"));
        let everywhere = [at_home, by_path, set];
        assert_eq!(found(&config, &everywhere).unwrap().unwrap(), "set");
        let named = RayConfig { token_file: Some(file("named", "named")), ..RayConfig::default() };
        assert_eq!(found(&named, &everywhere).unwrap().unwrap(), "named");
        let missing = RayConfig { token_file: Some("/nowhere/token".into()), ..RayConfig::default() };
        assert!(found(&missing, &[]).unwrap_err().to_string().contains("/nowhere/token"));
    }

    #[test]
    fn of_a_traceback_the_last_line_counts() {
        let text = "Traceback (most recent call last):\n  File \"x\"\nValueError: it already exists\n";
        assert_eq!(shorten(text), "ValueError: it already exists");
        assert!(shorten(&"\u{e9}".repeat(1000)).len() <= 2 * SHOWN + 3);
    }
}
