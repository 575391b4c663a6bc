//! HyperLogLog: about how many different values, in 4096 bytes.

/// Registers of a sketch, one byte each.
pub(crate) const REGISTERS: usize = 1 << PRECISION;
const PRECISION: u32 = 12;

/// Takes a value's hash in.
pub(crate) fn add(registers: &mut [u8], hash: u64) {
    let register = (hash >> (64 - PRECISION)) as usize;
    // The bits below, with a stop behind them: the rank is at most 64 − PRECISION + 1.
    let rank = ((hash << PRECISION) | 1 << (PRECISION - 1)).leading_zeros() as u8 + 1;
    registers[register] = registers[register].max(rank);
}

/// The estimate, after O. Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), algorithm 6: without bias at any size.
pub(crate) fn estimate(registers: &[u8]) -> i64 {
    const RANK_MAX: usize = (64 - PRECISION) as usize;
    let mut counts = [0_u32; RANK_MAX + 2];
    for rank in registers {
        counts[*rank as usize] += 1;
    }
    let m = REGISTERS as f64;
    let mut z = m * tau(1.0 - f64::from(counts[RANK_MAX + 1]) / m);
    for rank in (1..=RANK_MAX).rev() {
        z = 0.5 * (z + f64::from(counts[rank]));
    }
    z += m * sigma(f64::from(counts[0]) / m);
    (m * m / (2.0 * std::f64::consts::LN_2 * z)).round() as i64
}

fn sigma(mut x: f64) -> f64 {
    if x == 1.0 {
        return f64::INFINITY;
    }
    let (mut y, mut z) = (1.0, x);
    loop {
        x *= x;
        let before = z;
        z += x * y;
        y += y;
        if z == before {
            return z;
        }
    }
}

fn tau(mut x: f64) -> f64 {
    if x == 0.0 || x == 1.0 {
        return 0.0;
    }
    let (mut y, mut z) = (1.0, 1.0 - x);
    loop {
        x = x.sqrt();
        let before = z;
        y *= 0.5;
        z -= (1.0 - x).powi(2) * y;
        if z == before {
            return z / 3.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_within_four_standard_errors_at_any_size() {
        let mut registers = vec![0; REGISTERS];
        assert_eq!(estimate(&registers), 0);
        let mut n = 0_u64;
        for target in [1_u64, 10, 100, 1000, 5000, 10_000, 20_000, 100_000, 1_000_000] {
            while n < target {
                add(&mut registers, crate::key::hash(&n.to_le_bytes()));
                n += 1;
            }
            let error = (estimate(&registers) - target as i64).abs() as f64;
            assert!(error <= (target as f64 * 0.065).max(1.0), "{target}: {}", estimate(&registers));
        }
    }
}
