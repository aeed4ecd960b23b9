//! The number of descriptors that the process may hold.

use std::io;
use std::os::fd::RawFd;

/// A turn of the session's services opens no more than this at once, by far.
const MOST_RESERVED: u64 = 32;

/// Raises the soft limit of open files to the hard one; gives the limit that holds then.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live, writable struct of the type that the call expects.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a live, initialised struct of the type that the call expects.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
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
    fn the_limit_is_raised_to_the_hard_one_and_seeds_differ() {
        let limit = raise_open_files().expect("limit");
        assert_eq!(raise_open_files().expect("limit"), limit);
        assert_ne!(seed().expect("seed"), seed().expect("seed"));
    }
}
