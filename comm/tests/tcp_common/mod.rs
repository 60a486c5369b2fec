//! Ranks as threads over real sockets, and a store that can put something between them.
#![allow(dead_code, reason = "each test binary uses a part")]

use regatta_comm::store::{MemoryStore, Store};
use regatta_comm::{ProcessGroup, Rendezvous, Result, Transport};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Long enough for a loaded machine, short enough to notice.
const JOIN: Duration = Duration::from_secs(30);

pub(crate) fn who(store: Arc<dyn Store>, rank: usize, world: usize) -> Rendezvous {
    Rendezvous::new(store, rank, world).transport(Transport::Tcp).within(JOIN)
}

pub(crate) fn join(store: Arc<dyn Store>, rank: usize, world: usize) -> Result<ProcessGroup> {
    who(store, rank, world).join()
}

/// Runs `body` as each rank of a world connected over TCP.
pub(crate) fn run<T: Send>(world: usize, body: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    let store = Arc::new(MemoryStore::default());
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|rank| {
                let (store, body) = (store.clone(), &body);
                scope.spawn(move || body(join(store, rank, world).unwrap()))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// What happens to a connection between two ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Nothing: the ranks are connected directly.
    None,
    /// Bytes pass through.
    Relay,
    /// One bit of the byte with this number after the handshake is flipped, on the first lane, towards the lower rank.
    Flip(usize),
    /// All connections end after so many bytes on one.
    Cut(usize),
    /// After so many bytes nothing passes any more, but all stay open.
    Swallow(usize),
    /// Strangers connect to the lower rank: some silent, some talking nonsense.
    Strangers,
}

/// A store in which the ranks find a proxy in place of each other.
#[derive(Debug)]
pub(crate) struct Rewritten {
    inner: MemoryStore,
    treatment: Treatment,
    heard: Arc<Mutex<Vec<usize>>>,
}

impl Rewritten {
    pub(crate) fn new(treatment: Treatment) -> Arc<Rewritten> {
        Arc::new(Rewritten { inner: MemoryStore::default(), treatment, heard: Arc::default() })
    }

    /// How many bytes each stranger got before it was shown out.
    pub(crate) fn heard(&self) -> Vec<usize> {
        let expected = 6;
        for _ in 0..1000 {
            if self.heard.lock().unwrap().len() == expected {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        self.heard.lock().unwrap().clone()
    }

    pub(crate) fn copy_when_there(&self, from: &str, to: &str) {
        let value = self.inner.wait(from, JOIN).unwrap();
        self.inner.set(to, &value, JOIN).unwrap();
    }
}

impl Store for Rewritten {
    fn get(&self, key: &str, within: Duration) -> Result<Option<Vec<u8>>> {
        self.inner.get(key, within)
    }
    fn set(&self, key: &str, value: &[u8], within: Duration) -> Result<()> {
        let address = String::from_utf8(value.to_vec()).unwrap();
        match self.treatment {
            Treatment::None => self.inner.set(key, value, within),
            _ if !key.ends_with("tcp/0") => self.inner.set(key, value, within),
            Treatment::Strangers => {
                for number in 0..6 {
                    let (address, heard) = (address.clone(), self.heard.clone());
                    let stranger = TcpStream::connect(&address).unwrap();
                    std::thread::spawn(move || heard.lock().unwrap().push(visit(stranger, number)));
                }
                self.inner.set(key, value, within)
            }
            treatment => {
                let proxy = start_proxy(address, treatment);
                self.inner.set(key, proxy.as_bytes(), within)
            }
        }
    }
    fn lease(&self, key: &str, value: &[u8], ttl: Duration, within: Duration) -> Result<()> {
        self.inner.lease(key, value, ttl, within)
    }
    fn wait(&self, key: &str, within: Duration) -> Result<Vec<u8>> {
        self.inner.wait(key, within)
    }
    fn add(&self, key: &str, delta: i64, within: Duration) -> Result<i64> {
        self.inner.add(key, delta, within)
    }
    fn compare_set(
        &self,
        key: &str,
        expected: Option<&[u8]>,
        new: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>> {
        self.inner.compare_set(key, expected, new, within)
    }
    fn delete(&self, key: &str, within: Duration) -> Result<bool> {
        self.inner.delete(key, within)
    }
}

/// Half of the strangers say nothing, half talk nonsense; how much they are told.
fn visit(mut stream: TcpStream, number: usize) -> usize {
    if number % 2 == 1 {
        let _ = stream.write_all(&[0xA5; 4096]);
    }
    let (mut heard, mut buffer) = (0, [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        heard += n;
    }
    heard
}

/// Bytes of a handshake towards the accepting end: nonce and proof, then the sealed greeting.
const HANDSHAKE: usize = 64 + 4 + 16 + 36;
/// Connections are made in the order control, direct, lanes.
const FIRST_LANE: usize = 2;

/// Listens, and passes what comes on to `target`; returns its own address.
fn start_proxy(target: String, treatment: Treatment) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let all = Arc::new(Mutex::new(Vec::new()));
        for (number, stream) in listener.incoming().enumerate() {
            let (Ok(outside), Ok(inside)) = (stream, TcpStream::connect(&target)) else { return };
            all.lock().unwrap().extend([outside.try_clone().unwrap(), inside.try_clone().unwrap()]);
            let treated = if number == FIRST_LANE { treatment } else { Treatment::Relay };
            let (back_from, back_to) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
            let all = all.clone();
            std::thread::spawn(move || pass(outside, inside, treated, &all));
            std::thread::spawn(move || pass(back_from, back_to, Treatment::Relay, &Mutex::default()));
        }
    });
    address
}

fn pass(mut from: TcpStream, mut to: TcpStream, treatment: Treatment, all: &Mutex<Vec<TcpStream>>) {
    let (mut passed, mut buffer) = (0, vec![0; 64 << 10]);
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        let end = passed + n;
        match treatment {
            Treatment::Flip(at) if (passed..end).contains(&(at + HANDSHAKE)) => {
                buffer[at + HANDSHAKE - passed] ^= 0x10;
            }
            Treatment::Cut(at) if end > at + HANDSHAKE => {
                for stream in all.lock().unwrap().iter() {
                    let _ = stream.shutdown(Shutdown::Both);
                }
                return;
            }
            Treatment::Swallow(at) if end > at + HANDSHAKE => {
                passed = end;
                continue;
            }
            _ => {}
        }
        passed = end;
        if to.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
