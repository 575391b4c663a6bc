//! Comparing the tags of a bucket at once.

/// Which of the eight tags are `tag`, as every second bit.
#[inline(always)]
pub(crate) fn matching_tags(tags: &[u8; 16], tag: u16) -> u32 {
    // Each lane gives two bits.
    const LOWER: u32 = 0x5555;
    #[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
    // SAFETY: SSE2 is enabled for the whole target, as the cfg says.
    unsafe {
        by_sse2(tags, tag) & LOWER
    }
    #[cfg(not(all(target_arch = "x86_64", target_feature = "sse2", not(miri))))]
    {
        let lanes = tags.as_chunks::<2>().0.iter().enumerate();
        lanes.fold(0, |bits, (i, lane)| bits | u32::from(u16::from_le_bytes(*lane) == tag) << (2 * i)) & LOWER
    }
}

#[cfg(all(target_arch = "x86_64", target_feature = "sse2", not(miri)))]
#[inline]
#[target_feature(enable = "sse2")]
fn by_sse2(tags: &[u8; 16], tag: u16) -> u32 {
    use std::arch::x86_64::{_mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_set1_epi16};
    // SAFETY: one unaligned load of the 16 bytes of `tags`.
    let lanes = unsafe { _mm_loadu_si128(tags.as_ptr().cast()) };
    _mm_movemask_epi8(_mm_cmpeq_epi16(lanes, _mm_set1_epi16(tag as i16))) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_exactly_the_lanes_with_the_tag() {
        let mut seed = 1_u64;
        for _ in 0..2000 {
            let lanes: [u16; 8] = std::array::from_fn(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 60) as u16 | ((seed >> 40) as u16 & 1) << 15
            });
            let mut bytes = [0; 16];
            for (lane, bytes) in lanes.iter().zip(bytes.as_chunks_mut::<2>().0) {
                *bytes = lane.to_le_bytes();
            }
            for tag in [0, 3, 15, 0x8000, 0x800F, 0xFFFF] {
                let expected = lanes.iter().enumerate().filter(|(_, lane)| **lane == tag).fold(0, |b, (i, _)| b | 1 << (2 * i));
                assert_eq!(matching_tags(&bytes, tag), expected, "{lanes:x?} {tag:x}");
            }
        }
    }
}
