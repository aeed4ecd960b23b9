//! Exit codes and error printing, nothing else.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    match ztun::cli::run(std::env::args_os()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody can be told that standard error is closed.
            let _ = writeln!(std::io::stderr().lock(), "{error}");
            ExitCode::from(error.code)
        }
    }
}
