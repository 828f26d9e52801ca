//! Every GEMM kernel equals the definition, exactly.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test data"
)]

#[path = "../common/bits.rs"]
mod bits;
mod foreign;
#[path = "../common/mix.rs"]
mod mix;
mod naive;
mod operands;
mod shapes;

use bits::zero_points;
use foreign::Foreign;
use operands::Operand;
use proptest::prelude::*;
use requant_core::{
    Error, QuantType,
    arrays::{Bytes, Matrix},
    gemm::{Dequantize, Output, PackedWeights, matmul},
    kernels::gemm::{self, GemmKernel},
    requantize::{Requantizer, Rounding, Scales},
};

fn all() -> impl Iterator<Item = &'static dyn GemmKernel> {
    gemm::available().chain([&Foreign as &dyn GemmKernel])
}

fn check(kernel: &'static dyn GemmKernel, a: &Operand, za: &[i32], b: &Operand, zb: &[i32], threads: usize) {
    let want = naive::matmul(&a.ints, za, &b.ints, zb);
    let packed = PackedWeights::with_kernel(kernel, b.matrix(), zb).unwrap();
    let mut got = vec![-77; want.len()];
    matmul(a.matrix(), za, &packed, Output::I32(&mut got), threads).unwrap();
    let wrong: Vec<usize> = (0..want.len()).filter(|&i| i64::from(got[i]) != want[i]).collect();
    if let Some(&i) = wrong.first() {
        panic!(
            "{}: {} [{}, {}] zero points {} by {} [_, {}] zero points {}, {threads} threads: at {i} got {}, want {}; {} of {} wrong",
            kernel.name(),
            a.bits.dtype,
            a.ints.rows,
            a.ints.columns,
            za.len(),
            b.bits.dtype,
            b.ints.columns,
            zb.len(),
            got[i],
            want[i],
            wrong.len(),
            want.len(),
        );
    }
}

const TYPES: [QuantType; 2] = [QuantType::U8, QuantType::I8];

#[test]
fn every_kernel_is_exact_on_odd_shapes() {
    for kernel in all() {
        for (seed, (m, k, n)) in shapes::odd().enumerate() {
            for (ta, tb) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let seed = seed as u64 * 4 + 2 * ta + tb;
                let (ta, tb) = (TYPES[ta as usize], TYPES[tb as usize]);
                let (a, b) = (Operand::random(ta, m, k, seed), Operand::random(tb, k, n, !seed));
                check(kernel, &a, &[0], &b, &[0], 1);
                check(
                    kernel,
                    &a,
                    &zero_points(ta, m.max(1), seed),
                    &b,
                    &zero_points(tb, n.max(1), seed),
                    1,
                );
            }
        }
    }
}

#[test]
fn every_kernel_is_exact_at_the_extremes() {
    for kernel in all() {
        for ta in TYPES {
            for tb in TYPES {
                for (x, y) in [
                    (0, 0),
                    (255, 128),
                    (255, 127),
                    (128, 128),
                    (127, 127),
                    (128, 255),
                    (255, 255),
                    (0, 128),
                ] {
                    let (a, b) = (Operand::new(ta, 7, 131, |_| x), Operand::new(tb, 131, 33, |_| y));
                    for za in [ta.min(), 0, ta.max()] {
                        for zb in [tb.min(), 0, tb.max()] {
                            check(kernel, &a, &[za], &b, &[zb], 1);
                        }
                    }
                    // Neighbours of opposite and of equal sign, which pairwise 16-bit sums would saturate on.
                    let a = Operand::new(ta, 7, 131, |i| if i % 3 == 0 { x } else { y });
                    let b = Operand::new(tb, 131, 33, |i| if i % 7 < 3 { y } else { x });
                    check(kernel, &a, &[0], &b, &[0], 1);
                }
            }
        }
    }
}

#[test]
fn every_kernel_is_exact_at_the_longest_sums() {
    for kernel in gemm::available() {
        for (ta, x, tb, y, k) in [
            (QuantType::U8, 255, QuantType::I8, 128, 65_793),
            (QuantType::U8, 255, QuantType::U8, 255, 33_025),
            (QuantType::I8, 128, QuantType::I8, 128, 131_071),
        ] {
            let (a, b) = (Operand::new(ta, 2, k, |_| x), Operand::new(tb, k, 3, |_| y));
            check(kernel, &a, &[0], &b, &[0], 1);
            let b = Operand::new(tb, k + 1, 3, |_| y);
            let a = Operand::new(ta, 2, k + 1, |_| x);
            let packed = PackedWeights::with_kernel(kernel, b.matrix(), &[0]).unwrap();
            let error = matmul(a.matrix(), &[0], &packed, Output::I32(&mut [0; 6]), 1).unwrap_err();
            assert_eq!(error, Error::Accumulator { k: k + 1, limit: k });
            assert!(error.to_string().contains(&format!("at most {k} is safe")), "{error}");
        }
    }
}

#[test]
fn threads_do_not_change_the_result() {
    for kernel in all() {
        for (m, k, n) in [(1, 40, 300), (5, 33, 129), (50, 20, 40), (200, 7, 5), (64, 1, 1)] {
            let (a, b) = (
                Operand::random(QuantType::U8, m, k, 1),
                Operand::random(QuantType::U8, k, n, 2),
            );
            for threads in 0..=4 {
                check(kernel, &a, &zero_points(QuantType::U8, m, 3), &b, &[100], threads);
            }
        }
    }
}

#[test]
fn many_blocks_of_rows_and_automatic_threads() {
    let (m, k, n) = (700, 600, 36);
    let (a, b) = (
        Operand::random(QuantType::I8, m, k, 1),
        Operand::random(QuantType::I8, k, n, 2),
    );
    for kernel in gemm::available() {
        check(kernel, &a, &[3], &b, &zero_points(QuantType::I8, n, 4), 0);
    }
}

#[test]
fn strided_rows_equal_a_copy() {
    let (m, k, n, stride) = (9, 37, 20, 41);
    let wide = Operand::random(QuantType::U8, m, stride, 5);
    let a = Operand::new(QuantType::U8, m, k, |i| wide.bits.bits[i / k * stride + i % k]);
    let b = Operand::random(QuantType::I8, k, n, 6);
    for kernel in all() {
        let packed = PackedWeights::with_kernel(kernel, b.matrix(), &[0]).unwrap();
        let (mut got, mut want) = (vec![0; m * n], vec![1; m * n]);
        // The last row need not be followed by its gap.
        let bytes = Bytes::U8(&wide.bits.bits[..(m - 1) * stride + k]);
        let strided = Matrix::with_stride(bytes, m, k, stride).unwrap();
        matmul(strided, &[7], &packed, Output::I32(&mut got), 1).unwrap();
        matmul(a.matrix(), &[7], &packed, Output::I32(&mut want), 1).unwrap();
        assert_eq!(got, want, "{}", kernel.name());
    }
}

#[test]
fn weights_unpack_to_themselves() {
    for kernel in all() {
        for (k, n) in [(0, 3), (3, 0), (1, 1), (5, 33), (64, 48)] {
            for dtype in TYPES {
                let b = Operand::random(dtype, k, n, 1);
                let packed = PackedWeights::with_kernel(kernel, b.matrix(), &[0]).unwrap();
                assert_eq!(packed.unpack(), b.bits.bits, "{} {dtype} [{k}, {n}]", kernel.name());
                assert_eq!((packed.k(), packed.n(), packed.dtype()), (k, n, dtype));
            }
        }
    }
}

#[test]
fn reals_are_the_scaled_sums() {
    let (m, k, n) = (7, 50, 35);
    let (a, b) = (
        Operand::random(QuantType::U8, m, k, 1),
        Operand::random(QuantType::I8, k, n, 2),
    );
    let sums = naive::matmul(&a.ints, &[9], &b.ints, &[0]);
    let scales: Vec<f32> = (0..m.max(n)).map(|i| 0.01 + 0.003 * i as f32).collect();
    let bias: Vec<f32> = (0..n).map(|j| j as f32 * 1.7 - 20.0).collect();
    for kernel in all() {
        let packed = PackedWeights::with_kernel(kernel, b.matrix(), &[0]).unwrap();
        for (sa, sb, bias) in [
            (&scales[..1], &scales[..1], &[][..]),
            (&scales[..m], &scales[..n], &bias[..]),
        ] {
            let mut got = vec![0.0; m * n];
            let scales = Dequantize { a: sa, b: sb, bias };
            matmul(a.matrix(), &[9], &packed, Output::F32(&mut got, scales), 2).unwrap();
            for (at, (&got, &sum)) in got.iter().zip(&sums).enumerate() {
                let (i, j) = (at / n, at % n);
                let scale = sa.get(i).unwrap_or(&sa[0]) * sb.get(j).unwrap_or(&sb[0]);
                let want = sum as f32 * scale + bias.get(j).unwrap_or(&0.0);
                assert_eq!(
                    got.to_bits(),
                    want.to_bits(),
                    "{} at {i}, {j}: {got} {want}",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn requantized_results_are_those_of_the_requantizer() {
    let (m, k, n) = (13, 70, 43);
    let (a, b) = (
        Operand::random(QuantType::U8, m, k, 1),
        Operand::random(QuantType::I8, k, n, 2),
    );
    let zb = zero_points(QuantType::I8, n, 9);
    let sums = naive::matmul(&a.ints, &[120], &b.ints, &zb);
    let scale: Vec<f32> = (0..n).map(|j| 1e-3 * (1.0 + j as f32)).collect();
    let bias: Vec<i32> = (0..n).map(|j| j as i32 * 977 - 20_000).collect();
    for kernel in all() {
        let packed = PackedWeights::with_kernel(kernel, b.matrix(), &zb).unwrap();
        for rounding in Rounding::ALL {
            for threads in [1, 3] {
                let scales = Scales {
                    a: 0.3,
                    b: &scale,
                    y: 1.7,
                };
                let new = |dtype, z| {
                    Requantizer::new(rounding, scales, dtype, z)
                        .unwrap()
                        .with_bias(bias.clone())
                };
                let (unsigned, signed) = (
                    new(QuantType::U8, 77),
                    new(QuantType::I8, -5).with_clamp(-5, 100).unwrap(),
                );
                let (mut u, mut s) = (vec![0; m * n], vec![0; m * n]);
                matmul(a.matrix(), &[120], &packed, Output::U8(&mut u, &unsigned), threads).unwrap();
                matmul(a.matrix(), &[120], &packed, Output::I8(&mut s, &signed), threads).unwrap();
                for (at, &sum) in sums.iter().enumerate() {
                    let (sum, column) = (i32::try_from(sum).unwrap(), at % n);
                    assert_eq!(
                        i32::from(u[at]),
                        unsigned.apply(sum, column),
                        "{} at {at}",
                        kernel.name()
                    );
                    assert_eq!(i32::from(s[at]), signed.apply(sum, column), "{} at {at}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn requantization_saturates_on_every_kernel() {
    let (m, k, n) = (3, 5, 37);
    let (a, b) = (
        Operand::random(QuantType::I8, m, k, 1),
        Operand::random(QuantType::I8, k, n, 2),
    );
    let sums = naive::matmul(&a.ints, &[0], &b.ints, &[0]);
    // Products around the ends of the type, of 16 bits, of 32 bits and of f32.
    let scale: Vec<f32> = (0..n).map(|j| 10f32.powi(j as i32 - 6)).collect();
    for kernel in all() {
        let packed = PackedWeights::with_kernel(kernel, b.matrix(), &[0]).unwrap();
        for (zero_point, (min, max)) in [(-128, (-128, 127)), (0, (-100, 50)), (127, (127, 127))] {
            let scales = Scales {
                a: 1.0,
                b: &scale,
                y: 1.0,
            };
            let signed = Requantizer::new(Rounding::HalfEvenFloat, scales, QuantType::I8, zero_point).unwrap();
            let signed = signed.with_clamp(min, max).unwrap();
            let unsigned = Requantizer::new(Rounding::HalfEvenFloat, scales, QuantType::U8, zero_point + 128).unwrap();
            let (mut s, mut u) = (vec![0; m * n], vec![0; m * n]);
            matmul(a.matrix(), &[0], &packed, Output::I8(&mut s, &signed), 1).unwrap();
            matmul(a.matrix(), &[0], &packed, Output::U8(&mut u, &unsigned), 1).unwrap();
            for (at, &sum) in sums.iter().enumerate() {
                let (sum, column) = (i32::try_from(sum).unwrap(), at % n);
                assert_eq!(
                    i32::from(s[at]),
                    signed.apply(sum, column),
                    "{} at {at}: {sum}",
                    kernel.name()
                );
                assert_eq!(
                    i32::from(u[at]),
                    unsigned.apply(sum, column),
                    "{} at {at}: {sum}",
                    kernel.name()
                );
            }
        }
    }
}

#[test]
fn misfits_are_refused() {
    let (a, b) = (
        Operand::random(QuantType::U8, 2, 3, 1),
        Operand::random(QuantType::I8, 3, 4, 2),
    );
    let packed = PackedWeights::new(b.matrix(), &[0]).unwrap();
    let run = |a: Matrix<'_>, za: &[i32], out: Output<'_>| matmul(a, za, &packed, out, 1).unwrap_err().to_string();
    assert_eq!(
        run(a.matrix(), &[0], Output::I32(&mut [0; 7])),
        "output has 7 elements, expected 8"
    );
    assert_eq!(
        run(b.matrix(), &[0], Output::I32(&mut [0; 12])),
        "a row of a has 4 elements, expected 3"
    );
    assert_eq!(
        run(a.matrix(), &[0; 3], Output::I32(&mut [0; 8])),
        "a_zero_point has 3 elements, expected 2"
    );
    assert_eq!(
        run(a.matrix(), &[0, -1], Output::I32(&mut [0; 8])),
        "zero_point -1 at index 1 is outside 0..=255"
    );
    let scales = |a, b, bias| Dequantize { a, b, bias };
    let mut y = [0.0; 8];
    assert!(run(a.matrix(), &[0], Output::F32(&mut y, scales(&[1.0; 3], &[1.0], &[]))).starts_with("scale of a has 3"));
    assert!(run(a.matrix(), &[0], Output::F32(&mut y, scales(&[1.0], &[1.0; 2], &[]))).starts_with("scale of b has 2"));
    assert!(run(a.matrix(), &[0], Output::F32(&mut y, scales(&[1.0], &[1.0], &[0.0; 3]))).starts_with("bias has 3"));
    assert!(run(a.matrix(), &[0], Output::F32(&mut y, scales(&[f32::NAN], &[1.0], &[]))).contains("not finite"));
    let of = |dtype, b| Requantizer::new(Rounding::HalfEvenFloat, Scales { a: 1.0, b, y: 1.0 }, dtype, 0).unwrap();
    let signed = of(QuantType::I8, &[1.0]);
    assert_eq!(
        run(a.matrix(), &[0], Output::U8(&mut [0; 8], &signed)),
        "int8 does not fit integers of type uint8"
    );
    let three = of(QuantType::U8, &[1.0; 3]);
    assert_eq!(
        run(a.matrix(), &[0], Output::U8(&mut [0; 8], &three)),
        "scale of b has 3 elements, expected 4"
    );
    let biased = of(QuantType::U8, &[1.0]).with_bias(vec![i32::MAX - 3 * 255 * 128 + 1]);
    assert!(run(a.matrix(), &[0], Output::U8(&mut [0; 8], &biased)).contains("at most 2 is safe"));
    let bytes = Bytes::U8(&[0; 6]);
    assert!(Matrix::new(bytes, 2, 4).is_err());
    for (rows, columns, stride) in [
        (2, 3, 2),
        (2, 3, 4),
        (3, 2, 3),
        (usize::MAX, 2, 2),
        (2, usize::MAX, usize::MAX),
    ] {
        assert!(
            Matrix::with_stride(bytes, rows, columns, stride).is_err(),
            "{rows} {columns} {stride}"
        );
    }
    for (zb, message) in [
        (&[0, 0][..], "zero_point of b has 2"),
        (&[128], "zero_point 128 at index 0"),
    ] {
        assert!(
            PackedWeights::new(b.matrix(), zb)
                .unwrap_err()
                .to_string()
                .starts_with(message)
        );
    }
}

#[test]
fn names_are_those_of_the_sets() {
    let names: Vec<_> = gemm::available().map(GemmKernel::name).collect();
    assert_eq!(names.last(), Some(&"generic"));
    let sets: Vec<_> = requant_core::kernels::available()
        .map(requant_core::kernels::Kernels::name)
        .collect();
    assert!(names.iter().all(|name| sets.contains(name)), "{names:?} {sets:?}");
    assert!(gemm::by_name("mmx").is_err());
    if std::env::var_os("REQUANT_ISA").is_none() {
        let b = PackedWeights::new(Matrix::new(Bytes::I8(&[]), 0, 0).unwrap(), &[0]).unwrap();
        assert_eq!(b.kernel().name(), names[0]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_product_is_exact(
        (m, k, n) in (0usize..20, 0usize..150, 0usize..70),
        seed: u64,
        (ta, tb) in (0usize..2, 0usize..2),
        per_row: bool,
        per_column: bool,
        threads in 1usize..5,
    ) {
        let (ta, tb) = (TYPES[ta], TYPES[tb]);
        let (a, b) = (Operand::random(ta, m, k, seed), Operand::random(tb, k, n, !seed));
        let za = zero_points(ta, if per_row { m } else { 1 }, seed);
        let zb = zero_points(tb, if per_column { n } else { 1 }, seed);
        for kernel in all() {
            check(kernel, &a, &za, &b, &zb, threads);
        }
    }
}
