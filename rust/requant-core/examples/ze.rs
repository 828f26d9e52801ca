#![allow(warnings)]
use requant_core::{
    arrays::*,
    kernels::elementwise::{self, *},
    kernels::rounding::Rounding,
};
use std::time::Instant;
fn main() {
    for n in [1usize << 12, 1 << 16, 1 << 20, 1 << 24] {
        for run in [usize::MAX, 16, 1] {
            let x: Vec<f32> = (0..n)
                .map(|i| ((i.wrapping_mul(2_654_435_761) >> 13) & 0xffff) as f32 / 300.0 - 100.0)
                .collect();
            let slices = if run == usize::MAX { 1 } else { n.div_ceil(run) };
            let scale = vec![0.9f32; slices];
            let zp = vec![128i32; slices];
            let s = Slices {
                run: if run == usize::MAX { n } else { run },
                scale: &scale,
                zero_point: &zp,
                limits: (0, 255),
            };
            let (mut inv, mut min, mut max) = (vec![0f32; slices], vec![0f32; slices], vec![0f32; slices]);
            let mut q = vec![0u8; n];
            let mut y = vec![0f32; n];
            let ks: Vec<_> = elementwise::available().filter(|k| k.name() != "generic").collect();
            let reps = ((1usize << 22) / n).max(1);
            let mut best = vec![[f64::MAX; 3]; ks.len()];
            for _ in 0..8 {
                for (i, k) in ks.iter().enumerate() {
                    let ord = k.prepare(s, &mut inv, &mut min, &mut max);
                    let d = Divisors {
                        slices: s,
                        inverse: &inv,
                        min: &min,
                        max: &max,
                        ordinary: ord,
                    };
                    let t = Instant::now();
                    for _ in 0..reps {
                        k.quantize(&x, d, Rounding::Onnx, IntegersMut::U8(&mut q));
                    }
                    best[i][0] = best[i][0].min(t.elapsed().as_secs_f64());
                    let t = Instant::now();
                    for _ in 0..reps {
                        k.dequantize(Integers::U8(&q), s, n > 1 << 22, &mut y);
                    }
                    best[i][1] = best[i][1].min(t.elapsed().as_secs_f64());
                    let t = Instant::now();
                    for _ in 0..reps {
                        k.fake_quantize(&x, d, Rounding::Onnx, &mut y);
                    }
                    best[i][2] = best[i][2].min(t.elapsed().as_secs_f64());
                }
            }
            print!("n {n} run {run}:");
            for (i, k) in ks.iter().enumerate() {
                let g = |b: f64| (n * reps) as f64 / b / 1e9;
                print!(
                    "   {} q {:.1} dq {:.1} fq {:.1}",
                    k.name(),
                    g(best[i][0]),
                    g(best[i][1]),
                    g(best[i][2])
                );
            }
            println!();
        }
    }
}
