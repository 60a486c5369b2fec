//! What travels over TCP, against everything that could.

use proptest::prelude::*;
use regatta_comm::Signature;
use regatta_comm::tcp::{Header, Stage};

fn headers() -> impl Strategy<Value = Header> {
    let stage = prop_oneof![Just(Stage::Scatter), Just(Stage::Gather), Just(Stage::Direct)];
    (any::<u64>(), any::<u64>(), any::<u64>(), stage, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(generation, number, word, stage, piece, length, checksum)| Header {
            generation,
            number,
            signature: Signature::from_word(word),
            stage,
            piece,
            length,
            checksum,
        },
    )
}

proptest! {
    #[test]
    fn a_header_comes_back_as_it_went(header in headers()) {
        prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn tcp_3_a_header_with_any_bit_flipped_is_refused(header in headers(), bit in 0..Header::BYTES * 8) {
        let mut bytes = header.encode();
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Header::decode(&bytes).is_err());
    }

    #[test]
    fn noise_is_refused(noise in any::<[u8; Header::BYTES]>()) {
        prop_assert!(Header::decode(&noise).is_err());
    }
}
