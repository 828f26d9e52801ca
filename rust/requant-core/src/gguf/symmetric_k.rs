//! Super-blocks of 16 blocks of 16 whose values are `(d * scale) * q`.
//!
//! ```text
//! Q3_K   h[32]  q[64]  scales[12]  d        q - 4: two bits in q, the third, bit b of h[i], of level 32 b + i
//! Q6_K   q[128]  h[64]  scales[16]  d       q - 32: four bits in q, two in h; scales are int8
//!
//! scales[12]: s - 32 of each block in 6 bits
//!   0..8   s0-s7 & 15 | s8-s15 << 4
//!   8..12  bits 4 and 5 of s[i], s[i + 4], s[i + 8], s[i + 12], from the lowest on
//! ```

use super::{
    SUPER,
    bytes::{byte, pack_2, pack_bit, read_half, unpack_2, unpack_bit, write_half},
    lanes::{V, level, side_by_side},
    search,
    simple::{mean_square, weigh},
};

const SIZE: usize = 16;
const BLOCKS: usize = 16;

/// The level of each value, from 0 on, for multiples `scales` of `d`.
#[inline(always)]
fn levels(x: &[f32; SUPER], d: f32, scales: &[f32; BLOCKS], centre: f32) -> [u8; SUPER] {
    let mut levels = [0; SUPER];
    let blocks = x.as_chunks::<SIZE>().0.iter().zip(levels.as_chunks_mut::<SIZE>().0);
    for ((x, levels), scale) in blocks.zip(scales) {
        let d = d * scale;
        if d == 0.0 {
            continue;
        }
        for (l, x) in levels.iter_mut().zip(x) {
            *l = byte(level(x / d, -centre, centre - 1.0) + centre);
        }
    }
    levels
}

/// The inverse of [`levels`].
#[inline(always)]
fn values(levels: &[u8; SUPER], d: f32, scales: &[f32; BLOCKS], centre: f32, out: &mut [f32; SUPER]) {
    let blocks = levels.as_chunks::<SIZE>().0.iter().zip(out.as_chunks_mut::<SIZE>().0);
    for ((levels, out), scale) in blocks.zip(scales) {
        let d = d * scale;
        for (out, &l) in out.iter_mut().zip(levels) {
            *out = d * (f32::from(l) - centre);
        }
    }
}

/// The one of largest magnitude, the first of equals.
#[inline(always)]
fn largest(scales: &[f32; BLOCKS]) -> f32 {
    scales.iter().fold(0f32, |a, &b| if b.abs() > a.abs() { b } else { a })
}

#[inline(always)]
pub(super) fn encode_q3(x: &[f32; SUPER], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
    let across = side_by_side::<SIZE, BLOCKS>(x);
    let (found, unit) = match importance {
        Some(importance) => {
            let mut weights = [0f32; SUPER];
            weigh(x, importance, 2.0 * mean_square(x), &mut weights);
            let weights = side_by_side::<SIZE, BLOCKS>(&weights);
            let found = search::symmetric(&across, &weights, 4.0).0;
            let mut sums = V::all(0.0);
            for &w in &weights {
                sums += w;
            }
            let [unit] = search::symmetric(&found.map(|s| V([s])), &sums.0.map(|w| V([w])), 32.0).0;
            (found, unit)
        }
        None => {
            let found = search::descend(&across, 4.0).0;
            (found, 1.0 / (-32.0 / largest(&found)))
        }
    };
    let factor = if importance.is_some() {
        1.0 / unit
    } else {
        -32.0 / largest(&found)
    };
    let scales = found.map(|s| {
        if unit == 0.0 {
            0.0
        } else {
            level(factor * s, -32.0, 31.0)
        }
    });
    let d = write_half(&mut out[108..], unit);
    let packed = if unit == 0.0 {
        [0; BLOCKS]
    } else {
        scales.map(|s| byte(s + 32.0))
    };
    for i in 0..8 {
        out[96 + i] = packed[i] & 15 | packed[i + 8] << 4;
    }
    for i in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|first| packed[first + i] >> 4);
        out[104 + i] = a | b << 2 | c << 4 | d << 6;
    }
    let levels = levels(x, d, &scales, 4.0);
    pack_bit(&levels, 2, &mut out[..32]);
    pack_2(&levels, &mut out[32..96]);
    d.is_finite()
}

#[inline(always)]
pub(super) fn decode_q3(data: &[u8], out: &mut [f32; SUPER]) {
    let scales = std::array::from_fn(|i| {
        let low = data[96 + i % 8] >> (4 * (i / 8)) & 15;
        let high = data[104 + i % 4] >> (2 * (i / 4)) & 3;
        f32::from(low | high << 4) - 32.0
    });
    let mut levels = [0; SUPER];
    unpack_2(&data[32..96], &mut levels);
    unpack_bit(&data[..32], 2, &mut levels);
    values(&levels, read_half(&data[108..]), &scales, 4.0, out);
}

#[inline(always)]
pub(super) fn encode_q6(x: &[f32; SUPER], importance: Option<&[f32]>, out: &mut [u8]) -> bool {
    let across = side_by_side::<SIZE, BLOCKS>(x);
    let weights = match importance {
        Some(importance) => side_by_side::<SIZE, BLOCKS>(importance),
        None => across.map(|x| x * x),
    };
    let found = search::symmetric(&across, &weights, 32.0).0;
    let largest = largest(&found);
    if largest.abs() < search::LEAST {
        out.fill(0);
        return true;
    }
    let factor = -128.0 / largest;
    let scales = found.map(|s| level(factor * s, -128.0, 127.0));
    let d = write_half(&mut out[208..], 1.0 / factor);
    for (out, scale) in out[192..208].iter_mut().zip(scales) {
        *out = byte(scale);
    }
    let levels = levels(x, d, &scales, 32.0);
    let (low, high) = out[..192].split_at_mut(128);
    for ((levels, low), high) in levels
        .as_chunks::<128>()
        .0
        .iter()
        .zip(low.as_chunks_mut::<64>().0)
        .zip(high.as_chunks_mut::<32>().0)
    {
        for i in 0..32 {
            let [a, b, c, d] = [0, 32, 64, 96].map(|first| levels[first + i]);
            low[i] = a & 15 | c << 4;
            low[i + 32] = b & 15 | d << 4;
            high[i] = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | d >> 4 << 6;
        }
    }
    d.is_finite()
}

#[inline(always)]
pub(super) fn decode_q6(data: &[u8], out: &mut [f32; SUPER]) {
    let mut levels = [0; SUPER];
    let (low, high) = data[..192].split_at(128);
    for ((levels, low), high) in levels
        .as_chunks_mut::<128>()
        .0
        .iter_mut()
        .zip(low.as_chunks::<64>().0)
        .zip(high.as_chunks::<32>().0)
    {
        for i in 0..32 {
            levels[i] = low[i] & 15 | (high[i] & 3) << 4;
            levels[i + 32] = low[i + 32] & 15 | (high[i] >> 2 & 3) << 4;
            levels[i + 64] = low[i] >> 4 | (high[i] >> 4 & 3) << 4;
            levels[i + 96] = low[i + 32] >> 4 | (high[i] >> 6) << 4;
        }
    }
    let scales = std::array::from_fn(|i| f32::from(data[192 + i].cast_signed()));
    values(&levels, read_half(&data[208..]), &scales, 32.0, out);
}
