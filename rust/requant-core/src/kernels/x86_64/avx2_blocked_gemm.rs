//! Products with block-quantized weights on AVX2, exact where they are integers.
//!
//! Stored 4-bit weights are 0..15, so `vpmaddubsw` (u8 times i8, neighbours added in i16) cannot saturate: its sums are
//! at most 2 * 15 * 128, and eight of them, 32 values along K, still fit i16. `vpmaddwd` by ones then adds neighbours
//! in i32. One octet of the 6 x 16 tile:
//!
//! ```text
//! B  u8  [16][4]         two vectors; their low halves are k = 0..4 of 8 columns each, their high halves k = 4..8
//! A  i8  [2][6][4]       each a dword of four values along K, broadcast
//! C  i16 [6][2][8][2]    12 registers; 2 for B, 1 for A, 1 for the products: all 16
//! ```
//!
//! Sums of reals do not fit beside these: they stay in the first-level cache, and are visited once a block.
//! `gemm/README.md` has what this reaches, and what was tried.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::{asm, x86_64::*};

use super::avx2_values::{load, store};
use crate::kernels::{
    blocked_activations::{Quantized, Rows, quantize},
    blocked_gemm::{BlockedKernel, OCTET, Panel, QuantizedTile, ZeroPoints},
    gemm::Tile,
};

const ROWS: usize = 6;
const COLUMNS: usize = 16;

/// How far ahead B is fetched where few rows make a step short.
const PREFETCH: usize = 4096;

/// Proof that AVX2 and FMA were detected: only [`probe`] makes one.
struct Avx2BlockedGemm(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn BlockedKernel> {
    static AVX2: Avx2BlockedGemm = Avx2BlockedGemm(());
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(&AVX2 as &dyn BlockedKernel)
}

impl BlockedKernel for Avx2BlockedGemm {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn tile(&self) -> Tile {
        Tile {
            rows: ROWS,
            columns: COLUMNS,
            group: 4,
        }
    }

    fn quantize(&self, rows: Rows<'_>, to: Quantized<'_>) {
        // SAFETY: an `Avx2BlockedGemm` exists only where AVX2 and FMA were detected.
        unsafe { quantize_avx2(rows, to) }
    }

    fn multiply_int8(&self, rows: usize, a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]) {
        // SAFETY: an `Avx2BlockedGemm` exists only where AVX2 and FMA were detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6] => multiply_int8::<R>(a, b, sums));
        }
    }

    fn dequantize(&self, b: Panel<'_>, out: &mut [f32]) {
        // SAFETY: an `Avx2BlockedGemm` exists only where AVX2 and FMA were detected.
        unsafe { dequantize(b, out) }
    }

    fn multiply_f32(&self, rows: usize, a: &[f32], b: &[f32], sums: &mut [f32]) {
        // SAFETY: an `Avx2BlockedGemm` exists only where AVX2 and FMA were detected.
        unsafe {
            with_rows!(rows, R in [1 2 3 4 5 6] => multiply_f32::<R>(a, b, sums));
        }
    }
}

#[target_feature(enable = "avx2")]
fn quantize_avx2(rows: Rows<'_>, to: Quantized<'_>) {
    quantize(rows, to);
}

/// Eight values along K of a panel.
type Octet = [u8; COLUMNS * 4];

/// The same of `R` rows of A, in two groups.
type Groups<const R: usize> = [[i32; R]; 2];

/// Of 8 columns in each vector.
type Sums<const R: usize> = [[__m256i; 2]; R];

/// Products over one octet, added to `sums` or, the first ones, replacing them. In assembly, since the compiler
/// reorders the additions so that sums leave the registers: they take 12, and all that is left is used here. Miri takes
/// [`few`] instead.
macro_rules! octet {
    ($which:ident 4, $($operand:ident),*) => {
        octet!($which, $($operand),*, 4: 0 "ymm0" "ymm1", 1 "ymm2" "ymm3", 2 "ymm4" "ymm5", 3 "ymm6" "ymm7")
    };
    ($which:ident 5, $($operand:ident),*) => {
        octet!(
            $which, $($operand),*,
            5: 0 "ymm0" "ymm1", 1 "ymm2" "ymm3", 2 "ymm4" "ymm5", 3 "ymm6" "ymm7", 4 "ymm8" "ymm9"
        )
    };
    ($which:ident 6, $($operand:ident),*) => {
        octet!(
            $which, $($operand),*,
            6: 0 "ymm0" "ymm1", 1 "ymm2" "ymm3", 2 "ymm4" "ymm5", 3 "ymm6" "ymm7", 4 "ymm8" "ymm9", 5 "ymm10" "ymm11"
        )
    };
    ($which:ident, $sums:ident, $b:ident, $a:ident, $rows:tt: $($i:tt $left:tt $right:tt),*) => {
        // SAFETY: reads the bytes of `b`, `a` and `NIBBLES` only, and touches only the registers that it names.
        unsafe {
            asm!(
                "vmovdqu ymm12, [{b}]",
                "vmovdqu ymm13, [{b} + 32]",
                "vpand ymm12, ymm12, [{nibbles}]",
                "vpand ymm13, ymm13, [{nibbles}]",
                $(octet!(@$which $left $right concat!("4 * ", $i)),)*
                "vmovdqu ymm12, [{b}]",
                "vmovdqu ymm13, [{b} + 32]",
                "vpsrlw ymm12, ymm12, 4",
                "vpsrlw ymm13, ymm13, 4",
                "vpand ymm12, ymm12, [{nibbles}]",
                "vpand ymm13, ymm13, [{nibbles}]",
                $(octet!(@next $left $right concat!("4 * ", $i, " + 4 * ", $rows)),)*
                a = in(reg) $a.as_ptr(),
                b = in(reg) $b.as_ptr(),
                nibbles = in(reg) NIBBLES.0.as_ptr(),
                $(inout($left) $sums[$i][0], inout($right) $sums[$i][1],)*
                out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
    };
    (@first $left:tt $right:tt $at:expr) => {
        concat!(
            "vpbroadcastd ymm14, [{a} + ", $at, "]\n",
            "vpmaddubsw ", $left, ", ymm12, ymm14\n",
            "vpmaddubsw ", $right, ", ymm13, ymm14",
        )
    };
    (@next $left:tt $right:tt $at:expr) => {
        concat!(
            "vpbroadcastd ymm14, [{a} + ", $at, "]\n",
            "vpmaddubsw ymm15, ymm12, ymm14\n",
            "vpaddw ", $left, ", ", $left, ", ymm15\n",
            "vpmaddubsw ymm14, ymm13, ymm14\n",
            "vpaddw ", $right, ", ", $right, ", ymm14",
        )
    };
}

#[repr(align(32))]
struct Nibbles([u8; 32]);
static NIBBLES: Nibbles = Nibbles([15; 32]);

/// Sums in i16 of products over octets, at most 4: the neighbours of each column are still apart. A macro, since it
/// must not become a call, which would pass the sums through memory.
macro_rules! products {
    ($R:ident, $count:literal, $octets:expr, $groups:expr) => {{
        const { assert!($count >= 1 && $count * OCTET * 15 * 128 / 2 <= i16::MAX as usize) };
        let (octets, groups): (&[Octet; $count], &[Groups<$R>; $count]) = (&$octets, &$groups);
        let mut sums: Sums<$R> = [[_mm256_setzero_si256(); 2]; $R];
        for o in 0..$count {
            let (b, a) = (&octets[o], &groups[o]);
            match ($R, o) {
                (..4, _) => few(&mut sums, b, a),
                _ if cfg!(miri) => few(&mut sums, b, a),
                (4, 0) => octet!(first 4, sums, b, a),
                (4, _) => octet!(next 4, sums, b, a),
                (5, 0) => octet!(first 5, sums, b, a),
                (5, _) => octet!(next 5, sums, b, a),
                (_, 0) => octet!(first 6, sums, b, a),
                (_, _) => octet!(next 6, sums, b, a),
            }
        }
        sums
    }};
}

/// Adds the dot products of a block to the sums of a tile; a macro as the one above.
macro_rules! add_block {
    (
        $R:ident, $dots:expr, $at:expr,
        $scales:ident, $zero_points:ident, $a_scales:ident, $corrections:ident, $sums:ident
    ) => {{
        let (dots, scales, a_scales, corrections) = ($dots, &$scales[$at], &$a_scales[$at], &$corrections[$at]);
        if $R < 4 {
            prefetch(scales.as_ptr().cast());
        }
        let mut add = |i: usize, h: usize, correction| {
            let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dots[i][h], correction));
            let real = _mm256_mul_ps(dot, _mm256_set1_ps(a_scales[i]));
            store(
                _mm256_fmadd_ps(real, load(&scales[h]), load(&$sums[i][h])),
                &mut $sums[i][h],
            );
        };
        if let Some(zero_points) = $zero_points.get($at) {
            let zero_points = [widen(&zero_points[0]), widen(&zero_points[1])];
            for i in 0..$R {
                let correction = _mm256_set1_epi32(corrections[i]);
                // The upper halves of the zero points' lanes are 0, and both factors fit i16: a product of i32,
                // cheaply.
                add(i, 0, _mm256_madd_epi16(zero_points[0], correction));
                add(i, 1, _mm256_madd_epi16(zero_points[1], correction));
            }
        } else {
            for i in 0..$R {
                let correction = _mm256_set1_epi32(corrections[i]);
                add(i, 0, correction);
                add(i, 1, correction);
            }
        }
    }};
}

#[target_feature(enable = "avx2,fma")]
fn multiply_int8<const R: usize>(a: QuantizedTile<'_>, b: Panel<'_>, sums: &mut [f32]) {
    let (sums, _) = sums.as_chunks_mut::<8>();
    let Some(sums) = sums.as_chunks_mut::<2>().0.first_chunk_mut::<R>() else {
        return;
    };
    let octets = b.integers.as_chunks::<{ COLUMNS * 4 }>().0;
    let groups = a.groups.as_chunks::<R>().0.as_chunks::<2>().0;
    let zero_points = match b.zero_points {
        ZeroPoints::Common(_) => &[],
        ZeroPoints::Each(each) => each.as_chunks::<8>().0.as_chunks::<2>().0,
    };
    let blocks = octets.len().div_ceil(b.octets);
    let scales = &b.scales.as_chunks::<8>().0.as_chunks::<2>().0[..blocks];
    let (a_scales, corrections) = (
        &a.scales.as_chunks::<R>().0[..blocks],
        &a.corrections.as_chunks::<R>().0[..blocks],
    );
    let mut done = 0;
    if b.octets == 4 {
        // Blocks of 32 are the most usual, and short.
        for (quad, groups) in octets.as_chunks::<4>().0.iter().zip(groups.as_chunks::<4>().0) {
            let dots = pairs(products!(R, 4, *quad, *groups));
            add_block!(R, dots, done, scales, zero_points, a_scales, corrections, sums);
            done += 1;
        }
    }
    let all = octets.chunks(b.octets).zip(groups.chunks(b.octets));
    for (at, (octets, groups)) in all.enumerate().skip(done) {
        add_block!(
            R,
            dots(octets, groups),
            at,
            scales,
            zero_points,
            a_scales,
            corrections,
            sums
        );
    }
}

/// Sums of products over one block.
#[inline(never)]
#[target_feature(enable = "avx2")]
fn dots<const R: usize>(octets: &[Octet], groups: &[Groups<R>]) -> Sums<R> {
    let mut dots = [[_mm256_setzero_si256(); 2]; R];
    let mut add = |sums: Sums<R>| {
        for i in 0..R {
            for h in 0..2 {
                dots[i][h] = _mm256_add_epi32(dots[i][h], sums[i][h]);
            }
        }
    };
    let ((quads, octets), (quad_groups, groups)) = (octets.as_chunks::<4>(), groups.as_chunks::<4>());
    for (quad, groups) in quads.iter().zip(quad_groups) {
        add(pairs(products!(R, 4, *quad, *groups)));
    }
    let ((duos, octets), (duo_groups, groups)) = (octets.as_chunks::<2>(), groups.as_chunks::<2>());
    if let ([duo], [groups]) = (duos, duo_groups) {
        add(pairs(products!(R, 2, *duo, *groups)));
    }
    if let ([octet], [groups]) = (octets, groups) {
        add(pairs(products!(R, 1, [*octet], [*groups])));
    }
    dots
}

/// Adds neighbours, in i32.
#[inline]
#[target_feature(enable = "avx2")]
fn pairs<const R: usize>(mut sums: Sums<R>) -> Sums<R> {
    for sum in sums.as_flattened_mut() {
        *sum = _mm256_madd_epi16(*sum, _mm256_set1_epi16(1));
    }
    sums
}

/// Adds products over one octet to sums that leave registers to spare.
#[inline]
#[target_feature(enable = "avx2")]
fn few<const R: usize>(sums: &mut Sums<R>, b: &Octet, a: &Groups<R>) {
    prefetch(b.as_ptr());
    let nibble = _mm256_set1_epi8(15);
    let (halves, _) = b.as_chunks::<32>();
    for h in 0..2 {
        let b = load_bytes(&halves[h]);
        let b = [
            _mm256_and_si256(b, nibble),
            _mm256_and_si256(_mm256_srli_epi16::<4>(b), nibble),
        ];
        for i in 0..R {
            for g in 0..2 {
                let product = _mm256_maddubs_epi16(b[g], _mm256_set1_epi32(a[g][i]));
                sums[i][h] = _mm256_add_epi16(sums[i][h], product);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn dequantize(b: Panel<'_>, out: &mut [f32]) {
    let nibble = _mm256_set1_epi32(15);
    let blocks = b.integers.as_chunks::<{ COLUMNS * 4 }>().0.chunks(b.octets);
    let (rows, _) = out.as_chunks_mut::<8>();
    let outs = rows
        .as_chunks_mut::<2>()
        .0
        .as_chunks_mut::<OCTET>()
        .0
        .chunks_mut(b.octets);
    let scales = b.scales.as_chunks::<8>().0.as_chunks::<2>().0;
    for (at, ((octets, scales), outs)) in blocks.zip(scales).zip(outs).enumerate() {
        let zero_points = match b.zero_points {
            ZeroPoints::Common(common) => [_mm256_set1_epi32(i32::from(common)); 2],
            ZeroPoints::Each(each) => {
                let (halves, _) = each.as_chunks::<8>();
                [widen(&halves[2 * at]), widen(&halves[2 * at + 1])]
            }
        };
        let scales = [load(&scales[0]), load(&scales[1])];
        for (octet, rows) in octets.iter().zip(outs) {
            let (halves, _) = octet.as_chunks::<32>();
            // A lane holds the eight values of a column.
            let halves = [load_bytes(&halves[0]), load_bytes(&halves[1])];
            for (row, shift) in rows.iter_mut().zip([0, 8, 16, 24, 4, 12, 20, 28]) {
                for h in 0..2 {
                    let q = _mm256_and_si256(_mm256_srl_epi32(halves[h], _mm_cvtsi32_si128(shift)), nibble);
                    let centred = _mm256_cvtepi32_ps(_mm256_sub_epi32(q, zero_points[h]));
                    store(_mm256_mul_ps(centred, scales[h]), &mut row[h]);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn multiply_f32<const R: usize>(a: &[f32], b: &[f32], sums: &mut [f32]) {
    let (sums, _) = sums.as_chunks_mut::<8>();
    let Some(out) = sums.as_chunks_mut::<2>().0.first_chunk_mut::<R>() else {
        return;
    };
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    for i in 0..R {
        sums[i] = [load(&out[i][0]), load(&out[i][1])];
    }
    let (b, _) = b.as_chunks::<8>();
    for (a, b) in a.as_chunks::<R>().0.iter().zip(b.as_chunks::<2>().0) {
        let b = [load(&b[0]), load(&b[1])];
        for i in 0..R {
            let a = _mm256_set1_ps(a[i]);
            sums[i][0] = _mm256_fmadd_ps(a, b[0], sums[i][0]);
            sums[i][1] = _mm256_fmadd_ps(a, b[1], sums[i][1]);
        }
    }
    for i in 0..R {
        store(sums[i][0], &mut out[i][0]);
        store(sums[i][1], &mut out[i][1]);
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn prefetch(from: *const u8) {
    #[allow(unused_unsafe, reason = "a safe function in later versions of Rust")]
    // SAFETY: any address may be prefetched.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(PREFETCH).cast());
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen(x: &[u8; 8]) -> __m256i {
    // SAFETY: `x` is 8 readable bytes, and `loadu` needs no alignment.
    _mm256_cvtepu8_epi32(unsafe { _mm_loadu_si64(x.as_ptr()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn load_bytes(x: &[u8; 32]) -> __m256i {
    // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}
