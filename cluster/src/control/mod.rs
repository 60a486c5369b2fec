//! The controller's port: workers call it, gangs are supervised behind it, and HTTP can be served beside it.
//!
//! One [`Control`] serves a whole driver, however many gangs it runs. It listens on the loopback address and any free port
//! unless told otherwise. Every call carries the run's [`Token`]; with a [`Tls`] configuration the port speaks TLS only.

pub(crate) mod rendezvous;
mod service;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::service::Routes;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::env;
use crate::gang::actor::Inbound;
use crate::token::Token;
use crate::{Error, Result};
pub use rendezvous::RendezvousStore;

/// The largest frame on the control stream, in bytes.
pub(crate) const FRAME_LIMIT: usize = 1 << 20;

/// The TLS side of a controller, as PEM texts. Workers are known by their token, so they need no certificate.
#[derive(Clone)]
pub struct Tls {
    /// The certificate chain.
    pub certificate: String,
    /// Its private key.
    pub key: String,
    /// The authority that workers shall trust, which is passed to them.
    pub authority: String,
    /// The name in the certificate, where it is not the host that workers dial.
    pub name: Option<String>,
}

/// How the port is opened.
#[derive(Clone)]
pub struct ControlConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The host workers dial; the address listened on if not given.
    pub advertise: Option<String>,
    /// The run's secret; drawn at random if not given.
    pub token: Option<Token>,
    /// TLS, if wanted.
    pub tls: Option<Tls>,
    /// How long a caller may take to say who it is.
    pub hello_timeout: Duration,
    /// HTTP to be served on the same port.
    pub http: Option<axum::Router>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            token: None,
            tls: None,
            hello_timeout: Duration::from_secs(5),
            http: None,
        }
    }
}

impl ControlConfig {
    /// A port on all addresses of this host, which workers dial under this name.
    #[must_use]
    pub fn everywhere(host: impl Into<String>) -> Self {
        // A host without IPv6 has no such address to bind.
        let v6 = std::net::TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok();
        let any = if v6 { Ipv6Addr::UNSPECIFIED.into() } else { IpAddr::from([0, 0, 0, 0]) };
        Self { listen: (any, 0).into(), advertise: Some(host.into()), ..Self::default() }
    }
}

/// What the services and the gangs share.
pub(crate) struct Shared {
    pub(crate) token: Token,
    pub(crate) address: String,
    pub(crate) rendezvous: Arc<RendezvousStore>,
    pub(crate) hello_timeout: Duration,
    tls: Option<Tls>,
    gangs: Mutex<HashMap<u64, mpsc::Sender<Inbound>>>,
    next_gang: AtomicU64,
}

impl Shared {
    /// Gives a gang its number; calls for that number go to `gang` until it is removed.
    pub(crate) fn enter(&self, gang: mpsc::Sender<Inbound>) -> u64 {
        let number = self.next_gang.fetch_add(1, Ordering::Relaxed);
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner).insert(number, gang);
        number
    }

    /// What a worker of the gang needs in its environment to call home.
    pub(crate) fn environment(&self, gang: u64) -> Vec<(&'static str, String)> {
        let mut variables = vec![
            (env::ADDR, self.address.clone()),
            (env::TOKEN, self.token.expose().to_owned()),
            (env::GANG, gang.to_string()),
        ];
        if let Some(tls) = &self.tls {
            variables.push((env::AUTHORITY, tls.authority.clone()));
            variables.extend(tls.name.clone().map(|name| (env::TLS_NAME, name)));
        }
        variables
    }

    pub(crate) fn remove(&self, gang: u64) {
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner).remove(&gang);
    }

    fn gang(&self, number: u64) -> Option<mpsc::Sender<Inbound>> {
        self.gangs.lock().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }
}

/// The open port. Dropping it closes the port; gangs behind it then lose their workers.
pub struct Control {
    pub(crate) shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

impl Control {
    /// Opens the port.
    pub async fn bind(config: ControlConfig) -> Result<Self> {
        let unusable = |source| Error::Listen { address: config.listen.to_string(), source };
        let listener = TcpListener::bind(config.listen).await.map_err(unusable)?;
        let bound = listener.local_addr().map_err(unusable)?;
        let host = match &config.advertise {
            Some(host) => format!("{host}:{}", bound.port()),
            None => bound.to_string(),
        };
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        Self::serve(config, incoming, &host)
    }

    /// Serves connections accepted elsewhere; workers dial `host`, a name with a port. For listeners that are not plain
    /// TCP, and for simulated networks.
    pub fn serve<I, IO>(config: ControlConfig, incoming: I, host: &str) -> Result<Self>
    where
        I: Stream<Item = std::io::Result<IO>> + Send + 'static,
        IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            token: config.token.unwrap_or_else(Token::random),
            address: format!("{scheme}://{host}"),
            rendezvous: Arc::new(RendezvousStore::default()),
            hello_timeout: config.hello_timeout,
            tls: config.tls,
            gangs: Mutex::default(),
            next_gang: AtomicU64::new(1),
        });
        let mut server = Server::builder().accept_http1(config.http.is_some());
        if let Some(tls) = &shared.tls {
            let identity = ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
            let unusable = |error: tonic::transport::Error| Error::Tls {
                side: "the controller",
                reason: crate::error::chain(&error),
            };
            server = server.tls_config(identity).map_err(unusable)?;
        }
        let services = service::routes(&shared);
        let routes = match config.http {
            Some(http) => Routes::from(http.merge(services.into_axum_router())),
            None => services,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let router = server.add_routes(routes);
        let address = shared.address.clone();
        tokio::spawn(async move {
            let ended = router.serve_with_incoming_shutdown(incoming, async {
                stopped.await.ok();
            });
            if let Err(error) = ended.await {
                tracing::error!(address, error = crate::error::chain(&error), "the control port failed");
            }
        });
        Ok(Self { shared, _stop: stop })
    }

    /// What workers dial, as in `http://127.0.0.1:4711`.
    pub fn address(&self) -> &str {
        &self.shared.address
    }

    /// The run's secret.
    pub fn token(&self) -> &Token {
        &self.shared.token
    }
}
