//! The number of descriptors that the process may hold.

use std::io;

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
    fn the_limit_is_raised_to_the_hard_one_and_seeds_differ() {
        let limit = raise_open_files().expect("limit");
        assert_eq!(raise_open_files().expect("limit"), limit);
        assert_ne!(seed().expect("seed"), seed().expect("seed"));
    }
}
