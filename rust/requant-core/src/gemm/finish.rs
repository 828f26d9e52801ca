//! From the sums of a strip to results: zero points, scales, requantization.
//!
//! Written once, without intrinsics; a kernel has it compiled for its instruction set ([`GemmKernel::finish`]), so that
//! every set rounds alike.
//!
//! [`GemmKernel::finish`]: crate::kernels::gemm::GemmKernel::finish

use std::ops::Range;

use super::Dequantize;
use crate::{
    affine::Integer,
    requantize::{Columns, LANES, Requantizer, lanes},
};

/// Rows that are finished in all columns of a panel before the next ones: few enough that a cache line of C, which may
/// hold several groups of columns, is still in the first-level cache when the next group is written.
const BAND: usize = 12;

/// A region of C, as rows that can be lent one at a time.
pub(super) enum Rows<'a, T> {
    /// Whole rows of C, beginning at `first`.
    Whole {
        data: &'a mut [T],
        stride: usize,
        first: usize,
    },
    /// All rows of C, cut to the columns that begin at `first`.
    Cut { rows: Vec<&'a mut [T]>, first: usize },
}

impl<T> Rows<'_, T> {
    /// The elements of a row in some columns, both as C counts them.
    #[inline(always)]
    fn get(&mut self, row: usize, columns: Range<usize>) -> &mut [T] {
        match self {
            Rows::Whole { data, stride, first } => {
                let start = (row - *first) * *stride;
                &mut data[start + columns.start..start + columns.end]
            }
            Rows::Cut { rows, first } => &mut rows[row][columns.start - *first..columns.end - *first],
        }
    }
}

/// Where results go, and how they are made.
pub(super) enum Target<'a> {
    I32(Rows<'a, i32>),
    F32(Rows<'a, f32>, Dequantize<'a>),
    U8(Rows<'a, u8>, &'a Requantizer),
    I8(Rows<'a, i8>, &'a Requantizer),
}

/// What has to be taken from a sum of stored values to make it a sum of values less their zero points.
#[derive(Clone, Copy)]
pub(super) struct Correction<'a> {
    /// `[1]` or `[M]`.
    pub(super) a_zero_point: &'a [i32],
    /// What the kernel adds to values of A.
    pub(super) a_offset: i32,
    /// For each column, the sum of `b - zero_point`.
    pub(super) b_sums: &'a [i32],
    /// For each column; empty where all are 0.
    pub(super) b_zero_point: &'a [i32],
}

/// Rows of A times one panel of B: sums to be turned into results.
pub struct Strip<'a, 'o> {
    pub(super) sums: Sums<'a>,
    pub(super) target: &'a mut Target<'o>,
}

/// The sums of a strip, and where in C they belong.
pub(super) struct Sums<'a> {
    /// `[rows][width]`
    pub(super) data: &'a [i32],
    /// Columns to a panel.
    pub(super) width: usize,
    /// Which rows of C.
    pub(super) rows: Range<usize>,
    /// Which columns of C; fewer than `width` at the end.
    pub(super) columns: Range<usize>,
    /// The sum of each row of packed A, where the correction needs it.
    pub(super) a_sums: &'a [i32],
    pub(super) correction: Correction<'a>,
}

impl Strip<'_, '_> {
    /// Writes the results.
    #[inline(always)]
    pub fn finish(self) {
        let Self { sums, target } = self;
        match target {
            Target::I32(out) => sums.write(out, &Identity),
            Target::F32(out, scales) => sums.write(out, scales),
            Target::U8(out, requantizer) => sums.write(out, *requantizer),
            Target::I8(out, requantizer) => sums.write(out, *requantizer),
        }
    }
}

/// What is made of corrected sums: a trait, as closures would not be inlined into a kernel's instruction set.
trait Convert<T> {
    /// What it needs of [`LANES`] neighbouring columns.
    type Columns;

    /// For those from `first` on.
    fn columns(&self, first: usize) -> Self::Columns;

    /// The results of a row in these columns.
    fn convert(&self, columns: &Self::Columns, row: usize, sums: [i32; LANES]) -> [T; LANES];
}

struct Identity;

impl Convert<i32> for Identity {
    type Columns = ();

    #[inline(always)]
    fn columns(&self, _: usize) {}

    #[inline(always)]
    fn convert(&self, (): &(), _: usize, sums: [i32; LANES]) -> [i32; LANES] {
        sums
    }
}

impl Convert<f32> for Dequantize<'_> {
    /// Scale and bias.
    type Columns = ([f32; LANES], [f32; LANES]);

    #[inline(always)]
    fn columns(&self, first: usize) -> Self::Columns {
        (lanes(self.b, first), lanes(self.bias, first))
    }

    #[inline(always)]
    fn convert(&self, (b, bias): &Self::Columns, row: usize, sums: [i32; LANES]) -> [f32; LANES] {
        let a = one_or(self.a, row);
        let mut reals = [0.0; LANES];
        for i in 0..LANES {
            reals[i] = sums[i] as f32 * (a * b[i]) + bias[i];
        }
        reals
    }
}

impl<Q: Integer> Convert<Q> for Requantizer {
    type Columns = Columns;

    #[inline(always)]
    fn columns(&self, first: usize) -> Columns {
        self.columns(first)
    }

    #[inline(always)]
    fn convert(&self, columns: &Columns, _: usize, sums: [i32; LANES]) -> [Q; LANES] {
        let integers = columns.apply(sums);
        let mut out = [Q::default(); LANES];
        for i in 0..LANES {
            out[i] = Q::narrow(integers[i]);
        }
        out
    }
}

impl Sums<'_> {
    /// Corrects the sums and writes what `convert` makes of them.
    #[inline(always)]
    fn write<T: Copy, C: Convert<T>>(&self, out: &mut Rows<'_, T>, convert: &C) {
        let Correction {
            a_zero_point,
            a_offset,
            b_sums,
            b_zero_point,
        } = self.correction;
        for rows in self.rows.clone().step_by(BAND) {
            let rows = rows..self.rows.end.min(rows + BAND);
            for (group, first) in self.columns.clone().step_by(LANES).enumerate() {
                let count = LANES.min(self.columns.end - first);
                let (b_sums, b_zero_point) = (lanes(b_sums, first), lanes(b_zero_point, first));
                let columns = convert.columns(first);
                for row in rows.clone() {
                    let i = row - self.rows.start;
                    let a_zero_point = one_or(a_zero_point, row) + a_offset;
                    let mut sums: [i32; LANES] = self.data[i * self.width..].as_chunks().0[group];
                    for j in 0..LANES {
                        sums[j] = sums[j].wrapping_sub(a_zero_point.wrapping_mul(b_sums[j]));
                    }
                    if let Some(a_sum) = self.a_sums.get(i) {
                        for j in 0..LANES {
                            sums[j] = sums[j].wrapping_sub(a_sum.wrapping_mul(b_zero_point[j]));
                        }
                    }
                    let results = convert.convert(&columns, row, sums);
                    let out = out.get(row, first..first + count);
                    match out.first_chunk_mut() {
                        Some(out) => *out = results,
                        None => out.copy_from_slice(&results[..count]),
                    }
                }
            }
        }
    }
}

/// The only value, or that of `index`.
#[inline(always)]
fn one_or<T: Copy>(values: &[T], index: usize) -> T {
    values[if values.len() == 1 { 0 } else { index }]
}
