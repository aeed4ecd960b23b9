//! Descriptors and randomness on Unix.

use super::Number;
use std::io::{self, Read};
use std::os::fd::AsRawFd;

/// The number of a socket's descriptor.
pub(in crate::driver) fn number(socket: &socket2::Socket) -> Number {
    socket.as_raw_fd()
}

/// The limit on open files that holds.
pub fn open_files() -> io::Result<u64> {
    limit().map(|limit| limit.rlim_cur)
}

/// Raises the soft limit of open files to the hard one, and the hard one to what is `wanted` where the system lets it (CAP_SYS_RESOURCE, and no
/// higher than `fs.nr_open`); gives the limit that holds then.
pub fn raise_open_files(wanted: u64) -> io::Result<u64> {
    let limit = limit()?;
    let higher = wanted.min(most_open_files());
    if higher > limit.rlim_max && set_limit(higher, higher).is_ok() {
        return Ok(higher);
    }
    let reachable = within_reach(limit.rlim_max);
    if limit.rlim_cur < reachable {
        set_limit(reachable, limit.rlim_max)?;
    }
    Ok(reachable)
}

/// What of a hard limit can be had: Darwin's is often infinite, and no soft limit may be.
fn within_reach(hard: u64) -> u64 {
    if cfg!(target_vendor = "apple") { hard.min(most_open_files()) } else { hard }
}

/// The highest limit that the kernel accepts of anybody; what it has least where it does not tell.
#[cfg(target_vendor = "apple")]
fn most_open_files() -> u64 {
    const LEAST: u64 = 10_240;
    let mut most: libc::c_int = 0;
    let mut len = size_of::<libc::c_int>();
    // SAFETY: the name ends with NUL, and the value is one int, as long as is told, that outlives the call.
    let asked = unsafe {
        libc::sysctlbyname(
            c"kern.maxfilesperproc".as_ptr(),
            (&raw mut most).cast(),
            &raw mut len,
            core::ptr::null_mut(),
            0,
        )
    };
    if asked == 0 { u64::try_from(most).unwrap_or(LEAST) } else { LEAST }
}

/// The highest limit that the kernel accepts of anybody; what it starts with where it does not tell.
#[cfg(not(target_vendor = "apple"))]
fn most_open_files() -> u64 {
    const USUAL: u64 = 1 << 20;
    std::fs::read_to_string("/proc/sys/fs/nr_open")
        .ok()
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(USUAL)
}

fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, writable struct of the type that the call expects.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit)
}

fn set_limit(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the pointer is to a live, initialised struct of the type that the call expects.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// 16 octets of randomness from the operating system: the seed of everything random in the core.
pub fn seed() -> io::Result<[u8; crate::rng::SEED_LEN]> {
    let mut seed = [0; crate::rng::SEED_LEN];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}
