//! What the calibration search looks up in a histogram, thousands of times a step: the definitions, in plain Rust.
//!
//! One side of zero is a density over bins of length 1, from 0 outwards. A table holds what is needed to know a sum
//! over all that lies beyond a point `x`; within a bin it is a polynomial in how far `x` is from the bin's outer edge.

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
#[derive(Debug, Clone, Copy, Default, PartialEq)]
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

/// Steps that [`Kernels::add_up`](super::Kernels::add_up) looks at together.
pub const STEPS: usize = 16;

/// Entries beyond the last bin of its runs, and those that one look-up is within.
pub const WINDOW: usize = 2 * STEPS;

/// The bins of one side of zero, each with what [`Kernels::clip`](super::Kernels::clip) needs.
#[derive(Debug, Clone, Copy)]
pub struct Bins<'a> {
    /// The values of a bin or of that before, whichever are fewer.
    pub fewest: &'a [f64],
    /// `n ln(n)` of these.
    pub n_log_n: &'a [f64],
    /// Values of each bin and all beyond it, and a zero.
    pub beyond: &'a [f64],
    /// The fullest of each bin and all beyond it.
    pub fullest: &'a [f64],
    /// All values of both sides; no more than a quarter of them may be clipped.
    pub total: f64,
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
#[inline(always)]
pub(super) fn spread_cells(edges: &[Tail], spreads: &mut [f64]) {
    let (eights, rest) = spreads.as_chunks_mut::<LANES>();
    let (mut mass, mut bins) = ([0.0; LANES], [0.0; LANES]);
    for (spreads, edges) in eights.iter_mut().zip(edges.windows(LANES + 1).step_by(LANES)) {
        for i in 0..LANES {
            (mass[i], bins[i]) = (edges[i].mass - edges[i + 1].mass, edges[i].bins - edges[i + 1].bins);
        }
        for i in 0..LANES {
            spreads[i] = spread(mass[i], bins[i]);
        }
    }
    let done = LANES * eights.len();
    for (spread_, edges) in rest.iter_mut().zip(edges[done..].windows(2)) {
        *spread_ = spread(edges[0].mass - edges[1].mass, edges[0].bins - edges[1].bins);
    }
}

/// `M ln(M / s)`, and 0 for no mass.
#[inline(always)]
fn spread(mass: f64, bins: f64) -> f64 {
    let spread = mass * log_ratio(mass, bins);
    if mass > 0.0 { spread } else { 0.0 }
}

/// See [`Kernels::log`](super::Kernels::log).
#[inline(always)]
pub(super) fn n_log_n(counts: &[f64], out: &mut [f64]) {
    for (n, out) in counts.iter().zip(out) {
        *out = if *n > 0.0 { n * ln(*n) } else { 0.0 };
    }
}

/// See [`Kernels::clip`](super::Kernels::clip).
#[inline(always)]
pub(super) fn clip(bins: &Bins<'_>, width: usize, least: &mut [f64]) {
    let too_many = bins.beyond[1..=least.len()].partition_point(|outer| *outer > bins.total / 4.0);
    let (inner, least) = least.split_at_mut(too_many);
    inner.fill(f64::INFINITY);
    let (head, rest) = least.split_at_mut((width + 2).saturating_sub(too_many).min(least.len()));
    let behind = (too_many + head.len()).saturating_sub(width + 2);
    clip_from(bins, too_many, |_| bins.fullest[0], head);
    clip_from(bins, too_many + head.len(), |i| bins.fullest[behind + i], rest);
}

#[inline(always)]
fn clip_from(bins: &Bins<'_>, first: usize, fullest: impl Fn(usize) -> f64, least: &mut [f64]) {
    let (len, quarter) = (least.len(), bins.total / 4.0);
    let [fewest, n_log_n, inner, outer] = [
        &bins.fewest[first..][..len],
        &bins.n_log_n[first..][..len],
        &bins.beyond[first..][..len],
        &bins.beyond[first + 1..][..len],
    ];
    for (i, least) in least.iter_mut().enumerate() {
        let inner = inner[i].min(quarter);
        *least = clip_in(outer[i], inner, fewest[i], n_log_n[i], fullest(i), bins.total);
    }
}

/// What an end costs at least that clips from `outer` to `inner` values, with half of the `n` of a bin inside it.
#[inline(always)]
fn clip_in(outer: f64, inner: f64, n: f64, n_log_n: f64, fullest: f64, total: f64) -> f64 {
    let c = share(inner, total);
    // (n / 2) ln(n / 2)
    let (m, m_log_m) = (n / 2.0, (n_log_n - n * std::f64::consts::LN_2) / 2.0);
    // Where the function is least it is so flat that what is off by 1e-5 counts for less than 1e-9.
    let flat = (fullest * exp(c - 1.0) - m).max(outer).min(inner);
    // As e^(c - 1) is less than 2.
    let t = if m + outer > 2.0 * fullest { outer } else { flat };
    let sum = m + t;
    let joined = if sum > 0.0 { sum * ln(sum) } else { 0.0 };
    let least = joined - m_log_m - t * (ln(fullest) + c) - 1e-9 * fullest;
    if outer > inner { f64::INFINITY } else { least }
}

/// `e^x` from 0 to 1/2, within 3e-5 of it.
#[inline(always)]
fn exp(x: f64) -> f64 {
    1.0 + x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * (1.0 + x / 4.0 * (1.0 + x / 5.0))))
}

/// The share `c` of an end that clips `t` in what is clipped: `N ln(1 - T / N) >= -c t - c u`, if `u` is clipped at the
/// other end.
///
/// `N ln(1 - T / N)` is concave in `T = t + u`, so that it is at least `N / 2 ln(1 - 2t / N)` and the same of `u`; and
/// `-ln(1 - x) <= c x` with `c = (2 - x) / (2 (1 - x))`, which rises with `x = 2t / N`.
#[inline(always)]
pub(crate) fn share(clipped: f64, total: f64) -> f64 {
    let x = 2.0 * clipped.min(total / 4.0) / total;
    (2.0 - x) / (2.0 - 2.0 * x)
}

/// See [`Kernels::lose`](super::Kernels::lose).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32")]
pub(super) fn lose(sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
    let [mass, bins, n_log_n] = sums.map(|sums| &sums[..lost.len() + width]);
    for (i, lost) in lost.iter_mut().enumerate() {
        let [mass, bins, n_log_n] = [mass, bins, n_log_n].map(|sums| sums[i] - sums[i + width]);
        *lost = (n_log_n - spread(mass, bins)).max(0.0) as f32;
    }
}

/// See [`Kernels::add_up`](super::Kernels::add_up).
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the index of a bin, and a part of one"
)]
pub(super) fn add_up(
    runs: [&[f32]; 4],
    steps: &[f64; STEPS],
    first: usize,
    from: &[f32; STEPS],
    sums: &mut [[f32; STEPS]],
) {
    let ([shorter, narrow, wide, longer], last) = (runs, runs[0].len() - 2);
    let place = |edge: f64| (edge as usize, (edge - edge.floor()) as f32);
    let mut inner = steps.map(|step| place((to_f64(first) - 0.5) * step));
    let (mut sum, width) = (*from, steps[0] as usize);
    for (k, out) in (first..).zip(sums) {
        for ((sum, step), inner) in sum.iter_mut().zip(steps).zip(&mut inner) {
            let ((i, x), (j, y)) = (*inner, place((to_f64(k) + 0.5) * step));
            *inner = (j, y);
            let at = i.min(last);
            let [none, from, to, both] = if j - i > width {
                [wide[at], narrow[at + 1], longer[at], wide[at + 1]]
            } else {
                [narrow[at], shorter[at + 1], wide[at], narrow[at + 1]]
            };
            // Weighted by both distances: no term is the difference of larger ones.
            let (rest_x, rest_y) = (1.0 - x, 1.0 - y);
            *sum += rest_y * (rest_x * none + x * from) + y * (rest_x * to + x * both);
        }
        *out = sum;
    }
}

/// How many levels from `first` on have inner edges that lie at most so many bins apart.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a number of levels, or the largest"
)]
pub(super) fn levels_within(bins: usize, steps: &[f64], first: usize) -> usize {
    // Edges that lie less than `bins` apart are in bins that are at most so many apart.
    let apart = steps[steps.len() - 1] - steps[0];
    let levels = (to_f64(bins) / apart + 0.5).floor();
    (levels as usize).saturating_sub(first)
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

/// A bin, at most `last`, that contains `x`, from 0 to 2^31, and how far `x` is from the bin's outer edge: 0 beyond the
/// last.
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
/// `ln(a / b) = e ln 2 + 2 artanh(s)`, `s = (m - b) / (m + b)`, where `a = 2^e m`. The bits of a number are its binary
/// logarithm, to 0.09 when seen as fixed-point, so that their difference, rounded, is an `e` for which `m` lies within
/// a factor 1.51 of `b`. Then `s` is at most 0.201, and ten terms of the series, even and odd ones apart, leave less
/// than 2^-52 of it.
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
    use super::{ln, log_ratio, share};

    /// What both ends clip costs at least the share of each.
    #[test]
    fn shares_hold() {
        for (t, u) in (0..=50).flat_map(|t| (0..=50).map(move |u| (f64::from(t) / 200.0, f64::from(u) / 200.0))) {
            let both = t * share(t, 1.0) + u * share(u, 1.0);
            assert!((1.0 - t - u).ln() >= -both - 1e-12, "{t} {u}");
        }
    }

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
