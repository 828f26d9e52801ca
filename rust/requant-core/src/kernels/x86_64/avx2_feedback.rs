//! The inner loops of GPTQ on AVX2 and FMA.

#[allow(
    clippy::wildcard_imports,
    reason = "the names are long and their prefix is unmistakable"
)]
use std::arch::x86_64::*;

use crate::kernels::{
    feedback::{Columns, Factors, FeedbackKernel, LANES, LaneGrids, PANEL},
    generic_feedback as generic,
};

/// Proof that AVX2 and FMA were detected: only [`probe`] makes one.
struct Avx2Feedback(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn FeedbackKernel> {
    static AVX2: Avx2Feedback = Avx2Feedback(());
    (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(&AVX2 as &dyn FeedbackKernel)
}

impl FeedbackKernel for Avx2Feedback {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn subtract(&self, left: &[[f64; PANEL]], right: &[[f64; PANEL]], out: &mut [[f64; PANEL]; PANEL]) {
        // SAFETY: an `Avx2Feedback` exists only where AVX2 and FMA were detected.
        unsafe {
            for (quarter, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
                subtract(left, right, 4 * quarter, out);
            }
        }
    }

    fn solve(&self, triangle: &[f64], x: &mut [[f64; PANEL]]) {
        // SAFETY: an `Avx2Feedback` exists only where AVX2 and FMA were detected.
        unsafe { solve(triangle, x) }
    }

    fn quantize(&self, columns: Columns<'_>, grids: &[LaneGrids], blocks: &[u32], limits: (f32, f32)) {
        // SAFETY: an `Avx2Feedback` exists only where AVX2 and FMA were detected.
        unsafe { quantize(columns, grids, blocks, limits) }
    }

    fn relax(&self, carried: &mut [[f32; LANES]], factors: Factors<'_>) {
        // SAFETY: an `Avx2Feedback` exists only where AVX2 and FMA were detected.
        unsafe { relax(carried, factors) }
    }
}

/// Four columns of the tile, from `first` on: 12 accumulators, 3 registers for `left`, 1 for `right`.
#[target_feature(enable = "avx2,fma")]
fn subtract(left: &[[f64; PANEL]], right: &[[f64; PANEL]], first: usize, out: &mut [[f64; PANEL]; 4]) {
    let mut sums = [[_mm256_setzero_pd(); 3]; 4];
    for (sums, out) in sums.iter_mut().zip(out.iter()) {
        for (sum, out) in sums.iter_mut().zip(out.as_chunks().0) {
            *sum = load(out);
        }
    }
    for (left, right) in left.iter().zip(right) {
        let (vectors, _) = left.as_chunks();
        let left = [load(&vectors[0]), load(&vectors[1]), load(&vectors[2])];
        let right: &[f64; 4] = &right.as_chunks().0[first / 4];
        for j in 0..4 {
            let right = _mm256_set1_pd(right[j]);
            for i in 0..3 {
                sums[j][i] = _mm256_fnmadd_pd(left[i], right, sums[j][i]);
            }
        }
    }
    for (sums, out) in sums.iter().zip(out) {
        for (sum, out) in sums.iter().zip(out.as_chunks_mut().0) {
            store(*sum, out);
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn solve(triangle: &[f64], x: &mut [[f64; PANEL]]) {
    generic::solve(triangle, x);
}

#[target_feature(enable = "avx2,fma")]
fn quantize(columns: Columns<'_>, grids: &[LaneGrids], blocks: &[u32], limits: (f32, f32)) {
    generic::quantize(columns, grids, blocks, limits);
}

#[target_feature(enable = "avx2,fma")]
fn relax(carried: &mut [[f32; LANES]], factors: Factors<'_>) {
    generic::relax(carried, factors);
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(x: &[f64; 4]) -> __m256d {
    // SAFETY: `x` is 32 readable bytes, and `loadu` needs no alignment.
    unsafe { _mm256_loadu_pd(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(v: __m256d, out: &mut [f64; 4]) {
    // SAFETY: `out` is 32 writable bytes, and `storeu` needs no alignment.
    unsafe { _mm256_storeu_pd(out.as_mut_ptr(), v) }
}
