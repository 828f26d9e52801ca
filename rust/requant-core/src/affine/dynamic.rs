//! What it costs to quantize an array over its own range, as is done at run time.

use super::{Affine, params};
use crate::{
    Granularity, QuantScheme, QuantType, Range, Result,
    kernels::{self, elementwise},
};

/// Values that are rounded before their errors are added up; both stay in the first-level cache.
const CHUNK: usize = 2048;

/// The range of the finite values of `x`, and the sum of their squared errors when they are quantized to `dtype` over
/// it, asymmetrically and with one scale: what ONNX DynamicQuantizeLinear costs. `None` where no value is finite.
///
/// ```
/// use requant_core::{QuantType, Range, affine::dynamic_error};
/// let found = dynamic_error(&[0.0, 0.25, f32::NAN, 255.0], QuantType::U8)?;
/// assert_eq!(found, Some((Range { lo: 0.0, hi: 255.0 }, 0.0625)));
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// None for the integer types that there are.
pub fn dynamic_error(x: &[f32], dtype: QuantType) -> Result<Option<(Range, f64)>> {
    let Some((lo, hi)) = kernels::current().extrema(x) else {
        let finite: Vec<f32> = x.iter().copied().filter(|v| v.is_finite()).collect();
        return dynamic_error(&finite, dtype);
    };
    if lo > hi {
        return Ok(None); // an empty slice
    }
    let range = Range { lo, hi };
    Ok(Some((range, squared_error(x, range, dtype)?)))
}

/// Sum of the squared errors of `x`, all finite, quantized to `dtype` over `range`.
fn squared_error(x: &[f32], range: Range, dtype: QuantType) -> Result<f64> {
    let scheme = QuantScheme {
        dtype,
        symmetric: false,
        narrow: false,
    };
    let params = params(range, scheme)?;
    let (scale, zero_point) = ([params.scale], [params.zero_point]);
    let (mut noise, mut buffer) = (0.0, [0.0; CHUNK]);
    for part in x.chunks(CHUNK) {
        let rounded = &mut buffer[..part.len()];
        Affine::new(&[part.len()], Granularity::PerTensor, dtype, false, &scale, &zero_point)?
            .with_threads(1)
            .fake_quantize(part, &mut *rounded)?;
        noise += elementwise::current().squares(part, rounded).1;
    }
    Ok(noise)
}
