//! The `regatta` command: what needs no trainable of a user's program, and programs in any language.

use std::process::ExitCode;

fn main() -> ExitCode {
    regatta_cli::main()
}
