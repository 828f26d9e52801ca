//! The specification of ONNX QuantizeLinear and DequantizeLinear, read aloud: one element at a time, by its index, in
//! f64 and i64. Slow and obvious; shares nothing with the crate but the names of its types.

use requant_core::{Granularity, QuantType};

/// The index of element `flat` of a row-major array of `shape`.
pub(crate) fn index_of(flat: usize, shape: &[usize]) -> Vec<usize> {
    (0..shape.len())
        .map(|axis| flat / shape[axis + 1..].iter().product::<usize>() % shape[axis])
        .collect()
}

/// The position of an index in a row-major array of `shape`.
fn flat_of(index: &[usize], shape: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |flat, (i, length)| flat * length + i)
}

/// The shape of the scale for data of `shape`.
pub(crate) fn scale_shape(shape: &[usize], granularity: Granularity) -> Vec<usize> {
    match granularity {
        Granularity::PerTensor => vec![],
        Granularity::PerChannel { axis } => vec![shape[axis]],
        Granularity::PerToken => shape[..shape.len() - 1].to_vec(),
        Granularity::PerBlock { axis, block_size } => {
            let mut blocked = shape.to_vec();
            blocked[axis] = shape[axis] / block_size + usize::from(!shape[axis].is_multiple_of(block_size));
            blocked
        }
    }
}

/// Which scale element `flat` has.
pub(crate) fn slice_of(flat: usize, shape: &[usize], granularity: Granularity) -> usize {
    let mut index = index_of(flat, shape);
    match granularity {
        Granularity::PerTensor => 0,
        Granularity::PerChannel { axis } => index[axis],
        Granularity::PerToken => flat_of(&index[..index.len() - 1], &shape[..shape.len() - 1]),
        Granularity::PerBlock { axis, block_size } => {
            index[axis] /= block_size;
            flat_of(&index, &scale_shape(shape, granularity))
        }
    }
}

/// `clamp(round_half_even(x / scale) + zero_point)`, the quotient being a float32.
pub(crate) fn quantize(x: f32, scale: f32, zero_point: i32, dtype: QuantType, narrow: bool) -> i64 {
    if x.is_nan() {
        return i64::from(zero_point);
    }
    let (bits, one) = (dtype.bits(), i64::from(narrow));
    let half = 1_i64 << (bits - 1);
    let (qmin, qmax) = if dtype.signed() {
        (-half + one, half - 1)
    } else {
        (one, 2 * half - 1)
    };
    let quotient = (f64::from(x) / f64::from(scale)) as f32;
    // f64 holds every float32 and their infinities; a quotient beyond i64 saturates.
    let rounded = half_even(f64::from(quotient)).clamp(-1e15, 1e15) as i64;
    (rounded + i64::from(zero_point)).clamp(qmin, qmax)
}

fn half_even(v: f64) -> f64 {
    let below = v.floor();
    match v - below {
        fraction if fraction < 0.5 => below,
        fraction if fraction > 0.5 => below + 1.0,
        _ if below % 2.0 == 0.0 => below,
        _ if v.is_infinite() => v,
        _ => below + 1.0,
    }
}

/// `(q - zero_point) * scale`, rounded to float32 once.
pub(crate) fn dequantize(q: i64, scale: f32, zero_point: i32) -> f32 {
    ((q - i64::from(zero_point)) as f64 * f64::from(scale)) as f32
}
