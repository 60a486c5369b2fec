//! What containers wrote, as whoever serves it does: the small server itself, or a node that a real API server asks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A file as it is, or as it grows until its writer is over.
pub(crate) fn follow(path: PathBuf, follow: bool, over: impl Fn() -> bool + Send + 'static) -> Body {
    let over = Arc::new(Mutex::new(over));
    Body::from_stream(futures_util::stream::unfold(0usize, move |at| {
        let (path, over) = (path.clone(), over.clone());
        async move {
            loop {
                // Its end before the look: what is read after it is all there is.
                let ended = over.lock().unwrap()();
                let all = std::fs::read(&path).unwrap_or_default();
                if all.len() > at {
                    let new = Bytes::copy_from_slice(&all[at..]);
                    return Some((Ok::<_, std::io::Error>(new), all.len()));
                }
                if ended || !follow {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }))
}

/// Serves with a certificate of its own, which API servers take if nobody tells them better.
pub(crate) async fn serve(routes: Router) -> (u16, JoinHandle<()>) {
    let own = rcgen::generate_simple_self_signed(vec!["127.0.0.1".into()]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], own.signing_key.into())
        .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = tcp.local_addr().unwrap().port();
    let tls = Tls { tcp, acceptor: Arc::new(config).into() };
    (port, tokio::spawn(async move { axum::serve(tls, routes).await.unwrap() }))
}

struct Tls {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, from)) = self.tcp.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, from);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}
