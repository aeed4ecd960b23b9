//! Exit codes and error printing, nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(ztun::cli::run(std::env::args_os()).unwrap_or_else(|error| ztun::cli::print_error(&error)))
}
