//! The C library from the side of C: the header is what the source says, and a program in C does what one may do, against the static library and the shared one.
//!
//! The libraries are built as `./build-all.sh lib` builds them, but not optimised. The program (`ffi/session.c`) is run under valgrind, in a network namespace with
//! two TUN devices that were set up for it, as a phone's system does; the proxy and the targets are on the other machine of the [`world`].

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::disallowed_methods, reason = "the other ends of the wire are threads that block")]
#![allow(clippy::print_stderr, reason = "a test that is skipped, or fails, says why")]
#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[path = "netns/world.rs"]
#[allow(dead_code, reason = "it is the other tests' too")]
mod world;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// The exit status by which valgrind says that it has found something.
const FOUND: &str = "--error-exitcode=99";

/// `include/ztun.h`, made anew.
fn header() -> String {
    let root = Path::new(ROOT);
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let sources = ["types.rs", "session.rs", "mod.rs"].map(|file| root.join("src/ffi").join(file));
    let builder =
        sources.iter().fold(cbindgen::Builder::new().with_config(config), cbindgen::Builder::with_src);
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_fresh() {
    let path = Path::new(ROOT).join("include/ztun.h");
    let header = header();
    if std::env::var_os("ZTUN_WRITE_HEADER").is_some_and(|value| value == "1") {
        fs::write(&path, &header).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == header,
        "include/ztun.h is not what src/ffi says: ZTUN_WRITE_HEADER=1 cargo test --test ffi header"
    );
    for function in [
        "new",
        "free",
        "start",
        "restart",
        "stop",
        "state",
        "stats",
        "last_error",
        "set_log",
        "network_changed",
    ] {
        assert!(header.contains(&format!("ztun_{function}(")), "{function}");
    }
}

fn succeeded(output: &Output, what: &str) {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Builds both libraries: where they are, and what a program that takes the static one has to be linked with.
fn libraries() -> (PathBuf, Vec<String>) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(ROOT).args(["rustc", "--locked", "--quiet", "--lib", "--features", "ffi"]);
    cargo.args(["--crate-type", "staticlib,cdylib", "--message-format", "short"]);
    // As the tests are: what both need is built once.
    cargo.env("CARGO_PROFILE_DEV_OPT_LEVEL", "1");
    let tests = std::env::current_exe().unwrap();
    // The test program is in deps, in debug, in the target directory.
    let mut target = tests.ancestors().nth(3).unwrap().to_owned();
    if std::env::var_os("SUDO_UID").is_some() {
        // What root writes must not be in the way of who has called sudo.
        target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ffi");
    }
    cargo.arg("--target-dir").arg(&target).args(["--", "--print", "native-static-libs"]);
    let built = cargo.output().unwrap();
    succeeded(&built, "the libraries");
    let said = String::from_utf8_lossy(&built.stderr);
    let natives = said.lines().find_map(|line| line.split_once("native-static-libs: "));
    // Said only when the library is built, not when it is there.
    let natives = natives.map_or("-lgcc_s -lutil -lrt -lpthread -lm -ldl -lc", |(_, natives)| natives);
    (target.join("debug"), natives.split_whitespace().map(str::to_owned).collect())
}

/// The program in C, linked with each of the libraries.
fn programs(dir: &Path) -> [PathBuf; 2] {
    let (libraries, natives) = libraries();
    let link = |name: &str, how: &[String]| {
        let program = dir.join(name);
        let mut cc = Command::new("cc");
        cc.args(["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g", "-O1"]);
        cc.arg(format!("-I{ROOT}/include")).arg(format!("{ROOT}/tests/ffi/session.c"));
        cc.args(how).arg("-o").arg(&program);
        succeeded(&cc.output().expect("cc"), name);
        program
    };
    let archive = libraries.join("libztun.a").display().to_string();
    let place = libraries.display();
    [
        link("static", &[vec![archive], natives].concat()),
        link("shared", &[format!("-L{place}"), "-lztun".into(), format!("-Wl,-rpath,{place}")]),
    ]
}

/// The program under valgrind: no error of memory, and nothing that is lost.
fn valgrind(mut command: Command, program: &Path) -> Command {
    command.args(["--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect", FOUND]);
    command.arg(program);
    command
}

#[test]
fn a_program_in_c_carries_traffic_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let programs = programs(dir.path());
    for program in &programs {
        // Without arguments it does what needs no device.
        let output = valgrind(Command::new("valgrind"), program).output().expect("valgrind");
        succeeded(&output, "refusals");
    }
    for program in &programs {
        let Some(world) = world::world() else { return };
        world.client.ok(
            "for tun in tunc0 tunc1; do ip tuntap add dev $tun mode tun && ip link set $tun up; done && \
             ip addr add 198.18.0.1/16 dev tunc0 && ip addr add 198.19.0.1/16 dev tunc1 && \
             ip addr add fd7a:7a74:756e::1/64 dev tunc1 nodad && \
             ip route add 203.0.113.10/32 dev tunc0 && ip -6 route add 2001:db8::10/128 dev tunc1",
        );
        let _proxy = world.embedded(&world.server, world::PROXY);
        for target in [world::TARGET.to_owned(), format!("[{}]", world::TARGET6)] {
            world.echo(&format!("{target}:7000"));
            world.answer(&format!("{target}:7000"), <[u8]>::to_vec);
        }
        let mut command = valgrind(world.client.command("valgrind"), program);
        command.args([world::PROXY, world::TARGET, world::TARGET6, "7000"]);
        let mut running = world.start(command);
        let end = running.end();
        assert_eq!(end, Some(0), "{}:\n{}", program.display(), running.log());
    }
}

/// What the document shows is what is compiled: its examples are C that the compiler takes.
#[test]
fn the_examples_of_the_document_compile() {
    let mut document = String::new();
    fs::File::open(Path::new(ROOT).join("docs/library.md")).unwrap().read_to_string(&mut document).unwrap();
    let examples: Vec<&str> =
        document.split("```c\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!examples.is_empty());
    let dir = tempfile::tempdir().unwrap();
    for example in examples {
        let source = dir.path().join("example.c");
        fs::write(&source, example).unwrap();
        let mut cc = Command::new("cc");
        cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"])
            .arg(format!("-I{ROOT}/include"));
        succeeded(&cc.arg(&source).output().expect("cc"), example);
    }
}
