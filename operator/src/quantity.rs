//! Quantities as an API server gives them back: in another form than they were written (`1024Ti` comes back as `1Pi`, `1.5` as `1500m`).

/// The bytes of a quantity, a part of one counted as a whole; `None` when it is none, or more than fit.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let (unsigned, suffix) = text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()));
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    if whole.len() + fraction.len() > 24 || (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (factor, tens): (u128, i32) = match suffix {
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        _ => (1, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok().filter(|tens| tens.abs() <= 30)?),
    };
    let tens = tens - i32::try_from(fraction.len()).ok()?;
    let power = 10_u128.checked_pow(tens.unsigned_abs())?;
    let scaled = digits.checked_mul(factor)?;
    let exact = if tens < 0 { scaled.div_ceil(power) } else { scaled.checked_mul(power)? };
    u64::try_from(exact).ok()
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn every_form_of_a_quantity_is_read() {
        for (text, expected) in [
            ("1", 1),
            ("1500m", 2),
            ("1.5", 2),
            ("1025024m", 1026),
            ("1Ki", 1024),
            ("0.5Gi", 1 << 29),
            ("1Pi", 1 << 50),
            ("3Ei", 3 << 60),
            ("2P", 2_000_000_000_000_000),
            ("12e6", 12_000_000),
            ("1E3", 1000),
            ("5E", 5_000_000_000_000_000_000),
            ("129e-1", 13),
            (".5k", 500),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "Gi", "-1", "1.2.3", "1gi", "1e", "1e99", "99999999999999999999E", "one", "1 Gi"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
