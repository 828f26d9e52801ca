//! Matrices, row by row.

use std::sync::{Mutex, PoisonError};

use super::{BlockType, integers::Vectors};
use crate::{
    Error, Result,
    error::check_length,
    kernels::{self, gguf},
    threads,
};

/// Values that a thread takes at a time.
const PIECE: usize = 1 << 16;

/// More than any type with float16 in it reaches, and little enough for every sum of a search.
const BEYOND: f32 = 1e9;

/// A column whose importance is less than this share of the mean counts as having it: what the data left at zero may
/// still be seen elsewhere.
const FLOOR: f64 = 1.0 / 1024.0;

/// The blocks of a matrix `[rows, columns]`, row by row.
///
/// `importance` has a weight for each column; those of types that search no scale, F32 to Q8_0, pass it over. `threads`
/// is 0 for all cores; any number gives the same bytes.
///
/// # Errors
/// Columns that are no whole number of blocks, a NaN or an infinity, a value that a float16 scale cannot reach, an
/// importance that is negative or not finite, and lengths that do not agree.
pub fn quantize(
    dtype: BlockType,
    x: &[f32],
    columns: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
    threads: usize,
) -> Result<()> {
    let row_bytes = dtype.size_of(columns)?;
    let rows = x.len().checked_div(columns).unwrap_or(0);
    check_length("the matrix", rows * columns, x.len())?;
    check_length("the blocks", rows * row_bytes, out.len())?;
    let importance = importance.map(|i| usable(i, columns)).transpose()?.flatten();
    if x.is_empty() {
        return Ok(());
    }
    let each = (PIECE / columns).max(1);
    let first_bad: Mutex<Option<(usize, Error)>> = Mutex::new(None);
    let kernel = gguf::current();
    let pieces = x
        .chunks(each * columns)
        .zip(out.chunks_mut(each * row_bytes))
        .enumerate();
    threads::for_each(threads, pieces.collect(), |(piece, (x, out))| {
        for (i, (x, out)) in x.chunks_exact(columns).zip(out.chunks_exact_mut(row_bytes)).enumerate() {
            if let Err(error) = encode_row(kernel, dtype, (piece * each + i, x), importance.as_deref(), out) {
                let mut first = first_bad.lock().unwrap_or_else(PoisonError::into_inner);
                if first.as_ref().is_none_or(|(at, _)| piece < *at) {
                    *first = Some((piece, error));
                }
                return;
            }
        }
    });
    let first_bad = first_bad.into_inner().unwrap_or_else(PoisonError::into_inner);
    first_bad.map_or(Ok(()), |(_, error)| Err(error))
}

/// The values of blocks.
///
/// # Errors
/// Lengths that do not agree.
pub fn dequantize(dtype: BlockType, data: &[u8], out: &mut [f32], threads: usize) -> Result<()> {
    check_length("the blocks", dtype.size_of(out.len())?, data.len())?;
    let blocks = (PIECE / dtype.block_size()).max(1);
    let kernel = gguf::current();
    let pieces = data
        .chunks(blocks * dtype.bytes())
        .zip(out.chunks_mut(blocks * dtype.block_size()));
    threads::for_each(threads, pieces.collect(), |(data, out)| kernel.decode(dtype, data, out));
    Ok(())
}

fn encode_row(
    kernel: &dyn gguf::BlockKernel,
    dtype: BlockType,
    (row, x): (usize, &[f32]),
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    let Some((low, high)) = kernels::current().extrema(x) else {
        let column = x.iter().position(|v| !v.is_finite()).unwrap_or_default();
        return Err(Error::NonFinite {
            value: x[column],
            index: vec![row, column],
        });
    };
    let within = matches!(dtype, BlockType::F32 | BlockType::BF16) || high.max(-low) < BEYOND;
    if within && kernel.encode(dtype, x, importance, out) {
        return Ok(());
    }
    // Only a magnitude can be at fault, and the largest is.
    let (mut column, mut value) = (0, 0f32);
    for (i, &v) in x.iter().enumerate() {
        if v.abs() > value.abs() {
            (column, value) = (i, v);
        }
    }
    Err(Error::Magnitude {
        value,
        index: vec![row, column],
        dtype: dtype.name(),
    })
}

/// Importance as it is used: of mean 1, none of it too small; `None` where all of it is 0.
fn usable(importance: &[f32], columns: usize) -> Result<Option<Vec<f32>>> {
    check_length("importance", columns, importance.len())?;
    if let Some(index) = importance.iter().position(|i| !(i.is_finite() && *i >= 0.0)) {
        return Err(Error::Importance {
            value: importance[index],
            index,
        });
    }
    #[expect(clippy::cast_precision_loss, reason = "a mean needs no more")]
    let mean = importance.iter().map(|&i| f64::from(i)).sum::<f64>() / columns as f64;
    #[expect(clippy::cast_possible_truncation, reason = "rounded to nearest")]
    let scaled = |i: &f32| (f64::from(*i) / mean).max(FLOOR) as f32;
    Ok((mean > 0.0).then(|| importance.iter().map(scaled).collect()))
}

// Loops as macros: a function that is passed to a loop is compiled by itself, without the instructions of the set that
// runs the loop.

/// The blocks of a row, each by itself.
macro_rules! each_small {
    ($dtype:expr, $x:expr, $out:expr, $encode:expr) => {{
        let mut finite = true;
        for (x, out) in $x.as_chunks().0.iter().zip($out.chunks_exact_mut($dtype.bytes())) {
            finite &= $encode(x, out);
        }
        finite
    }};
}

/// Eight blocks at a time.
macro_rules! each_searched {
    ($dtype:expr, $x:expr, $importance:expr, $out:expr, $search:expr) => {{
        const EIGHT: usize = 8 * super::simple::SIZE;
        let mean_square = super::simple::mean_square($x);
        let mut weights = [0f32; EIGHT];
        let mut finite = true;
        let eights = $x.chunks(EIGHT).zip($importance.chunks(EIGHT));
        for ((x, importance), out) in eights.zip($out.chunks_mut(8 * $dtype.bytes())) {
            let weights = &mut weights[..x.len()];
            super::simple::weigh(x, importance, mean_square, weights);
            finite &= $search(x, weights, $dtype.bytes(), out);
        }
        finite
    }};
}

/// Super-blocks.
macro_rules! each_super {
    ($dtype:expr, $x:expr, $importance:expr, $out:expr, $encode:expr) => {{
        let mut finite = true;
        let blocks = $x.as_chunks::<256>().0.iter();
        for (i, (x, out)) in blocks.zip($out.chunks_exact_mut($dtype.bytes())).enumerate() {
            let importance = match $importance {
                Some(all) => Some(&all[i * x.len()..(i + 1) * x.len()]),
                None => None,
            };
            finite &= $encode(x, importance, out);
        }
        finite
    }};
}

/// Super-blocks whose columns have an importance.
macro_rules! each_weighted {
    ($vectors:expr, $dtype:expr, $x:expr, $importance:expr, $out:expr, $encode:expr) => {{
        let mut finite = true;
        let blocks = $x.as_chunks::<256>().0.iter().zip($importance.as_chunks::<256>().0);
        for ((x, importance), out) in blocks.zip($out.chunks_exact_mut($dtype.bytes())) {
            finite &= $encode($vectors, x, importance, out);
        }
        finite
    }};
}

/// The values of blocks.
macro_rules! each_block {
    ($dtype:expr, $data:expr, $out:expr, $decode:expr) => {
        for (data, out) in $data.chunks_exact($dtype.bytes()).zip($out.as_chunks_mut().0) {
            $decode(data, out);
        }
    };
}

/// Blocks of a row; see [`gguf::BlockKernel::encode`].
#[inline(always)]
pub(crate) fn encode<const LANES: usize>(
    vectors: &impl Vectors<LANES>,
    dtype: BlockType,
    x: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> bool {
    use super::{affine_k, simple, symmetric_k};
    match (dtype, importance) {
        (BlockType::F32, _) => {
            for (out, x) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *out = x.to_le_bytes();
            }
            true
        }
        (BlockType::F16, _) => simple::encode_halves::<false>(x, out),
        (BlockType::BF16, _) => simple::encode_halves::<true>(x, out),
        (BlockType::Q8_0, _) => each_small!(dtype, x, out, simple::encode_q8_0),
        (BlockType::Q4_0, None) => each_small!(dtype, x, out, simple::encode_symmetric::<4>),
        (BlockType::Q4_1, None) => each_small!(dtype, x, out, simple::encode_affine::<4>),
        (BlockType::Q5_0, None) => each_small!(dtype, x, out, simple::encode_symmetric::<5>),
        (BlockType::Q5_1, None) => each_small!(dtype, x, out, simple::encode_affine::<5>),
        (BlockType::Q4_0, Some(i)) => each_searched!(dtype, x, i, out, simple::search_symmetric::<4>),
        (BlockType::Q4_1, Some(i)) => each_searched!(dtype, x, i, out, simple::search_affine::<4>),
        (BlockType::Q5_0, Some(i)) => each_searched!(dtype, x, i, out, simple::search_symmetric::<5>),
        (BlockType::Q5_1, Some(i)) => each_searched!(dtype, x, i, out, simple::search_affine::<5>),
        (BlockType::Q2K, None) => affine_k::encode_plain_q2(vectors, x, out),
        (BlockType::Q4K, None) => affine_k::encode_plain::<LANES, 4>(vectors, x, out),
        (BlockType::Q5K, None) => affine_k::encode_plain::<LANES, 5>(vectors, x, out),
        (BlockType::Q2K, Some(i)) => each_weighted!(vectors, dtype, x, i, out, affine_k::encode_q2),
        (BlockType::Q4K, Some(i)) => each_weighted!(vectors, dtype, x, i, out, affine_k::encode::<LANES, 4>),
        (BlockType::Q5K, Some(i)) => each_weighted!(vectors, dtype, x, i, out, affine_k::encode::<LANES, 5>),
        (BlockType::Q3K, i) => each_super!(dtype, x, i, out, symmetric_k::encode_q3),
        (BlockType::Q6K, i) => each_super!(dtype, x, i, out, symmetric_k::encode_q6),
    }
}

/// Values of blocks; see [`gguf::BlockKernel::decode`].
#[inline(always)]
pub(crate) fn decode(dtype: BlockType, data: &[u8], out: &mut [f32]) {
    use super::{affine_k, simple, symmetric_k};
    match dtype {
        BlockType::F32 => {
            for (out, &x) in out.iter_mut().zip(data.as_chunks().0) {
                *out = f32::from_le_bytes(x);
            }
        }
        BlockType::F16 => simple::decode_halves::<false>(data, out),
        BlockType::BF16 => simple::decode_halves::<true>(data, out),
        BlockType::Q8_0 => each_block!(dtype, data, out, simple::decode_q8_0),
        BlockType::Q4_0 => each_block!(dtype, data, out, simple::decode_symmetric::<4>),
        BlockType::Q4_1 => each_block!(dtype, data, out, simple::decode_affine::<4>),
        BlockType::Q5_0 => each_block!(dtype, data, out, simple::decode_symmetric::<5>),
        BlockType::Q5_1 => each_block!(dtype, data, out, simple::decode_affine::<5>),
        BlockType::Q2K => each_block!(dtype, data, out, affine_k::decode_q2),
        BlockType::Q3K => each_block!(dtype, data, out, symmetric_k::decode_q3),
        BlockType::Q4K => each_block!(dtype, data, out, affine_k::decode::<4>),
        BlockType::Q5K => each_block!(dtype, data, out, affine_k::decode::<5>),
        BlockType::Q6K => each_block!(dtype, data, out, symmetric_k::decode_q6),
    }
}
