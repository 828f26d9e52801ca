//! Products of real activations with block-quantized weights of 4 bits.
//!
//! ```text
//! C[i][j] = sum over k of A[i][k] * (q[k][j] - zero_point[b][j]) * scale[b][j] + bias[j],   b = k / block_size
//! ```
//!
//! It is what onnxruntime's MatMulNBits computes. [`Activations`] says in which arithmetic.

mod drive;
mod weights;

pub use weights::PackedBlocks;

pub use crate::kernels::blocked_activations::Activations;

use super::drive::split;
use crate::{Result, error::check_length};

/// Multiplies `a [M, K]` by packed `b [K, N]` and adds `bias`, `[N]` or empty, into `out [M, N]`; all row-major.
///
/// Sums run over K in ascending order, whatever the kernel and the number of threads: the bits are the same. `threads`
/// is 0 for as many as are worth it, up to all cores. With int8, a NaN or an infinity in A makes all results of its row
/// NaN, as no scale is right for it.
///
/// ```
/// use requant_core::{arrays::{Bytes, Matrix}, gemm::blocked::{Activations, PackedBlocks, matmul}};
/// let b = Matrix::new(Bytes::I8(&[1, -8, 7, 0]), 2, 2)?;
/// let b = PackedBlocks::new(b, 32, &[0.5, 0.25], &[0])?; // one block, shorter than 32
/// let mut c = [0.0; 2];
/// matmul(&[1.0, 2.0], 1, &b, Activations::Float, &[], &mut c, 1)?;
/// assert_eq!(c, [7.5, -2.0]);
/// # Ok::<(), requant_core::Error>(())
/// ```
///
/// # Errors
/// Lengths that do not fit.
pub fn matmul(
    a: &[f32],
    m: usize,
    b: &PackedBlocks,
    activations: Activations,
    bias: &[f32],
    out: &mut [f32],
    threads: usize,
) -> Result<()> {
    let (k, n) = (b.k(), b.n());
    for (what, expected, got) in [
        ("a", m.saturating_mul(k), a.len()),
        ("bias", if bias.is_empty() { 0 } else { n }, bias.len()),
    ] {
        check_length(what, expected, got)?;
    }
    let call = Call {
        a,
        b,
        activations,
        bias,
    };
    split(out, [m, k, n], b.kernel().tile(), threads, |mut rows, m, n| {
        drive::multiply(&call, &mut rows, m, n);
    })
}

/// The checked operands of one call.
struct Call<'a> {
    a: &'a [f32],
    b: &'a PackedBlocks,
    activations: Activations,
    bias: &'a [f32],
}
