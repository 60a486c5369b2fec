//! The parsers of greetings and notes, against everything that could travel. The rounds are the same every time.

use super::control::{self, Cause, Note};
use super::frame::checksum;
use super::mesh::Greeting;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const WORLD: usize = 5;
const GENERATION: u64 = 7;

/// The same 2000 inputs in every run.
fn check<S: Strategy>(inputs: &S, test: impl Fn(S::Value) -> Result<(), TestCaseError>) {
    let config = Config { cases: 2000, failure_persistence: None, ..Config::default() };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    TestRunner::new_with_rng(config, rng).run(inputs, test).unwrap();
}

fn bytes(length: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), length)
}

#[test]
fn a_greeting_has_one_length_and_comes_back_as_it_went() {
    check(&prop::collection::vec(any::<u8>(), 0..2 * Greeting::BYTES), |noise| {
        prop_assert_eq!(Greeting::decode(&noise).is_some(), noise.len() == Greeting::BYTES);
        Ok(())
    });
    check(&bytes(Greeting::BYTES), |noise| {
        prop_assert_eq!(Greeting::decode(&noise).map(|g| g.encode()), Some(noise));
        Ok(())
    });
}

/// The ranks that a note is about.
fn ranks(note: &Note) -> Vec<usize> {
    match note {
        Note::Bye => Vec::new(),
        Note::Over { cause, .. } => match cause {
            Cause::Lost { rank, .. } => vec![*rank],
            Cause::Mismatch { rank, peer, .. } => vec![*rank, *peer],
            Cause::Aborted { by, .. } | Cause::Corrupt { by, .. } => vec![*by],
        },
    }
}

#[test]
fn noise_is_no_note_and_a_sealed_one_names_only_ranks_that_exist() {
    let small = prop::collection::vec(0u64..2 * WORLD as u64, 4);
    check(&(bytes(control::BYTES), 0u8..8, small, 0u32..1000), |(noise, code, numbers, length)| {
        let mut note: [u8; control::BYTES] = noise.try_into().expect("of this length");
        prop_assert!(Note::decode(&note, GENERATION, WORLD).is_err());
        // Whoever holds the token can seal anything.
        note[..4].copy_from_slice(b"rgn1");
        note[4] = code;
        note[8..16].copy_from_slice(&GENERATION.to_le_bytes());
        for (i, number) in numbers.iter().enumerate() {
            note[16 + 8 * i..24 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        note[48..52].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(&note[..control::BYTES - 4]);
        note[control::BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
        if let Ok(read) = Note::decode(&note, GENERATION, WORLD) {
            prop_assert!(code <= 4 && ranks(&read).iter().all(|rank| *rank < WORLD), "{:?}", read);
        }
        prop_assert!(Note::decode(&note, GENERATION + 1, WORLD).is_err());
        Ok(())
    });
}

#[test]
fn a_note_comes_back_as_it_went_and_with_any_bit_flipped_it_is_refused() {
    check(&(0..WORLD, "[a-z ]{0,80}", any::<u64>(), 0..control::BYTES * 8), |(rank, why, finished, bit)| {
        let note = Note::Over { cause: Cause::Lost { rank, why }, finished };
        let mut travelled = note.encode(GENERATION);
        let read = Note::decode(&travelled, GENERATION, WORLD).map_err(TestCaseError::fail)?;
        prop_assert_eq!(format!("{read:?}"), format!("{note:?}"));
        travelled[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(Note::decode(&travelled, GENERATION, WORLD).is_err());
        Ok(())
    });
}
