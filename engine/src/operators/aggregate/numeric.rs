//! Sums that can be taken back: 192-bit integers, doubles with twice the digits.

/// A signed 192-bit integer, `high · 2¹²⁸ + low`: holds any sum of 2⁶³ decimals of 38 digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct I192 {
    pub(crate) low: u128,
    pub(crate) high: i64,
}

impl I192 {
    pub(crate) const BYTES: usize = 24;

    pub(crate) fn add(self, other: Self) -> Self {
        let (low, carry) = self.low.overflowing_add(other.low);
        Self { low, high: self.high.wrapping_add(other.high).wrapping_add(i64::from(carry)) }
    }

    fn negated(self) -> Self {
        let (low, carry) = (!self.low).overflowing_add(1);
        Self { low, high: (!self.high).wrapping_add(i64::from(carry)) }
    }

    /// `value · weight`.
    pub(crate) fn product(value: i128, weight: i64) -> Self {
        if weight == 1 {
            return value.into();
        }
        let (a, b) = (value.unsigned_abs(), u128::from(weight.unsigned_abs()));
        let (low, high) = ((a & u128::from(u64::MAX)) * b, (a >> 64) * b);
        let (sum, carry) = low.overflowing_add(high << 64);
        let magnitude = Self { low: sum, high: (high >> 64) as i64 + i64::from(carry) };
        if (value < 0) == (weight < 0) { magnitude } else { magnitude.negated() }
    }

    /// The same number in 128 bits, if it fits.
    pub(crate) fn to_i128(self) -> Option<i128> {
        let low = self.low as i128;
        (self.high == (low >> 127) as i64).then_some(low)
    }

    /// `self · 10^digits / count`, rounded half away from zero; `None` when it has more than 38 digits. `count > 0`, `digits <= 38`.
    pub(crate) fn average(self, count: i64, digits: u32) -> Option<i128> {
        let negative = self.high < 0;
        let magnitude = if negative { self.negated() } else { self };
        let divisor = u128::from(count.unsigned_abs());
        let limbs = [magnitude.high as u64, (magnitude.low >> 64) as u64, magnitude.low as u64];
        let mut remainder = 0_u128;
        let mut quotient = [0_u64; 3];
        for (limb, out) in limbs.iter().zip(&mut quotient) {
            let part = (remainder << 64) | u128::from(*limb);
            *out = (part / divisor) as u64;
            remainder = part % divisor;
        }
        if quotient[0] != 0 {
            return None;
        }
        let mut result = (u128::from(quotient[1]) << 64) | u128::from(quotient[2]);
        for _ in 0..digits {
            remainder *= 10;
            result = result.checked_mul(10)?.checked_add(remainder / divisor)?;
            remainder %= divisor;
        }
        if remainder * 2 >= divisor {
            result = result.checked_add(1)?;
        }
        let result = i128::try_from(result).ok().filter(|r| *r < DECIMAL_END)?;
        Some(if negative { -result } else { result })
    }

    pub(crate) fn write(self, out: &mut [u8]) {
        out[..16].copy_from_slice(&self.low.to_le_bytes());
        out[16..24].copy_from_slice(&self.high.to_le_bytes());
    }

    pub(crate) fn read(from: &[u8]) -> Self {
        Self { low: u128::from_le_bytes(array(from, 0)), high: i64::from_le_bytes(array(from, 16)) }
    }
}

impl From<i128> for I192 {
    fn from(value: i128) -> Self {
        Self { low: value as u128, high: (value >> 127) as i64 }
    }
}

/// 10³⁸: the first number that DECIMAL(38) can't hold.
pub(crate) const DECIMAL_END: i128 = 100_000_000_000_000_000_000_000_000_000_000_000_000;

/// `N` bytes of a slot. The layout of a slot is fixed when it is compiled, so the range is always inside.
#[inline]
pub(crate) fn array<const N: usize>(slot: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&slot[at..at + N]);
    out
}

/// A sum of two doubles that do not overlap: about 106 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Twofold {
    pub(crate) high: f64,
    pub(crate) low: f64,
}

fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let other = sum - a;
    (sum, (a - (sum - other)) + (b - other))
}

/// Veltkamp's and Dekker's exact product: `a · b` is the sum of both, if nothing overflows.
fn two_product(a: f64, b: f64) -> (f64, f64) {
    const SPLIT: f64 = 134_217_729.0; // 2²⁷ + 1
    let split = |x: f64| {
        let t = SPLIT * x;
        let high = t - (t - x);
        (high, x - high)
    };
    let product = a * b;
    let ((ah, al), (bh, bl)) = (split(a), split(b));
    (product, ((ah * bh - product) + ah * bl + al * bh) + al * bl)
}

impl Twofold {
    pub(crate) fn add(self, other: Self) -> Self {
        let (sum, error) = two_sum(self.high, other.high);
        let (low, low_error) = two_sum(self.low, other.low);
        let (sum, error) = two_sum(sum, error + low);
        let (high, low) = two_sum(sum, error + low_error);
        Self { high, low }
    }

    pub(crate) fn product(a: f64, b: f64) -> Self {
        if b == 1.0 {
            return Self { high: a, low: 0.0 };
        }
        let (high, low) = two_product(a, b);
        // The split overflows above 2⁹⁹⁶, where the error term is out of reach anyway.
        Self { high, low: if low.is_finite() { low } else { 0.0 } }
    }

    pub(crate) fn times(self, other: Self) -> Self {
        let (high, low) = two_product(self.high, other.high);
        let (high, low) = two_sum(high, low + (self.high * other.low + self.low * other.high));
        Self { high, low }
    }

    pub(crate) fn divided(self, by: f64) -> Self {
        let first = self.high / by;
        let rest = self.add(Self::product(-first, by));
        let (high, low) = two_sum(first, rest.high / by);
        Self { high, low }
    }

    pub(crate) fn value(self) -> f64 {
        self.high + self.low
    }
}

/// A sum of doubles that takes values back exactly in all usual cases, infinite ones and NaN too.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct FloatSum {
    pub(crate) sum: Twofold,
    /// Weights of finite values.
    pub(crate) finite: i64,
    pub(crate) nan: i64,
    pub(crate) positive: i64,
    pub(crate) negative: i64,
}

impl FloatSum {
    pub(crate) const BYTES: usize = 48;

    pub(crate) fn add_value(&mut self, value: f64, weight: i64) {
        if value.is_finite() {
            self.finite = self.finite.wrapping_add(weight);
            self.sum = self.sum.add(Twofold::product(value, weight as f64));
        } else if value.is_nan() {
            self.nan = self.nan.wrapping_add(weight);
        } else if value > 0.0 {
            self.positive = self.positive.wrapping_add(weight);
        } else {
            self.negative = self.negative.wrapping_add(weight);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.sum = self.sum.add(other.sum);
        self.finite = self.finite.wrapping_add(other.finite);
        self.nan = self.nan.wrapping_add(other.nan);
        self.positive = self.positive.wrapping_add(other.positive);
        self.negative = self.negative.wrapping_add(other.negative);
    }

    /// The sum; NULL is the caller's business.
    pub(crate) fn value(&self) -> f64 {
        if self.nan != 0 || (self.positive != 0 && self.negative != 0) {
            f64::NAN
        } else if self.positive != 0 {
            f64::INFINITY
        } else if self.negative != 0 {
            f64::NEG_INFINITY
        } else if self.finite == 0 {
            0.0
        } else if self.sum.high.is_finite() {
            self.sum.value() + 0.0
        } else {
            self.sum.high
        }
    }

    pub(crate) fn write(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&self.sum.high.to_le_bytes());
        out[8..16].copy_from_slice(&self.sum.low.to_le_bytes());
        out[16..24].copy_from_slice(&self.finite.to_le_bytes());
        out[24..32].copy_from_slice(&self.nan.to_le_bytes());
        out[32..40].copy_from_slice(&self.positive.to_le_bytes());
        out[40..48].copy_from_slice(&self.negative.to_le_bytes());
    }

    pub(crate) fn read(from: &[u8]) -> Self {
        Self {
            sum: Twofold { high: f64::from_le_bytes(array(from, 0)), low: f64::from_le_bytes(array(from, 8)) },
            finite: i64::from_le_bytes(array(from, 16)),
            nan: i64::from_le_bytes(array(from, 24)),
            positive: i64::from_le_bytes(array(from, 32)),
            negative: i64::from_le_bytes(array(from, 40)),
        }
    }
}

/// What variance is made from: count, sum and sum of squares, with 106 bits each, so that rows can be taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Moments {
    pub(crate) sum: Twofold,
    pub(crate) squares: Twofold,
    /// Weights of finite values.
    pub(crate) finite: i64,
    /// Weights of NaN, infinite values and values whose square is infinite.
    pub(crate) infinite: i64,
}

impl Moments {
    pub(crate) const BYTES: usize = 48;

    pub(crate) fn add_value(&mut self, value: f64, weight: i64) {
        let square = value * value;
        if square.is_finite() {
            self.finite = self.finite.wrapping_add(weight);
            self.sum = self.sum.add(Twofold::product(value, weight as f64));
            let square = if value == 1.0 { Twofold { high: 1.0, low: 0.0 } } else { Twofold::product(value, value) };
            self.squares = self.squares.add(square.times(Twofold { high: weight as f64, low: 0.0 }));
        } else {
            self.infinite = self.infinite.wrapping_add(weight);
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.sum = self.sum.add(other.sum);
        self.squares = self.squares.add(other.squares);
        self.finite = self.finite.wrapping_add(other.finite);
        self.infinite = self.infinite.wrapping_add(other.infinite);
    }

    /// The variance; `None` where it isn't defined.
    pub(crate) fn variance(&self, sample: bool) -> Option<f64> {
        let count = self.finite + self.infinite;
        let divisor = if sample { count - 1 } else { count };
        if divisor <= 0 {
            return None;
        }
        if self.infinite != 0 {
            return Some(f64::NAN);
        }
        let mean_square = self.sum.times(self.sum).divided(count as f64);
        let rest = self.squares.add(Twofold { high: -mean_square.high, low: -mean_square.low });
        // Where all values are equal, what is left is the noise of the last bits.
        let floor = self.squares.high.abs() * 1e-28;
        let rest = rest.value();
        Some(if rest <= floor { 0.0 } else { rest / divisor as f64 })
    }

    pub(crate) fn write(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&self.sum.high.to_le_bytes());
        out[8..16].copy_from_slice(&self.sum.low.to_le_bytes());
        out[16..24].copy_from_slice(&self.squares.high.to_le_bytes());
        out[24..32].copy_from_slice(&self.squares.low.to_le_bytes());
        out[32..40].copy_from_slice(&self.finite.to_le_bytes());
        out[40..48].copy_from_slice(&self.infinite.to_le_bytes());
    }

    pub(crate) fn read(from: &[u8]) -> Self {
        let double = |at| f64::from_le_bytes(array(from, at));
        Self {
            sum: Twofold { high: double(0), low: double(8) },
            squares: Twofold { high: double(16), low: double(24) },
            finite: i64::from_le_bytes(array(from, 32)),
            infinite: i64::from_le_bytes(array(from, 40)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_192_bit_sum_equals_the_128_bit_one_where_that_fits(values in prop::collection::vec((any::<i64>(), -5_i64..5), 0..50)) {
            let exact: i128 = values.iter().map(|(v, w)| i128::from(*v) * i128::from(*w)).sum();
            let sum = values.iter().fold(I192::default(), |s, (v, w)| s.add(I192::product(i128::from(*v), *w)));
            prop_assert_eq!(sum.to_i128(), Some(exact));
            let mut bytes = [0; I192::BYTES];
            sum.write(&mut bytes);
            prop_assert_eq!(I192::read(&bytes), sum);
        }

        #[test]
        fn a_float_sum_forgets_what_is_taken_back(values in prop::collection::vec(-1e12_f64..1e12, 1..40), extra in prop::collection::vec(any::<f64>().prop_filter("moderate", |v| !(v.abs() > 1e20 && v.is_finite())), 0..40)) {
            let sum_of = |values: &[f64]| { let mut s = FloatSum::default(); for v in values { s.add_value(*v, 1); } s };
            let mut sum = sum_of(&values);
            for v in &extra { sum.add_value(*v, 1); }
            for v in &extra { sum.add_value(*v, -1); }
            let expected = sum_of(&values).value();
            prop_assert!((sum.value() - expected).abs() <= expected.abs() * 1e-15 + 1e-9, "{} {}", sum.value(), expected);
        }
    }

    #[test]
    fn sums_beyond_128_bits_come_back() {
        let big = DECIMAL_END - 1;
        let mut sum = I192::default();
        for _ in 0..10 {
            sum = sum.add(I192::product(big, 7));
        }
        assert_eq!(sum.to_i128(), None);
        assert_eq!(sum.average(70, 0), Some(big));
        sum = sum.add(I192::product(big, -69));
        assert_eq!(sum.to_i128(), Some(big));
    }

    #[test]
    fn averages_round_half_away_from_zero() {
        assert_eq!(I192::from(5).average(2, 0), Some(3));
        assert_eq!(I192::from(-5).average(2, 0), Some(-3));
        assert_eq!(I192::from(1).average(3, 4), Some(3333));
        assert_eq!(I192::from(-2).average(3, 4), Some(-6667));
        assert_eq!(I192::from(DECIMAL_END - 1).average(1, 1), None);
    }

    #[test]
    fn small_terms_survive_large_ones() {
        let mut sum = FloatSum::default();
        for (value, weight) in
            [(1e16, 1), (1.0, 1), (f64::NAN, 1), (f64::INFINITY, 1), (f64::NAN, -1), (f64::INFINITY, -1), (1e16, -1)]
        {
            sum.add_value(value, weight);
        }
        assert_eq!(sum.value(), 1.0);
    }

    #[test]
    fn variance_of_large_close_values_is_exact_enough() {
        let mut moments = Moments::default();
        for v in [1e9 + 1.0, 1e9 + 2.0, 1e9 + 3.0, 5.0] {
            moments.add_value(v, 1);
        }
        moments.add_value(5.0, -1);
        assert_eq!(moments.variance(true), Some(1.0));
        let mut same = Moments::default();
        for _ in 0..7 {
            same.add_value(0.1, 1);
        }
        assert_eq!(same.variance(false), Some(0.0));
    }
}
