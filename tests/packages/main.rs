//! What is in `packaging/` and `.github/`, as far as it can be tried without the systems that it is for.
//!
//! The Debian package is built of the program under test, and installed, started, upgraded and removed by the real dpkg under a real systemd on a throw-away
//! copy of this machine ([`machine`]); that needs root. The rest is read by a parser of its format, and whatever it says to ztun is said to the program.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test waits for another program on the real clock")]
#![allow(clippy::print_stderr, reason = "a test that is skipped, or fails, says why")]
#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

mod deb;
mod machine;

use std::path::{Path, PathBuf};

/// The program under test.
const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");

/// A file of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
