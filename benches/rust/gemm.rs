//! The integer GEMM on one thread: every kernel, every output, square, transformer, convolution and skinny shapes. A
//! throughput of 1 Gelem/s is 1 GOPS, a multiplication and an addition being two; `peak` is the limit of AVX2.
#![allow(missing_docs, reason = "criterion's macros define undocumented functions")]
#![allow(clippy::cast_possible_truncation, reason = "test data")]

mod peak;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use requant_core::{
    QuantType,
    arrays::{Bytes, Matrix},
    gemm::{Dequantize, Output, PackedWeights, matmul},
    kernels::gemm,
    requantize::{Requantizer, Rounding, Scales},
};

const SHAPES: [(usize, usize, usize); 7] = [
    (512, 512, 512),
    (1024, 1024, 1024),
    (128, 768, 3072),
    (196, 2304, 256),
    (3136, 576, 64),
    (16, 4096, 4096),
    (1, 4096, 4096),
];

fn products(c: &mut Criterion) {
    for (m, k, n) in SHAPES {
        // A multiplicative walk through the integers: spread evenly, and the same in each run.
        let spread = |i: usize| (i.wrapping_mul(2_654_435_761) >> 13) as u8;
        let a: Vec<u8> = (0..m * k).map(spread).collect();
        let unsigned: Vec<u8> = (0..k * n).map(spread).collect();
        let signed: Vec<i8> = unsigned.iter().map(|v| v.cast_signed()).collect();
        let a = Matrix::new(Bytes::U8(&a), m, k).unwrap();
        let (mut sums, mut reals, mut bytes) = (vec![0; m * n], vec![0.0; m * n], vec![0; m * n]);
        let (scale, bias) = (vec![0.01; n], vec![0.5; n]);
        let scales = Scales {
            a: 0.01,
            b: &scale,
            y: 1.0,
        };
        let mut group = c.benchmark_group(format!("gemm/{m}x{k}x{n}"));
        group.throughput(Throughput::Elements((2 * m * k * n) as u64));
        for kernel in gemm::available() {
            let pack = |b| PackedWeights::with_kernel(kernel, Matrix::new(b, k, n).unwrap(), &[0]).unwrap();
            let (s8, u8) = (pack(Bytes::I8(&signed)), pack(Bytes::U8(&unsigned)));
            let id = |what: &str| BenchmarkId::new(what, kernel.name());
            group.bench_function(id("pack"), |b| b.iter(|| pack(Bytes::I8(&signed))));
            for (name, weights) in [("u8s8 to i32", &s8), ("u8u8 to i32", &u8)] {
                group.bench_function(id(name), |b| {
                    b.iter(|| matmul(a, &[128], weights, Output::I32(&mut sums), 1).unwrap());
                });
            }
            let real = Dequantize {
                a: &[0.01],
                b: &scale,
                bias: &bias,
            };
            group.bench_function(id("u8s8 to f32"), |b| {
                b.iter(|| matmul(a, &[128], &s8, Output::F32(&mut reals, real), 1).unwrap());
            });
            for rounding in Rounding::ALL {
                let to_u8 = Requantizer::new(rounding, scales, QuantType::U8, 128).unwrap();
                group.bench_function(id(&format!("u8s8 to u8, {}", rounding.name())), |b| {
                    b.iter(|| matmul(a, &[128], &s8, Output::U8(&mut bytes, &to_u8), 1).unwrap());
                });
            }
        }
    }
}

fn limit(c: &mut Criterion) {
    let mut group = c.benchmark_group("gemm");
    group.throughput(Throughput::Elements(peak::run()));
    group.bench_function("peak", |b| b.iter(peak::run));
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = limit, products
}
criterion_main!(benches);
