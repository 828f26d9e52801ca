//! AVX2 with FMA: Haswell, Zen and later.

use super::{avx2_bytes, avx2_density, avx2_extrema, avx2_tally};
use crate::kernels::{Bins, Counters, Kernels, Piece, STEPS, Summary, Tail, Terms};

/// Proof that AVX2, FMA and POPCNT were detected: only [`probe`] makes one.
struct Avx2(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn Kernels> {
    static AVX2: Avx2 = Avx2(());
    let detected =
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("popcnt");
    detected.then_some(&AVX2 as &dyn Kernels)
}

impl Kernels for Avx2 {
    fn name(&self) -> &'static str {
        "avx2"
    }

    fn tally(&self, x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
        // SAFETY: an `Avx2` exists only where AVX2, FMA and POPCNT were detected.
        unsafe { avx2_tally::tally(x, inv_width, step, counters) }
    }

    fn extrema(&self, x: &[f32]) -> Option<(f32, f32)> {
        // SAFETY: as above.
        unsafe { avx2_extrema::extrema(x) }
    }

    fn widen(&self, x: &[f32], lo: &mut [f32], hi: &mut [f32]) -> bool {
        // SAFETY: as above.
        unsafe { avx2_extrema::widen(x, lo, hi) }
    }

    fn raise_to_sums(&self, a: &[f32], b: &[f32], peaks: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx2_extrema::raise_to_sums(a, b, peaks) }
    }

    fn largest_sum(&self, x: &[f32]) -> f64 {
        // SAFETY: as above.
        unsafe { avx2_extrema::largest_sum(x) }
    }

    fn cut(&self, tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx2_density::cut(tails, step, first, edges, spreads) }
    }

    fn n_log_n(&self, counts: &[f64], out: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx2_density::n_log_n(counts, out) }
    }

    fn clip(&self, bins: &Bins<'_>, width: usize, least: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx2_density::clip(bins, width, least) }
    }

    fn lose(&self, sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
        // SAFETY: as above.
        unsafe { avx2_density::lose(sums, width, lost) }
    }

    fn add_up(
        &self,
        runs: [&[f32]; 4],
        steps: &[f64; STEPS],
        first: usize,
        from: &[f32; STEPS],
        sums: &mut [[f32; STEPS]],
    ) {
        // SAFETY: as above.
        unsafe { avx2_density::add_up(runs, steps, first, from, sums) }
    }

    fn excess(&self, pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
        // SAFETY: as above.
        unsafe { avx2_density::excess(pieces, end, step, first, count) }
    }

    fn add(&self, a: &[u8], b: &[u8], terms: &Terms, out: &mut [u8]) {
        // SAFETY: as above.
        unsafe { avx2_bytes::add(a, b, terms, out) }
    }

    fn look_up(&self, table: &[u8; 256], x: &[u8], out: &mut [u8]) {
        // SAFETY: as above.
        unsafe { avx2_bytes::look_up(table, x, out) }
    }
}
