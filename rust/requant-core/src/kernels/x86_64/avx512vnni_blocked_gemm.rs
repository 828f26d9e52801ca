//! Products with block-quantized weights on AVX-512 VNNI.
//!
//! `vpdpbusd` adds four products of a uint8 with an int8 to one i32. Stored 4-bit weights are 0..15 and thus the
//! unsigned operand as they lie; sums of a block begin as what its zero points take from them. One octet of the 6 x 32
//! tile:
//!
//! ```text
//! B  u8  [32][4]         two vectors; their low halves are k = 0..4 of 16 columns each, their high halves k = 4..8
//! A  i8  [2][6][4]       each a dword of four values along K, broadcast
//! C  i32 [6][2][16]      12 registers of a block's sums, 12 of the reals; 4 for B, 1 for A, 1 for the mask: 30 of 32
//! ```

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use super::zmm::{COLUMNS, LANES};
use crate::kernels::{
    blocked_activations::{Quantized, Rows, quantize},
    blocked_gemm::{BlockedKernel, OCTET, Panel, QuantizedTile, ZeroPoints},
    gemm::Tile,
};

const ROWS: usize = 6;

/// Bytes of a panel that eight values along K take.
const STEP: usize = COLUMNS * 4;

/// How far ahead B is fetched where few rows make a step short.
const PREFETCH: usize = 4096;

/// Proof that AVX-512 VNNI was detected: only [`probe`] makes one.
struct Avx512VnniBlockedGemm(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn BlockedKernel> {
    static KERNEL: Avx512VnniBlockedGemm = Avx512VnniBlockedGemm(());
    super::avx512vnni::detected().then_some(&KERNEL as &dyn BlockedKernel)
}

impl BlockedKernel for Avx512VnniBlockedGemm {
    fn name(&self) -> &'static str {
        "avx512vnni"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: 4,
        }
    }

    fn quantize(&self, rows: Rows<'_>, to: Quantized<'_>) {
        // SAFETY: an `Avx512VnniBlockedGemm` exists only where AVX-512 VNNI was detected.
        unsafe { quantize_avx512(rows, to) }
    }

    fn multiply_int8(&self, rows: usize, a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]) {
        // SAFETY: an `Avx512VnniBlockedGemm` exists only where AVX-512 VNNI was detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6] => multiply_int8::<R>(a, b, sums));
        }
    }

    fn dequantize(&self, b: Panel<'_>, out: &mut [f32]) {
        // SAFETY: an `Avx512VnniBlockedGemm` exists only where AVX-512 VNNI was detected.
        unsafe { dequantize(b, out) }
    }

    fn multiply_f32(&self, rows: usize, a: &[f32], b: &[f32], sums: &mut [f32]) {
        // SAFETY: an `Avx512VnniBlockedGemm` exists only where AVX-512 VNNI was detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6] => multiply_f32::<R>(a, b, sums));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn quantize_avx512(rows: Rows<'_>, to: Quantized<'_>) {
    quantize(rows, to);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply_int8<const R: usize>(a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]) {
    let Some(out) = sums.as_chunks_mut::<COLUMNS>().0.first_chunk_mut::<R>() else {
        return;
    };
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..R {
        sums[i] = load_reals(&out[i]);
    }
    let blocks = b.integers.as_chunks::<STEP>().0.chunks(b.octets);
    let groups = a.groups.as_chunks::<R>().0.as_chunks::<2>().0.chunks(b.octets);
    let scales = b.scales.as_chunks::<COLUMNS>().0;
    let of_rows = a.scales.as_chunks::<R>().0.iter().zip(a.corrections.as_chunks::<R>().0);
    let all = blocks.zip(groups).zip(scales).zip(of_rows).enumerate();
    for (at, (((octets, groups), scales), (a_scales, corrections))) in all {
        let mut dots = [[_mm512_setzero_si512(); 2]; R];
        // Loops, since closures would not be inlined into this instruction set.
        if let ZeroPoints::Each(each) = b.zero_points {
            let zero_points = widen(&each.as_chunks::<COLUMNS>().0[at]);
            for i in 0..R {
                let correction = _mm512_set1_epi32(corrections[i]);
                // The upper halves of the zero points' lanes are 0, and both factors fit i16: a product of i32,
                // cheaply.
                dots[i][0] = _mm512_madd_epi16(zero_points[0], correction);
                dots[i][1] = _mm512_madd_epi16(zero_points[1], correction);
            }
        } else {
            for i in 0..R {
                dots[i] = [_mm512_set1_epi32(corrections[i]); 2];
            }
        }
        if let (Ok(octets), Ok(groups)) = (<&[_; 4]>::try_from(octets), <&[_; 4]>::try_from(groups)) {
            // Blocks of 32 are the most usual, and short.
            for (octet, groups) in octets.iter().zip(groups) {
                add_octet(&mut dots, octet, groups);
            }
        } else {
            for (octet, groups) in octets.iter().zip(groups) {
                add_octet(&mut dots, octet, groups);
            }
        }
        if R < 4 {
            prefetch(scales.as_ptr().cast());
        }
        let scales = load_reals(scales);
        for i in 0..R {
            let a_scale = _mm512_set1_ps(a_scales[i]);
            for h in 0..2 {
                let real = _mm512_mul_ps(_mm512_cvtepi32_ps(dots[i][h]), a_scale);
                sums[i][h] = _mm512_fmadd_ps(real, scales[h], sums[i][h]);
            }
        }
    }
    for i in 0..R {
        store_reals(sums[i], &mut out[i]);
    }
}

/// Adds products over eight values along K.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn add_octet<const R: usize>(dots: &mut [[__m512i; 2]; R], b: &[u8; STEP], a: &[[i32; R]; 2]) {
    if R < 4 {
        prefetch(b.as_ptr());
        prefetch(b.as_ptr().wrapping_add(64));
    }
    let nibble = _mm512_set1_epi8(15);
    let b = load_bytes(b);
    let low = [_mm512_and_si512(b[0], nibble), _mm512_and_si512(b[1], nibble)];
    let high = [
        _mm512_and_si512(_mm512_srli_epi16::<4>(b[0]), nibble),
        _mm512_and_si512(_mm512_srli_epi16::<4>(b[1]), nibble),
    ];
    for (b, a) in [low, high].into_iter().zip(a) {
        for (dots, &a) in dots.iter_mut().zip(a) {
            let a = _mm512_set1_epi32(a);
            dots[0] = _mm512_dpbusd_epi32(dots[0], b[0], a);
            dots[1] = _mm512_dpbusd_epi32(dots[1], b[1], a);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn dequantize(b: Panel<'_>, out: &mut [f32]) {
    let nibble = _mm512_set1_epi32(15);
    let blocks = b.integers.as_chunks::<STEP>().0.chunks(b.octets);
    let outs = out
        .as_chunks_mut::<COLUMNS>()
        .0
        .as_chunks_mut::<OCTET>()
        .0
        .chunks_mut(b.octets);
    let scales = b.scales.as_chunks::<COLUMNS>().0;
    for (at, ((octets, scales), outs)) in blocks.zip(scales).zip(outs).enumerate() {
        let zero_points = match b.zero_points {
            ZeroPoints::Common(common) => [_mm512_set1_epi32(i32::from(common)); 2],
            ZeroPoints::Each(each) => widen(&each.as_chunks::<COLUMNS>().0[at]),
        };
        let scales = load_reals(scales);
        for (octet, rows) in octets.iter().zip(outs) {
            // A lane holds the eight values of a column.
            let octet = load_bytes(octet);
            for (row, shift) in rows.iter_mut().zip([0, 8, 16, 24, 4, 12, 20, 28]) {
                let mut reals = scales;
                for h in 0..2 {
                    let q = _mm512_and_si512(_mm512_srl_epi32(octet[h], _mm_cvtsi32_si128(shift)), nibble);
                    let centred = _mm512_cvtepi32_ps(_mm512_sub_epi32(q, zero_points[h]));
                    reals[h] = _mm512_mul_ps(centred, scales[h]);
                }
                store_reals(reals, row);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn multiply_f32<const R: usize>(a: &[f32], b: &[f32], sums: &mut [f32]) {
    let Some(out) = sums.as_chunks_mut::<COLUMNS>().0.first_chunk_mut::<R>() else {
        return;
    };
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for i in 0..R {
        sums[i] = load_reals(&out[i]);
    }
    for (a, b) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<COLUMNS>().0) {
        let b = load_reals(b);
        for i in 0..R {
            let a = _mm512_set1_ps(a[i]);
            sums[i][0] = _mm512_fmadd_ps(a, b[0], sums[i][0]);
            sums[i][1] = _mm512_fmadd_ps(a, b[1], sums[i][1]);
        }
    }
    for i in 0..R {
        store_reals(sums[i], &mut out[i]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(from: *const u8) {
    #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
    // SAFETY: any address may be prefetched.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(PREFETCH).cast());
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(x: &[u8; COLUMNS]) -> [__m512i; 2] {
    let (halves, _) = x.as_chunks::<LANES>();
    // SAFETY: each half is 16 readable bytes, and `loadu` needs no alignment.
    let load = |half: &[u8; LANES]| unsafe { _mm_loadu_si128(half.as_ptr().cast()) };
    [
        _mm512_cvtepu8_epi32(load(&halves[0])),
        _mm512_cvtepu8_epi32(load(&halves[1])),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_bytes(x: &[u8; STEP]) -> [__m512i; 2] {
    let (halves, _) = x.as_chunks::<64>();
    // SAFETY: each half is 64 readable bytes, and `loadu` needs no alignment.
    unsafe {
        [
            _mm512_loadu_si512(halves[0].as_ptr().cast()),
            _mm512_loadu_si512(halves[1].as_ptr().cast()),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_reals(x: &[f32; COLUMNS]) -> [__m512; 2] {
    let (halves, _) = x.as_chunks::<LANES>();
    // SAFETY: each half is 64 readable bytes, and `loadu` needs no alignment.
    unsafe { [_mm512_loadu_ps(halves[0].as_ptr()), _mm512_loadu_ps(halves[1].as_ptr())] }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_reals(v: [__m512; 2], out: &mut [f32; COLUMNS]) {
    let (halves, _) = out.as_chunks_mut::<LANES>();
    // SAFETY: each half is 64 writable bytes, and `storeu` needs no alignment.
    unsafe {
        _mm512_storeu_ps(halves[0].as_mut_ptr(), v[0]);
        _mm512_storeu_ps(halves[1].as_mut_ptr(), v[1]);
    }
}
