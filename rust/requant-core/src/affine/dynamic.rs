//! What it costs to quantize an array over its own range, as is done at run time.

use super::{Affine, params};
use crate::{Granularity, QuantScheme, QuantType, Range, Result};

/// Values that are rounded before their errors are added up; both stay in the first-level cache.
const CHUNK: usize = 2048;
/// Sums that are added to by turns.
const LANES: usize = 8;

/// Sum of the squared errors of `x` quantized to `dtype` over `range`, asymmetrically and with one scale: what ONNX
/// DynamicQuantizeLinear does, where `range` is that of `x`.
///
/// ```
/// use requant_core::{QuantType, Range, affine::squared_error};
/// let error = squared_error(&[0.0, 0.25, 255.0], Range { lo: 0.0, hi: 255.0 }, QuantType::U8)?;
/// assert_eq!(error, 0.0625);
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// A range with a NaN or infinite end, or with `lo > hi`.
pub fn squared_error(x: &[f32], range: Range, dtype: QuantType) -> Result<f64> {
    let scheme = QuantScheme {
        dtype,
        symmetric: false,
        narrow: false,
    };
    let params = params(range, scheme)?;
    let (scale, zero_point) = ([params.scale], [params.zero_point]);
    let (mut sums, mut buffer) = ([0.0; LANES], [0.0; CHUNK]);
    for part in x.chunks(CHUNK) {
        let rounded = &mut buffer[..part.len()];
        Affine::new(&[part.len()], Granularity::PerTensor, dtype, false, &scale, &zero_point)?
            .with_threads(1)
            .fake_quantize(part, &mut *rounded)?;
        for (x, rounded) in part.chunks(LANES).zip(rounded.chunks(LANES)) {
            for ((sum, x), rounded) in sums.iter_mut().zip(x).zip(rounded) {
                let error = f64::from(rounded - x);
                *sum += error * error;
            }
        }
    }
    Ok(sums.iter().sum())
}
