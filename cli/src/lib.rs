//! The command line as a library: a user's program has it with its own trainables in it, by [`main`], and the `regatta`
//! command is the same with none.
//!
//! Data goes to standard output, progress and errors to standard error. The exit code is 0 if all was done, 1 if it failed,
//! 2 for usage and configuration, 75 if the run was stopped and can be resumed, and 130 if it was ended by force.
//!
//! ```
//! let code = regatta_cli::run(["regatta", "completions", "bash"].map(Into::into));
//! assert_eq!(code, std::process::ExitCode::SUCCESS);
//! let code = regatta_cli::run(["regatta", "train", "no-such-file.ron"].map(Into::into));
//! assert_eq!(code, std::process::ExitCode::from(2));
//! ```

mod args;
mod configure;
mod drive;
mod environment;
mod jobs;
mod launch;
mod logs;
mod out;
mod place;
mod problem;
mod progress;
mod runs;
mod settings;
mod signals;
mod submit;
mod term;
mod train;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};

use crate::args::{Cli, Command};
use crate::problem::{Outcome, Problem, exit};

/// The whole of a program's `main`: its command line, and, in the processes it starts as workers, the worker.
pub fn main() -> ExitCode {
    regatta_train::worker::enter();
    tracing_to_stderr();
    run(std::env::args_os())
}

/// Runs the command line. [`main`] is this with what a process needs around it.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let program = program(&args);
    let parsed =
        command(&program).try_get_matches_from(&args).and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are answers; all else is a mistake in usage.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { 0 });
        }
    };
    match obey(cli, &program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            if !problem.message.is_empty() {
                eprintln!("error: {problem}");
            }
            problem.exit()
        }
    }
}

fn obey(cli: Cli, program: &str) -> Outcome {
    let json = cli.json;
    match cli.command {
        Command::Train(args) => train::run(&args, json),
        Command::Resume(args) => train::resume(&args, json),
        Command::Submit(args) => submit::submit(&args, json),
        Command::Render(args) => submit::render(&args),
        Command::Drive => drive::run(),
        Command::Jobs(args) => jobs::list(&args, json),
        Command::Attach(args) => jobs::attach(&args, json),
        Command::Cancel(args) => jobs::cancel(&args, json),
        Command::Launch(args) => launch::run(&args),
        Command::Ls(args) => runs::ls(&args, json),
        Command::Show(args) => runs::show(&args, json),
        Command::Logs(args) => logs::run(&args, json),
        Command::Ckpt(command) => checkpoints(command, json),
        Command::Config(command) => configure::run(&command, json),
        Command::Env => environment::run(json),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command(program), program, &mut text);
            out::write(&text)
        }
    }
}

/// The commands on checkpoints, with runs by their names.
fn checkpoints(mut command: regatta_checkpoint::cli::Command, json: bool) -> Outcome {
    use regatta_checkpoint::cli::{self, Command as C};
    let named = match &mut command {
        C::Ls { run } | C::Verify { run, .. } | C::Diff { run, .. } | C::Gc { run, .. } => run,
        C::Show(which) | C::Export { which, .. } => &mut which.run,
    };
    if !named.contains("://") && !Path::new(named.as_str()).exists() {
        *named = runs::find(named, Path::new(runs::ROOT))?.folder.to_string_lossy().into_owned();
    }
    let args = cli::Args { command, json };
    let mut text = Vec::new();
    let well = cli::run(&args, &mut text).map_err(|error| {
        let code = match error {
            regatta_checkpoint::Error::Invalid(_) => exit::USAGE,
            _ => exit::FAILED,
        };
        Problem { code, message: problem::chain(&error) }
    })?;
    out::write(&text)?;
    if well { Ok(()) } else { Err(Problem::failed("")) }
}

fn command(program: &str) -> clap::Command {
    // A name for as long as the process lives.
    let name: &'static str = Box::leak(program.to_owned().into_boxed_str());
    Cli::command().name(name).bin_name(name)
}

/// What the user calls this program.
fn program(args: &[OsString]) -> String {
    let name = args.first().and_then(|path| Path::new(path).file_name());
    name.map_or_else(|| "regatta".into(), |name| name.to_string_lossy().into_owned())
}

/// Diagnostics: warnings, or what `REGATTA_LOG` asks for. What the cluster warns of, a run's own lines tell better.
fn tracing_to_stderr() {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("REGATTA_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,regatta_cluster=error"));
    // A program that installed its own keeps it.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
}
