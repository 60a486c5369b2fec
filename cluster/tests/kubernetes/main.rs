//! Gangs on Kubernetes, and what befalls them. This program is the job's driver and its own worker.
//!
//! The API server, the scheduler and the nodes are small ones of these tests, which run pods as processes of this host;
//! the rights are those of the manifest that is shipped. Under `cargo xtask test-engines kubernetes` the API server and all
//! that is behind it are real, and only the nodes are not.

mod cluster;
mod drill;
mod engine;
mod kubelet;
mod logs;
mod real;
mod render;
mod scheduler;
mod server;
mod spawner;
mod store;
mod watched;

use std::pin::Pin;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    match std::env::var(drill::ROLE).as_deref() {
        Ok("conform") => run(drill::conform()),
        Ok("driver") => run(drill::driver()),
        Ok(_) => drill::worker(),
        Err(_) => libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
}

fn run(what: impl Future<Output = ()>) -> ExitCode {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().unwrap().block_on(what);
    ExitCode::SUCCESS
}

type Test = fn() -> Pin<Box<dyn Future<Output = ()>>>;

/// What a real API server cannot be brought to, or cannot here.
const SMALL: [(&str, &str); 1] =
    [("news_that_do_not_come_are_read_from_the_list", "a real server gives news")];

fn trials() -> Vec<Trial> {
    let trial = |(name, test): (&'static str, Test)| {
        let trial = Trial::test(name, move || {
            run(test());
            Ok(())
        });
        match SMALL.iter().find(|(small, _)| real::folder().is_some() && *small == name) {
            Some((_, why)) => trial.with_kind(format!("not here: {why}")).with_ignored_flag(true),
            None => trial,
        }
    };
    let rendered = render::ALL.map(|(name, test)| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    });
    let all = engine::ALL.iter().chain(&spawner::ALL).chain(&watched::ALL);
    all.map(|case| trial(*case)).chain(rendered).collect()
}
