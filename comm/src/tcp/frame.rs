//! What travels between two ranks: a header of fixed length that says which piece of which call follows, and the piece.
//!
//! A header names a piece by number; where it lies and how long it is the receiver computes itself from its own call, and
//! compares. So no offset and no length from the wire is ever used, and a frame of another generation, another call or
//! another program is refused before a byte of its payload is read.

use crate::Signature;

/// Which stream of a call a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// What a rank has, to whom it concerns.
    Scatter = 0,
    /// What a rank has made of it, to those who need it.
    Gather = 1,
    /// A send to one rank.
    Direct = 2,
}

/// The head of every frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The sender's incarnation of the group.
    pub generation: u64,
    /// The number of the call, of its lane.
    pub number: u64,
    /// What the sender called.
    pub signature: Signature,
    /// Which stream of the call.
    pub stage: Stage,
    /// Which piece of the stream.
    pub piece: u32,
    /// Bytes that follow.
    pub length: u32,
    /// Their checksum (CRC-32C).
    pub checksum: u32,
}

impl Header {
    /// Bytes of an encoded header.
    pub const BYTES: usize = 48;
    const MAGIC: [u8; 4] = *b"rgt1";

    /// As it travels.
    pub fn encode(&self) -> [u8; Header::BYTES] {
        let mut bytes = [0; Header::BYTES];
        bytes[0..4].copy_from_slice(&Header::MAGIC);
        bytes[4] = self.stage as u8;
        bytes[8..16].copy_from_slice(&self.generation.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.signature.to_word().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.piece.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.length.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.checksum.to_le_bytes());
        let own = checksum(&bytes[..44]);
        bytes[44..48].copy_from_slice(&own.to_le_bytes());
        bytes
    }

    /// Reads what travelled, which may be anything.
    pub fn decode(bytes: &[u8; Header::BYTES]) -> Result<Header, &'static str> {
        if bytes[0..4] != Header::MAGIC {
            return Err("it does not begin as a frame does");
        }
        if checksum(&bytes[..44]).to_le_bytes() != bytes[44..48] {
            return Err("the header's checksum is wrong");
        }
        if bytes[5..8] != [0; 3] {
            return Err("reserved bytes are set");
        }
        let stage = match bytes[4] {
            0 => Stage::Scatter,
            1 => Stage::Gather,
            2 => Stage::Direct,
            _ => return Err("there is no such stage"),
        };
        Ok(Header {
            generation: long(bytes, 8),
            number: long(bytes, 16),
            signature: Signature::from_word(long(bytes, 24)),
            stage,
            piece: word(bytes, 32),
            length: word(bytes, 36),
            checksum: word(bytes, 40),
        })
    }
}

/// The checksum of all that travels: CRC-32C, as fast as memory where the processor multiplies without carry.
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

fn long(bytes: &[u8; Header::BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn word(bytes: &[u8; Header::BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
