//! What the calibration search looks up in a histogram, thousands of times a step: the definitions, in plain Rust.
//!
//! One side of zero is a density over bins of length 1, from 0 outwards. A table holds what is needed to know a sum over
//! all that lies beyond a point `x`; within a bin it is a polynomial in how far `x` is from the bin's outer edge.

use super::generic::add_halves;

/// Sums over what lies beyond the inner edge of a bin.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C, align(16))]
pub struct Tail {
    /// Values.
    pub mass: f64,
    /// Bins that are not empty.
    pub bins: f64,
}

/// A bin of even density, and sums over what lies beyond its outer edge.
#[derive(Debug, Clone, Copy, PartialEq)]
#[repr(C, align(32))]
pub struct Piece {
    /// Values for each unit of length.
    pub density: f64,
    /// How many values lie beyond.
    pub beyond: f64,
    /// Sum of what they lie beyond by.
    pub excess: f64,
    /// Sum of the squares of that.
    pub excess_sq: f64,
}

/// Something of the runs of bins `i..j`, `i + 1..j`, `i..j + 1` and `i + 1..j + 1`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C, align(16))]
pub struct Corners(pub [f32; 4]);

/// Corners of the runs of so many bins that a step has between two edges, and of those of one more.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    /// Both tables, and others.
    pub corners: &'a [Corners],
    /// Where that of the longer runs begins.
    pub wide: usize,
    /// Where that of the shorter runs begins.
    pub narrow: usize,
    /// Entries of each, at least one: a bin beyond the last counts as the last.
    pub bins: usize,
}

/// Partial sums of [`Kernels::excess`](super::Kernels::excess): term `k` is added to lane `k mod LANES`, and the lanes
/// are added by halves.
pub(super) const LANES: usize = 8;

/// Sums beyond `x`, in a table of at least two entries, the last of them zero.
#[inline(always)]
pub(crate) fn beyond(tails: &[Tail], x: f64) -> Tail {
    let (i, rest) = locate(x, tails.len() - 2);
    let (bin, next) = (tails[i], tails[i + 1]);
    Tail {
        mass: next.mass + rest * (bin.mass - next.mass),
        bins: next.bins + rest * (bin.bins - next.bins),
    }
}

/// See [`Kernels::cut`](super::Kernels::cut).
pub(super) fn cut(tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
    cut_edges(tails, step, first, &mut edges[1..]);
    spread_cells(edges, spreads);
}

/// Sums beyond `(k + 1/2) step` for each `k` from `first` on.
pub(super) fn cut_edges(tails: &[Tail], step: f64, first: usize, edges: &mut [Tail]) {
    for (k, edge) in (first..).zip(edges) {
        *edge = beyond(tails, (to_f64(k) + 0.5) * step);
    }
}

/// `M ln(M / s)` of the cells between edges.
pub(super) fn spread_cells(edges: &[Tail], spreads: &mut [f64]) {
    for (edges, spread) in edges.windows(2).zip(spreads) {
        let (mass, bins) = (edges[0].mass - edges[1].mass, edges[0].bins - edges[1].bins);
        *spread = if mass > 0.0 { mass * log_ratio(mass, bins) } else { 0.0 };
    }
}

/// See [`Kernels::lose`](super::Kernels::lose).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
pub(super) fn lose(sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
    let [mass, bins, n_log_n] = sums.map(|sums| &sums[..lost.len() + width]);
    for (i, lost) in lost.iter_mut().enumerate() {
        let [mass, bins, n_log_n] = [mass, bins, n_log_n].map(|sums| sums[i] - sums[i + width]);
        let spread = if mass > 0.0 { mass * log_ratio(mass, bins) } else { 0.0 };
        *lost = (n_log_n - spread).max(0.0) as f32;
    }
}

/// See [`Kernels::interpolate`](super::Kernels::interpolate).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the index of a bin, and a part of one"
)]
pub(super) fn interpolate(tables: &Tables<'_>, step: f64, first: usize, out: &mut [f32]) {
    let place = |edge: f64| (edge.floor(), edge - edge.floor());
    let (mut i, mut x) = place((to_f64(first) - 0.5) * step);
    for (k, out) in (first..).zip(out) {
        let (j, y) = place((to_f64(k) + 0.5) * step);
        let start = if y < x { tables.wide } else { tables.narrow };
        let [none, from, to, both] = tables.corners[start + (i as usize).min(tables.bins - 1)].0;
        // Each weight is rounded by itself: no term is the difference of larger ones.
        let (inner, rest_x) = (x as f32, (1.0 - x) as f32);
        let (outer, rest_y) = (y as f32, (1.0 - y) as f32);
        *out = rest_y * (rest_x * none + inner * from) + outer * (rest_x * to + inner * both);
        (i, x) = (j, y);
    }
}

/// Cells of [`Kernels::add_up`](super::Kernels::add_up) after which it may end.
pub(super) const CELLS: usize = 64;

/// Its partial sums: cell `k` is added to lane `(k - 1) mod SUMS`, and the lanes are added by halves.
pub(super) const SUMS: usize = 16;

/// See [`Kernels::add_up`](super::Kernels::add_up).
#[inline(always)]
pub(super) fn add_up(
    tables: &Tables<'_>,
    step: f64,
    count: usize,
    limit: f32,
    interpolate: impl Fn(&Tables<'_>, f64, usize, &mut [f32]),
) -> f32 {
    let (mut lanes, mut sum, mut cells) = ([0.0; SUMS], 0.0, [0.0; CELLS]);
    for done in (0..count).step_by(CELLS) {
        let cells = &mut cells[..CELLS.min(count - done)];
        interpolate(tables, step, done + 1, cells);
        for cells in cells.chunks(SUMS) {
            for (lane, cell) in lanes.iter_mut().zip(cells) {
                *lane += cell;
            }
        }
        sum = add_halves(lanes);
        if sum > limit {
            break;
        }
    }
    sum
}

/// See [`Kernels::excess`](super::Kernels::excess).
pub(super) fn excess(pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
    let mut lanes = [0.0; LANES];
    for k in 0..count {
        lanes[k % LANES] += excess_over(pieces, end, (to_f64(first + k) + 0.5) * step);
    }
    add_halves(lanes)
}

/// Sum of what values exceed `x` by.
#[inline(always)]
pub(super) fn excess_over(pieces: &[Piece], end: f64, x: f64) -> f64 {
    let x = x.min(end);
    let (i, rest) = locate(x, pieces.len() - 1);
    pieces[i].excess_over(rest.min(end - x))
}

impl Piece {
    /// How many values exceed a point within the bin that is `rest` from its outer edge.
    #[inline(always)]
    pub(crate) fn beyond_point(&self, rest: f64) -> f64 {
        self.beyond + self.density * rest
    }

    /// Sum of what they exceed it by.
    #[inline(always)]
    pub(crate) fn excess_over(&self, rest: f64) -> f64 {
        self.excess + rest * (self.beyond + self.density * rest / 2.0)
    }

    /// Sum of the squares of what they exceed it by.
    #[inline(always)]
    pub(crate) fn excess_sq_over(&self, rest: f64) -> f64 {
        self.excess_sq + rest * (2.0 * self.excess + rest * (self.beyond + self.density * rest / 3.0))
    }
}

/// A bin, at most `last`, that contains `x`, from 0 to 2^31, and how far `x` is from the bin's outer edge: 0 beyond the last.
///
/// Adding 1.5 * 2^52 rounds to an integer and leaves it in the low bits: a third of the time that `as usize` takes. To
/// the nearest, so that `x - 1/2` gives the bin below an edge or the one above it, and either will do.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
pub(crate) fn locate(x: f64, last: usize) -> (usize, f64) {
    let shifted = ((x - 0.5) + MAGIC).min(MAGIC + to_f64(last));
    let rest = shifted - MAGIC + 1.0 - x;
    (shifted.to_bits() as u32 as usize, if rest > 0.0 { rest } else { 0.0 })
}

pub(super) const MAGIC: f64 = 1.5 * (1u64 << 52) as f64;

/// The natural logarithm of a positive normal number, the same bits on every machine.
#[inline(always)]
pub(crate) fn ln(x: f64) -> f64 {
    log_ratio(x, 1.0)
}

/// `ln(a / b)` of positive normal numbers, within 1e-15 of its magnitude and 1.
///
/// `ln(a / b) = e ln 2 + 2 artanh(s)`, `s = (m - b) / (m + b)`, where `a = 2^e m`. The bits of a number are its binary logarithm,
/// to 0.09 when seen as fixed-point, so that their difference, rounded, is an `e` for which `m` lies within a factor 1.51 of `b`. Then `s` is at
/// most 0.201, and ten terms of the series, even and odd ones apart, leave less than 2^-52 of it.
#[inline(always)]
pub(crate) fn log_ratio(a: f64, b: f64) -> f64 {
    let shifted = a.to_bits().wrapping_sub(b.to_bits()).wrapping_add(HALF_UP);
    let e = f64::from_bits((shifted >> 52) | TWO_52) - BIAS;
    let m = f64::from_bits(a.to_bits().wrapping_sub((shifted & EXPONENT).wrapping_sub(ZERO)));
    let s = (m - b) / (m + b);
    let s2 = s * s;
    let s4 = s2 * s2;
    let (mut even, mut odd) = (SERIES[8], SERIES[9]);
    for i in [6, 4, 2, 0] {
        even = even * s4 + SERIES[i];
        odd = odd * s4 + SERIES[i + 1];
    }
    e * std::f64::consts::LN_2 + s * (even + s2 * odd)
}

/// An exponent of 0 with a bias that keeps negative ones positive, and with a half, which makes truncation rounding.
pub(super) const ZERO: u64 = 1024 << 52;
pub(super) const HALF_UP: u64 = ZERO + (1 << 51);
pub(super) const EXPONENT: u64 = !((1 << 52) - 1);
/// The bits of 2^52, whose low ones count, and that number with the bias.
pub(super) const TWO_52: u64 = 0x433 << 52;
pub(super) const BIAS: f64 = (1u64 << 52) as f64 + 1024.0;

/// `2 artanh(s) = s * (sum of SERIES[i] s^(2i))`.
pub(super) const SERIES: [f64; 10] = {
    let mut series = [0.0; 10];
    let mut i = 0;
    while i < series.len() {
        series[i] = 2.0 / to_f64(2 * i + 1);
        i += 1;
    }
    series
};

#[expect(clippy::cast_precision_loss, reason = "at most the number of levels or bins")]
pub(crate) const fn to_f64(len: usize) -> f64 {
    len as f64
}

#[cfg(test)]
mod tests {
    use super::{ln, log_ratio};

    #[test]
    fn logarithm_agrees_with_std() {
        let mut x = 1e-300;
        while x < 1e300 {
            assert!((ln(x) - f64::ln(x)).abs() <= 1e-15 * (f64::ln(x).abs() + 1.0), "{x:e}");
            let b = 1.0 + x.fract().abs() * 5.0;
            assert!(
                (log_ratio(x, b) - f64::ln(x / b)).abs() <= 1e-15 * (f64::ln(x).abs() + 3.0),
                "{x:e} / {b}"
            );
            x *= 1.000_37 + x.fract().abs() * 1e-4;
        }
        assert!(ln(1.0) == 0.0);
    }
}
