//! Randomness enters once, as a seed.
//!
//! [`Rng`] is SipHash-2-4 in counter mode: a keyed pseudo-random function, so its output cannot be
//! foretold without the key, and a simulation that gives the same seed sees the same numbers.
//! [`KeyedHash`] is the same function over a value: it keys the hash tables (an attacker who
//! chooses ports must not choose buckets) and the initial sequence numbers of RFC 6528.

use core::fmt;
use core::hash::{BuildHasher, Hash, Hasher};
use siphasher::sip::{SipHasher13, SipHasher24};

/// Octets of seed that an [`Rng`] is made from.
pub const SEED_LEN: usize = 16;

/// A deterministic generator of numbers that cannot be foretold without its seed. The seed is never printed.
#[derive(Clone)]
pub struct Rng {
    key: [u8; SEED_LEN],
    counter: u64,
}

impl Rng {
    /// A generator keyed by `seed`, which the driver takes from the operating system.
    pub fn new(seed: [u8; SEED_LEN]) -> Rng {
        Rng { key: seed, counter: 0 }
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        hasher.write_u64(self.counter);
        self.counter = self.counter.wrapping_add(1);
        hasher.finish()
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    /// The next 16 random bits.
    pub fn next_u16(&mut self) -> u16 {
        (self.next_u64() >> 48) as u16
    }

    /// A key for a [`KeyedHash`] of its own.
    pub fn keyed_hash(&mut self) -> KeyedHash {
        let mut key = [0; SEED_LEN];
        key[..8].copy_from_slice(&self.next_u64().to_le_bytes());
        key[8..].copy_from_slice(&self.next_u64().to_le_bytes());
        KeyedHash { key }
    }
}

impl fmt::Debug for Rng {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rng(..)")
    }
}

/// A keyed hash: equal for equal values under one key, unpredictable without it. The key is never printed.
#[derive(Clone)]
pub struct KeyedHash {
    key: [u8; SEED_LEN],
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash(..)")
    }
}

impl KeyedHash {
    /// The strong form (SipHash-2-4), for what leaves the machine, such as sequence numbers.
    pub fn strong(&self, value: &impl Hash) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.key);
        value.hash(&mut hasher);
        hasher.finish()
    }
}

impl BuildHasher for KeyedHash {
    type Hasher = SipHasher13;

    /// The fast form (SipHash-1-3), for tables.
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let take = |seed: u8| {
            let mut rng = Rng::new([seed; SEED_LEN]);
            (0..100).map(|_| rng.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(take(1), take(1));
        assert_ne!(take(1), take(2));
    }

    #[test]
    fn a_seed_is_never_printed() {
        let mut rng = Rng::new([77; SEED_LEN]);
        assert_eq!(format!("{rng:?} {:?}", rng.keyed_hash()), "Rng(..) KeyedHash(..)");
    }

    #[test]
    fn hashes_differ_by_key_and_by_value() {
        let mut rng = Rng::new([7; SEED_LEN]);
        let (a, b) = (rng.keyed_hash(), rng.keyed_hash());
        assert_eq!(a.strong(&1u32), a.strong(&1u32));
        assert_ne!(a.strong(&1u32), b.strong(&1u32));
        assert_ne!(a.strong(&1u32), a.strong(&2u32));
    }
}
