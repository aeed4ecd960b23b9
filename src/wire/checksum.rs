//! The Internet checksum (RFC 1071), summed over 8-octet words, with incremental update (RFC 1624).
//!
//! One's-complement addition does not care for the order or the width of the words, so octets are
//! added eight at a time into 64 bits with end-around carry, and folded to 16 bits at the end. A sum knows whether
//! an odd number of octets has gone into it: the next part is then added with its octets swapped (RFC 1071 2.B), so
//! that parts may have any length.

use core::net::IpAddr;

/// A running one's-complement sum over parts of any length.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum {
    sum: u64,
    odd: bool,
}

impl Checksum {
    /// An empty sum.
    pub const fn new() -> Checksum {
        Checksum { sum: 0, odd: false }
    }

    /// The sum of the pseudo-header of `src`, `dst`, `protocol` and upper-layer `length` (RFC 9293 3.1, RFC 8200 8.1).
    /// Mixed families are summed as they are; nothing valid produces them.
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, length: u32) -> Checksum {
        let mut tail = [0; 8];
        tail[..4].copy_from_slice(&length.to_be_bytes());
        tail[7] = protocol;
        Checksum::new().with_addr(src).with_addr(dst).with(&tail)
    }

    fn with_addr(self, addr: IpAddr) -> Checksum {
        match addr {
            IpAddr::V4(v4) => self.with(&v4.octets()),
            IpAddr::V6(v6) => self.with(&v6.octets()),
        }
    }

    /// Adds `octets` behind what was added before.
    #[must_use]
    pub fn with(self, octets: &[u8]) -> Checksum {
        let mut sum = 0u64;
        let (words, rest) = octets.as_chunks::<8>();
        for word in words {
            sum = carry(sum, u64::from_be_bytes(*word));
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        sum = carry(sum, u64::from_be_bytes(last));
        let part = if self.odd { u64::from(fold(sum).swap_bytes()) } else { sum };
        Checksum { sum: carry(self.sum, part), odd: self.odd ^ (octets.len() % 2 == 1) }
    }

    /// The folded sum, not complemented: what `NEEDS_CSUM` expects in the checksum field.
    pub fn partial(self) -> u16 {
        fold(self.sum)
    }

    /// The checksum field: the complement of the folded sum.
    pub fn finish(self) -> u16 {
        !self.partial()
    }
}

/// One's-complement addition of 64 bits.
const fn carry(a: u64, b: u64) -> u64 {
    let (sum, overflow) = a.overflowing_add(b);
    // With an overflow the sum is at most 2^64 - 2, so the carry fits.
    sum + overflow as u64
}

const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}

/// The checksum after one 16-bit word of what it covers went from `old` to `new` (RFC 1624 3, equation 3).
pub fn update_u16(checksum: u16, old: u16, new: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old) + u64::from(new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 4.1, as the RFC has it.
    fn naive(octets: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in octets.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_holds() {
        let octets = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Checksum::new().with(&octets).partial(), 0xddf2);
    }

    proptest! {
        /// Z15: any length, any cut.
        #[test]
        fn parts_of_any_length_sum_like_the_whole(octets in proptest::collection::vec(any::<u8>(), 0..2_000), cuts in proptest::collection::vec(0usize..2_000, 0..5)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(octets.len())).collect();
            cuts.extend([0, octets.len()]);
            cuts.sort_unstable();
            let sum = cuts.windows(2).fold(Checksum::new(), |sum, cut| sum.with(&octets[cut[0]..cut[1]]));
            prop_assert_eq!(sum.partial(), naive(&octets));
        }

        #[test]
        fn an_incremental_update_equals_a_new_sum(mut octets in proptest::collection::vec(any::<u8>(), 2..200), at: prop::sample::Index, new: u16) {
            let before = Checksum::new().with(&octets).finish();
            let at = at.index(octets.len() / 2) * 2;
            let old = u16::from_be_bytes([octets[at], octets[at + 1]]);
            octets[at..at + 2].copy_from_slice(&new.to_be_bytes());
            let after = Checksum::new().with(&octets).finish();
            let updated = update_u16(before, old, new);
            // Zero has two representations in one's complement.
            prop_assert!(updated == after || (updated == 0xffff && after == 0) || (updated == 0 && after == 0xffff));
        }
    }
}
