//! Descriptors and randomness on Windows.

use super::Number;
use crate::rng::SEED_LEN;
use std::io;
use windows_sys::Win32::Security::Cryptography::{BCRYPT_USE_SYSTEM_PREFERRED_RNG, BCryptGenRandom};

/// Sockets are no numbers in a row here: each counts as the first.
pub(in crate::driver) fn number(_socket: &socket2::Socket) -> Number {
    0
}

/// There is no limit but memory.
pub fn open_files() -> io::Result<u64> {
    Ok(u64::MAX)
}

/// There is no limit but memory.
pub fn raise_open_files(_wanted: u64) -> io::Result<u64> {
    open_files()
}

/// 16 octets of randomness from the operating system: the seed of everything random in the core.
pub fn seed() -> io::Result<[u8; SEED_LEN]> {
    let mut seed = [0; SEED_LEN];
    // A handful of octets.
    let len = seed.len() as u32;
    // SAFETY: the pointer is to as many live, writable octets as the length says; without an algorithm the system's own is taken, as the flag asks.
    let status = unsafe {
        BCryptGenRandom(std::ptr::null_mut(), seed.as_mut_ptr(), len, BCRYPT_USE_SYSTEM_PREFERRED_RNG)
    };
    // An NTSTATUS below zero is an error.
    if status < 0 {
        return Err(io::Error::other(format!("BCryptGenRandom: status {status:#x}")));
    }
    Ok(seed)
}
