//! TCP sequence numbers: 32 bits, modulo 2^32, with wrapping operations only (RFC 9293 3.4).

use core::ops::{Add, AddAssign, Sub};

/// A TCP sequence number. Comparison is circular and is only meaningful for numbers less than
/// 2^31 apart, which is why there is no `Ord`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// `self < other` on the circle.
    pub const fn lt(self, other: SeqNumber) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// `self <= other` on the circle.
    pub const fn le(self, other: SeqNumber) -> bool {
        !other.lt(self)
    }

    /// `self > other` on the circle.
    pub const fn gt(self, other: SeqNumber) -> bool {
        other.lt(self)
    }

    /// `self >= other` on the circle.
    pub const fn ge(self, other: SeqNumber) -> bool {
        !self.lt(other)
    }

    /// Octets from `earlier` up to `self`, walking forward; never negative.
    pub const fn distance_from(self, earlier: SeqNumber) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// The later of the two on the circle.
    pub const fn max(self, other: SeqNumber) -> SeqNumber {
        if self.lt(other) { other } else { self }
    }

    /// The earlier of the two on the circle.
    pub const fn min(self, other: SeqNumber) -> SeqNumber {
        if self.lt(other) { self } else { other }
    }
}

impl Add<u32> for SeqNumber {
    type Output = SeqNumber;

    fn add(self, octets: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(octets))
    }
}

impl AddAssign<u32> for SeqNumber {
    fn add_assign(&mut self, octets: u32) {
        *self = *self + octets;
    }
}

impl Sub<u32> for SeqNumber {
    type Output = SeqNumber;

    fn sub(self, octets: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_sub(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_holds_across_the_wrap() {
        let before = SeqNumber(u32::MAX - 1);
        let after = before + 4;
        assert_eq!(after, SeqNumber(2));
        assert!(before.lt(after) && after.gt(before) && before.le(before) && after.ge(before));
        assert_eq!(after.distance_from(before), 4);
        assert_eq!(before.max(after), after);
        assert_eq!(before.min(after), before);
        assert_eq!(after - 4, before);
    }
}
