//! What the store's client and server say to each other. Decoding takes any bytes and never panics; no length is believed.

use crate::{Error, Result};

/// The longest key.
pub const MAX_KEY: usize = 1 << 10;
/// The longest value.
pub const MAX_VALUE: usize = 1 << 20;
/// The longest frame.
pub const MAX_FRAME: usize = 64 + MAX_KEY + 2 * MAX_VALUE;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the methods of Store say it")]
pub enum Request {
    Get { key: String },
    Set { key: String, value: Vec<u8> },
    Lease { key: String, value: Vec<u8>, ttl_millis: u64 },
    Wait { key: String, millis: u64 },
    Add { key: String, delta: i64 },
    CompareSet { key: String, expected: Option<Vec<u8>>, new: Vec<u8> },
    Delete { key: String },
}

/// What the server answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// It is done.
    Done,
    /// There is no value (yet).
    Absent,
    /// The value.
    Value(Vec<u8>),
    /// The sum.
    Sum(i64),
    /// It cannot be done.
    Failed(String),
}

fn corrupt(why: impl Into<String>) -> Error {
    Error::Corrupt { peer: "the store's other end".into(), what: "a message", why: why.into() }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(|| corrupt("it ends too early"))?;
        self.0 = rest;
        Ok(head)
    }
    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }
    fn word(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("8 bytes")))
    }
    fn bytes(&mut self, most: usize) -> Result<Vec<u8>> {
        let n = u32::from_le_bytes(self.take(4)?.try_into().expect("4 bytes")) as usize;
        if n > most {
            return Err(corrupt(format!("a part of {n} bytes, at most {most} are allowed")));
        }
        Ok(self.take(n)?.to_vec())
    }
    fn key(&mut self) -> Result<String> {
        String::from_utf8(self.bytes(MAX_KEY)?).map_err(|_| corrupt("its key is not text"))
    }
    fn end(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(corrupt(format!("{} bytes too many", self.0.len()))) }
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

impl Request {
    /// The key that is asked about.
    pub fn key(&self) -> &str {
        match self {
            Request::Get { key }
            | Request::Set { key, .. }
            | Request::Lease { key, .. }
            | Request::Wait { key, .. }
            | Request::Add { key, .. }
            | Request::CompareSet { key, .. }
            | Request::Delete { key } => key,
        }
    }

    /// As bytes; refuses what [`decode`](Request::decode) would.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let (tag, key) = (self.tag(), self.key());
        out.push(tag);
        put(&mut out, key.as_bytes());
        let mut longest = 0;
        match self {
            Request::Set { value, .. } => {
                longest = value.len();
                put(&mut out, value);
            }
            Request::Lease { value, ttl_millis, .. } => {
                longest = value.len();
                put(&mut out, value);
                out.extend_from_slice(&ttl_millis.to_le_bytes());
            }
            Request::Wait { millis, .. } => out.extend_from_slice(&millis.to_le_bytes()),
            Request::Add { delta, .. } => out.extend_from_slice(&delta.to_le_bytes()),
            Request::CompareSet { expected, new, .. } => {
                longest = new.len().max(expected.as_ref().map_or(0, Vec::len));
                put(&mut out, new);
                out.push(u8::from(expected.is_some()));
                put(&mut out, expected.as_deref().unwrap_or_default());
            }
            Request::Get { .. } | Request::Delete { .. } => {}
        }
        if key.len() > MAX_KEY || longest > MAX_VALUE {
            let why = format!("a key of {} or a value of {longest} bytes is too long", key.len());
            return Err(Error::invalid("store", why));
        }
        Ok(out)
    }

    fn tag(&self) -> u8 {
        match self {
            Request::Get { .. } => 0,
            Request::Set { .. } => 1,
            Request::Lease { .. } => 2,
            Request::Wait { .. } => 3,
            Request::Add { .. } => 4,
            Request::CompareSet { .. } => 5,
            Request::Delete { .. } => 6,
        }
    }

    /// From bytes, which may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Request> {
        let mut r = Reader(bytes);
        let (tag, key) = (r.byte()?, r.key()?);
        let request = match tag {
            0 => Request::Get { key },
            1 => Request::Set { key, value: r.bytes(MAX_VALUE)? },
            2 => Request::Lease { key, value: r.bytes(MAX_VALUE)?, ttl_millis: r.word()? },
            3 => Request::Wait { key, millis: r.word()? },
            4 => Request::Add { key, delta: r.word()? as i64 },
            5 => {
                let new = r.bytes(MAX_VALUE)?;
                let given = match r.byte()? {
                    0 => false,
                    1 => true,
                    other => return Err(corrupt(format!("{other} is not a flag"))),
                };
                let expected = r.bytes(if given { MAX_VALUE } else { 0 })?;
                Request::CompareSet { key, expected: given.then_some(expected), new }
            }
            6 => Request::Delete { key },
            other => return Err(corrupt(format!("there is no request {other}"))),
        };
        r.end()?;
        Ok(request)
    }
}

impl Reply {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Reply::Done => out.push(0),
            Reply::Absent => out.push(1),
            Reply::Value(value) => {
                out.push(2);
                put(&mut out, value);
            }
            Reply::Sum(sum) => {
                out.push(3);
                out.extend_from_slice(&sum.to_le_bytes());
            }
            Reply::Failed(why) => {
                out.push(4);
                put(&mut out, &why.as_bytes()[..why.len().min(MAX_KEY)]);
            }
        }
        out
    }

    /// From bytes, which may be anything.
    pub fn decode(bytes: &[u8]) -> Result<Reply> {
        let mut r = Reader(bytes);
        let reply = match r.byte()? {
            0 => Reply::Done,
            1 => Reply::Absent,
            2 => Reply::Value(r.bytes(MAX_VALUE)?),
            3 => Reply::Sum(r.word()? as i64),
            4 => Reply::Failed(String::from_utf8_lossy(&r.bytes(MAX_KEY)?).into_owned()),
            other => return Err(corrupt(format!("there is no reply {other}"))),
        };
        r.end()?;
        Ok(reply)
    }
}
