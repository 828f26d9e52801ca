//! Every kernel for block-quantized weights equals the definition, to the bit, and the definition is close to the
//! truth.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test data"
)]

mod foreign;
#[path = "../common/mix.rs"]
mod mix;
mod naive;
mod refused;

use foreign::Foreign;
use mix::mix;
use naive::Case;
use proptest::prelude::*;
use requant_core::{
    QuantType,
    arrays::{Bytes, Matrix},
    gemm::blocked::{Activations, PackedBlocks, matmul},
    kernels::blocked_gemm::{self, BlockedKernel},
};

const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];

fn all() -> impl Iterator<Item = &'static dyn BlockedKernel> {
    blocked_gemm::available().chain([&Foreign as &dyn BlockedKernel])
}

/// In -1..1.
fn real(seed: u64, i: usize) -> f32 {
    (mix(seed ^ (i as u64) << 20) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn nibble(seed: u64, i: usize) -> i32 {
    (mix(!seed ^ (i as u64) << 20) >> 60) as i32
}

/// A case of uint4; some scales are negative, as some quantizers make them.
fn case((m, k, n): (usize, usize, usize), block_size: usize, each: bool, seed: u64) -> Case {
    let slots = k.div_ceil(block_size) * n;
    Case {
        m,
        k,
        n,
        block_size,
        a: (0..m * k).map(|i| real(seed, i) * 3.0).collect(),
        q: (0..k * n).map(|i| nibble(seed, i)).collect(),
        scales: (0..slots).map(|i| real(seed + 1, i)).collect(),
        zero_points: if each {
            (0..slots).map(|i| nibble(seed + 2, i)).collect()
        } else {
            vec![8]
        },
        bias: if seed.is_multiple_of(2) {
            Vec::new()
        } else {
            (0..n).map(|i| real(seed + 3, i)).collect()
        },
    }
}

fn pack(kernel: &'static dyn BlockedKernel, case: &Case) -> PackedBlocks {
    let bytes: Vec<u8> = case.q.iter().map(|q| *q as u8).collect();
    let b = Matrix::new(Bytes::U8(&bytes), case.k, case.n).unwrap();
    PackedBlocks::with_kernel(kernel, b, case.block_size, &case.scales, &case.zero_points).unwrap()
}

fn product(b: &PackedBlocks, case: &Case, activations: Activations, threads: usize) -> Vec<f32> {
    let mut out = vec![-77.0; case.m * case.n];
    matmul(&case.a, case.m, b, activations, &case.bias, &mut out, threads).unwrap();
    out
}

fn same(got: f32, want: f32) -> bool {
    got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan())
}

fn check(kernel: &'static dyn BlockedKernel, case: &Case, threads: usize) {
    let packed = pack(kernel, case);
    for activations in Activations::ALL {
        let (got, want) = (product(&packed, case, activations, threads), case.defined(activations));
        let wrong: Vec<usize> = (0..want.len()).filter(|&at| !same(got[at], want[at])).collect();
        if let Some(&at) = wrong.first() {
            panic!(
                "{} {}: [{}, {}] by [_, {}] in blocks of {}, {} zero points, {threads} threads: \
                 at {at} got {}, want {}; {} of {} wrong",
                kernel.name(),
                activations.name(),
                case.m,
                case.k,
                case.n,
                case.block_size,
                case.zero_points.len(),
                got[at],
                want[at],
                wrong.len(),
                want.len(),
            );
        }
    }
}

#[test]
fn every_kernel_is_the_definition_on_odd_shapes() {
    for kernel in all() {
        let tails = (0..=17).flat_map(|m| [0, 1, 15, 16, 17, 33].map(|n| (m, 35, n)));
        let depths = (0..=67)
            .chain([95, 96, 100, 127, 128, 129, 255, 256, 257, 300])
            .map(|k| (2, k, 17));
        for (seed, shape) in tails.chain(depths).enumerate() {
            for each in [false, true] {
                let block_size = BLOCK_SIZES[(seed + usize::from(each)) % 5];
                check(kernel, &case(shape, block_size, each, seed as u64), 1);
            }
        }
    }
}

#[test]
fn every_block_size_meets_every_tail() {
    for kernel in all() {
        for block_size in BLOCK_SIZES {
            for k in [
                block_size - 1,
                block_size,
                block_size + 9,
                2 * block_size,
                3 * block_size - 4,
            ] {
                for m in 1..=7 {
                    check(kernel, &case((m, k, 20), block_size, m % 2 == 0, k as u64), 1);
                }
            }
        }
    }
}

#[test]
fn every_kernel_is_exact_at_the_extremes() {
    for kernel in all() {
        for (q, zero_point) in [(0, 15), (15, 0), (15, 15), (0, 8), (15, 8)] {
            for sign in [1.0, -1.0] {
                for block_size in BLOCK_SIZES {
                    let mut case = case((7, 300, 17), block_size, false, 0);
                    case.a.iter_mut().for_each(|a| *a = 127.0 * sign);
                    case.q.iter_mut().for_each(|x| *x = q);
                    case.zero_points = vec![zero_point; case.scales.len()];
                    case.zero_points[0] = 15 - zero_point; // so that they are not all one
                    check(kernel, &case, 1);
                    case.zero_points = vec![zero_point];
                    case.scales.iter_mut().for_each(|s| *s = 1.0);
                    check(kernel, &case, 1);
                    // With a scale of 1 everywhere, results are integers.
                    let got = product(&pack(kernel, &case), &case, Activations::Int8PerBlock, 1);
                    assert_eq!(got, vec![300.0 * 127.0 * sign * (q - zero_point) as f32; 7 * 17]);
                }
            }
        }
    }
}

#[test]
fn values_that_have_no_scale() {
    let special = [
        0.0,
        -0.0,
        1e-45,
        -1e-44,
        1e-38,
        f32::MIN_POSITIVE,
        1e30,
        f32::MIN,
        f32::INFINITY,
        f32::NAN,
    ];
    for kernel in all() {
        for value in special {
            for everywhere in [false, true] {
                let mut case = case((7, 70, 17), 32, everywhere, 0);
                case.scales.iter_mut().for_each(|s| *s = 1e-3 * s.abs());
                for (i, a) in case.a.iter_mut().enumerate() {
                    if (everywhere && i / 70 == 2) || i == 2 * 70 + 40 {
                        *a = value;
                    }
                }
                check(kernel, &case, 1);
                if value == f32::MIN {
                    continue; // its products overflow
                }
                let packed = pack(kernel, &case);
                for activations in [Activations::Int8PerBlock, Activations::Int8PerRow] {
                    let got = product(&packed, &case, activations, 1);
                    for (at, got) in got.iter().enumerate() {
                        assert_eq!(
                            got.is_nan(),
                            at / 17 == 2 && !value.is_finite(),
                            "{value} at {at}: {got}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn results_are_close_to_those_of_the_reals() {
    for (seed, block_size) in BLOCK_SIZES.into_iter().enumerate() {
        let mut case = case((9, 515, 33), block_size, seed % 2 == 0, seed as u64);
        case.a.iter_mut().step_by(97).for_each(|outlier| *outlier *= 8.0);
        for kernel in all() {
            let packed = pack(kernel, &case);
            let mut errors = Vec::new();
            for activations in Activations::ALL {
                let got = product(&packed, &case, activations, 1);
                let want = case.exact(activations);
                for (at, (got, (want, bound))) in got.iter().zip(&want).enumerate() {
                    let error = (f64::from(*got) - want).abs();
                    assert!(
                        error <= *bound,
                        "{} at {at}: {got} for {want}, beyond {bound}",
                        kernel.name()
                    );
                }
                errors.push(
                    got.iter()
                        .zip(&want)
                        .map(|(got, (want, _))| (f64::from(*got) - want).powi(2))
                        .sum::<f64>(),
                );
            }
            let [per_block, per_row, float] = errors[..] else {
                unreachable!()
            };
            assert!(float < per_block / 1e6, "reals are not quantized: {float} {per_block}");
            assert!(
                block_size == 256 || per_block < per_row,
                "an outlier spoils its block only: {per_block} {per_row}"
            );
        }
    }
}

#[test]
fn threads_and_blocks_do_not_change_the_result() {
    // The second is higher than a block of A, the third longer.
    for (m, k, n) in [(5, 64, 130), (500, 40, 20), (200, 2000, 17), (1, 300, 300)] {
        let case = case((m, k, n), 32, true, 5);
        for kernel in all() {
            let packed = pack(kernel, &case);
            for activations in Activations::ALL {
                let want = case.defined(activations);
                for threads in 0..=4 {
                    let got = product(&packed, &case, activations, threads);
                    let wrong = got.iter().zip(&want).filter(|(got, want)| !same(**got, **want)).count();
                    assert_eq!(wrong, 0, "{} {} {threads}", kernel.name(), activations.name());
                }
            }
        }
    }
}

#[test]
fn weights_unpack_to_themselves() {
    for kernel in all() {
        for (shape, block_size, each) in [
            ((0, 0, 3), 16, true),
            ((0, 5, 0), 32, false),
            ((0, 1, 1), 32, true),
            ((0, 77, 35), 16, true),
            ((0, 300, 33), 128, false),
        ] {
            let case = case(shape, block_size, each, 4);
            let packed = pack(kernel, &case);
            let (k, n) = (case.k, case.n);
            assert_eq!(packed.unpack(), case.q.iter().map(|q| *q as u8).collect::<Vec<_>>());
            assert_eq!(packed.scales(), case.scales);
            let zero_points = if each {
                case.zero_points.clone()
            } else {
                vec![8; case.scales.len()]
            };
            assert_eq!(packed.zero_points(), zero_points);
            let reals: Vec<f32> = (0..k * n).map(|at| case.weight(at / n, at % n)).collect();
            assert_eq!(packed.dequantize(), reals);
            assert_eq!(
                (packed.k(), packed.n(), packed.block_size(), packed.dtype()),
                (k, n, block_size, QuantType::U4)
            );
        }
    }
}

#[test]
fn int4_is_uint4_moved_by_8() {
    let unsigned = case((3, 50, 20), 16, true, 1);
    let signed: Vec<i8> = unsigned.q.iter().map(|q| *q as i8 - 8).collect();
    let zero_points: Vec<i32> = unsigned.zero_points.iter().map(|z| z - 8).collect();
    for kernel in all() {
        let b = Matrix::new(Bytes::I8(&signed), 50, 20).unwrap();
        let packed = PackedBlocks::with_kernel(kernel, b, 16, &unsigned.scales, &zero_points).unwrap();
        assert_eq!(packed.dtype(), QuantType::I4);
        assert_eq!(
            packed.unpack(),
            signed.iter().map(|q| q.cast_unsigned()).collect::<Vec<_>>()
        );
        assert_eq!(packed.zero_points(), zero_points);
        for activations in Activations::ALL {
            assert_eq!(
                product(&packed, &unsigned, activations, 1),
                product(&pack(kernel, &unsigned), &unsigned, activations, 1)
            );
        }
    }
}

#[test]
fn nbits_is_the_transpose_in_nibbles() {
    for (k, each) in [(64, false), (70, true), (33, true)] {
        let case = case((4, k, 5), 32, each, 2);
        let blocks = k.div_ceil(32);
        // Nibbles beyond K are not zero: they must not matter.
        let mut b = vec![0xff; 5 * blocks * 16];
        let set = |bytes: &mut [u8], at: usize, value: i32| {
            let shift = at % 2 * 4;
            bytes[at / 2] = bytes[at / 2] & !(15 << shift) | (value as u8) << shift;
        };
        let (mut scales, mut zero_points) = (vec![0.0; 5 * blocks], vec![0xff; 5 * blocks.div_ceil(2)]);
        for j in 0..5 {
            for at in 0..k {
                set(&mut b[j * blocks * 16..], at, case.q[at * 5 + j]);
            }
            for block in 0..blocks {
                scales[j * blocks + block] = case.scales[block * 5 + j];
                set(
                    &mut zero_points[j * blocks.div_ceil(2)..],
                    block,
                    *case.zero_points.get(block * 5 + j).unwrap_or(&8),
                );
            }
        }
        let packed = PackedBlocks::from_nbits(&b, (k, 5), 32, &scales, each.then_some(&zero_points)).unwrap();
        assert_eq!(
            product(&packed, &case, Activations::Float, 1),
            case.defined(Activations::Float)
        );
        assert!(
            PackedBlocks::from_nbits(&b[1..], (k, 5), 32, &scales, None)
                .unwrap_err()
                .to_string()
                .starts_with("b has")
        );
        assert!(
            PackedBlocks::from_nbits(&b, (k, 5), 32, &scales[1..], None)
                .unwrap_err()
                .to_string()
                .starts_with("scales has")
        );
        assert!(
            PackedBlocks::from_nbits(&b, (k, 5), 32, &scales, Some(&[]))
                .unwrap_err()
                .to_string()
                .starts_with("zero_points has")
        );
        assert!(
            PackedBlocks::from_nbits(&b, (k, 5), 24, &scales, None)
                .unwrap_err()
                .to_string()
                .contains("block_size 24")
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_product_is_the_defined_one(
        shape in (0usize..20, 0usize..300, 0usize..40),
        block in 0usize..5,
        seed: u64,
        each: bool,
        threads in 1usize..4,
    ) {
        let case = case(shape, BLOCK_SIZES[block], each, seed >> 8);
        for kernel in all() {
            check(kernel, &case, threads);
        }
    }
}
