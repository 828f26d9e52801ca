//! The look-ups of the calibration search, four or eight points at a time.
//!
//! A point's entries are whole vectors, so that its bins cost a load each; four results are then transposed. Or the
//! entries of all points are picked from a vector or two. Gathers take longer on Zen 3. The arithmetic is that of the
//! definition, operation for operation: no FMA.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::avx2_values::{load, store as store_f32};
use crate::kernels::{
    Bins, Piece, STEPS, Tail, WINDOW,
    density::{self, BIAS, EXPONENT, HALF_UP, LANES, MAGIC, SERIES, TWO_52, ZERO, to_f64},
    generic::add_halves,
};

/// First all edges, then all logarithms: together they are one chain too long for the CPU to begin the next meanwhile.
#[target_feature(enable = "avx2")]
pub(super) fn cut(tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
    cut_edges(tails, step, first, edges);
    let (octets, last_spreads) = spreads.as_chunks_mut::<{ 4 * GROUPS }>();
    let (edge_octets, _) = edges[1..].as_chunks::<{ 4 * GROUPS }>();
    let mut inner = _mm256_setr_pd(0.0, 0.0, edges[0].mass, edges[0].bins);
    for (edges, spreads) in edge_octets.iter().zip(&mut *octets) {
        let [a, b] = edges.as_chunks().0 else {
            unreachable!("twice four")
        };
        let [low, high] = spreads.as_chunks_mut().0 else {
            unreachable!("twice four")
        };
        let (mass_a, bins_a) = cells(a, &mut inner);
        let (mass_b, bins_b) = cells(b, &mut inner);
        let [log_a, log_b] = log_ratio([mass_a, mass_b], [bins_a, bins_b]);
        *low = spread(mass_a, log_a);
        *high = spread(mass_b, log_b);
    }
    density::spread_cells(&edges[4 * GROUPS * octets.len()..], last_spreads);
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn cut_edges(tails: &[Tail], step: f64, first: usize, edges: &mut [Tail]) {
    let last = tails.len() - 2;
    let (quads, last_edges) = edges[1..].as_chunks_mut::<4>();
    for (k, edges) in (first..).step_by(4).zip(&mut *quads) {
        let ([a, b, c, d], rests) = locate(points(k, step), last);
        let [low, high] = edges.as_chunks_mut().0 else {
            unreachable!("twice two")
        };
        store_tails(beyond(tails, a, b, _mm256_permute4x64_pd::<0x50>(rests)), low);
        store_tails(beyond(tails, c, d, _mm256_permute4x64_pd::<0xfa>(rests)), high);
    }
    density::cut_edges(tails, step, first + 4 * quads.len(), last_edges);
}

/// Groups of four cells whose logarithms are taken together.
const GROUPS: usize = 2;

/// Sums beyond two points, each in a bin and at a distance from the bin's outer edge.
#[inline]
#[target_feature(enable = "avx2")]
fn beyond(tails: &[Tail], a: usize, b: usize, rests: __m256d) -> __m256d {
    let (a, b) = (load_tails(&tails[a..][..2]), load_tails(&tails[b..][..2]));
    let (bins, next) = (first_columns(a, b), last_columns(a, b));
    _mm256_add_pd(next, _mm256_mul_pd(rests, _mm256_sub_pd(bins, next)))
}

/// Mass and bins of the four cells that end at these edges, in the order 0, 2, 1, 3. The edge before the first is the
/// second of `inner`, which becomes the last two.
#[inline]
#[target_feature(enable = "avx2")]
fn cells(edges: &[Tail; 4], inner: &mut __m256d) -> (__m256d, __m256d) {
    let (low, high) = (load_tails(&edges[..2]), load_tails(&edges[2..]));
    let a = _mm256_sub_pd(_mm256_permute2f128_pd::<0x21>(*inner, low), low);
    let b = _mm256_sub_pd(_mm256_permute2f128_pd::<0x21>(low, high), high);
    *inner = high;
    (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b))
}

/// `M ln(M / s)`, and 0 for no mass, of cells in that order.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(mass: __m256d, log: __m256d) -> [f64; 4] {
    let has_mass = _mm256_cmp_pd::<_CMP_GT_OQ>(mass, _mm256_setzero_pd());
    let spreads = _mm256_and_pd(_mm256_mul_pd(mass, log), has_mass);
    to_array(_mm256_permute4x64_pd::<0xd8>(spreads))
}

/// The definition: its loop has no look-ups, so that the compiler finds the vectors. So it does in the next two.
#[target_feature(enable = "avx2")]
pub(super) fn n_log_n(counts: &[f64], out: &mut [f64]) {
    density::n_log_n(counts, out);
}

#[target_feature(enable = "avx2")]
pub(super) fn clip(bins: &Bins<'_>, width: usize, least: &mut [f64]) {
    density::clip(bins, width, least);
}

#[target_feature(enable = "avx2")]
pub(super) fn lose(sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
    density::lose(sums, width, lost);
}

/// Lanes are steps. The bins that the edges of one level lie in are neighbours, so that those of eight steps are looked
/// up in one vector or in two.
#[target_feature(enable = "avx2")]
pub(super) fn add_up(
    runs: [&[f32]; 4],
    steps: &[f64; STEPS],
    first: usize,
    from: &[f32; STEPS],
    sums: &mut [[f32; STEPS]],
) {
    for (half, steps) in steps.as_chunks().0.iter().enumerate() {
        let near = density::levels_within(EIGHT - 2, steps, first).min(sums.len());
        let (near, far) = sums.split_at_mut(near);
        let from = load(&from.as_chunks().0[half]);
        let from = add_levels::<1>(runs, steps, first, from, near, half);
        add_levels::<2>(runs, steps, first + near.len(), from, far, half);
    }
}

const EIGHT: usize = 8;

#[inline]
#[target_feature(enable = "avx2")]
fn add_levels<const VECTORS: usize>(
    runs: [&[f32]; 4],
    steps: &[f64; EIGHT],
    first: usize,
    mut sum: __m256,
    sums: &mut [[f32; STEPS]],
    half: usize,
) -> __m256 {
    let (len, one) = (runs[0].len(), _mm256_set1_epi32(1));
    let runs = runs.map(|runs| &runs[..len]);
    let steps = steps.as_chunks::<4>().0;
    let steps = [load_f64(&steps[0]), load_f64(&steps[1])];
    let mut k = _mm256_set1_pd(to_f64(first) - 0.5);
    let edges = |k: __m256d| Edges::new([_mm256_mul_pd(k, steps[0]), _mm256_mul_pd(k, steps[1])]);
    let width = _mm256_broadcastd_epi32(_mm256_cvttpd_epi32(steps[0]));
    let mut inner = edges(k);
    for out in sums {
        k = _mm256_add_pd(k, _mm256_set1_pd(1.0));
        let outer = edges(k);
        let is_wide = _mm256_cmpgt_epi32(_mm256_sub_epi32(outer.bins, inner.bins), width);
        let start = _mm256_cvtsi256_si32(inner.bins);
        let at = _mm256_sub_epi32(inner.bins, _mm256_set1_epi32(start));
        let next = _mm256_add_epi32(at, one);
        let start = (start.cast_unsigned() as usize).min(len - WINDOW);
        let [shorter, narrow, wide, longer] = runs.map(|runs| &runs[start..start + WINDOW]);
        let look_up = |at, runs: &[f32]| look_up::<VECTORS>(at, &runs.as_chunks().0[..VECTORS]);
        let (wide_at, narrow_next) = (look_up(at, wide), look_up(next, narrow));
        let none = blend(look_up(at, narrow), wide_at, is_wide);
        let from = blend(look_up(next, shorter), narrow_next, is_wide);
        let to = blend(wide_at, look_up(at, longer), is_wide);
        let both = blend(narrow_next, look_up(next, wide), is_wide);
        let x = [inner.from, inner.to];
        let cell = between(
            [between([none, from], x), between([to, both], x)],
            [outer.from, outer.to],
        );
        sum = _mm256_add_ps(sum, cell);
        store_f32(sum, &mut out.as_chunks_mut().0[half]);
        inner = outer;
    }
    sum
}

/// Edges of one level's cells: their bins, and how far they are from the bins' inner and outer ends.
struct Edges {
    bins: __m256i,
    from: __m256,
    to: __m256,
}

impl Edges {
    #[inline]
    #[target_feature(enable = "avx2")]
    fn new(edges: [__m256d; 2]) -> Self {
        let bins = edges.map(|edges| _mm256_floor_pd(edges));
        let part = [_mm256_sub_pd(edges[0], bins[0]), _mm256_sub_pd(edges[1], bins[1])];
        let from = join(part);
        Self {
            bins: _mm256_set_m128i(_mm256_cvttpd_epi32(bins[1]), _mm256_cvttpd_epi32(bins[0])),
            from,
            to: _mm256_sub_ps(_mm256_set1_ps(1.0), from),
        }
    }
}

/// The entries at eight places.
#[inline]
#[target_feature(enable = "avx2")]
fn look_up<const VECTORS: usize>(at: __m256i, entries: &[[f32; EIGHT]]) -> __m256 {
    let low = _mm256_permutevar8x32_ps(load(&entries[0]), at);
    if VECTORS == 1 {
        return low;
    }
    let is_high = _mm256_cmpgt_epi32(at, _mm256_set1_epi32(7));
    blend(low, _mm256_permutevar8x32_ps(load(&entries[1]), at), is_high)
}

/// The second where the mask is set.
#[inline]
#[target_feature(enable = "avx2")]
fn blend(a: __m256, b: __m256, mask: __m256i) -> __m256 {
    _mm256_blendv_ps(a, b, _mm256_castsi256_ps(mask))
}

/// The mean of two, by the distances from the first and to the second.
#[inline]
#[target_feature(enable = "avx2")]
fn between(of: [__m256; 2], [from, to]: [__m256; 2]) -> __m256 {
    _mm256_add_ps(_mm256_mul_ps(to, of[0]), _mm256_mul_ps(from, of[1]))
}

/// Rounded to f32.
#[inline]
#[target_feature(enable = "avx2")]
fn join(halves: [__m256d; 2]) -> __m256 {
    let [low, high] = halves.map(|half| _mm256_cvtpd_ps(half));
    _mm256_set_m128(high, low)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_f64(x: &[f64; 4]) -> __m256d {
    // SAFETY: `x` is 4 readable doubles, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_pd(x.as_ptr()) }
}

#[target_feature(enable = "avx2")]
pub(super) fn excess(pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
    let (last, end_4) = (pieces.len() - 1, _mm256_set1_pd(end));
    let mut sums = [_mm256_setzero_pd(); LANES / 4];
    let whole = count - count % LANES;
    for k in (first..first + whole).step_by(LANES) {
        for (half, sum) in sums.iter_mut().enumerate() {
            let x = _mm256_min_pd(points(k + 4 * half, step), end_4);
            let (bins, rest) = locate(x, last);
            let rest = _mm256_min_pd(rest, _mm256_sub_pd(end_4, x));
            let [a, b, c, d] = [0, 1, 2, 3].map(|lane| &pieces[bins[lane]]);
            let (a, b, c, d) = (load_piece(a), load_piece(b), load_piece(c), load_piece(d));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpacklo_pd(c, d));
            let (density, excess) = (first_columns(low, high), last_columns(low, high));
            let beyond = first_columns(_mm256_unpackhi_pd(a, b), _mm256_unpackhi_pd(c, d));
            let half_slope = _mm256_mul_pd(_mm256_mul_pd(density, rest), _mm256_set1_pd(0.5));
            let more = _mm256_mul_pd(rest, _mm256_add_pd(beyond, half_slope));
            *sum = _mm256_add_pd(*sum, _mm256_add_pd(excess, more));
        }
    }
    let mut lanes = [0.0; LANES];
    for (lanes, sum) in lanes.as_chunks_mut().0.iter_mut().zip(sums) {
        *lanes = to_array(sum);
    }
    for k in whole..count {
        lanes[k % LANES] += density::excess_over(pieces, end, (to_f64(first + k) + 0.5) * step);
    }
    add_halves(lanes)
}

/// `(k + 1/2) step` and the next three.
#[inline]
#[target_feature(enable = "avx2")]
fn points(k: usize, step: f64) -> __m256d {
    let k = _mm256_add_pd(_mm256_set1_pd(to_f64(k)), _mm256_setr_pd(0.5, 1.5, 2.5, 3.5));
    _mm256_mul_pd(k, _mm256_set1_pd(step))
}

/// [`density::locate`] of four points.
#[inline]
#[target_feature(enable = "avx2")]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
fn locate(x: __m256d, last: usize) -> ([usize; 4], __m256d) {
    let magic = _mm256_set1_pd(MAGIC);
    let shifted = _mm256_add_pd(_mm256_sub_pd(x, _mm256_set1_pd(0.5)), magic);
    let shifted = _mm256_min_pd(shifted, _mm256_set1_pd(MAGIC + to_f64(last)));
    let outer = _mm256_add_pd(_mm256_sub_pd(shifted, magic), _mm256_set1_pd(1.0));
    let rest = _mm256_max_pd(_mm256_sub_pd(outer, x), _mm256_setzero_pd());
    (to_array(shifted).map(|shifted| shifted.to_bits() as u32 as usize), rest)
}

/// [`density::log_ratio`] of each pair.
#[inline]
#[target_feature(enable = "avx2")]
fn log_ratio(a: [__m256d; GROUPS], b: [__m256d; GROUPS]) -> [__m256d; GROUPS] {
    let bits = |bits: u64| _mm256_set1_epi64x(bits.cast_signed());
    let zero = _mm256_setzero_pd();
    let (mut e, mut s, mut s2, mut s4) = ([zero; GROUPS], [zero; GROUPS], [zero; GROUPS], [zero; GROUPS]);
    for i in 0..GROUPS {
        let (a, b_bits) = (_mm256_castpd_si256(a[i]), _mm256_castpd_si256(b[i]));
        let shifted = _mm256_add_epi64(_mm256_sub_epi64(a, b_bits), bits(HALF_UP));
        let exponent = _mm256_or_si256(_mm256_srli_epi64::<52>(shifted), bits(TWO_52));
        e[i] = _mm256_sub_pd(_mm256_castsi256_pd(exponent), _mm256_set1_pd(BIAS));
        let factor = _mm256_sub_epi64(_mm256_and_si256(shifted, bits(EXPONENT)), bits(ZERO));
        let m = _mm256_castsi256_pd(_mm256_sub_epi64(a, factor));
        s[i] = _mm256_div_pd(_mm256_sub_pd(m, b[i]), _mm256_add_pd(m, b[i]));
        s2[i] = _mm256_mul_pd(s[i], s[i]);
        s4[i] = _mm256_mul_pd(s2[i], s2[i]);
    }
    let (mut even, mut odd) = ([_mm256_set1_pd(SERIES[8]); GROUPS], [_mm256_set1_pd(SERIES[9]); GROUPS]);
    for term in [6, 4, 2, 0] {
        for i in 0..GROUPS {
            even[i] = _mm256_add_pd(_mm256_mul_pd(even[i], s4[i]), _mm256_set1_pd(SERIES[term]));
            odd[i] = _mm256_add_pd(_mm256_mul_pd(odd[i], s4[i]), _mm256_set1_pd(SERIES[term + 1]));
        }
    }
    for i in 0..GROUPS {
        let series = _mm256_mul_pd(s[i], _mm256_add_pd(even[i], _mm256_mul_pd(s2[i], odd[i])));
        e[i] = _mm256_add_pd(_mm256_mul_pd(e[i], _mm256_set1_pd(std::f64::consts::LN_2)), series);
    }
    e
}

/// The first two of each, `a`'s first.
#[inline]
#[target_feature(enable = "avx2")]
fn first_columns(a: __m256d, b: __m256d) -> __m256d {
    _mm256_permute2f128_pd::<0x20>(a, b)
}

/// The last two of each, `a`'s first.
#[inline]
#[target_feature(enable = "avx2")]
fn last_columns(a: __m256d, b: __m256d) -> __m256d {
    _mm256_permute2f128_pd::<0x31>(a, b)
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_tails(tails: &[Tail]) -> __m256d {
    let pair: &[Tail; 2] = tails.try_into().expect("two tails");
    // SAFETY: two `Tail`s are 4 readable doubles, by their representation, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_pd(pair.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_piece(piece: &Piece) -> __m256d {
    // SAFETY: a `Piece` is 4 readable doubles, by its representation.
    unsafe { _mm256_loadu_pd(std::ptr::from_ref(piece).cast()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store_tails(v: __m256d, out: &mut [Tail; 2]) {
    // SAFETY: two `Tail`s are 4 writable doubles, by their representation, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_pd(out.as_mut_ptr().cast(), v) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn to_array(v: __m256d) -> [f64; 4] {
    let mut out = [0.0; 4];
    // SAFETY: `out` is 4 writable doubles, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_pd(out.as_mut_ptr(), v) }
    out
}
