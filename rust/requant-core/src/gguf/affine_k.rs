//! Super-blocks whose values are `(d * scale) * q - dmin * min`.
//!
//! ```text
//! Q2_K   scales[16]  q[64]  d  dmin             16 blocks of 16; a byte of scales: scale (low bits), min
//! Q4_K   d  dmin  scales[12]  q[128]            8 blocks of 32; a byte of q: levels of blocks 2i, 2i + 1
//! Q5_K   d  dmin  scales[12]  h[32]  q[128]     the same; bit b of h[i]: the fifth bit of level i of block b
//!
//! scales[12]: scale s and min m of each block in 6 bits
//!   0..4   s0-s3 | s4-s7 >> 4 << 6
//!   4..8   m0-m3 | m4-m7 >> 4 << 6
//!   8..12  s4-s7 & 15 | m4-m7 << 4
//! ```

use std::array;

use super::{
    SUPER,
    bytes::{byte, pack_2, pack_4, pack_bit, read_half, unpack_2, unpack_4, unpack_bit, write_half},
    integers::{self, Vectors},
    lanes::{V, level, side_by_side},
    search::{self, Affine},
    simple::{mean_square, weigh},
};

/// Scales and mins of the blocks of a super-block, in integers, and what they are multiples of.
struct Params<const BLOCKS: usize> {
    d: f32,
    dmin: f32,
    scales: V<BLOCKS>,
    mins: V<BLOCKS>,
}

impl<const BLOCKS: usize> Params<BLOCKS> {
    /// The multiples nearest to what was found, up to `most`; what they are multiples of is written to two float16.
    #[inline(always)]
    fn choose(found: Affine<BLOCKS>, weights: Option<V<BLOCKS>>, most: f32, halves: &mut [u8]) -> Self {
        let (d, scales) = rounded(found.scale, weights, most);
        // A scale that was rounded moves the line, and the best min with it.
        let moved = V::all(d) * scales - found.scale;
        let zero = V::all(0.0);
        let beside = found.min.if_greater(zero, found.min + moved * found.mean_level, zero);
        let (dmin, mins) = rounded(beside, weights, most);
        Self {
            d: write_half(halves, d),
            dmin: write_half(&mut halves[2..], dmin),
            scales,
            mins,
        }
    }

    fn finite(&self) -> bool {
        self.d.is_finite() & self.dmin.is_finite()
    }

    /// The level of each value.
    #[inline(always)]
    fn levels<const LANES: usize>(&self, vectors: &impl Vectors<LANES>, x: &[f32; SUPER], most: f32) -> [u8; SUPER] {
        let (d, mins) = (V::all(self.d) * self.scales, V::all(self.dmin) * self.mins);
        let inverses = d.if_greater(V::all(0.0), V::all(1.0) / d, V::all(0.0));
        let mut levels = [0; SUPER];
        vectors.levels(x, &mins.0, &inverses.0, most, &mut levels);
        levels
    }

    /// The inverse of [`Params::levels`].
    #[inline(always)]
    fn values<const N: usize>(&self, levels: &[u8; SUPER], out: &mut [f32; SUPER]) {
        let blocks = levels.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<N>().0);
        for ((levels, out), (&s, &m)) in blocks.zip(self.scales.0.iter().zip(&self.mins.0)) {
            let (d, m) = (self.d * s, self.dmin * m);
            for (out, &l) in out.iter_mut().zip(levels) {
                *out = d * f32::from(l) - m;
            }
        }
    }
}

/// Integers in the ratio of values, and what they are multiples of: by weights, where there are some.
#[inline(always)]
fn rounded<const BLOCKS: usize>(values: V<BLOCKS>, weights: Option<V<BLOCKS>>, most: f32) -> (f32, V<BLOCKS>) {
    match weights {
        Some(weights) => {
            let unit = search::positive(values, weights, most);
            (unit, multiples_of(values, unit, most))
        }
        None => multiples(values, most),
    }
}

/// Integers in the ratio of values, the largest `most`, and what they are multiples of.
#[inline(always)]
fn multiples<const BLOCKS: usize>(values: V<BLOCKS>, most: f32) -> (f32, V<BLOCKS>) {
    // By halves, which compilers do in vectors.
    let (mut across, mut left) = (values.0, BLOCKS);
    while left > 1 {
        left /= 2;
        for i in 0..left {
            let (a, b) = (across[i], across[i + left]);
            across[i] = if b > a { b } else { a };
        }
    }
    let largest = if across[0] > 0.0 { across[0] } else { 0.0 };
    let inverse = if largest > 0.0 { most / largest } else { 0.0 };
    (largest / most, (V::all(inverse) * values).level(0.0, most))
}

/// The multiples of `unit` nearest to values.
#[inline(always)]
fn multiples_of<const BLOCKS: usize>(values: V<BLOCKS>, unit: f32, most: f32) -> V<BLOCKS> {
    values.map(|v| if unit > 0.0 { level(v / unit, 0.0, most) } else { 0.0 })
}

/// Weights of values, and their sums over blocks, where the importance of columns is known.
#[inline(always)]
fn weighed<const N: usize, const BLOCKS: usize>(
    x: &[f32; SUPER],
    importance: &[f32],
    factor: f32,
) -> ([V<BLOCKS>; N], V<BLOCKS>) {
    let mut weights = [0f32; SUPER];
    weigh(x, importance, factor * mean_square(x), &mut weights);
    let weights = side_by_side::<N, BLOCKS>(&weights);
    let mut sums = V::all(0.0);
    for &w in &weights {
        sums += w;
    }
    (weights, sums)
}

/// Calls `$store` with each super-block of a row, the scales and mins of its blocks, and its bytes; true where it
/// always is. Where all values weigh the same, two super-blocks are searched at a time.
macro_rules! each_searched {
    ($vectors:expr, $n:expr, $x:expr, $out:expr, $bytes:expr, $size:literal, $store:expr) => {{
        const BLOCKS: usize = SUPER / $size;
        let mut finite = true;
        let next = $x.len(); // rows lie one behind the other
        for (x, out) in $x.chunks(2 * SUPER).zip($out.chunks_mut(2 * $bytes)) {
            $vectors.fetch(x.as_ptr().wrapping_add(next), size_of_val(x));
            let (mut scales, mut mins, mut means) = ([0f32; 2 * BLOCKS], [0f32; 2 * BLOCKS], [0f32; 2 * BLOCKS]);
            let params = scales
                .as_chunks_mut::<LANES>()
                .0
                .iter_mut()
                .zip(mins.as_chunks_mut::<LANES>().0)
                .zip(means.as_chunks_mut::<LANES>().0);
            for (blocks, ((scales, mins), means)) in x.as_chunks::<$size>().0.chunks(LANES).zip(params) {
                let none = [0f32; $size];
                let mut of = [&none; LANES];
                for (of, block) in of.iter_mut().zip(blocks) {
                    *of = block;
                }
                let found = integers::affine($vectors, of, $n);
                (*scales, *mins, *means) = (found.scale.0, found.min.0, found.mean_level.0);
            }
            let params = scales
                .as_chunks::<BLOCKS>()
                .0
                .iter()
                .zip(mins.as_chunks::<BLOCKS>().0)
                .zip(means.as_chunks::<BLOCKS>().0);
            let blocks = x.as_chunks::<SUPER>().0.iter().zip(out.chunks_exact_mut($bytes));
            for ((x, out), ((scale, min), mean)) in blocks.zip(params) {
                finite &= $store(
                    $vectors,
                    x,
                    Affine {
                        scale: V(*scale),
                        min: V(*min),
                        mean_level: V(*mean),
                    },
                    None,
                    out,
                );
            }
        }
        finite
    }};
}

/// Q2_K of a row where all values weigh the same.
#[inline(always)]
pub(super) fn encode_plain_q2<const LANES: usize>(vectors: &impl Vectors<LANES>, x: &[f32], out: &mut [u8]) -> bool {
    each_searched!(vectors, 3, x, out, 84, 16, store_q2)
}

/// Q4_K and Q5_K of a row where all values weigh the same.
#[inline(always)]
pub(super) fn encode_plain<const LANES: usize, const BITS: u32>(
    vectors: &impl Vectors<LANES>,
    x: &[f32],
    out: &mut [u8],
) -> bool {
    let (n, bytes) = if BITS == 4 { (15, 144) } else { (31, 176) };
    each_searched!(vectors, n, x, out, bytes, 32, store::<LANES, BITS>)
}

#[inline(always)]
pub(super) fn encode_q2<const LANES: usize>(
    vectors: &impl Vectors<LANES>,
    x: &[f32; SUPER],
    importance: &[f32],
    out: &mut [u8],
) -> bool {
    let (weights, sums) = weighed::<16, 16>(x, importance, 1.0);
    let found = search::affine::<16, 16>(&side_by_side(x), &weights, 3.0);
    store_q2(vectors, x, found, Some(sums), out)
}

#[inline(always)]
fn store_q2<const LANES: usize>(
    vectors: &impl Vectors<LANES>,
    x: &[f32; SUPER],
    found: Affine<16>,
    weights: Option<V<16>>,
    out: &mut [u8],
) -> bool {
    let params = Params::choose(found, weights, 15.0, &mut out[80..]);
    for ((out, s), m) in out.iter_mut().zip(params.scales.0).zip(params.mins.0) {
        *out = byte(s) | byte(m) << 4;
    }
    pack_2(&params.levels(vectors, x, 3.0), &mut out[16..80]);
    params.finite()
}

#[inline(always)]
pub(super) fn decode_q2(data: &[u8], out: &mut [f32; SUPER]) {
    let mut levels = [0; SUPER];
    unpack_2(&data[16..80], &mut levels);
    let packed: [u8; 16] = array::from_fn(|i| data[i]);
    let params = Params {
        d: read_half(&data[80..]),
        dmin: read_half(&data[82..]),
        scales: V(packed.map(|byte| f32::from(byte & 15))),
        mins: V(packed.map(|byte| f32::from(byte >> 4))),
    };
    params.values::<16>(&levels, out);
}

/// Q4_K and Q5_K.
#[inline(always)]
pub(super) fn encode<const LANES: usize, const BITS: u32>(
    vectors: &impl Vectors<LANES>,
    x: &[f32; SUPER],
    importance: &[f32],
    out: &mut [u8],
) -> bool {
    let (weights, sums) = weighed::<32, 8>(x, importance, 2.0);
    let found = search::affine::<32, 8>(&side_by_side(x), &weights, most::<BITS>());
    store::<LANES, BITS>(vectors, x, found, Some(sums), out)
}

/// The largest level.
#[inline(always)]
const fn most<const BITS: u32>() -> f32 {
    if BITS == 4 { 15.0 } else { 31.0 }
}

#[inline(always)]
fn store<const LANES: usize, const BITS: u32>(
    vectors: &impl Vectors<LANES>,
    x: &[f32; SUPER],
    found: Affine<8>,
    weights: Option<V<8>>,
    out: &mut [u8],
) -> bool {
    let params = Params::choose(found, weights, 63.0, out);
    let (s, m) = (params.scales.0.map(byte), params.mins.0.map(byte));
    for i in 0..4 {
        out[4 + i] = s[i] | s[i + 4] >> 4 << 6;
        out[8 + i] = m[i] | m[i + 4] >> 4 << 6;
        out[12 + i] = s[i + 4] & 15 | m[i + 4] << 4;
    }
    let levels = &params.levels(vectors, x, most::<BITS>());
    let rest = &mut out[16..];
    if BITS == 5 {
        let (high, low) = rest.split_at_mut(32);
        pack_bit(levels, 4, high);
        pack_4::<32>(levels, low);
    } else {
        pack_4::<32>(levels, rest);
    }
    params.finite()
}

#[inline(always)]
pub(super) fn decode<const BITS: u32>(data: &[u8], out: &mut [f32; SUPER]) {
    let (mut scales, mut mins) = ([0u8; 8], [0u8; 8]);
    for i in 0..4 {
        let (s, m, both) = (data[4 + i], data[8 + i], data[12 + i]);
        (scales[i], scales[i + 4]) = (s & 63, both & 15 | s >> 6 << 4);
        (mins[i], mins[i + 4]) = (m & 63, both >> 4 | m >> 6 << 4);
    }
    let mut levels = [0; SUPER];
    if BITS == 5 {
        unpack_4::<32>(&data[48..], &mut levels);
        unpack_bit(&data[16..48], 4, &mut levels);
    } else {
        unpack_4::<32>(&data[16..], &mut levels);
    }
    let (d, dmin) = (read_half(data), read_half(&data[2..]));
    let (scales, mins) = (V(scales.map(f32::from)), V(mins.map(f32::from)));
    Params { d, dmin, scales, mins }.values::<32>(&levels, out);
}
