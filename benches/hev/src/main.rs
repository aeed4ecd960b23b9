//! `hev CONFIG.yml`: hev-socks5-tunnel until it is killed.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(config) = std::env::args().nth(1) else { return ExitCode::from(2) };
    // -1: it opens its device itself.
    match tun2socks::main_from_file(Path::new(&config), -1) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
