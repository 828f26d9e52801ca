//! Range to scale and zero point.

use crate::{Error, QuantParams, QuantScheme, QuantType, Range, Result};

/// Smallest and largest integer in use: all of the type, or all but the lowest.
pub const fn limits(dtype: QuantType, narrow: bool) -> (i32, i32) {
    (dtype.min() + narrow as i32, dtype.max())
}

/// The scale and zero point that spread the integers of `scheme` over `range`.
///
/// The range is first widened to contain 0, so that zero is exact.
///
/// | scheme | reals covered | scale | zero point |
/// |---|---|---|---|
/// | asymmetric | `[lo, hi]` | `(hi - lo) / (qmax - qmin)` | `round_half_even(qmin - lo / scale)` |
/// | symmetric, `lo < 0` | `[-a, a]` | `2a / (qmax - qmin)` | the centre: 0, or 2^(bits - 1) unsigned |
/// | symmetric, `lo >= 0` | `[0, a]` | `a / (qmax - qmin)` | `qmin` |
/// | symmetric and narrow | `[-a, a]` | `2a / (qmax - qmin)` | the centre, whatever the sign of `lo` |
///
/// `a = max(-lo, hi)`. Narrow leaves the lowest integer unused: `2a / (qmax - qmin)` is then `a / 127` for 8 bits. It
/// is meant for weights, whose kernels want one zero point for all channels, so a channel without negative values is
/// centred too. The arithmetic is f32 as in ONNX DynamicQuantizeLinear, whose results the first row reproduces to the
/// bit (with uint8).
///
/// The scale is always finite and normal: 1.0 for the range `[0, 0]`; at least `f32::MIN_POSITIVE`; and at most what
/// keeps `(q - zero_point) * scale` finite for every `q` in use (which cuts the ends off ranges that nearly fill f32).
///
/// # Errors
/// A range with a NaN or infinite end, or with `lo > hi`.
pub fn params(range: Range, scheme: QuantScheme) -> Result<QuantParams> {
    let Range { lo, hi } = range;
    if !(lo.is_finite() && hi.is_finite() && lo <= hi) {
        return Err(Error::Range { lo, hi });
    }
    let (lo, hi) = (lo.min(0.0), hi.max(0.0));
    let (qmin, qmax) = limits(scheme.dtype, scheme.narrow);
    let normal = |scale: f32| if lo == hi { 1.0 } else { scale.max(f32::MIN_POSITIVE) };
    let (scale, zero_point) = if scheme.symmetric && (scheme.narrow || lo < 0.0) {
        (normal(hi.max(-lo) / (to_f32(qmax - qmin) / 2.0)), centre(scheme.dtype))
    } else {
        let scale = normal(divided_width(lo, hi, to_f32(qmax - qmin)));
        (scale, round(to_f32(qmin) - lo / scale).clamp(qmin, qmax))
    };
    let farthest = (qmax - zero_point).max(zero_point - qmin);
    let scale = scale.min((f32::MAX / to_f32(farthest)).next_down());
    Ok(QuantParams { scale, zero_point })
}

/// `(hi - lo) / steps`, where the width alone may leave f32.
fn divided_width(lo: f32, hi: f32, steps: f32) -> f32 {
    let width = hi - lo;
    if width.is_finite() {
        width / steps
    } else {
        hi / steps - lo / steps
    }
}

const fn centre(dtype: QuantType) -> i32 {
    if dtype.signed() { 0 } else { 1 << (dtype.bits() - 1) }
}

#[expect(clippy::cast_precision_loss, reason = "at most 16 bits")]
const fn to_f32(q: i32) -> f32 {
    q as f32
}

#[expect(clippy::cast_possible_truncation, reason = "saturates")]
fn round(v: f32) -> i32 {
    v.round_ties_even() as i32
}
