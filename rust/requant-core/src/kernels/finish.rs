//! From the sums of products to results: zero points, scales, requantization.
//!
//! Written once, without intrinsics; a kernel has it compiled for its instruction set ([`GemmKernel::finish`]), so that
//! every set rounds alike.
//!
//! [`GemmKernel::finish`]: crate::kernels::gemm::GemmKernel::finish

use std::ops::Range;

use crate::{
    arrays::Integer,
    requantize::{Apply, Columns, Fixed, Multipliers, Requantizer, lanes},
};

/// `f32(sum) * (a * b) + bias`, three roundings, in this order.
#[derive(Debug, Clone, Copy)]
pub struct Dequantize<'a> {
    /// Scale of A, `[1]` or `[M]`.
    pub a: &'a [f32],
    /// Scale of B, `[1]` or `[N]`.
    pub b: &'a [f32],
    /// Added at the end, `[1]` or `[N]`; none where empty.
    pub bias: &'a [f32],
}

/// A region of C, as rows that can be lent one at a time.
pub(crate) enum Rows<'a, T> {
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
    pub(crate) fn get(&mut self, row: usize, columns: Range<usize>) -> &mut [T] {
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
pub(crate) enum Target<'a> {
    I32(Rows<'a, i32>),
    F32(Rows<'a, f32>, Dequantize<'a>),
    U8(Rows<'a, u8>, &'a Requantizer),
    I8(Rows<'a, i8>, &'a Requantizer),
}

/// What has to be taken from a sum of stored values to make it a sum of values less their zero points.
#[derive(Clone, Copy)]
pub(crate) struct Correction<'a> {
    /// `[1]` or `[M]`.
    pub(crate) a_zero_point: &'a [i32],
    /// What the kernel adds to values of A.
    pub(crate) a_offset: i32,
    /// For each column, the sum of `b - zero_point`.
    pub(crate) b_sums: &'a [i32],
    /// For each column; empty where all are 0.
    pub(crate) b_zero_point: &'a [i32],
}

/// Rows of A times one panel of B: sums to be turned into results.
pub struct Strip<'a, 'o> {
    pub(crate) sums: Sums<'a>,
    pub(crate) target: &'a mut Target<'o>,
}

/// The sums of a strip, and where in C they belong.
pub(crate) struct Sums<'a> {
    /// `[rows][width]`
    pub(crate) data: &'a [i32],
    /// Columns to a panel.
    pub(crate) width: usize,
    /// Which rows of C.
    pub(crate) rows: Range<usize>,
    /// Which columns of B; fewer than `width` at the end.
    pub(crate) columns: Range<usize>,
    /// The column of C that is the first of B.
    pub(crate) origin: usize,
    /// The sum of each row of packed A, where the correction needs it.
    pub(crate) a_sums: &'a [i32],
    /// None where the sums are of values less their zero points already.
    pub(crate) correction: Option<Correction<'a>>,
}

impl Strip<'_, '_> {
    /// Writes the results, `W` columns at a time; `W` divides the width of a panel.
    #[inline(always)]
    pub fn finish<const W: usize>(self) {
        self.finish_with::<W>(Portable);
    }

    /// The same with lanes of a kernel's own.
    #[inline(always)]
    pub(crate) fn finish_with<const W: usize>(self, lanes: impl Lanes<W>) {
        let Self { sums, target } = self;
        match target {
            Target::I32(out) => sums.write::<_, _, W>(out, &Identity),
            Target::F32(out, scales) => sums.write::<_, _, W>(out, scales),
            Target::U8(out, requantizer) => sums.requantize(out, requantizer, lanes),
            Target::I8(out, requantizer) => sums.requantize(out, requantizer, lanes),
        }
    }
}

/// What is made of corrected sums: a trait, as closures would not be inlined into a kernel's instruction set.
trait Convert<T, const W: usize> {
    /// What it needs of neighbouring columns.
    type Columns;

    /// For those from `first` on.
    fn columns(&self, first: usize) -> Self::Columns;

    /// The results of a row in these columns.
    fn convert(&self, columns: &Self::Columns, row: usize, sums: [i32; W]) -> [T; W];
}

struct Identity;

impl<const W: usize> Convert<i32, W> for Identity {
    type Columns = ();

    #[inline(always)]
    fn columns(&self, _: usize) {}

    #[inline(always)]
    fn convert(&self, (): &(), _: usize, sums: [i32; W]) -> [i32; W] {
        sums
    }
}

impl<const W: usize> Convert<f32, W> for Dequantize<'_> {
    /// Scale and bias.
    type Columns = ([f32; W], [f32; W]);

    #[inline(always)]
    fn columns(&self, first: usize) -> Self::Columns {
        (lanes(self.b, first), lanes(self.bias, first))
    }

    #[inline(always)]
    fn convert(&self, (b, bias): &Self::Columns, row: usize, sums: [i32; W]) -> [f32; W] {
        let a = one_or(self.a, row);
        let mut reals = [0.0; W];
        for i in 0..W {
            reals[i] = sums[i] as f32 * (a * b[i]) + bias[i];
        }
        reals
    }
}

/// Requantization of neighbouring columns. Compilers make of it a fifth of the speed that its instructions have, so a
/// kernel may spell them.
pub(crate) trait Lanes<const W: usize>: Copy {
    /// [`Apply::apply`] in the output's type, which holds the limits.
    #[inline(always)]
    fn requantize<Q: Integer>(self, columns: &Columns<f32, W>, sums: [i32; W]) -> [Q; W] {
        narrow(columns.apply(sums))
    }
}

/// As the compiler makes it.
#[derive(Clone, Copy)]
struct Portable;

impl<const W: usize> Lanes<W> for Portable {}

#[inline(always)]
fn narrow<Q: Integer, const W: usize>(integers: [i32; W]) -> [Q; W] {
    let mut out = [Q::default(); W];
    for i in 0..W {
        out[i] = Q::narrow(integers[i]);
    }
    out
}

/// Requantization with float multipliers.
struct Float<'a, L>(&'a Requantizer, &'a [f32], L);

impl<Q: Integer, L: Lanes<W>, const W: usize> Convert<Q, W> for Float<'_, L> {
    type Columns = Columns<f32, W>;

    #[inline(always)]
    fn columns(&self, first: usize) -> Self::Columns {
        self.0.columns(self.1, first)
    }

    #[inline(always)]
    fn convert(&self, columns: &Self::Columns, _: usize, sums: [i32; W]) -> [Q; W] {
        self.2.requantize(columns, sums)
    }
}

/// Requantization with fixed-point multipliers.
struct FixedPoint<'a>(&'a Requantizer, &'a [Fixed]);

impl<Q: Integer, const W: usize> Convert<Q, W> for FixedPoint<'_> {
    type Columns = Columns<Fixed, W>;

    #[inline(always)]
    fn columns(&self, first: usize) -> Self::Columns {
        self.0.columns(self.1, first)
    }

    #[inline(always)]
    fn convert(&self, columns: &Self::Columns, _: usize, sums: [i32; W]) -> [Q; W] {
        narrow(columns.apply(sums))
    }
}

impl Sums<'_> {
    #[inline(always)]
    fn requantize<Q: Integer, const W: usize>(
        &self,
        out: &mut Rows<'_, Q>,
        requantizer: &Requantizer,
        lanes: impl Lanes<W>,
    ) {
        match requantizer.multipliers() {
            Multipliers::Float(m) => self.write::<_, _, W>(out, &Float(requantizer, m, lanes)),
            Multipliers::Fixed(m) => self.write::<_, _, W>(out, &FixedPoint(requantizer, m)),
        }
    }

    /// Corrects the sums and writes what `convert` makes of them.
    #[inline(always)]
    fn write<T: Copy, C: Convert<T, W>, const W: usize>(&self, out: &mut Rows<'_, T>, convert: &C) {
        for (group, first) in self.columns.clone().step_by(W).enumerate() {
            let (start, end) = (self.origin + first, self.origin + self.columns.end.min(first + W));
            let correct = self.correction.map(|correction| correction.columns(first));
            let columns = convert.columns(start);
            let rows = self.rows.clone().zip(self.data.chunks_exact(self.width)).enumerate();
            // The match is outside of the loops, where it costs nothing; a row of few sums is short enough to feel it.
            match (&mut *out, &correct) {
                (Rows::Whole { data, stride, first }, None) => {
                    let lines = data[(self.rows.start - *first) * *stride..].chunks_exact_mut(*stride);
                    for ((_, (row, sums)), line) in rows.zip(lines) {
                        put(
                            convert.convert(&columns, row, sums.as_chunks().0[group]),
                            &mut line[start..end],
                        );
                    }
                }
                (Rows::Whole { data, stride, first }, Some(correct)) => {
                    let lines = data[(self.rows.start - *first) * *stride..].chunks_exact_mut(*stride);
                    for ((i, (row, sums)), line) in rows.zip(lines) {
                        let sums = correct.apply(sums.as_chunks().0[group], row, self.a_sums.get(i));
                        put(convert.convert(&columns, row, sums), &mut line[start..end]);
                    }
                }
                (Rows::Cut { rows: lines, first }, correct) => {
                    for ((i, (row, sums)), line) in rows.zip(&mut lines[self.rows.clone()]) {
                        let mut sums = sums.as_chunks().0[group];
                        if let Some(correct) = correct {
                            sums = correct.apply(sums, row, self.a_sums.get(i));
                        }
                        put(
                            convert.convert(&columns, row, sums),
                            &mut line[start - *first..end - *first],
                        );
                    }
                }
            }
        }
    }
}

/// Writes as many of the results as there are columns.
#[inline(always)]
fn put<T: Copy, const W: usize>(results: [T; W], out: &mut [T]) {
    match out.first_chunk_mut() {
        Some(out) => *out = results,
        None => out.iter_mut().zip(results).for_each(|(out, result)| *out = result),
    }
}

/// The correction of neighbouring columns.
struct Corrected<'a, const W: usize> {
    a_zero_point: &'a [i32],
    a_offset: i32,
    b_sums: [i32; W],
    b_zero_point: [i32; W],
}

impl<'a> Correction<'a> {
    #[inline(always)]
    fn columns<const W: usize>(self, first: usize) -> Corrected<'a, W> {
        Corrected {
            a_zero_point: self.a_zero_point,
            a_offset: self.a_offset,
            b_sums: lanes(self.b_sums, first),
            b_zero_point: lanes(self.b_zero_point, first),
        }
    }
}

impl<const W: usize> Corrected<'_, W> {
    /// The sums of a row; `a_sum` is that of its values, where B has zero points.
    #[inline(always)]
    fn apply(&self, mut sums: [i32; W], row: usize, a_sum: Option<&i32>) -> [i32; W] {
        let a_zero_point = one_or(self.a_zero_point, row) + self.a_offset;
        for (sum, b_sum) in sums.iter_mut().zip(self.b_sums) {
            *sum = sum.wrapping_sub(a_zero_point.wrapping_mul(b_sum));
        }
        if let Some(a_sum) = a_sum {
            for (sum, b_zero_point) in sums.iter_mut().zip(self.b_zero_point) {
                *sum = sum.wrapping_sub(a_sum.wrapping_mul(b_zero_point));
            }
        }
        sums
    }
}

/// The only value, or that of `index`.
#[inline(always)]
fn one_or<T: Copy>(values: &[T], index: usize) -> T {
    values[if values.len() == 1 { 0 } else { index }]
}
