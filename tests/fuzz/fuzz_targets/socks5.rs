//! Fuzzes `targets::socks5`.

#![no_main]
#![allow(dead_code, reason = "the other targets are in the same module")]

#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::socks5::run(data));
