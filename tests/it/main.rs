//! Tests of the whole, through a real program's command line: what is typed, what comes out, and the exit code.

mod commands;
mod input;
mod jobs;
mod launch;
mod runs;
mod support;
