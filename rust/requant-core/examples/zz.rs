#![allow(warnings)]
use requant_core::{
    arrays::{Bytes, Matrix},
    gemm::blocked::{Activations, PackedBlocks, matmul},
    kernels::blocked_gemm,
};
use std::time::Instant;
fn main() {
    for (m, k, n) in [
        (512, 512, 512),
        (1024, 1024, 1024),
        (128, 768, 3072),
        (16, 4096, 4096),
        (1, 4096, 4096),
    ] {
        for bs in [32usize, 128] {
            let spread = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
            let a: Vec<f32> = (0..m * k).map(|i| f32::from(spread(i)) - 128.0).collect();
            let b: Vec<u8> = (0..k * n).map(|i| spread(i) >> 4).collect();
            let b = Matrix::new(Bytes::U8(&b), k, n).unwrap();
            let mut out = vec![0.0; m * n];
            let scales = vec![0.01; k / bs * n];
            let packs: Vec<_> = blocked_gemm::available()
                .filter(|k| k.name() != "generic")
                .map(|kk| PackedBlocks::with_kernel(kk, b, bs, &scales, &[8]).unwrap())
                .collect();
            for act in [Activations::Int8PerBlock, Activations::Float] {
                let mut best = vec![f64::MAX; packs.len()];
                for _ in 0..15 {
                    for (i, p) in packs.iter().enumerate() {
                        let t = Instant::now();
                        matmul(&a, m, p, act, &[], &mut out, 1).unwrap();
                        best[i] = best[i].min(t.elapsed().as_secs_f64());
                    }
                }
                print!("{m}x{k}x{n}/{bs} {}:", act.name());
                for (i, p) in packs.iter().enumerate() {
                    print!(
                        "  {} {:.0}",
                        p.kernel().name(),
                        2.0 * (m * k * n) as f64 / best[i] / 1e9
                    );
                }
                println!();
            }
        }
    }
}
