//! Scale and min of blocks whose values all weigh the same, searched in integers.
//!
//! A block is `x[i] ~ scale * level[i] - min`, with levels `0 ..= n`. Each try spreads some number of steps, `n` or one
//! more or less, over the range of the block, begins them a little earlier or later, and rounds to levels `l`; for
//! these the best scale and min are those of a line through the points `(l, x)`:
//!
//! ```text
//! a        x above the lowest value, as an integer of 0 ..= 4096
//! l        round((a - shift) * steps / 4096)
//! spread   N * sum(l * l) - sum(l)^2          along   N * sum(l * a) - sum(l) * sum(a)
//! scale    along / spread                     start   (sum(a) - scale * sum(l)) / N
//! ```
//!
//! The line takes `along^2 / spread` from the squared error, so the try for which that is the most is the best:
//! quotients are compared by their products with the other's divisor, and only the best is divided. All sums are exact,
//! and no try waits for another. llama.cpp's search (`make_qkx2_quants`) weighs values by their magnitude, and rounds
//! from the best start so far.

use std::{
    array,
    ops::{Add, Div, Mul, Sub},
};

use super::{
    SUPER,
    bytes::nearest,
    lanes::V,
    search::{Affine, LEAST},
};

/// Tries of as many steps.
pub(crate) const SHIFTS: usize = 3;

/// What the largest value of a block becomes.
const TOP: f32 = 4096.0;

/// Half steps that are tried beside `n`, each with the eighths of a step by which they begin later. None makes levels
/// below 0 or above `n`.
const TRIES: [(i16, [i16; SHIFTS]); 3] = [(-1, [-7, -6, -5]), (0, [-2, 0, 2]), (1, [1, 2, 4])];

/// How values become levels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounding {
    /// In eighths of steps.
    pub(crate) factor: i16,
    /// What is taken from values before.
    pub(crate) shifts: [i16; SHIFTS],
}

impl Rounding {
    /// The level of a value.
    #[expect(clippy::cast_possible_truncation, reason = "at most 32 from 0")]
    fn level(self, value: i16, shift: i16) -> i16 {
        let product = i32::from(value - shift) * i32::from(self.factor);
        (((product >> 14) + 1) >> 1) as i16
    }
}

/// Of each block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sums<R> {
    /// Of levels.
    pub(crate) l: R,
    /// Of their squares.
    pub(crate) ll: R,
    /// Of levels times values.
    pub(crate) la: R,
}

/// A number of each of `LANES` blocks, as an instruction set has them; all do what [`V`] does.
pub(crate) trait Reals<const LANES: usize>:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// The smaller; `self` where they are equal.
    fn min(self, other: Self) -> Self;

    /// The larger; `self` where they are equal.
    fn max(self, other: Self) -> Self;

    /// `yes` where `self` is greater than `other`, else `no`.
    fn if_greater(self, other: Self, yes: Self, no: Self) -> Self;

    /// Whether `self` is greater than `other` anywhere.
    fn any_greater(self, other: Self) -> bool;

    fn lanes(self) -> V<LANES>;
}

/// What instruction sets have their own ways for, and how many blocks they take side by side; all give the same bits.
pub(crate) trait Vectors<const LANES: usize> {
    type Reals: Reals<LANES>;

    /// Two neighbouring values of each block as integers of 16 bits, the first in the low half.
    type Pairs: Copy;

    /// One number for all blocks.
    fn all(&self, value: f32) -> Self::Reals;

    /// Rows as columns.
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [Self::Reals; LANES];

    /// The nearest integers, half to even, of numbers from 0 to 4096.
    fn pairs(&self, first: Self::Reals, second: Self::Reals) -> Self::Pairs;

    /// The sum of all values.
    fn total(&self, values: &[Self::Pairs]) -> Self::Reals;

    /// The sums for each shift.
    fn sums(&self, values: &[Self::Pairs], rounding: Rounding) -> [Sums<Self::Reals>; SHIFTS];

    /// The integers nearest to `(x + min) * inverse`, from 0 to `most`, with the min and inverse of each block.
    #[inline(always)]
    fn levels<const BLOCKS: usize>(
        &self,
        x: &[f32; SUPER],
        mins: &[f32; BLOCKS],
        inverses: &[f32; BLOCKS],
        most: f32,
        levels: &mut [u8; SUPER],
    ) {
        let size = SUPER / BLOCKS;
        let blocks = x.chunks_exact(size).zip(levels.chunks_exact_mut(size));
        for ((x, levels), (min, inverse)) in blocks.zip(mins.iter().zip(inverses)) {
            for (l, x) in levels.iter_mut().zip(x) {
                *l = nearest((x + min) * inverse, most);
            }
        }
    }

    /// Calls for what will be needed, so many bytes from `from` on.
    fn fetch(&self, _from: *const f32, _bytes: usize) {}
}

/// The definition.
pub(crate) struct Plain;

impl<const LANES: usize> Reals<LANES> for V<LANES> {
    fn min(self, other: Self) -> Self {
        self.min(other)
    }

    fn max(self, other: Self) -> Self {
        self.max(other)
    }

    fn if_greater(self, other: Self, yes: Self, no: Self) -> Self {
        self.if_greater(other, yes, no)
    }

    fn any_greater(self, other: Self) -> bool {
        self.0.iter().zip(&other.0).any(|(a, b)| a > b)
    }

    fn lanes(self) -> V<LANES> {
        self
    }
}

impl<const LANES: usize> Vectors<LANES> for Plain {
    type Reals = V<LANES>;
    type Pairs = [[i16; 2]; LANES];

    fn all(&self, value: f32) -> V<LANES> {
        V::all(value)
    }

    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES] {
        array::from_fn(|column| V(square.map(|row| row[column])))
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most 4096")]
    fn pairs(&self, first: V<LANES>, second: V<LANES>) -> Self::Pairs {
        array::from_fn(|c| [first.0[c], second.0[c]].map(|value| value.round_ties_even() as i16))
    }

    fn total(&self, values: &[Self::Pairs]) -> V<LANES> {
        reals(array::from_fn(|c| {
            values
                .iter()
                .map(|pairs| i32::from(pairs[c][0]) + i32::from(pairs[c][1]))
                .sum()
        }))
    }

    fn sums(&self, values: &[Self::Pairs], rounding: Rounding) -> [Sums<V<LANES>>; SHIFTS] {
        rounding.shifts.map(|shift| {
            let [mut sum_l, mut sum_ll, mut sum_la] = [[0; LANES]; 3];
            for pairs in values {
                for (c, pair) in pairs.iter().enumerate() {
                    for &value in pair {
                        let l = i32::from(rounding.level(value, shift));
                        sum_l[c] += l;
                        sum_ll[c] += l * l;
                        sum_la[c] += l * i32::from(value);
                    }
                }
            }
            Sums {
                l: reals(sum_l),
                ll: reals(sum_ll),
                la: reals(sum_la),
            }
        })
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "but for sums of products below 2^24, and then rounded to nearest"
)]
fn reals<const LANES: usize>(sums: [i32; LANES]) -> V<LANES> {
    V(sums.map(|sum| sum as f32))
}

/// Scales and mins of blocks.
#[inline(always)]
pub(super) fn affine<const LANES: usize, const N: usize, S: Vectors<LANES>>(
    vectors: &S,
    x: [&[f32; N]; LANES],
    n: i16,
) -> Affine<LANES> {
    let zero = vectors.all(0.0);
    let mut across = [zero; N];
    let (mut low, mut high) = (zero, vectors.all(f32::NEG_INFINITY));
    for (i, across) in across.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut square = [&[0.0; LANES]; LANES];
        for (square, x) in square.iter_mut().zip(x) {
            *square = &x.as_chunks().0[i];
        }
        *across = vectors.turn(square);
        for &x in &*across {
            (low, high) = (low.min(x), high.max(x));
        }
    }
    let (range, top, least) = (high - low, vectors.all(TOP), vectors.all(LEAST));
    let unit = range.if_greater(least, top / range, zero);
    let mut pairs = [vectors.pairs(zero, zero); N];
    let pairs = &mut pairs[..N / 2];
    for (pairs, [a, b]) in pairs.iter_mut().zip(across.as_chunks::<2>().0) {
        *pairs = vectors.pairs((*a - low) * unit, (*b - low) * unit);
    }
    #[expect(clippy::cast_precision_loss, reason = "16 or 32")]
    let count = vectors.all(N as f32);
    let (sum_a, origin) = (vectors.total(pairs), zero - low * unit);
    let block = Block {
        zero,
        count,
        sum_a,
        origin,
        off: sum_a - count * origin,
        never: vectors.all(f32::INFINITY),
    };
    let mut best = Best {
        gain: vectors.all(f32::NEG_INFINITY),
        divisor: vectors.all(1.0),
        along: zero,
        sum_l: zero,
    };
    for (halves, eighths) in TRIES {
        let factor = 8 * n + 4 * halves;
        let shifts = [
            eighths[0] * 4096 / factor,
            eighths[1] * 4096 / factor,
            eighths[2] * 4096 / factor,
        ];
        let [a, b, c] = vectors.sums(pairs, Rounding { factor, shifts });
        best.take(block, a);
        best.take(block, b);
        best.take(block, c);
    }
    let (scale, start, mean_level) = best.line(block);
    let size = range / top;
    let start = range.if_greater(least, start * size, zero);
    Affine {
        scale: range.if_greater(least, scale * size, zero).lanes(),
        min: (zero - (low + start)).lanes(),
        mean_level: mean_level.lanes(),
    }
}

/// What tries have in common.
#[derive(Clone, Copy)]
struct Block<R> {
    zero: R,
    count: R,
    sum_a: R,
    /// Where 0 lies: no line may start later, as mins are not negative.
    origin: R,
    /// Sum of what values exceed it by.
    off: R,
    /// More than any bound.
    never: R,
}

/// The best try.
struct Best<R> {
    /// What it takes from the squared error, times `divisor`.
    gain: R,
    divisor: R,
    /// The scale times `divisor`.
    along: R,
    /// Of levels; `never` where the line starts where 0 lies.
    sum_l: R,
}

impl<R> Best<R> {
    #[inline(always)]
    fn take<const LANES: usize>(&mut self, block: Block<R>, sums: Sums<R>)
    where
        R: Reals<LANES>,
    {
        let zero = block.zero;
        let spread = block.count * sums.ll - sums.l * sums.l;
        let line = block.count * sums.la - sums.l * block.sum_a;
        // Levels that are all the same do not tell where a line starts.
        let start = spread.if_greater(zero, block.off * spread, block.never);
        let bound = line * sums.l;
        let (mut gain, mut divisor, mut along, mut sum_l) = (line * line, spread, line, sums.l);
        if start.any_greater(bound) {
            let rest = sums.la - block.origin * sums.l;
            let squares = block.count * rest * rest - block.off * block.off * sums.ll;
            gain = start.if_greater(bound, squares, gain);
            divisor = start.if_greater(bound, sums.ll, divisor);
            along = start.if_greater(bound, rest, along);
            sum_l = start.if_greater(bound, block.never, sum_l);
        }
        let (ours, theirs) = (gain * self.divisor, self.gain * divisor);
        self.gain = ours.if_greater(theirs, gain, self.gain);
        self.divisor = ours.if_greater(theirs, divisor, self.divisor);
        self.along = ours.if_greater(theirs, along, self.along);
        self.sum_l = ours.if_greater(theirs, sum_l, self.sum_l);
    }

    /// Scale, start and the mean level, which is 0 where the line starts where 0 lies.
    #[inline(always)]
    fn line<const LANES: usize>(&self, block: Block<R>) -> (R, R, R)
    where
        R: Reals<LANES>,
    {
        let scale = self.along / self.divisor;
        let start = (block.sum_a - scale * self.sum_l) / block.count;
        let told = |there, else_: R| block.never.if_greater(self.sum_l, there, else_);
        (
            scale,
            told(start, block.origin),
            told(self.sum_l / block.count, block.zero),
        )
    }
}
