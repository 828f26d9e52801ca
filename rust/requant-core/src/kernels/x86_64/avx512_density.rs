//! The look-ups of the calibration search, eight or sixteen points at a time.
//!
//! As with 256 bits, a point's entries are loaded whole and then transposed, or are picked from vectors: gathers take
//! longer on Zen 5, too. The arithmetic is that of the definition, operation for operation: no FMA.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::{
    avx2_density,
    zmm_values::{load, store},
};
use crate::kernels::{
    Bins, Piece, STEPS, Tail, WINDOW,
    density::{self, LANES, MAGIC, to_f64},
    generic::add_halves,
};

/// Edges as with 256 bits; then the definition, whose loop has no look-ups, so that the compiler finds the vectors.
#[target_feature(enable = "avx512f")]
pub(super) fn cut(tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
    avx2_density::cut_edges(tails, step, first, edges);
    density::spread_cells(edges, spreads);
}

/// The definition: its loop has no look-ups, so that the compiler finds the vectors. So it does in the next two.
#[target_feature(enable = "avx512f")]
pub(super) fn n_log_n(counts: &[f64], out: &mut [f64]) {
    density::n_log_n(counts, out);
}

#[target_feature(enable = "avx512f")]
pub(super) fn clip(bins: &Bins<'_>, width: usize, least: &mut [f64]) {
    density::clip(bins, width, least);
}

#[target_feature(enable = "avx512f")]
pub(super) fn lose(sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
    density::lose(sums, width, lost);
}

/// Lanes are steps. The bins that the edges of one level lie in are neighbours, so that they are looked up in one
/// vector or in two.
#[target_feature(enable = "avx512f")]
pub(super) fn add_up(
    runs: [&[f32]; 4],
    steps: &[f64; STEPS],
    first: usize,
    from: &[f32; STEPS],
    sums: &mut [[f32; STEPS]],
) {
    let near = density::levels_within(STEPS - 2, steps, first).min(sums.len());
    let (near, far) = sums.split_at_mut(near);
    let from = add_levels::<1>(runs, steps, first, load(from), near);
    add_levels::<2>(runs, steps, first + near.len(), from, far);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_levels<const VECTORS: usize>(
    runs: [&[f32]; 4],
    steps: &[f64; STEPS],
    first: usize,
    mut sum: __m512,
    sums: &mut [[f32; STEPS]],
) -> __m512 {
    let (len, one) = (runs[0].len(), _mm512_set1_epi32(1));
    let [a, b, c, d] = runs;
    let runs = [&a[..len], &b[..len], &c[..len], &d[..len]];
    let steps = steps.as_chunks::<LANES>().0;
    let steps = [load_f64(&steps[0]), load_f64(&steps[1])];
    let mut k = _mm512_set1_pd(to_f64(first) - 0.5);
    let edges = |k: __m512d| Edges::new([_mm512_mul_pd(k, steps[0]), _mm512_mul_pd(k, steps[1])]);
    let width = _mm512_broadcastd_epi32(_mm256_castsi256_si128(_mm512_cvttpd_epi32(steps[0])));
    let mut inner = edges(k);
    for out in sums {
        k = _mm512_add_pd(k, _mm512_set1_pd(1.0));
        let outer = edges(k);
        let is_wide = _mm512_cmpgt_epi32_mask(_mm512_sub_epi32(outer.bins, inner.bins), width);
        let start = _mm512_cvtsi512_si32(inner.bins);
        let at = _mm512_sub_epi32(inner.bins, _mm512_set1_epi32(start));
        let next = _mm512_add_epi32(at, one);
        let start = (start.cast_unsigned() as usize).min(len - WINDOW);
        let [shorter, narrow, wide, longer] = runs.map(|runs| &runs[start..start + WINDOW]);
        let look_up = |at, runs: &[f32]| look_up::<VECTORS>(at, &runs.as_chunks().0[..VECTORS]);
        let (wide_at, narrow_next) = (look_up(at, wide), look_up(next, narrow));
        let none = _mm512_mask_blend_ps(is_wide, look_up(at, narrow), wide_at);
        let from = _mm512_mask_blend_ps(is_wide, look_up(next, shorter), narrow_next);
        let to = _mm512_mask_blend_ps(is_wide, wide_at, look_up(at, longer));
        let both = _mm512_mask_blend_ps(is_wide, narrow_next, look_up(next, wide));
        let x = [inner.from, inner.to];
        let cell = between(
            [between([none, from], x), between([to, both], x)],
            [outer.from, outer.to],
        );
        sum = _mm512_add_ps(sum, cell);
        store(sum, out);
        inner = outer;
    }
    sum
}

/// The entries at sixteen places.
#[inline]
#[target_feature(enable = "avx512f")]
fn look_up<const VECTORS: usize>(at: __m512i, entries: &[[f32; STEPS]]) -> __m512 {
    if VECTORS == 1 {
        _mm512_permutexvar_ps(at, load(&entries[0]))
    } else {
        _mm512_permutex2var_ps(load(&entries[0]), at, load(&entries[1]))
    }
}

/// Edges of one level's cells: their bins, and how far they are from the bins' inner and outer ends.
struct Edges {
    bins: __m512i,
    from: __m512,
    to: __m512,
}

impl Edges {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(edges: [__m512d; 2]) -> Self {
        let bins = edges.map(|edges| _mm512_roundscale_pd::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(edges));
        let part = [_mm512_sub_pd(edges[0], bins[0]), _mm512_sub_pd(edges[1], bins[1])];
        let bins = bins.map(|bins| _mm512_cvttpd_epi32(bins));
        let from = join(part);
        Self {
            bins: _mm512_inserti64x4::<1>(_mm512_castsi256_si512(bins[0]), bins[1]),
            from,
            to: _mm512_sub_ps(_mm512_set1_ps(1.0), from),
        }
    }
}

/// The mean of two, by the distances from the first and to the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn between(of: [__m512; 2], [from, to]: [__m512; 2]) -> __m512 {
    _mm512_add_ps(_mm512_mul_ps(to, of[0]), _mm512_mul_ps(from, of[1]))
}

/// Rounded to f32.
#[inline]
#[target_feature(enable = "avx512f")]
fn join(halves: [__m512d; 2]) -> __m512 {
    let [low, high] = halves.map(|half| _mm512_cvtpd_ps(half));
    let low = _mm512_castps_pd(_mm512_castps256_ps512(low));
    _mm512_castpd_ps(_mm512_insertf64x4::<1>(low, _mm256_castps_pd(high)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_f64(x: &[f64; LANES]) -> __m512d {
    // SAFETY: `x` is 8 readable doubles, and `loadu` needs no alignment.
    unsafe { _mm512_loadu_pd(x.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
pub(super) fn excess(pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
    let (last, end_8) = (pieces.len() - 1, _mm512_set1_pd(end));
    let mut sum = _mm512_setzero_pd();
    let whole = count - count % LANES;
    for k in (first..first + whole).step_by(LANES) {
        let x = _mm512_min_pd(points(k, step), end_8);
        let (bins, rest) = locate(x, last);
        let rest = _mm512_min_pd(rest, _mm512_sub_pd(end_8, x));
        // Points 0 and 4, 1 and 5 ..
        let [a, b, c, d] = [0, 1, 2, 3].map(|lane| pair(&pieces[bins[lane]], &pieces[bins[lane + 4]]));
        // In each half, the first and the third of two points, and the second of them.
        let (ab, cd) = (_mm512_unpacklo_pd(a, b), _mm512_unpacklo_pd(c, d));
        let (density, excess) = (even_pairs(ab, cd), odd_pairs(ab, cd));
        let beyond = even_pairs(_mm512_unpackhi_pd(a, b), _mm512_unpackhi_pd(c, d));
        let half_slope = _mm512_mul_pd(_mm512_mul_pd(density, rest), _mm512_set1_pd(0.5));
        let more = _mm512_mul_pd(rest, _mm512_add_pd(beyond, half_slope));
        sum = _mm512_add_pd(sum, _mm512_add_pd(excess, more));
    }
    let mut lanes = to_array(sum);
    for k in whole..count {
        lanes[k % LANES] += density::excess_over(pieces, end, (to_f64(first + k) + 0.5) * step);
    }
    add_halves(lanes)
}

/// `(k + 1/2) step` and the next seven.
#[inline]
#[target_feature(enable = "avx512f")]
fn points(k: usize, step: f64) -> __m512d {
    _mm512_mul_pd(_mm512_add_pd(_mm512_set1_pd(to_f64(k)), halves()), _mm512_set1_pd(step))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn halves() -> __m512d {
    _mm512_setr_pd(0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5)
}

/// [`density::locate`] of eight points.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
fn locate(x: __m512d, last: usize) -> ([usize; LANES], __m512d) {
    let magic = _mm512_set1_pd(MAGIC);
    let shifted = _mm512_add_pd(_mm512_sub_pd(x, _mm512_set1_pd(0.5)), magic);
    let shifted = _mm512_min_pd(shifted, _mm512_set1_pd(MAGIC + to_f64(last)));
    let outer = _mm512_add_pd(_mm512_sub_pd(shifted, magic), _mm512_set1_pd(1.0));
    let rest = _mm512_max_pd(_mm512_sub_pd(outer, x), _mm512_setzero_pd());
    (to_array(shifted).map(|shifted| shifted.to_bits() as u32 as usize), rest)
}

/// The quarters 0 and 2 of `a` and of `b`, in the order of the points.
#[inline]
#[target_feature(enable = "avx512f")]
fn even_pairs(a: __m512d, b: __m512d) -> __m512d {
    _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), b)
}

/// The quarters 1 and 3.
#[inline]
#[target_feature(enable = "avx512f")]
fn odd_pairs(a: __m512d, b: __m512d) -> __m512d {
    _mm512_permutex2var_pd(a, _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15), b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn pair(a: &Piece, b: &Piece) -> __m512d {
    // SAFETY: a `Piece` is 4 readable doubles, by its representation, and `loadu` needs no alignment.
    let (a, b) = unsafe {
        (
            _mm256_loadu_pd(std::ptr::from_ref(a).cast()),
            _mm256_loadu_pd(std::ptr::from_ref(b).cast()),
        )
    };
    _mm512_insertf64x4::<1>(_mm512_castpd256_pd512(a), b)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_array(v: __m512d) -> [f64; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: `out` is 8 writable doubles, and `storeu` needs no alignment.
    unsafe { _mm512_storeu_pd(out.as_mut_ptr(), v) }
    out
}
