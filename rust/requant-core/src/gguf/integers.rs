//! Scale and min of blocks whose values all weigh the same, searched in integers.
//!
//! A block is `x[i] ~ scale * level[i] - min`, with levels `0 ..= n`. Each try spreads some number of steps, `n` or one more
//! or less, over the range of the block, begins them a little earlier or later, and rounds to levels `l`; for these the
//! best scale and min are those of a line through the points `(l, x)`:
//!
//! ```text
//! a        x above the lowest value, as an integer of 0 ..= 4096
//! l        round((a - shift) * steps / 4096)
//! spread   N * sum(l * l) - sum(l)^2          along   N * sum(l * a) - sum(l) * sum(a)
//! scale    along / spread                     start   (sum(a) - scale * sum(l)) / N
//! ```
//!
//! The line takes `along^2 / spread` from the squared error, so the try for which that is the most is the best: quotients
//! are compared by their products with the other's divisor, and only the best is divided. All sums are exact, and no try
//! waits for another. llama.cpp's search (`make_qkx2_quants`) weighs values by their magnitude,
//! and rounds from the best start so far.

use std::array;

use super::{
    lanes::{MAGIC, V},
    search::{Affine, LEAST},
};

/// Two neighbouring values of each of some blocks, the first in the low half.
pub(crate) type Pairs<const LANES: usize> = [u32; LANES];

/// Tries of as many steps.
pub(crate) const SHIFTS: usize = 3;

/// What the largest value of a block becomes.
const TOP: f32 = 4096.0;

/// Half steps that are tried beside `n`, each with the eighths of a step by which they begin later. None makes levels below 0
/// or above `n`.
const TRIES: [(i16, [i16; SHIFTS]); 4] = [(-2, [-4, -2, 0]), (-1, [-4, -2, 0]), (0, [-2, 0, 2]), (1, [1, 2, 4])];

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
pub(crate) struct Sums<const LANES: usize> {
    /// Of levels.
    pub(crate) l: [i32; LANES],
    /// Of their squares.
    pub(crate) ll: [i32; LANES],
    /// Of levels times values.
    pub(crate) la: [i32; LANES],
}

/// What instruction sets have their own ways for that compilers do not find, and how many blocks they take side by side; all
/// give the same bits.
pub(crate) trait Vectors<const LANES: usize> {
    /// Rows as columns.
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES];

    /// Calls for what will be needed, so many bytes from `from` on.
    fn fetch(&self, _from: *const f32, _bytes: usize) {}

    /// The sums for each shift.
    fn sums(&self, values: &[Pairs<LANES>], rounding: Rounding) -> [Sums<LANES>; SHIFTS];
}

/// The definition.
pub(crate) struct Plain;

impl<const LANES: usize> Vectors<LANES> for Plain {
    #[inline(always)]
    fn turn(&self, square: [&[f32; LANES]; LANES]) -> [V<LANES>; LANES] {
        array::from_fn(|column| V(square.map(|row| row[column])))
    }

    fn sums(&self, values: &[Pairs<LANES>], rounding: Rounding) -> [Sums<LANES>; SHIFTS] {
        rounding.shifts.map(|shift| {
            let [l, ll, la] = [[0; LANES]; 3];
            let mut sums = Sums { l, ll, la };
            for pairs in values {
                for (c, pair) in pairs.iter().enumerate() {
                    for value in halves(*pair) {
                        let l = i32::from(rounding.level(value, shift));
                        sums.l[c] += l;
                        sums.ll[c] += l * l;
                        sums.la[c] += l * i32::from(value);
                    }
                }
            }
            sums
        })
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the halves are meant")]
fn halves(pair: u32) -> [i16; 2] {
    [pair as i16, (pair >> 16) as i16]
}

/// Scales and mins of blocks.
#[inline(always)]
pub(super) fn affine<const LANES: usize, const N: usize>(
    vectors: &impl Vectors<LANES>,
    x: [&[f32; N]; LANES],
    n: i16,
) -> Affine<LANES> {
    let zero = V::all(0.0);
    let mut across = [zero; N];
    for (i, across) in across.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        *across = vectors.turn(x.map(|x| &x.as_chunks().0[i]));
    }
    let (mut low, mut high) = (zero, across[0]);
    for &x in &across {
        (low, high) = (low.min(x), high.max(x));
    }
    let range = high - low;
    let unit = V::all(LEAST).if_greater(range, zero, V::all(TOP) / range);
    let mut pairs = [[0; LANES]; N];
    let (pairs, mut sum_a) = (&mut pairs[..N / 2], zero);
    for (pairs, x) in pairs.iter_mut().zip(across.as_chunks::<2>().0) {
        // Adding the number leaves the nearest integer in its low bits.
        let a = (x[0] - low) * unit + V::all(MAGIC);
        let b = (x[1] - low) * unit + V::all(MAGIC);
        sum_a += (a - V::all(MAGIC)) + (b - V::all(MAGIC));
        for ((pair, a), b) in pairs.iter_mut().zip(a.0).zip(b.0) {
            *pair = a.to_bits() & 0xffff | b.to_bits() << 16;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "16 or 32")]
    let count = V::all(N as f32);
    let origin = zero - low * unit;
    let block = Block {
        count,
        sum_a,
        origin,
        off: sum_a - count * origin,
    };
    let mut best = Best {
        gain: V::all(f32::NEG_INFINITY),
        divisor: V::all(1.0),
        along: zero,
        sum_l: zero,
        through: zero,
    };
    for (halves, eighths) in TRIES {
        let factor = 8 * n + 4 * halves;
        let rounding = Rounding {
            factor,
            shifts: eighths.map(|eighths| eighths * 4096 / factor),
        };
        let [a, b, c] = vectors.sums(pairs, rounding);
        best.take(block, a);
        best.take(block, b);
        best.take(block, c);
    }
    let (scale, start) = best.line(block);
    let size = range / V::all(TOP);
    Affine {
        scale: V::all(LEAST).if_greater(range, zero, scale * size),
        min: zero - (low + V::all(LEAST).if_greater(range, zero, start * size)),
    }
}

/// What tries have in common.
#[derive(Clone, Copy)]
struct Block<const LANES: usize> {
    count: V<LANES>,
    sum_a: V<LANES>,
    /// Where 0 lies: no line may start later, as mins are not negative.
    origin: V<LANES>,
    /// Sum of what values exceed it by.
    off: V<LANES>,
}

/// The best try.
struct Best<const LANES: usize> {
    /// What it takes from the squared error, times `divisor`.
    gain: V<LANES>,
    divisor: V<LANES>,
    /// The scale times `divisor`.
    along: V<LANES>,
    sum_l: V<LANES>,
    /// 1 where the line starts where 0 lies.
    through: V<LANES>,
}

impl<const LANES: usize> Best<LANES> {
    #[inline(always)]
    fn take(&mut self, block: Block<LANES>, sums: Sums<LANES>) {
        let [sum_l, sum_ll, sum_la] = [reals(sums.l), reals(sums.ll), reals(sums.la)];
        let zero = V::all(0.0);
        let spread = block.count * sum_ll - sum_l * sum_l;
        let line = block.count * sum_la - sum_l * block.sum_a;
        let rest = sum_la - block.origin * sum_l;
        // Levels that are all the same do not tell where a line starts.
        let start = spread.if_greater(zero, block.off * spread, V::all(f32::INFINITY));
        let bound = line * sum_l;
        let squares = block.count * rest * rest - block.off * block.off * sum_ll;
        let gain = start.if_greater(bound, squares, line * line);
        let divisor = start.if_greater(bound, sum_ll, spread);
        let along = start.if_greater(bound, rest, line);
        let through = start.if_greater(bound, V::all(1.0), zero);
        let (ours, theirs) = (gain * self.divisor, self.gain * divisor);
        self.gain = ours.if_greater(theirs, gain, self.gain);
        self.divisor = ours.if_greater(theirs, divisor, self.divisor);
        self.along = ours.if_greater(theirs, along, self.along);
        self.sum_l = ours.if_greater(theirs, sum_l, self.sum_l);
        self.through = ours.if_greater(theirs, through, self.through);
    }

    /// Scale and start.
    #[inline(always)]
    fn line(&self, block: Block<LANES>) -> (V<LANES>, V<LANES>) {
        let scale = self.along / self.divisor;
        let start = (block.sum_a - scale * self.sum_l) / block.count;
        (scale, self.through.if_greater(V::all(0.0), block.origin, start))
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "but for sums of products below 2^24, and then rounded to nearest"
)]
#[inline(always)]
fn reals<const LANES: usize>(sums: [i32; LANES]) -> V<LANES> {
    V(sums.map(|sum| sum as f32))
}
