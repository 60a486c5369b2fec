//! x
fn main() -> std::process::ExitCode { regatta_cli::main() }
