//! Structs of the system as the octets that they are: the builders and parsers of this directory run, and are tested, on every system.
//!
//! Windows runs on little-endian machines only, so that is how numbers stand here. Where a struct has an address or a port, these are as on the wire.

/// The octets of one struct, aligned as the strictest member of any of them wants it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(8))]
pub(super) struct Row<const N: usize>([u8; N]);

impl<const N: usize> Row<N> {
    /// All octets 0.
    pub(super) const fn zeroed() -> Row<N> {
        Row([0; N])
    }

    /// Its octets.
    pub(super) fn octets(&self) -> &[u8] {
        &self.0
    }

    /// The same with `octets` from `at` on; `at` is an offset of the struct's, so they fit.
    #[must_use]
    pub(super) fn with(mut self, at: usize, octets: &[u8]) -> Row<N> {
        for (place, octet) in self.0.iter_mut().skip(at).zip(octets) {
            *place = *octet;
        }
        self
    }

    /// What the system reads.
    #[cfg(windows)]
    pub(super) fn as_ptr<T>(&self) -> *const T {
        self.0.as_ptr().cast()
    }

    /// What the system writes.
    #[cfg(windows)]
    pub(super) fn as_mut_ptr<T>(&mut self) -> *mut T {
        self.0.as_mut_ptr().cast()
    }
}

/// `N` octets from `at` on, if they are there.
pub(super) fn array<const N: usize>(octets: &[u8], at: usize) -> Option<[u8; N]> {
    octets.get(at..)?.first_chunk().copied()
}

/// A number of 16 bits.
pub(super) fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    array(octets, at).map(u16::from_le_bytes)
}

/// A number of 32 bits.
pub(super) fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    array(octets, at).map(u32::from_le_bytes)
}

/// A number of 64 bits.
pub(super) fn u64_at(octets: &[u8], at: usize) -> Option<u64> {
    array(octets, at).map(u64::from_le_bytes)
}

/// The rows of a table: their number (32 bits), and from `first` on rows of `size` octets. No more than there are octets for.
pub(super) fn rows(table: &[u8], first: usize, size: usize) -> impl Iterator<Item = &[u8]> {
    let count = u32_at(table, 0).and_then(|count| usize::try_from(count).ok()).unwrap_or(0);
    table.get(first..).unwrap_or(&[]).chunks_exact(size).take(count)
}

/// Text as the system takes it: UTF-16 with a 0 at the end.
pub(super) fn wide(text: &str) -> Vec<u16> {
    text.encode_utf16().chain([0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_counts_more_rows_than_it_has_gives_those_that_it_has() {
        let table = [9, 0, 0, 0, 1, 2, 3, 4, 5];
        assert_eq!(rows(&table, 4, 2).collect::<Vec<_>>(), [&[1, 2], &[3, 4]]);
        assert_eq!(rows(&[1, 0, 0, 0, 1, 2, 3, 4], 4, 2).collect::<Vec<_>>(), [&[1, 2]]);
        assert_eq!(rows(&[1, 0], 4, 2).count(), 0);
    }

    #[test]
    fn octets_that_are_not_there_are_none() {
        assert_eq!(u32_at(&[1, 2, 3], 0), None);
        assert_eq!(u16_at(&[1, 2, 3], 1), Some(0x0302));
        assert_eq!(u64_at(&[0; 8], usize::MAX), None);
    }

    #[test]
    fn text_ends_with_a_zero() {
        assert_eq!(wide("zü"), [0x7a, 0xfc, 0]);
    }
}
