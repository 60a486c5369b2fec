//! What a worker needs to call home, and how it learns it from its environment.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Uri};

use super::sys;
use crate::link::Limits;
use crate::{Error, Result, Token, env};

/// A connection to the controller, of whatever kind.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// Opens connections to `host:port`, in place of TCP: for simulated networks.
pub type Dial = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Connection>>> + Send>> + Send + Sync,
>;

/// What becomes of a worker whose controller is gone, or does not want it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Orphan {
    /// The process gets this long to end by itself, then it is killed by its own control thread. No worker is left behind,
    /// whatever its main thread is stuck in.
    EndAfter(Duration),
    /// The calls of [`Worker`](super::Worker) fail, and the rest is the program's business.
    Tell,
}

/// How a worker calls home.
#[derive(Clone)]
pub struct WorkerConfig {
    /// The controller's address, as in `http://127.0.0.1:4711`.
    pub address: String,
    /// The run's secret.
    pub token: Token,
    /// The number of its gang.
    pub gang: u64,
    /// Its place there.
    pub slot: u32,
    /// Which launch of that place it is.
    pub attempt: u32,
    /// The authority to trust, as a PEM text, where the address is `https`.
    pub authority: Option<String>,
    /// The name in the controller's certificate, where it is not the address's host.
    pub tls_name: Option<String>,
    /// How long to try to reach the controller for the first time.
    pub connect_timeout: Duration,
    /// What becomes of the process without its controller.
    pub orphan: Orphan,
    /// How much may wait to be taken over by the controller. The window in it is the controller's to set.
    pub limits: Limits,
    /// How connections are opened; TCP if not given.
    pub dial: Option<Dial>,
}

impl WorkerConfig {
    /// A worker of the gang's slot at its first attempt, with the defaults.
    pub fn new(address: impl Into<String>, token: Token, gang: u64, slot: u32) -> Self {
        Self {
            address: address.into(),
            token,
            gang,
            slot,
            attempt: 1,
            authority: None,
            tls_name: None,
            connect_timeout: Duration::from_secs(30),
            orphan: Orphan::EndAfter(Duration::from_secs(5)),
            limits: Limits::default(),
            dial: None,
        }
    }

    /// Reads what the controller put into the environment of this process; the secret is removed from it at once.
    ///
    /// Call this at the top of `main`, while the process has one thread: see [`env::TOKEN`].
    pub fn from_env() -> Result<Self> {
        let address = text(env::ADDR)?;
        let token = match std::env::var(env::TOKEN_FD) {
            Ok(_) => sys::take_token_descriptor(number(env::TOKEN_FD)?)?,
            Err(_) => sys::take_token_variable()?,
        };
        let mut config = Self::new(address, Token::new(token), number(env::GANG)?, number(env::SLOT)?);
        config.attempt = number(env::ATTEMPT)?;
        config.authority = std::env::var(env::AUTHORITY).ok();
        config.tls_name = std::env::var(env::TLS_NAME).ok();
        Ok(config)
    }

    /// Whether this process was launched as a worker.
    pub fn is_worker() -> bool {
        std::env::var_os(env::ADDR).is_some() && std::env::var_os(env::SLOT).is_some()
    }

    fn endpoint(&self) -> Result<Endpoint, String> {
        let endpoint = Endpoint::from_shared(self.address.clone())
            .map_err(|error| format!("the address is not one: {}", crate::error::chain(&error)))?
            .tcp_nodelay(true);
        let Some(authority) = &self.authority else { return Ok(endpoint) };
        let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority));
        if let Some(name) = &self.tls_name {
            tls = tls.domain_name(name);
        }
        endpoint.tls_config(tls).map_err(|error| format!("TLS: {}", crate::error::chain(&error)))
    }

    /// Opens a channel to the controller.
    pub(super) async fn connect(&self) -> Result<Channel, String> {
        let endpoint = self.endpoint()?;
        let Some(dial) = self.dial.clone() else {
            return endpoint.connect().await.map_err(|error| crate::error::chain(&error));
        };
        let connector = tower::service_fn(move |uri: Uri| {
            let connection = dial(uri.authority().map(ToString::to_string).unwrap_or_default());
            async move { connection.await.map(hyper_util::rt::TokioIo::new) }
        });
        endpoint.connect_with_connector(connector).await.map_err(|error| crate::error::chain(&error))
    }
}

fn text(variable: &'static str) -> Result<String> {
    std::env::var(variable).map_err(|_| Error::Environment {
        variable,
        problem: "is not set: this process was not launched as a worker".into(),
    })
}

fn number<T: std::str::FromStr>(variable: &'static str) -> Result<T> {
    let text = text(variable)?;
    text.parse()
        .map_err(|_| Error::Environment { variable, problem: format!("is {text:?}, which is not a number") })
}
