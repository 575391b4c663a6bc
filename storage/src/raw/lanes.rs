//! Comparing the upper halves of a cache line of words at once.

/// Which of the eight words have `tag` (24 bits) as their upper bits, as bits.
#[inline(always)]
pub(crate) fn matching_tags(words: &[u64; 8], tag: u32) -> u32 {
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
    // SAFETY: SSE2 is enabled for the whole target, as the cfg says.
    unsafe {
        by_sse2(words, tag)
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(miri))))]
    {
        words.iter().enumerate().fold(0, |bits, (i, word)| bits | u32::from((word >> 40) as u32 == tag) << i)
    }
}

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
#[inline]
#[target_feature(enable = "sse2")]
fn by_sse2(words: &[u64; 8], tag: u32) -> u32 {
    use std::arch::x86_64::{
        __m128, __m128i, _mm_and_si128, _mm_castps_si128, _mm_cmpeq_epi32, _mm_loadu_ps, _mm_movemask_epi8, _mm_packs_epi16,
        _mm_packs_epi32, _mm_set1_epi32, _mm_setzero_si128, _mm_shuffle_ps,
    };
    let at = words.as_ptr().cast::<f32>();
    // SAFETY: four unaligned loads of 16 bytes each inside the 64 bytes of `words`.
    let pairs: [__m128; 4] =
        unsafe { [_mm_loadu_ps(at), _mm_loadu_ps(at.add(4)), _mm_loadu_ps(at.add(8)), _mm_loadu_ps(at.add(12))] };
    // The upper halves of four words.
    let low: __m128i = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(pairs[0], pairs[1]));
    let high: __m128i = _mm_castps_si128(_mm_shuffle_ps::<0b11_01_11_01>(pairs[2], pairs[3]));
    let mask = _mm_set1_epi32(0xFFFF_FF00_u32 as i32);
    let wanted = _mm_set1_epi32((tag << 8) as i32);
    let low = _mm_cmpeq_epi32(_mm_and_si128(low, mask), wanted);
    let high = _mm_cmpeq_epi32(_mm_and_si128(high, mask), wanted);
    let bytes = _mm_packs_epi16(_mm_packs_epi32(low, high), _mm_setzero_si128());
    (_mm_movemask_epi8(bytes) & 0xFF) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exactly_the_words_with_the_tag() {
        let mut seed = 1_u64;
        for _ in 0..2000 {
            let words: [u64; 8] = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 60) << 40 | (seed >> 20) & 0xFF_FFFF_FFFF | (seed & 1) << 63
            });
            for tag in [0, 3, 15, 0x80_0000, 0x80_000F, 0xFF_FFFF] {
                let expected =
                    words.iter().enumerate().filter(|(_, w)| **w >> 40 == u64::from(tag)).fold(0, |b, (i, _)| b | 1 << i);
                assert_eq!(matching_tags(&words, tag), expected, "{words:x?} {tag:x}");
            }
        }
    }
}
