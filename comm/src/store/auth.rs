//! The token challenge: two ends prove to each other that they hold the run's secret, without sending it, and agree on keys that
//! authenticate every frame after. Nothing here is encrypted.

use crate::{Error, Result};
use std::fmt;
use std::io::{Read, Write};

const MAGIC: [u8; 8] = *b"rgttcm1\n";
/// Bytes of the code in front of every frame.
const TAG_BYTES: usize = 16;

/// A run's secret. Its holder may join and speak.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl Token {
    /// From any secret bytes, like the value of an environment variable. They should have 128 bits of randomness.
    pub fn new(secret: impl AsRef<[u8]>) -> Token {
        Token(blake3::derive_key("regatta comm token v1", secret.as_ref()))
    }

    /// From a name that is no secret: keeps runs apart, and nobody out.
    pub fn insecure(name: &str) -> Token {
        Token(blake3::derive_key("regatta comm insecure token v1", name.as_bytes()))
    }

    fn sign(&self, role: &[u8; 8], server: &[u8; 32], client: &[u8; 32]) -> blake3::Hash {
        let mut hash = blake3::Hasher::new_keyed(&self.0);
        hash.update(role).update(server).update(client);
        hash.finalize()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

fn nonce() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::rand::getrandom(&mut bytes[filled..], flags)
            .map_err(|e| Error::io("draw random bytes", e))?;
    }
    Ok(bytes)
}

/// Random hex digits, for a name that cannot be guessed or met by chance.
pub(crate) fn random_name() -> Result<String> {
    Ok(blake3::Hash::from_bytes(nonce()?).to_hex()[..32].to_string())
}

fn broken(peer: &str, why: impl fmt::Display) -> Error {
    Error::Denied { peer: peer.into(), why: format!("the challenge broke off: {why}") }
}

fn denied(peer: &str, why: &str) -> Error {
    Error::Denied { peer: peer.into(), why: why.into() }
}

/// The accepting end of the challenge. The stream's timeouts are its deadline.
pub(crate) fn accept_peer<S: Read + Write>(mut stream: S, token: &Token, peer: &str) -> Result<Sealed<S>> {
    let server = nonce()?;
    let mut hello = [0; 40];
    hello[..8].copy_from_slice(&MAGIC);
    hello[8..].copy_from_slice(&server);
    stream.write_all(&hello).map_err(|e| broken(peer, e))?;
    let (mut client, mut proof) = ([0; 32], [0; 32]);
    stream.read_exact(&mut client).map_err(|e| broken(peer, e))?;
    stream.read_exact(&mut proof).map_err(|e| broken(peer, e))?;
    // Comparing hashes takes the same time wherever they differ.
    if token.sign(b"client  ", &server, &client) != blake3::Hash::from_bytes(proof) {
        return Err(denied(peer, "it does not hold our token"));
    }
    stream.write_all(token.sign(b"server  ", &server, &client).as_bytes()).map_err(|e| broken(peer, e))?;
    let (out, back) = (token.sign(b"to clien", &server, &client), token.sign(b"to serve", &server, &client));
    Ok(Sealed::new(stream, peer, out.into(), back.into()))
}

/// The connecting end of the challenge. The stream's timeouts are its deadline.
pub(crate) fn connect_peer<S: Read + Write>(mut stream: S, token: &Token, peer: &str) -> Result<Sealed<S>> {
    let mut hello = [0; 40];
    stream.read_exact(&mut hello).map_err(|e| broken(peer, e))?;
    if hello[..8] != MAGIC {
        return Err(denied(peer, "it does not speak our protocol"));
    }
    let server: [u8; 32] = hello[8..].try_into().expect("32 of 40 bytes");
    let client = nonce()?;
    stream.write_all(&client).map_err(|e| broken(peer, e))?;
    stream.write_all(token.sign(b"client  ", &server, &client).as_bytes()).map_err(|e| broken(peer, e))?;
    let mut proof = [0; 32];
    stream.read_exact(&mut proof).map_err(|_| denied(peer, "it does not take our token"))?;
    if token.sign(b"server  ", &server, &client) != blake3::Hash::from_bytes(proof) {
        return Err(denied(peer, "it does not hold our token"));
    }
    let (out, back) = (token.sign(b"to serve", &server, &client), token.sign(b"to clien", &server, &client));
    Ok(Sealed::new(stream, peer, out.into(), back.into()))
}

/// A stream after the challenge: frames with a length and a keyed code over their place and content. A frame that was changed, cut,
/// repeated or reordered is an error.
#[derive(Debug)]
pub(crate) struct Sealed<S> {
    pub(crate) stream: S,
    peer: String,
    keys: [[u8; 32]; 2],
    counts: [u64; 2],
}

impl<S: Read + Write> Sealed<S> {
    fn new(stream: S, peer: &str, sending: [u8; 32], receiving: [u8; 32]) -> Sealed<S> {
        Sealed { stream, peer: peer.into(), keys: [sending, receiving], counts: [0, 0] }
    }

    fn tag(&mut self, way: usize, body: &[u8]) -> [u8; TAG_BYTES] {
        self.counts[way] += 1;
        let mut hash = blake3::Hasher::new_keyed(&self.keys[way]);
        hash.update(&self.counts[way].to_le_bytes()).update(body);
        hash.finalize().as_bytes()[..TAG_BYTES].try_into().expect("16 of 32 bytes")
    }

    /// Sends one frame.
    pub(crate) fn send(&mut self, body: &[u8]) -> std::io::Result<()> {
        let tag = self.tag(0, body);
        let mut frame = Vec::with_capacity(4 + TAG_BYTES + body.len());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&tag);
        frame.extend_from_slice(body);
        self.stream.write_all(&frame)
    }

    /// Receives one frame of at most `most` bytes; `None` if the other end has closed between frames.
    pub(crate) fn receive(&mut self, most: usize) -> Result<Option<Vec<u8>>> {
        let mut head = [0; 4 + TAG_BYTES];
        let lost = |peer: &str, e: std::io::Error| Error::io(format!("read a frame from {peer}"), e);
        match self.stream.read(&mut head[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(lost(&self.peer, e)),
        }
        self.stream.read_exact(&mut head[1..]).map_err(|e| lost(&self.peer, e))?;
        let length = u32::from_le_bytes(head[..4].try_into().expect("4 bytes")) as usize;
        let corrupt = |peer: &str, why: String| Error::Corrupt { peer: peer.into(), what: "a frame", why };
        if length > most {
            return Err(corrupt(&self.peer, format!("{length} bytes, at most {most} are allowed")));
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).map_err(|e| lost(&self.peer, e))?;
        if self.tag(1, &body) != head[4..] {
            return Err(corrupt(&self.peer, "its code does not match".into()));
        }
        Ok(Some(body))
    }
}
