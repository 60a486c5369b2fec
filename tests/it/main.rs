//! Tests of the whole, through a real program's command line: what is typed, what comes out, and the exit code.

mod commands;
mod faults;
mod input;
mod jobs;
mod launch;
mod remote;
mod results;
mod runs;
mod support;
mod tune;
