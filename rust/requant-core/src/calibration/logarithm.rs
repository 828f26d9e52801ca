//! A natural logarithm for millions of calls.

/// `ln(x) = e ln 2 - ln(c) + ln(1 + r)`, where `x = 2^e m`, `c` is nearly `1 / m`, from a table by the mantissa's first
/// seven bits, and `r = m c - 1`, within 2^-7.99, so that five terms of the series leave less than 2^-50.
pub(super) struct Logarithm {
    /// `c` and `-ln(c)`.
    table: [(f64, f64); SIZE],
}

const BITS: u32 = 7;
const SIZE: usize = 1 << BITS;

impl Logarithm {
    pub(super) fn new() -> Self {
        let mut table = [(0.0, 0.0); SIZE];
        let mut middle = 1.0 + 0.5 / 128.0;
        for entry in &mut table {
            let c: f64 = 1.0 / middle;
            *entry = (c, -c.ln());
            middle += 1.0 / 128.0;
        }
        Self { table }
    }

    /// The logarithm of a positive normal number, within 1e-15 of `|ln(x)| + 1`.
    #[inline(always)]
    pub(super) fn of(&self, x: f64) -> f64 {
        const MANTISSA: u64 = (1 << 52) - 1;
        let bits = x.to_bits();
        let exponent = f64::from((bits >> 52) as i32 - 1023);
        let (c, minus_log_c) = self.table[(bits >> (52 - BITS)) as usize % SIZE];
        let r = f64::from_bits(bits & MANTISSA | 1.0f64.to_bits()) * c - 1.0;
        let r2 = r * r;
        let series = r - r2 * ((1.0 / 2.0 - r * (1.0 / 3.0)) + r2 * (1.0 / 4.0 - r * (1.0 / 5.0)));
        exponent * std::f64::consts::LN_2 + (minus_log_c + series)
    }
}

#[cfg(test)]
mod tests {
    use super::Logarithm;

    #[test]
    fn agrees_with_std() {
        let log = Logarithm::new();
        let mut x = 1e-300;
        while x < 1e300 {
            assert!(
                (log.of(x) - f64::ln(x)).abs() <= 1e-15 * (f64::ln(x).abs() + 1.0),
                "{x:e}"
            );
            x *= 1.000_37 + x.fract().abs() * 1e-4;
        }
        assert!(log.of(1.0).abs() < 1e-15);
    }
}
