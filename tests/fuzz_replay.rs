//! The corpus of the fuzzer, and as many generated inputs, through the functions that the fuzzer calls (`tests/fuzz/README.md`).

#![allow(unreachable_pub, reason = "a module of a test has nobody outside")]

#[path = "fuzz/targets/mod.rs"]
mod targets;

use std::path::{Path, PathBuf};
use ztun::rng::Rng;

/// Generated inputs for each target.
const GENERATED: u64 = 400;

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    files
}

fn replay(name: &str) {
    let (_, run) = targets::ALL.iter().find(|(target, _)| *target == name).expect("a target of this name");
    let files = corpus(name);
    assert!(files.len() >= 10, "the corpus of {name} is missing: {} files", files.len());
    for file in files {
        let octets = std::fs::read(&file).expect("a readable file");
        named(&file.display().to_string(), || run(&octets));
    }
    for seed in 0..GENERATED {
        let octets = generated(seed);
        named(&format!("generated input {seed}"), || run(&octets));
    }
}

/// Octets that are deterministic, of all lengths up to 2,000.
fn generated(seed: u64) -> Vec<u8> {
    let mut key = [1; 16];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    let mut rng = Rng::new(key);
    let len = rng.next_u64() % [8, 64, 500, 2_000][seed as usize % 4];
    (0..len).map(|_| rng.next_u32() as u8).collect()
}

fn named(input: &str, run: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
        panic!("{input} fails, see above");
    }
}

#[test]
fn the_corpus_of_the_wire_parsers() {
    replay("wire");
}

#[test]
fn the_corpus_of_the_stack() {
    replay("stack");
}

#[test]
fn the_corpus_of_the_engine() {
    replay("engine");
}

#[test]
fn the_corpus_of_socks5() {
    replay("socks5");
}

#[test]
fn the_corpus_of_dns() {
    replay("dns");
}

/// A corpus that belongs to no target would be replayed by nobody.
#[test]
fn every_corpus_has_a_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .expect("the corpus")
        .map(|entry| entry.expect("a readable folder").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut targets: Vec<&str> = targets::ALL.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(names, targets);
}
