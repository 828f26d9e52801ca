//! Products with block-quantized 4-bit weights on one thread: every kernel and arithmetic, square, transformer and
//! skinny shapes. A throughput of 1 Gelem/s is 1 GOPS, a multiplication and an addition being two.
#![allow(missing_docs, reason = "criterion's macros define undocumented functions")]
#![allow(clippy::cast_possible_truncation, reason = "test data")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_core::{
    arrays::{Bytes, Matrix},
    gemm::blocked::{Activations, PackedBlocks, matmul},
    kernels::blocked_gemm,
};

const SHAPES: [(usize, usize, usize); 5] = [
    (512, 512, 512),
    (1024, 1024, 1024),
    (128, 768, 3072),
    (16, 4096, 4096),
    (1, 4096, 4096),
];

fn products(c: &mut Criterion) {
    for (m, k, n) in SHAPES {
        // A multiplicative walk through the integers: spread evenly, and the same in each run.
        let spread = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
        let a: Vec<f32> = (0..m * k).map(|i| f32::from(spread(i)) - 128.0).collect();
        let b: Vec<u8> = (0..k * n).map(|i| spread(i) >> 4).collect();
        let b = Matrix::new(Bytes::U8(&b), k, n).unwrap();
        let mut out = vec![0.0; m * n];
        for block_size in [32, 128] {
            let scales = vec![0.01; k / block_size * n];
            let each: Vec<i32> = (0..scales.len()).map(|i| i32::from(spread(i) >> 4)).collect();
            let mut group = c.benchmark_group(format!("blocked_gemm/{m}x{k}x{n}/{block_size}"));
            group.throughput(Throughput::Elements((2 * m * k * n) as u64));
            for kernel in blocked_gemm::available() {
                for (zero_points, name) in [(&[8][..], "one zero point"), (&each, "a zero point each")] {
                    let packed = PackedBlocks::with_kernel(kernel, b, block_size, &scales, zero_points).unwrap();
                    for activations in Activations::ALL {
                        let id = BenchmarkId::new(format!("{}, {name}", activations.name()), kernel.name());
                        group.bench_function(id, |bench| {
                            bench.iter(|| matmul(&a, m, &packed, activations, &[], &mut out, 1).unwrap());
                        });
                    }
                }
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = products
}
criterion_main!(benches);
