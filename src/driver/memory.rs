//! Gives the memory of a peak back to the system.
//!
//! The core's tables free their pages when flows end. The C library keeps what is freed inside its heap, for what comes next, so the
//! process would stay as large as it ever was. When three in four of many flows are gone it is asked to give whole pages back: that walks what it has
//! free once, a millisecond or so for ten thousand flows, and happens twice for them.

/// A peak of fewer sockets is not worth it: half a megabyte.
const WORTH: usize = 1_024;

/// The largest number of sockets since memory was given back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peak(usize);

impl Peak {
    /// Whether the peak is over, with so many `sockets` at present; says so once.
    pub(super) fn is_over(&mut self, sockets: usize) -> bool {
        let over = self.0 >= WORTH && sockets <= self.0 / 4;
        self.0 = if over { sockets } else { self.0.max(sockets) };
        over
    }
}

/// Has the C library give back what it can.
pub(super) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // SAFETY: the call takes a number, and only moves the bounds of what the allocator itself holds free.
        let given = unsafe { libc::malloc_trim(0) };
        log::debug!(
            "memory of flows that are gone: {}",
            if given == 0 { "none to give back" } else { "given back" }
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_is_over_once_three_in_four_are_gone() {
        let mut peak = Peak::default();
        assert!((0..=10_000).all(|sockets| !peak.is_over(sockets)));
        let over: Vec<usize> = (0..=10_000).rev().filter(|sockets| peak.is_over(*sockets)).collect();
        assert_eq!(over, [2_500, 625]);
        assert!((0..WORTH).chain((0..WORTH).rev()).all(|sockets| !peak.is_over(sockets)));
    }
}
