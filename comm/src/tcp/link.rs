//! One connection, without waiting: frames queue up to be sent, and arrive piece by piece where the receiver wants them.

use super::frame::Header;
use super::memory::{checksum, read_into, write_frame};
use crate::Region;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::sync::Arc;

/// Read ahead at most this much, so that a small frame costs one call to the kernel and a large one is not copied.
const AHEAD: usize = 16 << 10;

/// What came of looking at a connection.
#[derive(Debug)]
pub(super) enum Event {
    /// Nothing more for now.
    Idle,
    /// A header is there that nobody wants yet.
    Held,
    /// A whole frame arrived, its checksum right.
    Frame(Header),
    /// The connection is over, and why.
    Closed(String),
    /// What came is not what was sent.
    Corrupt(String),
}

#[derive(Debug)]
enum Incoming {
    /// Between frames.
    Header,
    /// A header that waits for its call to begin.
    Held(Header),
    /// In the middle of a payload.
    Payload { header: Header, target: Region, got: usize },
}

#[derive(Debug)]
struct Outgoing {
    header: Header,
    body: Region,
    /// The header as it travels, once it is this frame's turn.
    encoded: Option<[u8; Header::BYTES]>,
}

#[derive(Debug)]
pub(super) struct Link {
    socket: Arc<TcpStream>,
    queue: VecDeque<Outgoing>,
    pushed: u64,
    /// Bytes of the first frame in the queue that are out.
    sent: usize,
    ahead: Box<[u8]>,
    start: usize,
    end: usize,
    incoming: Incoming,
}

impl Link {
    /// Over a socket that does not block.
    pub(super) fn new(socket: Arc<TcpStream>) -> Link {
        let ahead = vec![0; AHEAD].into_boxed_slice();
        let (queue, incoming) = (VecDeque::new(), Incoming::Header);
        Link { socket, queue, pushed: 0, sent: 0, ahead, start: 0, end: 0, incoming }
    }

    pub(super) fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// How many frames were queued since the beginning.
    pub(super) fn frames_pushed(&self) -> u64 {
        self.pushed
    }

    /// How many of them are in the kernel's hands.
    pub(super) fn frames_sent(&self) -> u64 {
        self.pushed - self.queue.len() as u64
    }

    /// Queues a frame. Its length and checksum are filled in when it is sent.
    pub(super) fn push(&mut self, header: Header, body: Region) {
        self.pushed += 1;
        self.queue.push_back(Outgoing { header, body, encoded: None });
    }

    /// Whether everything queued is in the kernel's hands.
    pub(super) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    /// Forgets what is queued and what is arriving: the group is over.
    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.incoming = Incoming::Header;
    }

    /// Sends what the kernel takes; true if anything went out.
    pub(super) fn flush(&mut self) -> Result<bool, String> {
        let mut moved = false;
        while let Some(front) = self.queue.front_mut() {
            let (header, body) = (&mut front.header, front.body);
            let head = front.encoded.get_or_insert_with(|| {
                header.length = body.len() as u32;
                header.checksum = checksum(body);
                header.encode()
            });
            match write_frame(&self.socket, head, body, self.sent) {
                Ok(0) => return Err("it takes no more".into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) => return Err(e.to_string()),
            }
            moved = true;
            if self.sent == Header::BYTES + body.len() {
                self.queue.pop_front();
                self.sent = 0;
            }
        }
        Ok(moved)
    }

    /// Whether a header has come that nobody wants yet.
    pub(super) fn is_held(&self) -> bool {
        matches!(self.incoming, Incoming::Held(_))
    }

    /// Reads on. `admit` is asked where a frame's payload goes; `Ok(None)` holds it back, and an error ends it: then there is
    /// no event.
    pub(super) fn receive(
        &mut self,
        mut admit: impl FnMut(&Header) -> Result<Option<Region>, ()>,
    ) -> Option<Event> {
        loop {
            match &mut self.incoming {
                Incoming::Header => {
                    let Some(head) = self.ahead[self.start..self.end].first_chunk::<{ Header::BYTES }>()
                    else {
                        match self.read_ahead() {
                            Some(event) => return Some(event),
                            None => continue,
                        }
                    };
                    match Header::decode(head) {
                        Ok(header) => self.incoming = Incoming::Held(header),
                        Err(why) => return Some(Event::Corrupt(why.into())),
                    }
                    self.start += Header::BYTES;
                }
                Incoming::Held(header) => {
                    let header = *header;
                    let Some(target) = admit(&header).ok()? else { return Some(Event::Held) };
                    let here = target.len().min(self.end - self.start);
                    let bytes = &self.ahead[self.start..self.start + here];
                    target.part(0, here).write(bytes);
                    self.start += here;
                    self.incoming = Incoming::Payload { header, target, got: here };
                }
                Incoming::Payload { header, target, got } if *got == target.len() => {
                    let (header, whole) = (*header, checksum(*target) == header.checksum);
                    self.incoming = Incoming::Header;
                    return Some(if whole {
                        Event::Frame(header)
                    } else {
                        Event::Corrupt(format!("the checksum of piece {} is wrong", header.piece))
                    });
                }
                Incoming::Payload { target, got, .. } => {
                    let rest = target.part(*got, target.len() - *got);
                    match read_into(&self.socket, rest) {
                        Ok(0) => return Some(Event::Closed("the connection was closed".into())),
                        Ok(n) => *got += n,
                        Err(e) => match interruption(e) {
                            Some(event) => return Some(event),
                            None => continue,
                        },
                    }
                }
            }
        }
    }

    /// Reads some bytes ahead; an event if there are none.
    fn read_ahead(&mut self) -> Option<Event> {
        self.ahead.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        match (&*self.socket).read(&mut self.ahead[self.end..]) {
            Ok(0) => Some(Event::Closed("the connection was closed".into())),
            Ok(n) => {
                self.end += n;
                None
            }
            Err(e) => interruption(e),
        }
    }
}

fn interruption(e: io::Error) -> Option<Event> {
    match e.kind() {
        ErrorKind::WouldBlock => Some(Event::Idle),
        ErrorKind::Interrupted => None,
        _ => Some(Event::Closed(e.to_string())),
    }
}
