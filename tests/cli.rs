//! The command line of the built program: the contract of exit statuses, errors, help and what needs no privilege.
//!
//! Nothing here runs the router with privilege: what is not refused is a dry run, or runs as a user who may not.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

const ZTUN: &str = env!("CARGO_BIN_EXE_ztun");
/// A user and a group that own nothing.
const NOBODY: u32 = 65_534;
const PASSWORD: &str = "hunter2";

fn ztun(args: &[&str]) -> Command {
    program(Path::new(ZTUN), args)
}

fn program(path: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(path);
    command
        .args(args)
        .stdin(Stdio::null())
        .env_remove("ZTUN_SOCKS5")
        .env_remove("RUST_LOG")
        .env("LC_ALL", "C");
    command
}

fn output(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |octets| String::from_utf8(octets).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// Bad usage: status 2, nothing on standard output, `error: WHAT: WHY` and `  try: REMEDY`, and nothing that only a programmer understands.
fn refused(args: &[&str]) -> String {
    let (code, out, err) = output(ztun(args));
    assert_eq!(code, Some(2), "{args:?}: {err}");
    assert!(out.is_empty(), "{args:?}: {out}");
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 2, "{args:?}: {err}");
    assert!(lines[0].starts_with("error: ") && lines[0].len() > 15, "{args:?}: {err}");
    assert!(lines[1].starts_with("  try: ") && lines[1].len() > 10, "{args:?}: {err}");
    for word in ["panicked", "backtrace", "src/", "Some(", "Err(", "ParseIntError"] {
        assert!(!err.contains(word), "{args:?}: {err}");
    }
    err
}

#[test]
fn every_bad_value_of_every_option_is_refused_with_the_option_and_what_is_allowed() {
    for (option, value, said) in [
        ("--socks5", "", "empty"),
        ("--socks5", "127.0.0.1", "port is missing"),
        ("--socks5", "127.0.0.1:0", "1 to 65535"),
        ("--socks5", "127.0.0.1:65536", "1 to 65535"),
        ("--socks5", "127.0.0.1:1080x", "1 to 65535"),
        ("--socks5", "::1:1080", "brackets"),
        ("--socks5", "[::1:1080", "bracket"),
        ("--socks5", "http://127.0.0.1:1080", "socks5://"),
        ("--socks5", "a host:1", "neither a name nor an address"),
        ("--socks5", "user@127.0.0.1:1", "without a password"),
        ("--socks5", "0.0.0.0:1080", "0.0.0.0"),
        ("--socks5-password-file", "/nonexistent", "--socks5"),
        ("--mtu", "1279", "1280 to 65535"),
        ("--mtu", "65536", "1280 to 65535"),
        ("--mtu", "large", "1280 to 65535"),
        ("--pool", "65", "0 to 64"),
        ("--max-tcp", "0", "1 to 1048576"),
        ("--max-tcp", "1048577", "1 to 1048576"),
        ("--max-udp", "0", "1 to 1048576"),
        ("--max-udp", "18446744073709551616", "1 to 1048576"),
        ("--tcp-idle", "90", "90s, 2h4m, 500ms"),
        ("--tcp-idle", "0s", "more than nothing"),
        ("--udp-idle", "1.5s", "90s, 2h4m, 500ms"),
        ("--connect-timeout", "400d", "year"),
        ("--connect-timeout", "", "90s, 2h4m, 500ms"),
        ("--rule", "port=443", "->"),
        ("--rule", "port=70000 -> reject", "70000"),
        ("--rule", "dst=10.0.0.0/40 -> direct", "0 to 32"),
        ("--rule", "colour=red -> direct", "colour"),
        ("--rule", "any -> nowhere", "nowhere"),
        ("--route", "10.0.0.0/33", "0 to 32"),
        ("--route", "everything", "everything"),
        ("--bypass", "10.0.0.0/33", "0 to 32"),
        ("--bypass", "10.0.0.300", "10.0.0.300"),
        ("--bypass", "", "neither a network nor a host"),
        ("--address", "127.0.0.1/8", "127.0.0.1"),
        ("--address", "10.0.0.1/99", "0 to 32"),
        ("--dns", "doh", "auto, udp, tcp, direct, off"),
        ("--dns-server", "dns.example", "9.9.9.9:53"),
        ("--dns-server", "9.9.9.9:0", "9.9.9.9:53"),
        ("--udp", "maybe", "auto, socks5, direct, reject"),
        ("--icmp", "maybe", "reply, drop"),
        ("--ipv6", "maybe", "auto, on, off"),
        ("--accept", "soon", "late, early"),
        ("--offload", "on", "auto, tcp, checksum, off"),
        ("--local-proxy", "on", "auto, off"),
        ("--tun", "sixteen-letters-", "1 to 15"),
        ("--tun", "a/b", "1 to 15"),
        ("--tun", "", "--tun"),
        ("--tun-fd", "2", "3 to"),
        ("--tun-fd", "x", "3 to"),
        ("--interface", "a b", "1 to 15"),
        ("--interface", "ztun0", "own device"),
        ("--mark", "0", "1 to 0xffffffff"),
        ("--mark", "0x100000000", "1 to 0xffffffff"),
        ("--log-level", "loud", "off, error, warn, info, debug, trace"),
        ("--log-format", "xml", "text, json"),
    ] {
        let mut args = vec!["--dry-run", option, value];
        if option == "--interface" {
            args.extend(["--tun-fd", "3"]);
        }
        if option != "--socks5" {
            args.extend(["--socks5", "127.0.0.1:1080"]);
        }
        let said_so = refused(&args);
        assert!(said_so.contains(said) && said_so.contains(option), "{option} {value:?}: {said_so}");
    }
}

#[test]
fn options_without_value_and_values_without_option_are_refused() {
    let (_, help, _) = output(ztun(&["--help"]));
    let options: Vec<&str> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    let takes_value = |option: &&str| help.contains(&format!("{option} <"));
    assert!(options.iter().filter(|option| takes_value(option)).count() >= 25, "{options:?}");
    for option in options.into_iter().filter(takes_value) {
        assert!(refused(&[option]).contains(option));
    }
    for flag in ["--require-proxy", "--no-route", "--dry-run"] {
        assert!(refused(&[&format!("{flag}=1")]).contains(flag));
    }
    assert!(refused(&["--dry-run", "--dry-run"]).contains("--dry-run is given twice"));
    assert!(refused(&["--mtu", "1500", "--mtu", "1500"]).contains("--mtu is given twice"));
    refused(&["--socks5", "127.0.0.1:1", "surplus"]);
}

#[test]
fn bad_usage_of_commands_is_refused() {
    for (args, said) in [
        (&["bogus"][..], "bogus"),
        (&["prxy"], "ztun proxy"),
        (&["exec"], "CMD"),
        (&["exec", "--no-such", "true"], "--no-such"),
        (&["exec", "--tun", "x", "--", "true"], "--tun"),
        (&["exec", "--socks5", "bad", "--", "true"], "port is missing"),
        (&["exec", "--mtu", "1", "--", "true"], "1280 to 65535"),
        (&["--socks5", "127.0.0.1:1", "exec", "--", "true"], "ztun exec --socks5"),
        (&["demo", "x"], "'x'"),
        (&["proxy", "--listen", "1080"], "127.0.0.1:1080"),
        (&["proxy", "--listen", "localhost:1080"], "127.0.0.1:1080"),
        (&["proxy", "--max-connections", "0"], "1 to 1048576"),
        (&["proxy", "--connect-timeout", "5"], "90s"),
        (&["proxy", "--user", "u"], "--password-file"),
        (&["proxy", "--password-file", "f"], "--user"),
        (&["proxy", "--user", "u", "--password-file", "/nonexistent"], "No such file"),
        (&["restore", "--tun", "a/b"], "1 to 15"),
        (&["restore", "now"], "'now'"),
        (&["completions"], "SHELL"),
        (&["completions", "csh"], "bash"),
        (&["man", "x"], "'x'"),
        (&["help", "bogus"], "bogus"),
    ] {
        let error = refused(args);
        assert!(error.contains(said), "{args:?}: {error}");
    }
}

#[test]
fn a_run_without_a_proxy_names_the_option_and_an_example() {
    let error = refused(&[]);
    assert!(error.contains("no proxy is given") && error.contains("--socks5 127.0.0.1:1080"), "{error}");
    refused(&["--dry-run"]);
}

#[test]
fn what_the_contract_has_and_this_version_has_not_is_refused_by_name_and_not_in_the_help() {
    let (_, help, _) = output(ztun(&["--help"]));
    let way = ["--socks5", "127.0.0.1:1", "--dry-run"];
    for args in [&["--dns", "fake"][..], &["--dns=fake"], &["--icmp", "direct"]] {
        let error = refused(&[&way[..], args].concat());
        let name = args[0].split('=').next().unwrap();
        assert!(error.contains("planned") && error.contains(name), "{error}");
        assert!(["--dns", "--icmp"].contains(&name) || !help.contains(name), "{name} is in the help");
    }
    for args in [&["--workers", "2"][..], &["--workers=2"]] {
        let error = refused(args);
        assert!(error.contains("--workers: ") && error.contains("breaks UDP"), "{error}");
    }
    let error = refused(&["split", "entry"]);
    assert!(error.contains("`split` is planned"), "{error}");
    assert!(!help.contains("\n  split "), "split is in the help");
    for rule in ["domain=example.com -> direct", "process=curl -> direct", "uid=0 -> direct", "any -> split"]
    {
        let error = refused(&[&way[..], &["--rule", rule]].concat());
        assert!(error.contains("not built yet"), "{error}");
    }
}

/// A file of options is read for a run, a dry run, `exec` and `doctor`; the command line wins; what is refused has its line.
#[test]
fn a_file_of_options_says_what_the_command_line_can_and_is_refused_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ztun.toml");
    let path = file.to_str().unwrap();
    fs::write(
        &file,
        "socks5 = ['192.0.2.1:1080']\ntun = 'cli-file0'\nmtu = 1400\nbypass = ['198.51.100.0/24']\n",
    )
    .unwrap();
    let (code, plan, words) = output(ztun(&["--config", path, "--dry-run"]));
    assert_eq!(code, Some(0), "{words}");
    assert!(
        plan.contains("cli-file0") && plan.contains("1400") && plan.contains("198.51.100.0/24"),
        "{plan}"
    );
    let (_, plan, _) = output(ztun(&["--dry-run", "--config", path, "--mtu=1300"]));
    assert!(plan.contains("1300") && !plan.contains("1400"), "{plan}");
    fs::write(&file, "# options\nmtu = 1400\ntunn = 'x'\n").unwrap();
    for args in [
        &["--dry-run", "--config", path][..],
        &["exec", "--config", path, "--", "true"],
        &["doctor", "--config", path],
    ] {
        let error = refused(args);
        assert!(
            error.contains("ztun.toml:3") && error.contains("'tunn'") && error.contains("try: "),
            "{error}"
        );
    }
    fs::write(&file, format!("socks5 = ['alice:{PASSWORD}@127.0.0.1:99999']\n")).unwrap();
    let error = refused(&["--dry-run", "--config", path]);
    assert!(error.contains("ztun.toml:1: socks5: ") && error.contains("1 to 65535"), "{error}");
    assert!(!error.contains(PASSWORD), "{error}");
    assert!(refused(&["--config", "/nonexistent", "--dry-run"]).contains("No such file"));
}

#[test]
fn a_password_is_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let file = file.to_str().unwrap();
    let url = &format!("alice:{PASSWORD}@127.0.0.1:9");
    let bad_url = &format!("alice:{PASSWORD}@127.0.0.1:99999");
    for args in [
        &["--socks5", url, "--dry-run"][..],
        &["--socks5", url, "--dry-run", "--log-format", "json"],
        &["--socks5", "alice@127.0.0.1:9", "--socks5-password-file", file, "--dry-run"],
        &["--socks5", bad_url],
        &["--socks5", url, bad_url],
        &["--socks5", url, "--mtu", "1"],
        &["--socks5", "alice@127.0.0.1:9", "--socks5-password-file", PASSWORD],
        &["--bypass", url, "--socks5", url],
        &["--dry-run", url],
        &[url],
        &["exec", "--socks5", bad_url, "--", "true"],
        &["proxy", "--listen", url],
        &["--help"],
        &["man"],
    ] {
        let mut command = ztun(args);
        command.env("RUST_LOG", "trace").env("ZTUN_SOCKS5", url);
        let (_, out, err) = output(command);
        assert!(!out.contains(PASSWORD) && !err.contains(PASSWORD), "{args:?}: {out}{err}");
    }
}

#[test]
fn a_password_file_that_others_can_read_gets_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let told = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let way = ["--socks5", "alice@127.0.0.1:9", "--socks5-password-file", file.to_str().unwrap()];
        let (code, _, err) = output(ztun(&[&way[..], &["--dry-run"]].concat()));
        assert_eq!(code, Some(0), "{err}");
        err.contains("chmod 600")
    };
    assert!(told(0o644));
    assert!(!told(0o600));
}

#[test]
fn a_password_file_has_a_password_in_its_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let way = ["--socks5", "alice@127.0.0.1:9", "--dry-run", "--socks5-password-file"];
    for (content, said) in [
        (&b""[..], "empty"),
        (b"\nsecond line\n", "empty"),
        (b"\xff\xfe\n", "UTF-8"),
        (&[b'x'; 256], "1 to 255"),
        (&[b'x'; 100_000], "1 to 255"),
    ] {
        fs::write(&file, content).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let error = refused(&[&way[..], &[file.to_str().unwrap()]].concat());
        assert!(error.contains(said), "{error}");
    }
    for device in ["/dev/zero", "/"] {
        refused(&[&way[..], &[device]].concat());
    }
}

#[test]
fn the_proxy_may_come_from_the_environment_and_the_command_line_wins() {
    let plan = |variable: &str, args: &[&str]| {
        let mut command = ztun(args);
        command.args(["--dry-run"]).env("ZTUN_SOCKS5", variable);
        output(command)
    };
    let (code, out, _) = plan("198.51.100.7:1080", &[]);
    assert_eq!(code, Some(0));
    assert!(out.contains("198.51.100.7"), "{out}");
    let (_, out, _) = plan("198.51.100.7:1080", &["--socks5", "198.51.100.8:1080"]);
    assert!(out.contains("198.51.100.8") && !out.contains("198.51.100.7"), "{out}");
    // A variable that somebody forgot to fill is no wish for a run without a proxy.
    let mut command = ztun(&["exec", "--", "true"]);
    command.env("ZTUN_SOCKS5", "");
    let (code, _, err) = output(command);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("empty"), "{err}");
}

#[test]
fn a_name_that_does_not_resolve_is_told_with_the_systems_words() {
    // RFC 6761 6.4: there is no such name.
    let (code, _, err) = output(ztun(&["--socks5", "proxy.invalid:1080", "--dry-run"]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.starts_with("error: --socks5: cannot resolve 'proxy.invalid': "), "{err}");
    assert!(err.contains("\n  try: "), "{err}");
}

#[test]
fn a_name_that_resolves_becomes_its_addresses() {
    let way = ["--dry-run", "--local-proxy", "off", "--socks5", "127.0.0.1:1"];
    let (code, out, err) = output(ztun(&[&way[..], &["--bypass", "localhost"]].concat()));
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("127.0.0.1") || out.contains("::1"), "{out}");
}

#[test]
fn help_is_for_people_and_version_is_one_line() {
    let (code, help, err) = output(ztun(&["--help"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(help.contains("sudo ztun --socks5 127.0.0.1:1080"), "the headline example");
    for heading in ["Proxy:", "Traffic:", "Limits:", "Device:", "This machine:", "Logging:"] {
        assert!(help.contains(&format!("\n{heading}\n")), "{heading}");
    }
    assert!(help.lines().count() < 100, "too long to read");
    assert!(help.lines().all(|line| line.chars().count() <= 130), "too wide to read");
    assert_eq!(output(ztun(&["-h"])).1, help);
    let (code, version, _) = output(ztun(&["--version"]));
    assert_eq!((code, version), (Some(0), format!("ztun {}\n", env!("CARGO_PKG_VERSION"))));
    for command in ["exec", "demo", "proxy", "restore", "completions", "man"] {
        let (code, out, err) = output(ztun(&[command, "--help"]));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{command}");
        assert!(out.contains(&format!("Usage: ztun {command}")), "{out}");
    }
}

/// Whether the machine has the program.
fn installed(name: &str) -> bool {
    let run = Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

fn read_by(program: &str, args: &[&str], text: &str) {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let complaints = String::from_utf8_lossy(&stderr);
    assert!(status.success() && complaints.is_empty(), "{program}: {complaints}");
}

#[test]
fn completions_are_read_by_their_shells() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (code, out, err) = output(ztun(&["completions", shell]));
        assert_eq!((code, err.as_str()), (Some(0), ""), "{shell}");
        for word in ["socks5", "local-proxy", "exec", "max-connections"] {
            assert!(out.contains(word), "{shell} knows no {word}");
        }
        assert!(!out.contains("split"), "{shell} offers what there is not");
        if ["bash", "zsh", "fish"].contains(&shell) && installed(shell) {
            read_by(shell, &["-n"], &out);
        }
    }
}

#[test]
fn the_manual_page_is_read_without_a_complaint() {
    let (code, page, err) = output(ztun(&["man"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for macro_line in [".TH ztun 1", ".SH SYNOPSIS", ".SH COMMANDS", ".SH ENVIRONMENT"] {
        assert!(page.lines().any(|line| line.starts_with(macro_line)), "{macro_line} in {page}");
    }
    if installed("groff") {
        read_by("groff", &["-man", "-ww", "-Tutf8", "-z"], &page);
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for args in
        [&["man"][..], &["--help"], &["completions", "bash"], &["--dry-run", "--socks5", "127.0.0.1:9"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = ztun(args);
        command.stdout(writer).stderr(Stdio::piped());
        let (code, _, err) = output(command);
        assert_eq!(code, Some(0), "{args:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("error:"), "{args:?}: {err}");
    }
    // Also when nobody reads the errors.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = ztun(&["--mtu", "1"]);
    command.stderr(writer);
    assert_eq!(output(command).0, Some(2));
}

#[test]
fn a_full_disk_is_told() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = ztun(&["man"]);
    command.stdout(full).stderr(Stdio::piped());
    let (code, _, err) = output(command);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("No space left"), "{err}");
}

#[test]
fn a_dry_run_lists_each_change_with_its_undo() {
    let args =
        ["--socks5", "198.51.100.7:1080", "--bypass", "203.0.113.0/24", "--tun", "cli-dry0", "--dry-run"];
    let (code, out, err) = output(ztun(&args));
    assert_eq!(code, Some(0), "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.len() >= 10 && lines.len().is_multiple_of(2), "{out}");
    for pair in lines.chunks(2) {
        assert!(!pair[0].starts_with(' ') && pair[1].starts_with("    undo: "), "{pair:?}");
    }
    for part in ["198.18.0.1/16", "fd7a:7a74:756e::1/64", "203.0.113.0/24", "cli-dry0", "0x7a74"] {
        assert!(out.contains(part), "{part} in {out}");
    }
    assert!(!Path::new("/sys/class/net/cli-dry0").exists());
    let (_, bare, _) = output(ztun(&["--socks5", "198.51.100.7:1080", "--dry-run", "--no-route"]));
    assert!(!bare.contains("rule") && !bare.contains("route"), "{bare}");
}

/// The program where everybody can run it, for a user without any right.
fn without_rights(args: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = dir.path().join("ztun");
    // Copied by another process: one of this, forked by another test meanwhile, would hold it open for writing.
    assert!(Command::new("cp").arg(ZTUN).arg(&copy).status().unwrap().success());
    let mut command = program(&copy, args);
    // Who is not root has no rights already.
    if fs::metadata("/proc/self").unwrap().uid() == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    output(command)
}

#[test]
fn without_rights_a_run_is_refused_by_the_machine_with_a_remedy() {
    let (code, out, err) = without_rights(&["--socks5", "127.0.0.1:9"]);
    assert_eq!(code, Some(3), "{err}");
    assert!(out.is_empty(), "{out}");
    let error = err.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert!(error.contains("ermi"), "the system's own words: {err}");
    assert!(err.contains("\n  try: ") && err.contains("root"), "{err}");
    assert!(!err.contains("panicked"), "{err}");
}

#[test]
fn without_rights_a_dry_run_works() {
    let (code, out, err) = without_rights(&["--socks5", "127.0.0.1:9", "--dry-run"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("undo: "), "{out}");
}

#[test]
fn json_lines_are_json_and_text_lines_are_short() {
    let way = ["--socks5", "127.0.0.1:9", "--dry-run", "--log-level", "trace"];
    let (_, _, text) = output(ztun(&way));
    let line = text.lines().find(|line| line.contains("nobody listens")).expect("a warning");
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.starts_with("20") && time.ends_with('Z'), "{line}");
    assert!(rest.starts_with("WARN  nobody listens"), "{line}");
    let (_, _, json) = output(ztun(&[&way[..], &["--log-format", "json"]].concat()));
    let line = json.lines().find(|line| line.contains("nobody listens")).expect("a warning");
    assert!(line.starts_with("{\"ts\":\"20") && line.ends_with("\"}"), "{line}");
    for part in ["\"level\":\"warn\"", "\"target\":\"ztun::", "\"msg\":\"nobody listens"] {
        assert!(line.contains(part), "{line}");
    }
    let (_, _, quiet) = output(ztun(&["--socks5", "127.0.0.1:9", "--dry-run", "--log-level", "off"]));
    assert_eq!(quiet, "");
    let mut command = ztun(&["--socks5", "127.0.0.1:9", "--dry-run"]);
    command.env("RUST_LOG", "error");
    assert_eq!(output(command).2, "");
}

/// A server that runs, and the line by which it said so.
struct Serving {
    child: Child,
    errors: BufReader<std::process::ChildStderr>,
    /// What it said before.
    before: String,
    ready: String,
}

impl Serving {
    fn start(args: &[&str]) -> Serving {
        let mut child = ztun(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let (mut before, mut ready) = (String::new(), String::new());
        while !ready.contains("ready") {
            before.push_str(&ready);
            ready.clear();
            assert!(errors.read_line(&mut ready).unwrap() > 0, "it ended instead");
        }
        Serving { child, errors, before, ready }
    }

    /// Sends the signal; status and what it said after it was ready.
    fn end(mut self, signal: &str) -> (Option<i32>, String) {
        let kill = Command::new("kill").args([signal, &self.child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let mut rest = String::new();
        self.errors.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_embedded_proxy_says_where_it_is_ready_and_stops_as_asked() {
    for signal in ["-TERM", "-INT"] {
        let proxy = Serving::start(&["proxy", "--listen", "127.0.0.1:0"]);
        let addr = proxy.ready.trim().rsplit(' ').next().unwrap().to_owned();
        let mut client = std::net::TcpStream::connect(&addr).unwrap();
        client.write_all(&[5, 1, 0]).unwrap();
        let mut answer = [0; 2];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [5, 0]);
        assert_eq!(proxy.before, "");
        let (code, rest) = proxy.end(signal);
        assert_eq!(code, Some(0), "{rest}");
        assert!(!rest.contains("panicked"), "{rest}");
    }
}

#[test]
fn the_embedded_proxy_with_a_user_wants_the_password() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    fs::write(&file, PASSWORD).unwrap();
    let file = file.to_str().unwrap();
    let args = ["proxy", "--listen", "127.0.0.1:0", "--user", "alice", "--password-file", file];
    let proxy = Serving::start(&args);
    let addr = proxy.ready.trim().rsplit(' ').next().unwrap().to_owned();
    let mut client = std::net::TcpStream::connect(&addr).unwrap();
    // RFC 1929: method 2, then user and password.
    client.write_all(&[5, 1, 2]).unwrap();
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [5, 2]);
    client.write_all(b"\x01\x05alice\x07hunter2").unwrap();
    client.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [1, 0]);
    assert_eq!(proxy.end("-TERM").0, Some(0));
}

#[test]
fn a_proxy_that_is_open_to_everybody_says_so() {
    let proxy = Serving::start(&["proxy", "--listen", "0.0.0.0:0"]);
    assert!(proxy.before.contains("WARN") && proxy.before.contains("--user"), "{}", proxy.before);
    assert_eq!(proxy.end("-TERM").0, Some(0));
}

#[test]
fn an_address_in_use_is_told_with_a_remedy() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (code, _, err) = output(ztun(&["proxy", "--listen", &addr]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&addr) && err.contains("in use") && err.contains("\n  try: "), "{err}");
}

#[test]
fn an_argument_that_is_no_text_is_refused() {
    let mut command = ztun(&["--tun"]);
    command.arg(OsString::from_vec(vec![0xff, 0xfe]));
    let (code, _, err) = output(command);
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("UTF-8"), "{err}");
}

/// Words of the grammar among others, so that parsing gets somewhere.
fn word() -> impl Strategy<Value = OsString> {
    let known = prop::sample::select(vec![
        "exec",
        "proxy",
        "restore",
        "man",
        "completions",
        "bash",
        "demo",
        "help",
        "status",
        "--",
        "-",
        "-h",
        "-V",
        "--socks5",
        "--socks5=u:p@127.0.0.1:1",
        "127.0.0.1:1080",
        "--rule",
        "any -> proxy",
        "dst=::/0->drop",
        "--dns",
        "fake",
        "--mtu",
        "1500",
        "--tun",
        "--route",
        "10.0.0.0/8",
        "--bypass",
        "--tcp-idle",
        "2h4m",
        "--log-level",
        "debug",
        "--kill-switch",
        "--dry-run",
        "--ipv6",
        "off",
        "--mark",
        "0x1",
        "--address",
        "--listen",
        "--user",
    ]);
    prop_oneof![
        4 => known.prop_map(OsString::from),
        2 => ".{0,12}".prop_map(OsString::from),
        1 => "-{1,3}[a-z0-9=:@%/.-]{0,16}".prop_map(OsString::from),
        1 => prop::collection::vec(any::<u8>(), 0..12).prop_map(OsString::from_vec),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_command_line_makes_the_parser_panic(words in prop::collection::vec(word(), 0..8)) {
        let mut args = vec![OsString::from("ztun")];
        args.extend(words);
        ztun::cli::parse_only(&args);
    }
}

#[test]
fn the_parser_that_is_tried_is_the_one_that_is_used() {
    let parses = |args: &[&str]| ztun::cli::parse_only(&args.iter().map(OsString::from).collect::<Vec<_>>());
    assert!(parses(&["ztun", "--socks5", "127.0.0.1:1080", "--rule", "any -> direct"]));
    assert!(parses(&["ztun", "exec", "--", "true"]));
    assert!(!parses(&["ztun"]));
    assert!(!parses(&["ztun", "--socks5", "127.0.0.1:1080", "--mtu", "1"]));
    assert!(!parses(&[]));
}
