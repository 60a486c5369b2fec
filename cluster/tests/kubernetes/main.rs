//! Gangs on Kubernetes, and what befalls them. This program is the job's driver and its own worker.
//!
//! The API server, the scheduler and the nodes are small ones of these tests, which run pods as processes of this host;
//! the rights are those of the manifest that is shipped.

mod cluster;
mod drill;
mod engine;
mod kubelet;
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

fn trials() -> Vec<Trial> {
    let trial = |(name, test): (&str, Test)| {
        Trial::test(name, move || {
            run(test());
            Ok(())
        })
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
