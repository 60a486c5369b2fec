//! The rendezvous store: both kinds by the same tests, and the server against strangers and nonsense.

use proptest::prelude::*;
use regatta_comm::Error;
use regatta_comm::conformance::store_keeps_its_promises;
use regatta_comm::store::wire::{Reply, Request};
use regatta_comm::store::{MemoryStore, Store, StoreServer, TcpStore, Token};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(10);

fn served() -> (StoreServer, TcpStore) {
    let token = Token::new("secret");
    let server = StoreServer::start(TcpListener::bind("127.0.0.1:0").unwrap(), token.clone()).unwrap();
    let client = TcpStore::new(server.address().to_string(), token);
    (server, client)
}

#[test]
fn memory_conforms() {
    store_keeps_its_promises(Arc::new(MemoryStore::new()));
}

#[test]
fn tcp_conforms() {
    let (_server, client) = served();
    store_keeps_its_promises(Arc::new(client));
}

#[test]
fn a_wrong_token_gets_nothing_and_disturbs_nothing() {
    let (server, client) = served();
    client.set("k", b"v", SOON).unwrap();
    let stranger = TcpStore::new(server.address().to_string(), Token::new("guess"));
    let started = Instant::now();
    let end = stranger.get("k", SOON);
    assert!(matches!(end, Err(Error::Denied { .. })), "{end:?}");
    assert!(started.elapsed() < Duration::from_secs(5), "a wrong token is not tried again and again");
    assert_eq!(client.get("k", SOON).unwrap().as_deref(), Some(&b"v"[..]));
}

#[test]
fn silent_and_talkative_strangers_disturb_nobody() {
    let (server, client) = served();
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(server.address()).unwrap()).collect();
    let mut talkative = TcpStream::connect(server.address()).unwrap();
    // As much nonsense as fits; the server hangs up after the first wrong proof.
    let _ = talkative.write_all(&[0xff; 1 << 16]);
    let mut got = Vec::new();
    talkative.set_read_timeout(Some(SOON)).unwrap();
    let _ = talkative.read_to_end(&mut got);
    assert!(got.len() <= 40, "a stranger got {} bytes, more than the challenge", got.len());
    let started = Instant::now();
    client.set("k", b"v", SOON).unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "members wait for strangers: {:?}",
        started.elapsed()
    );
    drop(silent);
}

#[test]
fn a_server_that_is_gone_is_told_in_time_and_its_port_is_free() {
    let (server, client) = served();
    client.set("k", b"v", SOON).unwrap();
    let address = server.address();
    drop(server);
    let started = Instant::now();
    assert!(matches!(client.get("k", Duration::from_millis(300)), Err(Error::Store { .. })));
    assert!(started.elapsed() < SOON);
    // The same client finds a new server at the same place.
    let again = StoreServer::start(TcpListener::bind(address).unwrap(), Token::new("secret")).unwrap();
    again.store().set("k", b"w", SOON).unwrap();
    assert_eq!(client.get("k", SOON).unwrap().as_deref(), Some(&b"w"[..]));
}

#[test]
fn values_too_long_are_refused_here() {
    let (_server, client) = served();
    assert!(matches!(client.set("k", &vec![0; (1 << 20) + 1], SOON), Err(Error::InvalidArgument { .. })));
    client.set("k", &vec![7; 1 << 20], SOON).unwrap();
    assert_eq!(client.get("k", SOON).unwrap().unwrap().len(), 1 << 20);
}

fn some_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..64)
}

fn request() -> impl Strategy<Value = Request> {
    let key = "[a-z/0-9]{0,20}";
    prop_oneof![
        key.prop_map(|key| Request::Get { key }),
        (key, some_bytes()).prop_map(|(key, value)| Request::Set { key, value }),
        (key, some_bytes(), any::<u64>()).prop_map(|(key, value, ttl_millis)| Request::Lease {
            key,
            value,
            ttl_millis
        }),
        (key, any::<u64>()).prop_map(|(key, millis)| Request::Wait { key, millis }),
        (key, any::<i64>()).prop_map(|(key, delta)| Request::Add { key, delta }),
        (key, prop::option::of(some_bytes()), some_bytes())
            .prop_map(|(key, expected, new)| Request::CompareSet { key, expected, new }),
        key.prop_map(|key| Request::Delete { key }),
    ]
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::decode(&bytes);
        let _ = Reply::decode(&bytes);
    }

    #[test]
    fn requests_come_back(request in request(), cut in any::<prop::sample::Index>(), flip in any::<prop::sample::Index>()) {
        let bytes = request.encode().unwrap();
        prop_assert_eq!(Request::decode(&bytes).unwrap(), request.clone());
        // Cut anywhere, it is refused; with a bit flipped it is refused or something else, and never a panic.
        prop_assert!(Request::decode(&bytes[..cut.index(bytes.len())]).is_err());
        let mut changed = bytes.clone();
        changed[flip.index(bytes.len())] ^= 4;
        prop_assert_ne!(Request::decode(&changed).ok(), Some(request));
    }
}
