//! What else the control port does: the rendezvous store, TLS, and HTTP beside it.

mod support;

use std::time::{Duration, Instant};

use regatta_cluster::control::Tls;
use regatta_cluster::worker::RendezvousClient;
use regatta_cluster::*;
use support::*;

async fn rendezvous(crew: &Crew, rank: usize, generation: u64) -> RendezvousClient {
    let assignment = worker::Assignment {
        generation,
        run: "test".into(),
        rank: rank as u32,
        world: crew.workers.len() as u32,
        local_rank: rank as u32,
        local_world: crew.workers.len() as u32,
    };
    crew.workers[rank].rendezvous(&assignment)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rendezvous_lets_ranks_find_each_other() {
    let crew = running(2).await;
    let (a, b) = (rendezvous(&crew, 0, 1).await, rendezvous(&crew, 1, 1).await);
    // A reader that comes first is woken by the writer.
    let waiting = tokio::spawn({
        let b = b.clone();
        async move { b.get("address", PATIENCE).await }
    });
    a.set("address", b"10.0.0.1:7".to_vec()).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), b"10.0.0.1:7");
    b.wait(&["address"], PATIENCE).await.unwrap();

    assert_eq!(a.add("joined", 1).await.unwrap(), 1);
    assert_eq!(b.add("joined", 2).await.unwrap(), 3);
    let error = a.add("address", 1).await.unwrap_err();
    assert!(error.to_string().contains("does not hold a number"), "{error}");

    assert_eq!(a.compare_set("leader", None, b"a".to_vec()).await.unwrap(), Ok(()));
    assert_eq!(b.compare_set("leader", None, b"b".to_vec()).await.unwrap(), Err(Some(b"a".to_vec())));
    assert_eq!(b.compare_set("leader", Some(b"a".to_vec()), b"b".to_vec()).await.unwrap(), Ok(()));

    // The same from a thread that knows nothing of futures.
    let value =
        tokio::task::spawn_blocking(move || a.block_on(|a| async move { a.get("leader", PATIENCE).await }));
    assert_eq!(value.await.unwrap().unwrap(), b"b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rendezvous_wait_ends_at_its_deadline_and_names_the_key() {
    let crew = running(1).await;
    let store = rendezvous(&crew, 0, 1).await;
    store.set("there", Vec::new()).await.unwrap();
    let began = Instant::now();
    let error = store.wait(&["there", "missing"], Duration::from_millis(200)).await.unwrap_err();
    assert!(began.elapsed() >= Duration::from_millis(200) && began.elapsed() < Duration::from_secs(4));
    assert!(error.to_string().contains("\"missing\""), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_generation_that_is_over_has_no_rendezvous_and_wakes_who_waits() {
    let mut crew = running(1).await;
    let store = rendezvous(&crew, 0, 1).await;
    store.set("key", Vec::new()).await.unwrap();
    let other = rendezvous(&crew, 0, 2).await.get("key", Duration::ZERO).await.unwrap_err();
    assert!(other.to_string().contains("not the present one"), "{other}");
    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.get("never", PATIENCE).await }
    });
    crew.workers[0].finished(Vec::new()).unwrap();
    until(&mut crew.gang, "the end", |event| {
        matches!(event, GangEvent::Happened(gang::state::Event::Finished { .. })).then_some(())
    })
    .await;
    crew.gang.start(Begin::default()).unwrap();
    let woken = tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("woken").unwrap();
    assert!(woken.unwrap_err().to_string().contains("not the present one"));
    // Nothing is carried over from one generation to the next.
    let next = rendezvous(&crew, 0, 2).await;
    assert!(next.get("key", Duration::ZERO).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rendezvous_needs_the_token() {
    let crew = running(1).await;
    let mut config = crew.launched.worker(0);
    config.token = Token::random();
    let stranger = Worker::connect(config).unwrap();
    while stranger.try_next().is_ok() {
        tokio::task::yield_now().await;
    }
    let assignment = worker::Assignment {
        generation: 1,
        run: "test".into(),
        rank: 0,
        world: 1,
        local_rank: 0,
        local_world: 1,
    };
    let error = stranger.rendezvous(&assignment).set("key", Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
}

fn tls() -> (Tls, rcgen::CertifiedIssuer<'static, rcgen::KeyPair>) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let server = CertificateParams::new(vec!["controller.test".into()]).unwrap();
    let certificate = server.signed_by(&key, &authority).unwrap();
    let tls = Tls {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
        authority: authority.pem(),
        name: Some("controller.test".into()),
    };
    (tls, authority)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_workers_trust_only_their_controller() {
    let (tls, _) = tls();
    let config = ControlConfig { tls: Some(tls), ..ControlConfig::default() };
    let control = Control::bind(config).await.unwrap();
    assert!(control.address().starts_with("https://"));
    let mut crew = running_on(control, spec(1)).await;
    crew.workers[0].report(1, b"secret".to_vec()).unwrap();
    assert_eq!(
        message(&mut crew.gang).await.body,
        MessageBody::Report { step: 1, payload: b"secret".to_vec() }
    );

    // One that trusts another authority does not give its token away.
    let (other, _) = self::tls();
    let mut config = crew.launched.worker(0);
    config.authority = Some(other.authority);
    config.connect_timeout = Duration::from_millis(300);
    let error = Worker::connect(config).unwrap().next(PATIENCE).unwrap_err();
    assert!(
        matches!(&error, Error::ControllerLost { reason, .. } if reason.contains("certificate")),
        "{error}"
    );
    // And one that speaks in the clear is not heard.
    let mut config = crew.launched.worker(0);
    config.address = config.address.replace("https://", "http://");
    config.authority = None;
    config.connect_timeout = Duration::from_millis(300);
    assert!(Worker::connect(config).unwrap().next(PATIENCE).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_is_served_beside_the_workers() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let page = axum::Router::new().route("/hello", axum::routing::get(|| async { "a page" }));
    let config = ControlConfig { http: Some(page), ..ControlConfig::default() };
    let crew = running_on(Control::bind(config).await.unwrap(), spec(1)).await;
    let host = crew.control.address().trim_start_matches("http://").to_owned();
    let mut stream = tokio::net::TcpStream::connect(&host).await.unwrap();
    let request = format!("GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("a page"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_named() {
    let control = Control::bind(ControlConfig::default()).await.unwrap();
    let listen = control.address().trim_start_matches("http://").parse().unwrap();
    let Err(error) = Control::bind(ControlConfig { listen, ..ControlConfig::default() }).await else {
        panic!("two listen on {listen}")
    };
    assert!(error.to_string().contains(&listen.to_string()), "{error}");
}
