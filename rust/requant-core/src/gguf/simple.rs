//! Blocks of 32 values with one scale, and single values.
//!
//! ```text
//! Q8_0   d  q[32]              x = d * q               d = max|x| / 127
//! Q4_0   d  q[16]              x = d * (q - 8)         d = x of largest magnitude / -8
//! Q4_1   d  m  q[16]           x = d * q + m           d = (max - min) / 15, m = min
//! Q5_0   d  h[4]  q[16]        x = d * (q - 16)        d = x of largest magnitude / -16
//! Q5_1   d  m  h[4]  q[16]     x = d * q + m           d = (max - min) / 31, m = min
//! ```
//!
//! `d` and `m` are float16; a byte of `q` holds levels `i` (low bits) and `i + 16`; bit `i` of `h` is the fifth bit of
//! level `i`. With importance, scales are searched, and levels are those nearest to the stored scale.

use super::{
    bytes::{byte, pack_4, read_half, unpack_4, write_half},
    lanes::{V, level, side_by_side},
    search,
};
use crate::kernels::halves::{from_bf16, from_f16, to_bf16, to_f16};

pub(super) const SIZE: usize = 32;
/// Blocks that are searched side by side.
const LANES: usize = 8;

/// Float16 or bfloat16 of each value; `false` where one would be infinite.
#[inline(always)]
pub(super) fn encode_halves<const BRAIN: bool>(x: &[f32], out: &mut [u8]) -> bool {
    let infinite = if BRAIN { 0x7f80 } else { 0x7c00 };
    let mut finite = true;
    for (out, &x) in out.as_chunks_mut::<2>().0.iter_mut().zip(x) {
        let half = if BRAIN { to_bf16(x) } else { to_f16(x) };
        finite &= half & 0x7fff != infinite;
        *out = half.to_le_bytes();
    }
    finite
}

#[inline(always)]
pub(super) fn decode_halves<const BRAIN: bool>(data: &[u8], out: &mut [f32]) {
    for (out, &half) in out.iter_mut().zip(data.as_chunks::<2>().0) {
        let half = u16::from_le_bytes(half);
        *out = if BRAIN { from_bf16(half) } else { from_f16(half) };
    }
}

#[inline(always)]
pub(super) fn encode_q8_0(x: &[f32; SIZE], out: &mut [u8]) -> bool {
    let largest = x.iter().fold(0f32, |a, &b| a.max(b.abs()));
    let d = largest / 127.0;
    let inverse = inverse(d);
    for (out, x) in out[2..].iter_mut().zip(x) {
        *out = byte((x * inverse).round());
    }
    write_half(out, d).is_finite()
}

#[inline(always)]
pub(super) fn decode_q8_0(data: &[u8], out: &mut [f32; SIZE]) {
    let d = read_half(data);
    for (out, &q) in out.iter_mut().zip(&data[2..]) {
        *out = f32::from(q.cast_signed()) * d;
    }
}

/// Q4_0 and Q5_0.
#[inline(always)]
pub(super) fn encode_symmetric<const BITS: u32>(x: &[f32; SIZE], out: &mut [u8]) -> bool {
    let centre = centre::<BITS>();
    let (mut largest, mut magnitude) = (0f32, 0f32);
    for &v in x {
        if v.abs() > magnitude {
            (largest, magnitude) = (v, v.abs());
        }
    }
    let d = largest / -centre;
    let inverse = inverse(d);
    let levels = x.map(|x| truncated(x * inverse + (centre + 0.5), 2.0 * centre - 1.0));
    store::<BITS>(&levels, &mut out[2..]);
    write_half(out, d).is_finite()
}

/// Q4_1 and Q5_1.
#[inline(always)]
pub(super) fn encode_affine<const BITS: u32>(x: &[f32; SIZE], out: &mut [u8]) -> bool {
    let most = 2.0 * centre::<BITS>() - 1.0;
    let (mut low, mut high) = (f32::MAX, -f32::MAX);
    for &v in x {
        low = if v < low { v } else { low };
        high = if v > high { v } else { high };
    }
    let d = (high - low) / most;
    let inverse = inverse(d);
    let levels = x.map(|x| truncated((x - low) * inverse + 0.5, most));
    store::<BITS>(&levels, &mut out[4..]);
    write_half(out, d).is_finite() & write_half(&mut out[2..], low).is_finite()
}

/// Q4_0 and Q5_0 of up to [`LANES`] blocks, their scales searched; `false` where one is infinite.
#[inline(always)]
pub(super) fn search_symmetric<const BITS: u32>(x: &[f32], weights: &[f32], size: usize, out: &mut [u8]) -> bool {
    let centre = centre::<BITS>();
    let (across, w) = (side_by_side::<SIZE, LANES>(x), side_by_side::<SIZE, LANES>(weights));
    let scales = search::symmetric(&across, &w, centre).0;
    let mut finite = true;
    for ((x, out), scale) in x
        .as_chunks::<SIZE>()
        .0
        .iter()
        .zip(out.chunks_exact_mut(size))
        .zip(scales)
    {
        let d = write_half(out, scale);
        let levels = x.map(|x| {
            let l = if d == 0.0 {
                0.0
            } else {
                level(x / d, -centre, centre - 1.0)
            };
            byte(l + centre)
        });
        store::<BITS>(&levels, &mut out[2..]);
        finite &= d.is_finite();
    }
    finite
}

/// Q4_1 and Q5_1 of up to [`LANES`] blocks, their scales searched; `false` where one is infinite.
#[inline(always)]
pub(super) fn search_affine<const BITS: u32>(x: &[f32], weights: &[f32], size: usize, out: &mut [u8]) -> bool {
    let most = 2.0 * centre::<BITS>() - 1.0;
    let (across, w) = (side_by_side::<SIZE, LANES>(x), side_by_side::<SIZE, LANES>(weights));
    let found = search::affine::<SIZE, LANES>(&across, &w, most);
    let mut finite = true;
    let params = found.scale.0.into_iter().zip(found.min.0);
    for ((x, out), (scale, min)) in x
        .as_chunks::<SIZE>()
        .0
        .iter()
        .zip(out.chunks_exact_mut(size))
        .zip(params)
    {
        let (d, m) = (write_half(out, scale), write_half(&mut out[2..], -min));
        let levels = x.map(|x| byte(if d == 0.0 { 0.0 } else { level((x - m) / d, 0.0, most) }));
        store::<BITS>(&levels, &mut out[4..]);
        finite &= d.is_finite() & m.is_finite();
    }
    finite
}

#[inline(always)]
pub(super) fn decode_symmetric<const BITS: u32>(data: &[u8], out: &mut [f32; SIZE]) {
    let (d, centre) = (read_half(data), centre::<BITS>());
    for (out, level) in out.iter_mut().zip(load::<BITS>(&data[2..])) {
        *out = (f32::from(level) - centre) * d;
    }
}

#[inline(always)]
pub(super) fn decode_affine<const BITS: u32>(data: &[u8], out: &mut [f32; SIZE]) {
    let (d, m) = (read_half(data), read_half(&data[2..]));
    for (out, level) in out.iter_mut().zip(load::<BITS>(&data[4..])) {
        *out = f32::from(level) * d + m;
    }
}

/// Half the number of levels.
#[inline(always)]
const fn centre<const BITS: u32>() -> f32 {
    match BITS {
        4 => 8.0,
        _ => 16.0,
    }
}

/// `1 / d`, and 0 where that is not finite: such a `d` is 0 as a float16.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The integer below `v`, from 0 to `most`.
#[inline(always)]
fn truncated(v: f32, most: f32) -> u8 {
    let above = if v > 0.0 { v } else { 0.0 };
    byte((if above < most { above } else { most }).trunc())
}

#[inline(always)]
fn store<const BITS: u32>(levels: &[u8; SIZE], out: &mut [u8]) {
    let rest = if BITS == 5 {
        let fifth = levels
            .iter()
            .enumerate()
            .fold(0u32, |bits, (i, &l)| bits | u32::from(l >> 4 & 1) << i);
        out[..4].copy_from_slice(&fifth.to_le_bytes());
        &mut out[4..]
    } else {
        out
    };
    pack_4::<16>(levels, rest);
}

#[inline(always)]
fn load<const BITS: u32>(data: &[u8]) -> [u8; SIZE] {
    let mut levels = [0; SIZE];
    if BITS == 5 {
        unpack_4::<16>(&data[4..], &mut levels);
        let fifth = u32::from_le_bytes([data[0], data[1], data[2], data[3]]);
        for (i, level) in levels.iter_mut().enumerate() {
            *level |= ((fifth >> i & 1) as u8) << 4;
        }
    } else {
        unpack_4::<16>(data, &mut levels);
    }
    levels
}

/// Importance times the magnitude of a value beside that of its row, as llama.cpp weighs errors.
#[inline(always)]
pub(super) fn weigh(x: &[f32], importance: &[f32], mean_square: f32, weights: &mut [f32]) {
    for ((w, &x), &i) in weights.iter_mut().zip(x).zip(importance) {
        *w = i * (mean_square + x * x).sqrt();
    }
}

/// The mean of the squares, added eight side by side.
#[inline(always)]
pub(super) fn mean_square(x: &[f32]) -> f32 {
    let (eights, rest) = x.as_chunks::<8>();
    let mut sums = V::<8>::all(0.0);
    for &eight in eights {
        sums += V(eight) * V(eight);
    }
    let sum = sums.0.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    #[expect(clippy::cast_precision_loss, reason = "a mean needs no more")]
    let count = x.len() as f32;
    sum / count
}
