//! Sums that do not depend on the order of their terms.

const LIMBS: usize = 11;
/// The lowest bit is worth `2^-LOWEST`. The smallest square of an f32 is 2^-298, whose mantissa goes down to 2^-350; the
/// largest is below 2^256, and 704 bits leave room for 2^63 of those and a sign.
const LOWEST: i32 = 352;

/// A sum of sums of f32 values or of their squares, as one fixed-point number in two's complement, low limb first.
/// Integer addition is associative, so merging in any order gives the same bits (Kulisch's long accumulator).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ExactSum([u64; LIMBS]);

impl ExactSum {
    pub(super) const BYTES: usize = LIMBS * 8;

    /// Adds a sum of f32 or of their squares: zero, or at least 2^-298.
    #[expect(clippy::cast_sign_loss, reason = "an exponent has 11 bits")]
    pub(super) fn add(&mut self, x: f64) {
        let bits = x.abs().to_bits();
        let exponent = (bits >> 52) as i32;
        if exponent == 0 {
            return; // zero
        }
        let mantissa = u128::from(bits & ((1 << 52) - 1) | 1 << 52);
        let position = (exponent - 1075 + LOWEST) as usize;
        let mut term = [0; LIMBS];
        let wide = mantissa << (position % 64);
        (term[position / 64], term[position / 64 + 1]) = low_high(wide);
        self.merge(&if x < 0.0 { Self(term).negated() } else { Self(term) });
    }

    pub(super) fn merge(&mut self, other: &Self) {
        let mut carry = 0;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            (*limb, carry) = low_high(u128::from(*limb) + u128::from(other) + u128::from(carry));
        }
    }

    fn negated(self) -> Self {
        let mut negated = Self(self.0.map(|limb| !limb));
        let mut one = Self::default();
        one.0[0] = 1;
        negated.merge(&one);
        negated
    }

    /// The sum, with the error of rounding its highest 65 to 128 bits.
    #[expect(clippy::cast_precision_loss, reason = "rounded here")]
    pub(super) fn value(&self) -> f64 {
        let negative = self.0[LIMBS - 1] >> 63 == 1;
        let magnitude = if negative { self.negated() } else { *self };
        let top = magnitude.0.iter().rposition(|limb| *limb != 0).unwrap_or(0).max(1);
        let wide = u128::from(magnitude.0[top]) << 64 | u128::from(magnitude.0[top - 1]);
        let unit = 2f64.powi(64 * i32::try_from(top - 1).unwrap_or(0) - LOWEST);
        wide as f64 * if negative { -unit } else { unit }
    }

    pub(super) fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        for (bytes, limb) in bytes.as_chunks_mut().0.iter_mut().zip(self.0) {
            *bytes = limb.to_le_bytes();
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let mut sum = Self::default();
        for (limb, bytes) in sum.0.iter_mut().zip(bytes.as_chunks().0) {
            *limb = u64::from_le_bytes(*bytes);
        }
        sum
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the two halves of it")]
fn low_high(wide: u128) -> (u64, u64) {
    (wide as u64, (wide >> 64) as u64)
}
