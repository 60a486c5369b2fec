//! `ckpt`: the commands on checkpoints. Answers go to stdout, errors to stderr; the exit code is 1 if something is
//! wrong with the checkpoints, 2 if the command could not be carried out.

use std::process::ExitCode;

use clap::Parser;
use regatta_checkpoint::cli;

fn main() -> ExitCode {
    let args = cli::Args::parse();
    match cli::run(&args, &mut std::io::stdout().lock()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}
