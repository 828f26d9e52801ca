//! The look-ups of the calibration search, eight or sixteen points at a time.
//!
//! As with 256 bits, a point's entries are loaded whole and then transposed: gathers take longer on Zen 5, too. The arithmetic is
//! that of the definition, operation for operation: no FMA.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::zmm_values::store;
use crate::kernels::{
    Corners, Piece, Tables,
    density::{self, CELLS, LANES, MAGIC, SUMS, to_f64},
    generic::add_halves,
};

/// The definition: its loop has no look-ups, so that the compiler finds the vectors.
#[target_feature(enable = "avx512f")]
pub(super) fn lose(sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
    density::lose(sums, width, lost);
}

/// Cells whose places are found together.
const PLACES: usize = 2 * LANES;

#[target_feature(enable = "avx512f")]
pub(super) fn interpolate(tables: &Tables<'_>, step: f64, first: usize, out: &mut [f32]) {
    let mut cells = Cells::new(tables, step, first);
    let (blocks, rest) = out.as_chunks_mut::<PLACES>();
    let done = PLACES * blocks.len();
    for out in blocks {
        store(cells.next(), out);
    }
    density::interpolate(tables, step, first + done, rest);
}

#[target_feature(enable = "avx512f")]
pub(super) fn add_up(tables: &Tables<'_>, step: f64, count: usize, limit: f32) -> f32 {
    const { assert!(PLACES == SUMS) };
    let mut cells = Cells::new(tables, step, 1);
    let (mut lanes, mut sum) = (_mm512_setzero_ps(), 0.0);
    for done in (0..count).step_by(CELLS) {
        let left = CELLS.min(count - done);
        for _ in 0..left / PLACES {
            lanes = _mm512_add_ps(lanes, cells.next());
        }
        if !left.is_multiple_of(PLACES) {
            let mask = (1 << (left % PLACES)) - 1;
            lanes = _mm512_mask_add_ps(lanes, mask, lanes, cells.next());
        }
        sum = add_lanes(lanes);
        if sum > limit {
            break;
        }
    }
    sum
}

/// By halves.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_lanes(v: __m512) -> f32 {
    let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
    let eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
    let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
}

/// Cells one after another, sixteen at a time. Where the next lie is found before these are looked up: a place cannot be loaded right
/// after a vector of places was stored.
struct Cells<'a> {
    corners: &'a [Corners],
    wide: __m512i,
    narrow: __m512i,
    /// The last entry of a table.
    last: __m512i,
    step: __m512d,
    /// The numbers of the edges to be found next, and the last that were found.
    k: __m512d,
    edges: Edges,
    /// Where the corners of the next sixteen cells lie, in bytes, and before them the ones before; which is which changes.
    places: [[u32; PLACES]; 2],
    turn: usize,
    /// How far the edges of the next are from their bins' inner and outer ends.
    x: [__m512; 2],
    y: [__m512; 2],
}

impl<'a> Cells<'a> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(tables: &Tables<'a>, step: f64, first: usize) -> Self {
        let end = tables.wide.max(tables.narrow) + tables.bins;
        assert!(tables.bins > 0 && end <= tables.corners.len(), "tables end at {end}");
        assert!(end < 1 << 28, "corners have 16 bytes each, and places 32 bits");
        let [wide, narrow, last] =
            [tables.wide, tables.narrow, tables.bins - 1].map(|len| _mm512_set1_epi32(to_i32(len)));
        let step = _mm512_set1_pd(step);
        let k = _mm512_add_pd(_mm512_set1_pd(to_f64(first) - 1.0), halves());
        let mut cells = Self {
            corners: tables.corners,
            wide,
            narrow,
            last,
            step,
            k: _mm512_add_pd(k, _mm512_set1_pd(to_f64(LANES))),
            edges: Edges::new(_mm512_mul_pd(k, step)),
            places: [[0; PLACES]; 2],
            turn: 0,
            x: [_mm512_setzero_ps(); 2],
            y: [_mm512_setzero_ps(); 2],
        };
        cells.find();
        cells
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn find_edges(&mut self) -> Edges {
        let edges = _mm512_mul_pd(self.k, self.step);
        self.k = _mm512_add_pd(self.k, _mm512_set1_pd(to_f64(LANES)));
        Edges::new(edges)
    }

    /// Finds where the next cells lie.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn find(&mut self) {
        let (a, b, c) = (self.edges, self.find_edges(), self.find_edges());
        self.edges = c;
        let is_wide = has_wrapped(a.part, b.part) | has_wrapped(b.part, c.part) << LANES;
        let bins = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a.bins), b.bins);
        let start = _mm512_mask_blend_epi32(is_wide, self.narrow, self.wide);
        let places = _mm512_slli_epi32::<4>(_mm512_add_epi32(_mm512_min_epu32(bins, self.last), start));
        self.turn ^= 1;
        // SAFETY: an array of places is 64 writable bytes, and `storeu` needs no alignment.
        unsafe { _mm512_storeu_si512(self.places[self.turn].as_mut_ptr().cast(), places) };
        // A cell's outer edge is the next one's inner edge.
        self.x = [join(a.from, b.from), join(a.to, b.to)];
        self.y = [shift(self.x[0], c.from), shift(self.x[1], c.to)];
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn next(&mut self) -> __m512 {
        let (x, y) = (self.x, self.y);
        self.find();
        // From memory: to take them out of the vector takes longer.
        let places = std::hint::black_box(&self.places[self.turn ^ 1]);
        // SAFETY: each corner is at most `last` beyond the start of a table, and `corners` is longer, as was asserted.
        let [none, from, to, both] = unsafe { look_up(self.corners, places) };
        between([between([none, from], x), between([to, both], x)], y)
    }
}

/// Edges of eight cells: their bins, and how far they are from the bins' inner and outer ends.
#[derive(Clone, Copy)]
struct Edges {
    bins: __m256i,
    part: __m512d,
    from: __m256,
    to: __m256,
}

impl Edges {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(edges: __m512d) -> Self {
        let bins = _mm512_roundscale_pd::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(edges);
        let part = _mm512_sub_pd(edges, bins);
        Self {
            bins: _mm512_cvttpd_epi32(bins),
            part,
            from: _mm512_cvtpd_ps(part),
            to: _mm512_cvtpd_ps(_mm512_sub_pd(_mm512_set1_pd(1.0), part)),
        }
    }
}

/// Whether the outer edge of each cell is less far into its bin than the inner edge, so that there is one bin more between them.
#[inline]
#[target_feature(enable = "avx512f")]
fn has_wrapped(part: __m512d, next: __m512d) -> u16 {
    let outer = _mm512_alignr_epi64::<1>(_mm512_castpd_si512(next), _mm512_castpd_si512(part));
    _mm512_cmp_pd_mask::<_CMP_LT_OQ>(_mm512_castsi512_pd(outer), part).into()
}

/// The corners at sixteen places.
///
/// # Safety
/// Each of `at` is where one of `corners` begins, in bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn look_up(corners: &[Corners], at: &[u32; PLACES]) -> [__m512; 4] {
    let load = |i: usize| {
        // SAFETY: the caller's promise; a `Corners` is 4 readable floats, by its representation, and `loadu` needs no alignment.
        unsafe { _mm_loadu_ps(corners.as_ptr().byte_add(at[i] as usize).cast()) }
    };
    // One of each four neighbours.
    let fours = |i: usize| {
        let low = _mm512_insertf32x4::<1>(_mm512_castps128_ps512(load(i)), load(i + 4));
        _mm512_insertf32x4::<3>(_mm512_insertf32x4::<2>(low, load(i + 8)), load(i + 12))
    };
    let (a, b, c, d) = (fours(0), fours(1), fours(2), fours(3));
    let (ab, cd) = (
        _mm512_castps_pd(_mm512_unpacklo_ps(a, b)),
        _mm512_castps_pd(_mm512_unpacklo_ps(c, d)),
    );
    let (none, from) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    let (ab, cd) = (
        _mm512_castps_pd(_mm512_unpackhi_ps(a, b)),
        _mm512_castps_pd(_mm512_unpackhi_ps(c, d)),
    );
    let (to, both) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    [none, from, to, both].map(|v| _mm512_castpd_ps(v))
}

/// The mean of two, by the distances from the first and to the second.
#[inline]
#[target_feature(enable = "avx512f")]
fn between(of: [__m512; 2], [from, to]: [__m512; 2]) -> __m512 {
    _mm512_add_ps(_mm512_mul_ps(to, of[0]), _mm512_mul_ps(from, of[1]))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn join(low: __m256, high: __m256) -> __m512 {
    let high = _mm256_castps_pd(high);
    _mm512_castpd_ps(_mm512_insertf64x4::<1>(
        _mm512_castps_pd(_mm512_castps256_ps512(low)),
        high,
    ))
}

/// All but the first, and the first of the next.
#[inline]
#[target_feature(enable = "avx512f")]
fn shift(v: __m512, next: __m256) -> __m512 {
    let next = _mm512_castps_si512(_mm512_castps256_ps512(next));
    _mm512_castsi512_ps(_mm512_alignr_epi32::<1>(next, _mm512_castps_si512(v)))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a few hundred thousand"
)]
fn to_i32(len: usize) -> i32 {
    len as i32
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
