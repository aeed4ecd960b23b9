//! The number of descriptors that the process may hold; and randomness, which the system has without limit.

#[cfg_attr(unix, path = "limits_unix.rs")]
#[cfg_attr(windows, path = "limits_windows.rs")]
mod system;

pub(super) use system::number;
pub use system::{open_files, raise_open_files, seed};

/// The number of a descriptor.
pub type Number = i32;

/// A turn of the session's services opens no more than this at once, by far.
const MOST_RESERVED: u64 = 32;

/// Descriptors besides those of flows: the device, signals, the loop, logs.
const OTHERS: u64 = 64;

/// The descriptors that `max_tcp` flows and `max_udp` mappings need, with all else: a flow has one, a mapping two, its datagrams' and its connection's.
pub fn needed(max_tcp: usize, max_udp: usize) -> u64 {
    let as_u64 = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
    as_u64(max_tcp).saturating_add(as_u64(max_udp).saturating_mul(2)).saturating_add(OTHERS)
}

/// The descriptors that flows may have under a limit of `open_files`: those below this number. The rest, an eighth of a small limit, is for what has to be done
/// whatever the number of flows: to read the machine's network and follow it, to make a lost device anew, to answer on the control socket.
pub fn for_flows(open_files: u64) -> Number {
    let reserve = (open_files / 8).min(MOST_RESERVED);
    Number::try_from(open_files - reserve).unwrap_or(Number::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_leave_some_descriptors_to_the_rest() {
        assert_eq!(for_flows(100), 88);
        assert_eq!(for_flows(1_048_576), 1_048_544);
        assert_eq!((for_flows(0), for_flows(u64::MAX)), (0, Number::MAX));
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
        assert!(raise_open_files(limit.saturating_add(1)).expect("limit") >= limit);
        assert!(raise_open_files(u64::MAX).expect("limit") >= limit);
        assert_ne!(seed().expect("seed"), seed().expect("seed"));
    }
}
