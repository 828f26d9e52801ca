//! The definition of every kernel, in plain Rust.

use std::{ops::AddAssign, slice};

use super::{BINS, Bins, Counters, Kernels, LANES, Piece, STEPS, Summary, Tail, Terms, WAYS, density};
use crate::requantize::round_half_even;

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn Kernels> {
    Some(&Generic)
}

impl Kernels for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn tally(&self, x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
        count(x, inv_width, step, counters);
        summarize(x)
    }

    fn extrema(&self, x: &[f32]) -> Option<(f32, f32)> {
        extrema(x)
    }

    fn widen(&self, x: &[f32], lo: &mut [f32], hi: &mut [f32]) -> bool {
        widen(x, lo, hi)
    }

    fn raise_to_sums(&self, a: &[f32], b: &[f32], peaks: &mut [f64]) {
        raise_to_sums(a, b, peaks);
    }

    fn largest_sum(&self, x: &[f32]) -> f64 {
        largest_sum(x)
    }

    fn cut(&self, tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
        density::cut(tails, step, first, edges, spreads);
    }

    fn n_log_n(&self, counts: &[f64], out: &mut [f64]) {
        density::n_log_n(counts, out);
    }

    fn clip(&self, bins: &Bins<'_>, width: usize, least: &mut [f64]) {
        density::clip(bins, width, least);
    }

    fn lose(&self, sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
        density::lose(sums, width, lost);
    }

    fn add_up(
        &self,
        runs: [&[f32]; 4],
        steps: &[f64; STEPS],
        first: usize,
        from: &[f32; STEPS],
        sums: &mut [[f32; STEPS]],
    ) {
        density::add_up(runs, steps, first, from, sums);
    }

    fn excess(&self, pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
        density::excess(pieces, end, step, first, count)
    }

    fn add(&self, a: &[u8], b: &[u8], terms: &Terms, out: &mut [u8]) {
        add(a, b, terms, out);
    }

    fn look_up(&self, table: &[u8; 256], x: &[u8], out: &mut [u8]) {
        look_up(table, x, out);
    }
}

/// What [`Kernels::add`] writes.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to 8 bits"
)]
pub(super) fn add(a: &[u8], b: &[u8], terms: &Terms, out: &mut [u8]) {
    // 0x80 turns the bits of an int8 into its value plus 128.
    let (flip, offset) = if terms.signed { (0x80, 128) } else { (0, 0) };
    let (lo, hi) = (terms.min as f32, terms.max as f32);
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        let [a, b] = [a, b].map(|bits| (i32::from(bits ^ flip) - offset) as f32);
        let v = a.mul_add(terms.a, b.mul_add(terms.b, terms.constant));
        let v = if v < lo { lo } else { v };
        let v = if v > hi { hi } else { v };
        *out = round_half_even(v) as u8;
    }
}

/// What [`Kernels::look_up`] writes.
pub(super) fn look_up(table: &[u8; 256], x: &[u8], out: &mut [u8]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = table[usize::from(x)];
    }
}

/// What [`Kernels::tally`] returns, without counting.
pub(crate) fn summarize(x: &[f32]) -> Option<Summary> {
    let mut lanes = Lanes::default();
    lanes.absorb(x);
    lanes.finish()
}

/// What [`Kernels::tally`] counts.
pub(super) fn count(x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) {
    for values in x.chunks(WAYS) {
        for (v, counters) in values.iter().zip(counters.iter_mut()) {
            let counter = &mut counters[slot(*v, inv_width)];
            *counter = counter.wrapping_add(step);
        }
    }
}

/// Where a value counts.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "wraps around the table"
)]
pub(crate) fn slot(v: f32, inv_width: f32) -> usize {
    let bin = ((v * inv_width) as i32).wrapping_sub(i32::from(v < 0.0));
    bin as u32 as usize % BINS
}

/// See [`Kernels::extrema`].
pub(super) fn extrema(x: &[f32]) -> Option<(f32, f32)> {
    let (mut lo, mut hi, mut finite) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES], true);
    for group in x.chunks(LANES) {
        finite &= widen(group, &mut lo[..group.len()], &mut hi[..group.len()]);
    }
    let lo = lo.into_iter().fold(f32::INFINITY, f32::min) + 0.0; // -0 + 0 is 0
    let hi = hi.into_iter().fold(f32::NEG_INFINITY, f32::max) + 0.0;
    finite &= x.is_empty() || lo.is_finite() && hi.is_finite();
    finite.then_some((lo, hi))
}

/// See [`Kernels::widen`].
pub(super) fn widen(x: &[f32], lo: &mut [f32], hi: &mut [f32]) -> bool {
    let mut numbers = true;
    for ((&v, lo), hi) in x.iter().zip(lo).zip(hi) {
        *lo = if v < *lo { v } else { *lo };
        *hi = if v > *hi { v } else { *hi };
        numbers &= !v.is_nan();
    }
    numbers
}

/// See [`Kernels::raise_to_sums`].
#[inline(always)]
pub(super) fn raise_to_sums(a: &[f32], b: &[f32], peaks: &mut [f64]) {
    for ((a, b), peak) in a.iter().zip(b).zip(peaks) {
        let sum = (f64::from(*a) + f64::from(*b)).abs();
        *peak = if sum > *peak { sum } else { *peak };
    }
}

/// See [`Kernels::largest_sum`].
#[inline(always)]
pub(super) fn largest_sum(x: &[f32]) -> f64 {
    let mut peaks = [0.0; LANES];
    let mut raise = |x: &[f32]| {
        for ([a, b], peak) in x.as_chunks::<2>().0.iter().zip(&mut peaks) {
            raise_to_sums(slice::from_ref(a), slice::from_ref(b), slice::from_mut(peak));
        }
    };
    let (groups, rest) = x.as_chunks::<{ 2 * LANES }>();
    groups.iter().for_each(|group| raise(group));
    raise(rest);
    peaks.into_iter().fold(0.0, f64::max)
}

/// A [`Summary`] in the making.
pub(super) struct Lanes {
    pub(super) min: [f32; LANES],
    pub(super) max: [f32; LANES],
    pub(super) sum: [f64; LANES],
    pub(super) sum_sq: [f64; LANES],
    pub(super) zeros: [u32; LANES],
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            min: [f32::INFINITY; LANES],
            max: [f32::NEG_INFINITY; LANES],
            sum: [0.0; LANES],
            sum_sq: [0.0; LANES],
            zeros: [0; LANES],
        }
    }
}

impl Lanes {
    /// Takes in `x`, whose first value goes to lane 0.
    pub(super) fn absorb(&mut self, x: &[f32]) {
        let (groups, rest) = x.as_chunks::<LANES>();
        for group in groups {
            for (lane, &v) in group.iter().enumerate() {
                self.absorb_one(lane, v);
            }
        }
        for (lane, &v) in rest.iter().enumerate() {
            self.absorb_one(lane, v);
        }
    }

    #[inline(always)]
    fn absorb_one(&mut self, lane: usize, v: f32) {
        let wide = f64::from(v);
        self.min[lane] = if v < self.min[lane] { v } else { self.min[lane] };
        self.max[lane] = if v > self.max[lane] { v } else { self.max[lane] };
        self.sum[lane] += wide;
        self.sum_sq[lane] += wide * wide;
        self.zeros[lane] += u32::from(v == 0.0);
    }

    /// The square of a finite f32 is far from the end of f64, so their sum is finite if and only if every value is.
    pub(super) fn finish(self) -> Option<Summary> {
        let sum_sq = add_halves(self.sum_sq);
        sum_sq.is_finite().then(|| Summary {
            min: self.min.into_iter().fold(f32::INFINITY, f32::min) + 0.0, // -0 + 0 is 0
            max: self.max.into_iter().fold(f32::NEG_INFINITY, f32::max) + 0.0,
            sum: add_halves(self.sum),
            sum_sq,
            zeros: self.zeros.into_iter().sum(),
        })
    }
}

pub(super) fn add_halves<T: Copy + AddAssign, const LANES: usize>(mut lanes: [T; LANES]) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            let other = lanes[lane + half];
            lanes[lane] += other;
        }
        half /= 2;
    }
    lanes[0]
}
