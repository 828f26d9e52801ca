//! The definition of every kernel, in plain Rust.

use super::{BINS, Counters, Kernels, LANES, Summary, WAYS};

pub(super) struct Generic;

#[expect(clippy::unnecessary_wraps, reason = "the signature of every probe")]
pub(super) fn probe() -> Option<&'static dyn Kernels> {
    Some(&Generic)
}

impl Kernels for Generic {
    fn name(&self) -> &'static str {
        "generic"
    }

    fn tally(&self, x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) -> Option<Summary> {
        let mut lanes = Lanes::default();
        lanes.absorb(x, inv_width, step, counters);
        lanes.finish()
    }
}

/// A [`Summary`] in the making.
pub(super) struct Lanes {
    pub(super) min: f32,
    pub(super) max: f32,
    pub(super) sum: [f64; LANES],
    pub(super) sum_sq: [f64; LANES],
    pub(super) zeros: u32,
}

impl Default for Lanes {
    fn default() -> Self {
        Self {
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
            sum: [0.0; LANES],
            sum_sq: [0.0; LANES],
            zeros: 0,
        }
    }
}

impl Lanes {
    /// Takes in `x`, whose first value goes to lane 0 and table 0.
    pub(super) fn absorb(&mut self, x: &[f32], inv_width: f32, step: u32, counters: &mut Counters) {
        for group in x.chunks(LANES) {
            for (lane, &v) in group.iter().enumerate() {
                self.min = if v < self.min { v } else { self.min };
                self.max = if v > self.max { v } else { self.max };
                let wide = f64::from(v);
                self.sum[lane] += wide;
                self.sum_sq[lane] += wide * wide;
                self.zeros += u32::from(v == 0.0);
                let counter = &mut counters[lane % WAYS][slot(v, inv_width)];
                *counter = counter.wrapping_add(step);
            }
        }
    }

    /// The square of a finite f32 is far from the end of f64, so their sum is finite if and only if every value is.
    pub(super) fn finish(self) -> Option<Summary> {
        let sum_sq = add_halves(self.sum_sq);
        sum_sq.is_finite().then(|| Summary {
            min: self.min + 0.0, // -0 + 0 is 0
            max: self.max + 0.0,
            sum: add_halves(self.sum),
            sum_sq,
            zeros: self.zeros,
        })
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "wraps around the table")]
fn slot(v: f32, inv_width: f32) -> usize {
    let bin = ((v * inv_width) as i32).wrapping_sub(i32::from(v < 0.0));
    bin as u32 as usize % BINS
}

fn add_halves(mut lanes: [f64; LANES]) -> f64 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
