//! Products of 8-bit matrices, exact in i32, and what is made of the sums before they leave the registers' reach.
//!
//! ```text
//! sum[i][j] = sum over k of (a[i][k] - za[i]) * (b[k][j] - zb[j])         ONNX MatMulInteger
//! ```
//!
//! B is packed once into [`PackedWeights`]; `README.md` beside this file draws the panels. The zero points are not
//! subtracted in the inner loop, since the sum is also
//!
//! ```text
//! sum over k of a*b  -  zb[j] * (sum over k of a[i][k])  -  za[i] * (sum over k of (b[k][j] - zb[j]))
//! ```
//!
//! whose last factor is known when B is packed, and whose second vanishes where the weights are symmetric. All of it is
//! arithmetic modulo 2^32, which is exact because the result fits: a K for which it might not is refused.

pub mod blocked;
mod drive;
mod packed;

pub(crate) use drive::{Gathered, Product, Source, worth};
pub use packed::PackedWeights;

pub use crate::kernels::finish::Dequantize;

use std::slice;

use crate::{
    Error, QuantType, Result,
    arrays::{Integer, Matrix},
    error::check_length,
    kernels::finish::{Rows, Target},
    requantize::{Requantizer, check_one_or, check_scales, check_within},
};

/// Where results go, row-major `[M, N]`, and what is made of the sums on the way.
#[derive(Debug)]
pub enum Output<'a> {
    /// The sums.
    I32(&'a mut [i32]),
    /// The reals they stand for.
    F32(&'a mut [f32], Dequantize<'a>),
    /// Integers on the output's scale; the requantizer is for uint8.
    U8(&'a mut [u8], &'a Requantizer),
    /// The same for int8.
    I8(&'a mut [i8], &'a Requantizer),
}

/// Multiplies `a [M, K]` by packed `b [K, N]`.
///
/// `a_zero_point` is `[1]` or `[M]`, within the type of `a`; B's belongs to the weights. `threads` is 0 for as many as
/// are worth it, up to all cores; any number gives the same bits.
///
/// ```
/// use requant_core::{arrays::{Bytes, Matrix}, gemm::{Output, PackedWeights, matmul}};
/// let b = PackedWeights::new(Matrix::new(Bytes::I8(&[1, -2, 3, -4]), 2, 2)?, &[0])?;
/// let mut c = [0; 2];
/// matmul(Matrix::new(Bytes::U8(&[10, 128]), 1, 2)?, &[128], &b, Output::I32(&mut c), 1)?;
/// assert_eq!(c, [-118, 236]); // (10 - 128) * 1 + 0 * 3, (10 - 128) * -2 + 0 * -4
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit, zero points outside their types, scales that are not finite and positive, a requantizer for
/// another type, or a K for which a sum with its bias might leave i32: with zero points inside their types that is
/// never below 33,025.
pub fn matmul(
    a: Matrix<'_>,
    a_zero_point: &[i32],
    b: &PackedWeights,
    output: Output<'_>,
    threads: usize,
) -> Result<()> {
    check_length("a row of a", b.k(), a.columns())?;
    let dtype = a.dtype();
    check_one_or("a_zero_point", a_zero_point.len(), a.rows())?;
    check_within(a_zero_point, (dtype.min(), dtype.max()))?;
    let product = Product {
        a,
        a_zero_point,
        b: slice::from_ref(b),
        threads,
    };
    let sums = Shape {
        rows: a.rows(),
        k: b.k(),
        columns: b.n(),
        factors: magnitude(dtype, a_zero_point) * b.magnitude(),
    };
    write(sums, output, &product)
}

/// Something that makes sums, `[rows][columns]`, and hands them on.
pub(crate) trait Work: Sync {
    /// Fills `out`; `target` says of a region of it what is to be made of the sums.
    fn run<'o, T: Send>(&'o self, out: &'o mut [T], target: impl Fn(Rows<'o, T>) -> Target<'o> + Sync) -> Result<()>;
}

/// Of what size the sums are.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// How many products are added.
    pub(crate) k: usize,
    /// The largest magnitude of a product.
    pub(crate) factors: u64,
}

/// Checks that the output fits the sums, and has them written.
pub(crate) fn write<'o>(sums: Shape, output: Output<'o>, work: &'o impl Work) -> Result<()> {
    let expected = sums.rows.saturating_mul(sums.columns);
    let got = match &output {
        Output::I32(out) => out.len(),
        Output::F32(out, _) => out.len(),
        Output::U8(out, _) => out.len(),
        Output::I8(out, _) => out.len(),
    };
    check_length("output", expected, got)?;
    match output {
        Output::I32(out) => {
            check_k(sums.k, sums.factors, 0)?;
            work.run(out, Target::I32)
        }
        Output::F32(out, scales) => {
            check_k(sums.k, sums.factors, 0)?;
            check_one_or("scale of a", scales.a.len(), sums.rows)?;
            check_one_or("scale of b", scales.b.len(), sums.columns)?;
            if !scales.bias.is_empty() {
                check_one_or("bias", scales.bias.len(), sums.columns)?;
            }
            check_scales(scales.a)?;
            check_scales(scales.b)?;
            work.run(out, move |rows| Target::F32(rows, scales))
        }
        Output::U8(out, requantizer) => {
            check_requantizer::<u8>(requantizer, sums)?;
            work.run(out, move |rows| Target::U8(rows, requantizer))
        }
        Output::I8(out, requantizer) => {
            check_requantizer::<i8>(requantizer, sums)?;
            work.run(out, move |rows| Target::I8(rows, requantizer))
        }
    }
}

fn check_requantizer<Q: Integer>(requantizer: &Requantizer, sums: Shape) -> Result<()> {
    if requantizer.dtype() != Q::TYPE {
        return Err(Error::Container {
            dtype: requantizer.dtype(),
            container: Q::TYPE,
        });
    }
    requantizer.check_columns(sums.columns)?;
    check_k(sums.k, sums.factors, requantizer.bias_magnitude())
}

/// Fails where `k` products of magnitude `factors`, and a bias, might not fit i32.
pub(crate) fn check_k(k: usize, factors: u64, bias: u32) -> Result<()> {
    let room = u64::from(i32::MAX.unsigned_abs().saturating_sub(bias));
    let limit = usize::try_from(room / factors).unwrap_or(usize::MAX);
    if k <= limit && bias <= i32::MAX.unsigned_abs() {
        Ok(())
    } else {
        Err(Error::Accumulator { k, limit })
    }
}

/// The largest `|q - z|` over the integers of a type and the zero points given; at least 1.
pub(crate) fn magnitude(dtype: QuantType, zero_points: &[i32]) -> u64 {
    let farthest = zero_points.iter().map(|z| (z - dtype.min()).max(dtype.max() - z));
    u64::from(farthest.max().unwrap_or(1).unsigned_abs())
}
