//! The secret of a run: whoever has it may call the controller.
//!
//! It is drawn at random for each controller, held where it cannot be printed, compared in constant time, and given to
//! a worker through an inherited file descriptor or an environment variable, never on a command line.

use rand::Rng;
use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

/// A run's secret. `Debug` does not show it.
#[derive(Clone, Debug)]
pub struct Token(SecretString);

impl Token {
    /// Draws a new one of 256 bits.
    pub fn random() -> Self {
        let mut bytes = [0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
    }

    /// Takes over a secret made elsewhere.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into().into())
    }

    /// The secret itself, to be passed to a worker. Do not print it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether `presented` is this secret; takes as long whichever byte differs.
    pub fn matches(&self, presented: &str) -> bool {
        presented.as_bytes().ct_eq(self.expose().as_bytes()).into()
    }
}
