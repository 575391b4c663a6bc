//! Random numbers that are a pure function of (seed, stream, index): a generator's row n is the same whoever makes it, in whatever order.

/// Multiplies to 128 bits and folds the halves: the mixing step of wyhash.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

/// One independent sequence of random words, addressed by index.
///
/// Not for secrets. Two streams of one seed, or the same stream of two seeds, share nothing that statistics would notice.
#[derive(Clone, Copy, Debug)]
pub struct RandomStream {
    key: u64,
}

impl RandomStream {
    /// The stream number `stream` of `seed`.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let key = fold(seed ^ 0xa076_1d64_78bd_642f, stream.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0xe703_7ed1_a0b4_28db);
        Self { key: fold(key ^ stream, 0x8ebc_6af0_9c88_c6e3) }
    }

    /// The word at `index`.
    #[inline]
    #[must_use]
    pub fn word(self, index: u64) -> u64 {
        let mixed = fold(index ^ self.key, 0x9fb2_1c65_1e98_df25);
        fold(mixed ^ 0x5899_65cc_7537_4cc3, self.key | 1)
    }

    /// The `ordinal`-th of several words at `index`; the 0th is [`Self::word`].
    #[inline]
    #[must_use]
    pub fn word_of(self, index: u64, ordinal: u64) -> u64 {
        if ordinal == 0 { self.word(index) } else { Self::new(self.key ^ ordinal, ordinal).word(index) }
    }
}

/// Scales 32 random bits to 0..`bound`; 0 when `bound` is 0. The bias is at most `bound` / 2³².
#[inline]
#[must_use]
pub fn below(bits: u32, bound: u64) -> u64 {
    debug_assert!(bound <= 1 << 32, "a bound of {bound} needs more than 32 random bits");
    (u64::from(bits) * bound) >> 32
}

/// Scales a random word to 0..`bound`; 0 when `bound` is 0.
#[inline]
#[must_use]
pub fn below_wide(word: u64, bound: u64) -> u64 {
    ((u128::from(word) * u128::from(bound)) >> 64) as u64
}

/// The upper half of a word.
#[inline]
#[must_use]
pub fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// The lower half of a word.
#[inline]
#[must_use]
pub fn low(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_depend_on_seed_stream_and_index() {
        let base = RandomStream::new(1, 0);
        assert_eq!(base.word(7), RandomStream::new(1, 0).word(7));
        assert_ne!(base.word(7), base.word(8));
        assert_ne!(base.word(7), RandomStream::new(1, 1).word(7));
        assert_ne!(base.word(7), RandomStream::new(2, 0).word(7));
        assert_ne!(base.word_of(7, 1), base.word(7));
    }

    #[test]
    fn each_bit_is_set_half_of_the_time_and_neighbours_are_unrelated() {
        let n = 20_000u64;
        for stream in 0..8 {
            let random = RandomStream::new(0, stream);
            let mut set = [0u32; 64];
            let mut equal = [0u32; 64];
            for i in 0..n {
                let (word, next) = (random.word(i), random.word(i + 1));
                for bit in 0..64 {
                    set[bit] += (word >> bit & 1) as u32;
                    equal[bit] += ((word ^ next) >> bit & 1) as u32;
                }
            }
            // Five standard deviations of a fair coin thrown 20 000 times are 354.
            for bit in 0..64 {
                assert!(set[bit].abs_diff(n as u32 / 2) < 354, "stream {stream}, bit {bit}: set {} times", set[bit]);
                assert!(equal[bit].abs_diff(n as u32 / 2) < 354, "stream {stream}, bit {bit}: changes {} times", equal[bit]);
            }
        }
    }

    #[test]
    fn scaling_stays_below_the_bound() {
        assert_eq!(below(u32::MAX, 10), 9);
        assert_eq!(below(0, 10), 0);
        assert_eq!(below(u32::MAX, 0), 0);
        assert_eq!(below_wide(u64::MAX, u64::MAX), u64::MAX - 1);
    }
}
