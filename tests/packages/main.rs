//! What is in `packaging/` and `.github/`, as far as it can be tried without the systems that it is for.
//!
//! The Debian package is built of the program under test, and installed, started, upgraded, removed and purged by the real dpkg under a real systemd on a
//! throw-away copy of this machine ([`machine`]), and so is that for rpm; that needs root. The container is what the Dockerfile says, started there as the
//! compose file says. The rest is read by a parser of its format, what it names has to be there, and whatever it says to ztun is said to the program.

#![cfg(all(feature = "os", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "a test waits for another program on the real clock")]
#![allow(clippy::print_stderr, reason = "a test that is skipped, or fails, says why")]
#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

mod archives;
mod container;
mod deb;
mod machine;
mod pipelines;
mod rpm;
mod services;

use std::path::{Path, PathBuf};
use std::process::Command;
use yaml_rust2::{Yaml, YamlLoader};

/// The program under test.
const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");

/// A file of the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What is written in a file of the project.
fn text(path: &str) -> String {
    std::fs::read_to_string(project(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The one document of a YAML text.
fn yaml(text: &str) -> Yaml {
    let mut documents = YamlLoader::load_from_str(text).unwrap();
    assert_eq!(documents.len(), 1, "{text}");
    documents.remove(0)
}

/// The words of a list in YAML.
fn words(list: &Yaml) -> Vec<&str> {
    list.as_vec()
        .unwrap_or_else(|| panic!("no list: {list:?}"))
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect()
}

/// What a command that succeeds writes to standard output.
fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}\n{out}{err}");
    out
}

/// ztun takes these arguments: it plans a run with them.
fn ztun_takes(arguments: &[&str]) -> String {
    output(Command::new(ZTUN).arg("--dry-run").args(arguments).env_remove("ZTUN_SOCKS5"))
}

/// Every shell script that is shipped or used to ship is well-formed, and shellcheck warns of nothing.
#[test]
fn the_shell_scripts_are_sound() {
    let scripts = output(
        Command::new("git")
            .args(["-c", "safe.directory=*", "ls-files", "packaging"])
            .current_dir(project("")),
    );
    let mut scripts: Vec<&str> = scripts.lines().filter(|path| text(path).starts_with("#!")).collect();
    assert!(
        scripts.contains(&"packaging/deb/prerm") && scripts.contains(&"packaging/openwrt/ztun.init"),
        "{scripts:?}"
    );
    scripts.extend(["build-all.sh", ".ci/run", "benches/soak.sh"]);
    output(
        Command::new("shellcheck")
            .args(["--external-sources", "--severity=warning"])
            .args(&scripts)
            .current_dir(project("")),
    );
    for script in scripts {
        let shell = if text(script).starts_with("#!/bin/sh") { "sh" } else { "bash" };
        output(Command::new(shell).arg("-n").arg(project(script)));
    }
}
