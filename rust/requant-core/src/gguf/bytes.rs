//! Fields of blocks: float16 numbers, and integers of fewer bits than a byte.

use super::lanes::MAGIC;
use crate::kernels::halves::{from_f16, to_f16};

/// A float16 at the beginning of `bytes`.
#[inline(always)]
pub(super) fn read_half(bytes: &[u8]) -> f32 {
    from_f16(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// Writes a float16 to the beginning of `bytes`: what it reads as.
#[inline(always)]
pub(super) fn write_half(bytes: &mut [u8], value: f32) -> f32 {
    let half = to_f16(value);
    bytes[..2].copy_from_slice(&half.to_le_bytes());
    from_f16(half)
}

/// The bits of an integer from -128 to 255. Converting by a sum is what compilers do to several at once.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
pub(super) fn byte(level: f32) -> u8 {
    (level + MAGIC).to_bits() as u8
}

/// The integer nearest to `v`, half to even, from 0 to `most`; 0 of NaN.
#[inline(always)]
pub(super) fn nearest(v: f32, most: f32) -> u8 {
    let above = if v > 0.0 { v } else { 0.0 };
    byte(if above < most { above } else { most })
}

/// Low bits of `N` levels of 2 bits each, four to a byte: those 32 apart, of each half of a super-block.
#[inline(always)]
pub(super) fn pack_2(levels: &[u8; 256], out: &mut [u8]) {
    for (levels, out) in levels.as_chunks::<128>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        for (l, out) in out.iter_mut().enumerate() {
            let [a, b, c, d] = [0, 32, 64, 96].map(|first| levels[first + l] & 3);
            *out = a | b << 2 | c << 4 | d << 6;
        }
    }
}

/// The inverse of [`pack_2`].
#[inline(always)]
pub(super) fn unpack_2(bytes: &[u8], levels: &mut [u8; 256]) {
    for (levels, bytes) in levels
        .as_chunks_mut::<128>()
        .0
        .iter_mut()
        .zip(bytes.as_chunks::<32>().0)
    {
        for (part, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (level, byte) in levels.iter_mut().zip(bytes) {
                *level = byte >> (2 * part) & 3;
            }
        }
    }
}

/// Low bits of levels of 4 bits, two to a byte: those `HALF` apart.
#[inline(always)]
pub(super) fn pack_4<const HALF: usize>(levels: &[u8], out: &mut [u8]) {
    for (levels, out) in levels.chunks_exact(2 * HALF).zip(out.chunks_exact_mut(HALF)) {
        let (low, high) = levels.split_at(HALF);
        for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
            *out = low & 15 | high << 4;
        }
    }
}

/// The inverse of [`pack_4`].
#[inline(always)]
pub(super) fn unpack_4<const HALF: usize>(bytes: &[u8], levels: &mut [u8]) {
    for (levels, bytes) in levels.chunks_exact_mut(2 * HALF).zip(bytes.chunks_exact(HALF)) {
        let (low, high) = levels.split_at_mut(HALF);
        for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// Bit `bit` of each level, that of level `i` in bit `i / 32` of byte `i mod 32`. Eight bytes are taken as one word,
/// since vectors have no shifts of bytes.
#[inline(always)]
pub(super) fn pack_bit(levels: &[u8; 256], bit: u32, out: &mut [u8]) {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let mut packed = [0u64; 4];
    for (i, levels) in levels.as_chunks::<32>().0.iter().enumerate() {
        for (packed, levels) in packed.iter_mut().zip(levels.as_chunks().0) {
            *packed |= (u64::from_le_bytes(*levels) >> bit & ONES) << i;
        }
    }
    for (out, packed) in out.as_chunks_mut().0.iter_mut().zip(packed) {
        *out = packed.to_le_bytes();
    }
}

/// Adds what [`pack_bit`] stored to the levels.
#[inline(always)]
pub(super) fn unpack_bit(bytes: &[u8], bit: u32, levels: &mut [u8; 256]) {
    for (i, levels) in levels.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (level, byte) in levels.iter_mut().zip(bytes) {
            *level |= (byte >> i & 1) << bit;
        }
    }
}
