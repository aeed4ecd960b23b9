//! The number of descriptors that the process may hold.

use std::io;
use std::os::fd::RawFd;

/// A turn of the session's services opens no more than this at once, by far.
const MOST_RESERVED: u64 = 32;

/// Descriptors besides those of flows: the device, signals, the loop, logs.
const OTHERS: u64 = 64;

/// The descriptors that `max_tcp` flows and `max_udp` mappings need, with all else: a flow has one, a mapping two, its datagrams' and its connection's.
pub fn needed(max_tcp: usize, max_udp: usize) -> u64 {
    let as_u64 = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    as_u64(max_tcp).saturating_add(as_u64(max_udp).saturating_mul(2)).saturating_add(OTHERS)
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
    if limit.rlim_cur < limit.rlim_max {
        set_limit(limit.rlim_max, limit.rlim_max)?;
    }
    Ok(limit.rlim_max)
}

/// The highest limit that the kernel accepts of anybody; what it starts with where it does not tell.
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

/// The descriptors that flows may have under a limit of `open_files`: those below this number. The rest, an eighth of a small limit, is for what has to be done
/// whatever the number of flows: to read the machine's network and follow it, to make a lost device anew, to answer on the control socket.
pub fn for_flows(open_files: u64) -> RawFd {
    let reserve = (open_files / 8).min(MOST_RESERVED);
    RawFd::try_from(open_files - reserve).unwrap_or(RawFd::MAX)
}

/// 16 octets of randomness from the operating system: the seed of everything random in the core.
pub fn seed() -> io::Result<[u8; crate::rng::SEED_LEN]> {
    use std::io::Read;
    let mut seed = [0; crate::rng::SEED_LEN];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_leave_some_descriptors_to_the_rest() {
        assert_eq!(for_flows(100), 88);
        assert_eq!(for_flows(1_048_576), 1_048_544);
        assert_eq!((for_flows(0), for_flows(u64::MAX)), (0, RawFd::MAX));
    }

    #[test]
    fn descriptors_are_counted_for_all_flows() {
        assert_eq!(needed(100, 10), 100 + 2 * 10 + OTHERS);
        assert_eq!(needed(usize::MAX, usize::MAX), u64::MAX);
    }

    #[test]
    fn the_limit_is_raised_to_the_hard_one_and_seeds_differ() {
        let limit = raise_open_files(0).expect("limit");
        assert_eq!(open_files().expect("limit"), limit);
        // Wanted or not: what the system refuses is no failure.
        assert!(raise_open_files(limit + 1).expect("limit") >= limit);
        assert!(raise_open_files(u64::MAX).expect("limit") >= limit);
        assert_ne!(seed().expect("seed"), seed().expect("seed"));
    }
}
