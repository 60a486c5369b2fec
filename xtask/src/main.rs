//! The chores of the workspace: `cargo xtask --help` lists them.
//!
//! This crate does not link libtorch, so that it can fetch libtorch before anything else is built.
#![allow(clippy::print_stdout)]

mod bench;
mod cache;
mod chaos;
mod demo;
mod engines;
mod libtorch;
mod python;
mod soak;
mod wheels;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The chores of the Regatta workspace")]
struct Args {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Get libtorch if it is missing and link it into this checkout; every other chore does this first
    Setup {
        /// Take the CUDA libraries too (about 3 GB of download)
        #[arg(long)]
        cuda: bool,
    },
    /// Build in release, train the example with two workers, interrupt it, and resume it
    Demo,
    /// Pass every test
    Test {
        /// Only the crates that do not link libtorch; libtorch is then not fetched either
        #[arg(long)]
        without_torch: bool,
    },
    /// Break a long training at random, and check that nothing was lost
    Chaos(chaos::Args),
    /// Install and start a real engine from nothing (as root), pass its tests, and take it down
    TestEngines {
        /// Which
        engine: engines::Engine,
        /// Print what its tools need and keep it running, in place of the tests
        #[arg(long)]
        keep: bool,
    },
    /// Run a benchmark side by side with its peers and print JSON lines
    Bench(bench::Args),
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<()> {
    match args.chore {
        Chore::Setup { cuda } => {
            let found = libtorch::setup(cuda)?;
            println!("{found}");
            Ok(())
        }
        Chore::Chaos(args) => chaos::run(&args),
        Chore::Demo => demo::run(),
        Chore::Test { without_torch } => test(without_torch),
        Chore::TestEngines { engine, keep } => engines::test(engine, keep),
        Chore::Bench(args) => bench::run(&args),
    }
}

/// The crates that need libtorch to build.
const TORCH_CRATES: [&str; 4] = ["regatta-torch", "regatta-torch-oracle", "regatta", "mnist_resnet"];

/// Every test of the workspace, under nextest's time limits where nextest is installed.
fn test(without_torch: bool) -> Result<()> {
    let mut scope = vec!["--workspace"];
    if without_torch {
        scope.extend(TORCH_CRATES.iter().flat_map(|name| ["--exclude", name]));
    } else {
        libtorch::setup(false)?;
    }
    let nextest = Command::new("cargo").args(["nextest", "--version"]).output();
    if nextest.is_ok_and(|o| o.status.success()) {
        let profile = if std::env::var_os("CI").is_some() { "ci" } else { "default" };
        sh(cargo().args(["nextest", "run", "--profile", profile]).args(&scope))?;
    } else {
        eprintln!("cargo-nextest is not installed: running `cargo test`, without time limits");
        sh(cargo().args(["test", "--lib", "--bins", "--tests"]).args(&scope))?;
    }
    sh(cargo().args(["test", "--doc", "--quiet"]).args(&scope))
}

/// Cargo, in the root of this checkout. What the outer cargo says of this package is not passed on: build scripts of dependencies look at
/// it, and would run anew, with all that stands on them, whenever this program and a plain cargo take turns.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command with this terminal and fails when it does.
fn sh(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

/// The root of the checkout: the nearest workspace around the current folder.
fn root() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    let workspace = |dir: &&Path| {
        std::fs::read_to_string(dir.join("Cargo.toml")).is_ok_and(|text| text.contains("[workspace]"))
    };
    let compiled_in = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root");
    here.ancestors().find(workspace).unwrap_or(compiled_in).to_path_buf()
}
