//! Products of matrices and convolutions.

use requant_core::{
    QuantType,
    arrays::{Bytes, Matrix},
    conv::{Filters, Geometry, Images, PackedConv, conv2d},
    gemm::{
        Dequantize, Output, PackedWeights,
        blocked::{self, Activations, PackedBlocks},
        matmul,
    },
    kernels::{
        blocked_gemm::{self, BlockedKernel},
        depthwise::{self, DepthwiseKernel},
        gemm::{self, GemmKernel},
    },
    requantize::{Requantizer, Rounding, Scales},
};

use crate::{bits, compare, noise, reals, signed};

/// Each number of rows that a tile can have, with a tail of K and of N.
#[test]
fn products() {
    let (k, n) = (17, 9);
    let b = noise(k * n);
    let b = Matrix::new(Bytes::U8(&b), k, n).unwrap();
    for m in 1..=if cfg!(miri) { 7 } else { 14 } {
        let (unsigned, signed) = (noise(m * k), signed(&noise(m * k)));
        for a in [Bytes::U8(&unsigned), Bytes::I8(&signed)] {
            compare(gemm::available(), |kernel: &'static dyn GemmKernel| {
                let b = PackedWeights::with_kernel(kernel, b, &[7]).unwrap();
                let mut sums = vec![0; m * n];
                matmul(Matrix::new(a, m, k).unwrap(), &[3], &b, Output::I32(&mut sums), 1).unwrap();
                sums
            });
        }
    }
}

#[test]
fn results_of_products() {
    let (m, k, n) = (2, 5, 19);
    let (a, b) = (noise(m * k), noise(k * n));
    let (a, b) = (
        Matrix::new(Bytes::U8(&a), m, k).unwrap(),
        Matrix::new(Bytes::U8(&b), k, n).unwrap(),
    );
    let columns: Vec<f32> = (0..n).map(|j| 1e-3 * (1 + j) as f32).collect();
    let scales = Scales {
        a: 0.3,
        b: &columns,
        y: 1.7,
    };
    let new = |dtype, zero_point| Requantizer::new(Rounding::HalfEvenFloat, scales, dtype, zero_point).unwrap();
    let (to_u8, to_i8) = (new(QuantType::U8, 9), new(QuantType::I8, -9));
    compare(gemm::available(), |kernel: &'static dyn GemmKernel| {
        let b = PackedWeights::with_kernel(kernel, b, &[7]).unwrap();
        let (mut reals, mut u8s, mut i8s) = (vec![0.0; m * n], vec![0; m * n], vec![0; m * n]);
        let dequantize = Dequantize {
            a: &[0.5],
            b: &columns,
            bias: &columns,
        };
        matmul(a, &[3], &b, Output::F32(&mut reals, dequantize), 1).unwrap();
        matmul(a, &[3], &b, Output::U8(&mut u8s, &to_u8), 1).unwrap();
        matmul(a, &[3], &b, Output::I8(&mut i8s, &to_i8), 1).unwrap();
        (bits(&reals), u8s, i8s)
    });
}

/// Threads write to parts of one array.
#[test]
fn threads() {
    let (a, b) = (noise(40 * 5), noise(5 * 33));
    let (a, b) = (
        Matrix::new(Bytes::U8(&a), 40, 5).unwrap(),
        Matrix::new(Bytes::U8(&b), 5, 33).unwrap(),
    );
    compare([3, 1].into_iter(), |threads| {
        let mut out = vec![0; 40 * 33];
        matmul(
            a,
            &[0],
            &PackedWeights::new(b, &[0]).unwrap(),
            Output::I32(&mut out),
            threads,
        )
        .unwrap();
        out
    });
}

/// Channels and widths that fill no vector, in both kinds of kernels.
#[test]
fn convolutions() {
    let product = gemm::by_name("generic").unwrap();
    for (width, channels, dtype) in [(1, 19, QuantType::U8), (4, 3, QuantType::U8), (7, 16, QuantType::I8)] {
        let (shape, filters) = ([1, 1, width, channels], [channels, 1, 3, 3]);
        let (unsigned, w) = (noise(width * channels), signed(&noise(channels * 9)));
        let signed = signed(&unsigned);
        let x = if dtype.signed() {
            Bytes::I8(&signed)
        } else {
            Bytes::U8(&unsigned)
        };
        let columns = vec![1e-3; channels];
        let scales = Scales {
            a: 0.3,
            b: &columns,
            y: 1.7,
        };
        let requantizer = Requantizer::new(Rounding::HalfEvenFloat, scales, QuantType::U8, 90).unwrap();
        compare(depthwise::available(), |kernel: &'static dyn DepthwiseKernel| {
            let filters = Filters {
                data: Bytes::I8(&w),
                shape: filters,
                zero_point: &[1],
            };
            let geometry = Geometry {
                strides: [1; 2],
                dilations: [1; 2],
                pads: [1; 4],
                groups: channels,
            };
            let conv = PackedConv::with_kernels(product, kernel, filters, geometry).unwrap();
            let images = Images::new(x, shape, 2).unwrap();
            let size = conv.output_shape(shape).unwrap().iter().product();
            let (mut sums, mut bytes) = (vec![0; size], vec![0; size]);
            conv2d(images, &conv, Output::I32(&mut sums), 1).unwrap();
            conv2d(images, &conv, Output::U8(&mut bytes, &requantizer), 1).unwrap();
            (sums, bytes)
        });
    }
}

#[test]
fn products_with_blocks() {
    // Blocks of 32 have a loop of their own; 56 are cut into four octets, two and one.
    for (block_size, k) in [(16, 21), (32, 35), (64, 56)] {
        let n = 17;
        let nibbles: Vec<u8> = noise(k * n).iter().map(|byte| byte & 15).collect();
        let blocks = k.div_ceil(block_size) * n;
        let each: Vec<i32> = (0..blocks as i32).map(|i| i % 16).collect();
        for m in [1, 2, 3, 6] {
            let a = reals(m * k);
            for zero_points in [&[8][..], &each] {
                compare(blocked_gemm::available(), |kernel: &'static dyn BlockedKernel| {
                    let b = Matrix::new(Bytes::U8(&nibbles), k, n).unwrap();
                    let scales = reals(blocks);
                    let b = PackedBlocks::with_kernel(kernel, b, block_size, &scales, zero_points).unwrap();
                    Activations::ALL.map(|activations| {
                        let mut out = vec![0.0; m * n];
                        blocked::matmul(&a, m, &b, activations, &[], &mut out, 1).unwrap();
                        bits(&out)
                    })
                });
            }
        }
    }
}
