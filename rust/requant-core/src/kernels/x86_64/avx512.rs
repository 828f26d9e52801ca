//! AVX-512 with bytes and words: Skylake-X, Zen 4 and later.

use super::{avx2, avx512_density, avx512_tally};
use crate::kernels::{Bins, Counters, Kernels, Piece, STEPS, Summary, Tail, generic};

/// Proof that AVX-512 was detected: only [`probe`] makes one.
struct Avx512(());

pub(in crate::kernels) fn probe() -> Option<&'static dyn Kernels> {
    static SET: Avx512 = Avx512(());
    detected().then_some(&SET as &dyn Kernels)
}

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("popcnt")
}

impl Kernels for Avx512 {
    fn name(&self) -> &'static str {
        "avx512"
    }

    fn base(&self) -> &'static dyn Kernels {
        avx2::probe().unwrap_or(&generic::Generic)
    }

    fn tally(&self, x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
        // SAFETY: an `Avx512` exists only where AVX-512 and POPCNT were detected.
        unsafe { avx512_tally::tally(x, inv_width, step, counters) }
    }

    fn cut(&self, tails: &[Tail], step: f64, first: usize, edges: &mut [Tail], spreads: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx512_density::cut(tails, step, first, edges, spreads) }
    }

    fn n_log_n(&self, counts: &[f64], out: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx512_density::n_log_n(counts, out) }
    }

    fn clip(&self, bins: &Bins<'_>, width: usize, least: &mut [f64]) {
        // SAFETY: as above.
        unsafe { avx512_density::clip(bins, width, least) }
    }

    fn lose(&self, sums: [&[f64]; 3], width: usize, lost: &mut [f32]) {
        // SAFETY: as above.
        unsafe { avx512_density::lose(sums, width, lost) }
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
        unsafe { avx512_density::add_up(runs, steps, first, from, sums) }
    }

    fn excess(&self, pieces: &[Piece], end: f64, step: f64, first: usize, count: usize) -> f64 {
        // SAFETY: as above.
        unsafe { avx512_density::excess(pieces, end, step, first, count) }
    }
}
