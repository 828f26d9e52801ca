//! Low-bit weights: every kernel equals the definition, algorithms do what they promise, and wrong input is refused.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test data"
)]

mod gptq;
#[path = "../common/mix.rs"]
mod mix;
mod naive;

use mix::mix;
use proptest::prelude::*;
use requant_core::{
    Error,
    kernels::low_bit::{self, Columns, Fit, Grids, Weighted},
    weights::{
        ALGORITHMS, Algorithm, BlockScheme, BlockViewMut, BlockWeights, Grid, Layout, Rows, quantize, quantize_into,
        quantize_with,
    },
};

/// In -1..1.
fn real(seed: u64, i: usize) -> f32 {
    (mix(seed ^ (i as u64) << 20) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// Weights with tails, zeros of both signs, ties, and rows that are constant or small.
fn weights(n: usize, k: usize, seed: u64) -> Vec<f32> {
    let value = |row: usize, i: usize| match (row % 7, mix(seed + i as u64) % 19) {
        (1, _) => 0.0,
        (2, _) => -0.0,
        (3, _) => 0.25,
        (4, 0..9) => real(seed, i) * 1e-30,
        (5, at) => (at as f32 - 9.0) * 0.5,
        (_, 0) => 0.0,
        (_, 1) => -0.0,
        (_, 2) => real(seed, i) * 9.0,
        _ => real(seed, i) * real(seed + 1, i),
    };
    (0..n * k).map(|at| value(at / k, at)).collect()
}

fn schemes() -> impl Iterator<Item = BlockScheme> {
    BlockScheme::BITS.into_iter().flat_map(|bits| {
        let sizes = [0, 16, 32, 64, 128, 256].into_iter();
        sizes.flat_map(move |size| [false, true].map(|symmetric| BlockScheme::new(bits, size, symmetric).unwrap()))
    })
}

fn rows(values: &[f32], n: usize, k: usize) -> Rows<'_> {
    Rows::new(values, (n, k), Layout::Rows).unwrap()
}

fn by(name: &str) -> Algorithm {
    Algorithm::by_name(name).unwrap()
}

#[test]
fn round_to_nearest_is_the_definition() {
    for scheme in schemes() {
        for k in [1, 15, 16, 31, 32, 33, 100, 128, 257, 2085] {
            let (n, values) = (8, weights(8, k, k as u64));
            let found = quantize(rows(&values, n, k), scheme, by("rtn"), None, 1).unwrap();
            let (size, blocks) = (scheme.block_size(k), scheme.blocks(k));
            let zero_points = found.view().unpacked_zero_points();
            for (row, x) in values.chunks(k).enumerate() {
                let bytes = &found.data()[row * blocks * scheme.block_bytes(k)..];
                for (block, x) in x.chunks(size).enumerate() {
                    let (q, scale, zero_point) = naive::round_to_nearest(x, scheme.bits(), scheme.symmetric());
                    let place = row * blocks + block;
                    let got = naive::unpack(scheme, &bytes[block * scheme.block_bytes(k)..], x.len());
                    let context = format!("{scheme:?} k {k} row {row} block {block}");
                    assert_eq!(found.scales()[place].to_bits(), scale.to_bits(), "{context}: scale");
                    assert_eq!(zero_points[place], zero_point, "{context}: zero point");
                    assert_eq!(got, q, "{context}: integers");
                }
            }
        }
    }
}

#[test]
fn memory_may_hold_anything_before() {
    for scheme in schemes() {
        for k in [1, 100, 2085] {
            let (n, values) = (3, weights(3, k, k as u64));
            let importance: Vec<f32> = (0..k).map(|i| real(5, i).abs()).collect();
            let (rows, algorithm) = (rows(&values, n, k), by("kquant"));
            let expected = quantize(rows, scheme, algorithm, Some(&importance), 1).unwrap();
            let mut data = vec![0xaa; expected.data().len()];
            let mut scales = vec![f32::NAN; expected.scales().len()];
            let mut zero_points = vec![0x55; expected.zero_points().len()];
            let mut into = |n| {
                let out = BlockViewMut {
                    scheme,
                    n,
                    k,
                    data: &mut data,
                    scales: &mut scales,
                    zero_points: &mut zero_points,
                };
                quantize_into(rows, algorithm, Some(&importance), out, 1)
            };
            assert!(matches!(into(2), Err(Error::Length { .. })));
            into(n).unwrap();
            let got = (data, scales, zero_points);
            assert_eq!(got, expected.into_parts(), "{scheme:?} k {k}");
        }
    }
}

#[test]
fn every_kernel_gives_the_same_bits() {
    for scheme in schemes() {
        for algorithm in ALGORITHMS {
            for k in [5, 48, 77, 300] {
                let (n, values) = (9, weights(9, k, 3 + k as u64));
                let importance: Vec<f32> = (0..k).map(|i| real(5, i).abs()).collect();
                for importance in [None, Some(&importance[..])] {
                    let all: Vec<BlockWeights> = low_bit::available()
                        .map(|kernel| {
                            quantize_with(kernel, rows(&values, n, k), scheme, *algorithm, importance, 1).unwrap()
                        })
                        .collect();
                    for (kernel, found) in low_bit::available().zip(&all) {
                        assert_eq!(found, &all[0], "{} {} {scheme:?} k {k}", kernel.name(), algorithm.name);
                    }
                }
            }
        }
    }
}

#[test]
fn kernels_agree_on_values_that_no_search_tries() {
    let special = [
        0.0,
        -0.0,
        1e-45,
        1e38,
        -1e38,
        3e9,
        0.5,
        1.5,
        2.5,
        0.499_999_97,
        f32::MIN_POSITIVE,
    ];
    let x: Vec<f32> = (0..131)
        .map(|i| special[i % special.len()] * real(9, i).signum())
        .collect();
    let (inverse, zero_point): (Vec<f32>, Vec<f32>) = (0..9).map(|i| (real(2, i) * 3.0, i as f32)).unzip();
    for run in [16, 32, 48, 131, 7] {
        for (bits, limits) in [(2, (0.0, 3.0)), (4, (4.0, 11.0)), (4, (0.0, 15.0)), (8, (0.0, 255.0))] {
            if run == 7 {
                continue; // more runs than parameters, and within bytes
            }
            let grids = Grids {
                run,
                inverse: &inverse,
                zero_point: &zero_point,
                limits,
            };
            let bytes = |kernel: &dyn low_bit::LowBitKernel| {
                let mut out = vec![0xAA; (x.len() * bits as usize).div_ceil(8)];
                kernel.encode(&x, grids, bits, &mut out);
                out
            };
            let want = bytes(low_bit::by_name("generic").unwrap());
            for kernel in low_bit::available() {
                assert_eq!(bytes(kernel), want, "{} run {run} bits {bits}", kernel.name());
            }
        }
        let ranges = |kernel: &dyn low_bit::LowBitKernel, x: &[f32]| {
            let (mut lo, mut hi) = (vec![0.0; 131], vec![0.0; 131]);
            let finite = kernel.ranges(x, run, &mut lo, &mut hi);
            (finite, if finite { (lo, hi) } else { Default::default() })
        };
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 8, 40, 129, 130] {
                let mut x = x.clone();
                x[at] = wrong;
                for kernel in low_bit::available() {
                    assert!(!ranges(kernel, &x).0, "{} run {run}: {wrong} at {at}", kernel.name());
                }
            }
        }
        for kernel in low_bit::available() {
            assert_eq!(ranges(kernel, &x), ranges(low_bit::by_name("generic").unwrap(), &x));
        }
    }
}

#[test]
fn columns_are_turned_into_rows() {
    const UNTOUCHED: f32 = -7.0;
    for rows in [0, 1, 7, 8, 9, 16, 31, 40] {
        for columns in [0, 1, 5, 8, 13, 16, 24] {
            let (width, pitch) = (columns + 3, rows + 2);
            let values: Vec<f32> = (0..rows * width).map(|i| i as f32).collect();
            let from = Columns {
                values: &values,
                pitch: width,
                rows,
                columns,
            };
            for kernel in low_bit::available() {
                let mut to = vec![UNTOUCHED; columns * pitch];
                kernel.turn(from, pitch, &mut to);
                for (at, v) in to.iter().enumerate() {
                    let (column, row) = (at / pitch, at % pitch);
                    let want = if row < rows {
                        values[row * width + column]
                    } else {
                        UNTOUCHED
                    };
                    assert_eq!(*v, want, "{}: {rows} x {columns} at {row}, {column}", kernel.name());
                }
            }
        }
    }
}

#[test]
fn sums_of_a_block_are_near_those_in_f64() {
    let x: Vec<[f32; 8]> = (0..4).map(|v| std::array::from_fn(|i| real(7, v * 8 + i))).collect();
    let weights: Vec<[f32; 8]> = (0..4)
        .map(|v| std::array::from_fn(|i| real(8, v * 8 + i).abs()))
        .collect();
    let grid = Grid::new(0.13, 7.0);
    let mut want = [0f64; 4];
    for (x, w) in x.as_flattened().iter().zip(weights.as_flattened()) {
        let (x, w) = (f64::from(*x), f64::from(*w));
        let l = (x / 0.13 + 7.0).clamp(0.0, 15.0).round() - 7.0;
        for (sum, term) in want.iter_mut().zip([l, l * l, l * x, (x - l * 0.13).powi(2)]) {
            *sum += w * term;
        }
    }
    let block = Weighted {
        x: &x,
        weights: &weights,
    };
    for kernel in low_bit::available() {
        let mut fit = [Fit::default()];
        kernel.fit(block, &[grid], (0.0, 15.0), &mut fit);
        let mut error = [0.0];
        kernel.errors(block, &[grid], (0.0, 15.0), &mut error);
        assert_eq!(error[0].to_bits(), fit[0].error.to_bits());
        let got = [fit[0].l, fit[0].ll, fit[0].lx, fit[0].error];
        for (got, want) in got.into_iter().zip(want) {
            assert!(
                (f64::from(got) - want).abs() < 1e-4 * want.abs().max(1.0),
                "{}: {got} {want}",
                kernel.name()
            );
        }
    }
}

#[test]
fn searches_do_not_lose_to_round_to_nearest() {
    let k = 96;
    let values: Vec<f32> = (0..24 * k)
        .map(|i| real(1, i).powi(3) * (1.0 + real(2, i / k).abs()))
        .collect();
    let importance: Vec<f32> = (0..k).map(|i| real(3, i).powi(4) + 0.01).collect();
    for scheme in schemes() {
        for importance in [None, Some(&importance[..])] {
            let error = |name: &str| {
                let found = quantize(rows(&values, 24, k), scheme, by(name), importance, 1).unwrap();
                let reals = found.dequantize();
                let each = values.chunks(k).zip(reals.chunks(k));
                each.map(|(x, r)| naive::squared_error(x, r, importance))
                    .collect::<Vec<f64>>()
            };
            let (plain, searched) = (error("rtn"), error("mse"));
            for (plain, searched) in plain.iter().zip(&searched) {
                assert!(*searched <= plain * (1.0 + 1e-5), "{scheme:?}: {searched} > {plain}");
            }
            if scheme.bits() < 8 {
                for (name, share) in [("mse", 0.97), ("kquant", 1.0)] {
                    let (plain, found) = (plain.iter().sum::<f64>(), error(name).iter().sum::<f64>());
                    assert!(found < plain * share, "{name} {scheme:?}: {found} of {plain}");
                }
            }
        }
    }
}

#[test]
fn hqq_lessens_the_norm_that_it_is_for() {
    let k = 64;
    let values: Vec<f32> = (0..32 * k).map(|i| real(1, i).powi(5) * 2.0).collect();
    for scheme in schemes().filter(|scheme| scheme.bits() < 8) {
        let norm = |name: &str| {
            let reals = quantize(rows(&values, 32, k), scheme, by(name), None, 1)
                .unwrap()
                .dequantize();
            let off = values.iter().zip(&reals).map(|(x, r)| f64::from(x - r).abs());
            off.map(|off| off.powf(0.75)).sum::<f64>()
        };
        assert!(norm("hqq") < norm("rtn"), "{scheme:?}: {} {}", norm("hqq"), norm("rtn"));
    }
}

#[test]
fn powers_of_two_change_scales_alone() {
    let k = 48;
    let values: Vec<f32> = (0..4 * k).map(|i| real(4, i)).collect();
    for algorithm in ALGORITHMS {
        let scheme = BlockScheme::new(4, 16, false).unwrap();
        let plain = quantize(rows(&values, 4, k), scheme, *algorithm, None, 1).unwrap();
        for unit in [2f32.powi(-100), 2f32.powi(120)] {
            let scaled: Vec<f32> = values.iter().map(|v| v * unit).collect();
            let found = quantize(rows(&scaled, 4, k), scheme, *algorithm, None, 1).unwrap();
            let scales: Vec<f32> = plain.scales().iter().map(|s| s * unit).collect();
            assert_eq!(
                (found.data(), found.scales()),
                (plain.data(), &scales[..]),
                "{}",
                algorithm.name
            );
        }
    }
}

#[test]
fn values_at_the_ends_of_f32_have_finite_grids() {
    for scheme in schemes() {
        for algorithm in ALGORITHMS {
            for ends in [
                [f32::MAX, -f32::MAX],
                [1e-45, -1e-45],
                [f32::MIN_POSITIVE, 0.0],
                [f32::MAX, 0.0],
            ] {
                let values: Vec<f32> = (0..40).map(|i| ends[i % 2]).collect();
                let found = quantize(rows(&values, 1, 40), scheme, *algorithm, None, 1).unwrap();
                let reals = found.dequantize();
                assert!(
                    found.scales().iter().all(|s| s.is_finite()),
                    "{} {scheme:?} {ends:?}",
                    algorithm.name
                );
                assert!(
                    reals.iter().all(|r| !r.is_nan()),
                    "{} {scheme:?} {ends:?}",
                    algorithm.name
                );
            }
        }
    }
}

#[test]
fn wrong_input_is_refused() {
    assert_eq!(BlockScheme::new(5, 32, true), Err(Error::Bits { got: 5 }));
    assert_eq!(BlockScheme::new(4, 48, true), Err(Error::BlockSizes { got: 48 }));
    assert!(matches!(Algorithm::by_name("best"), Err(Error::UnknownName { .. })));
    assert!(Rows::new(&[0.0; 5], (2, 3), Layout::Rows).is_err());
    let scheme = BlockScheme::new(4, 16, false).unwrap();
    for algorithm in ALGORITHMS {
        let mut values = vec![0.5; 3 * 40];
        values[40 + 17] = f32::NAN;
        values[2 * 40 + 1] = f32::INFINITY;
        for (layout, index) in [(Layout::Rows, vec![1, 17]), (Layout::Columns, vec![57 % 3, 57 / 3])] {
            let rows = Rows::new(&values, (3, 40), layout).unwrap();
            let error = quantize(rows, scheme, *algorithm, None, 2).unwrap_err();
            assert!(
                matches!(&error, Error::NonFinite { index: at, .. } if *at == index),
                "{error}"
            );
        }
        let few = rows(&values[..40], 1, 40);
        let wrong = |importance: &[f32]| quantize(few, scheme, *algorithm, Some(importance), 1).unwrap_err();
        assert!(matches!(wrong(&[1.0; 39]), Error::Length { .. }));
        assert!(matches!(wrong(&[-1.0; 40]), Error::Importance { index: 0, .. }));
    }
    let found = quantize(rows(&[0.0; 40], 1, 40), scheme, by("rtn"), None, 1).unwrap();
    let mut view = found.view();
    view.n = 2;
    assert!(matches!(view.check(), Err(Error::Length { .. })));
}

proptest! {
    #[test]
    fn layouts_and_threads_make_no_difference(
        n in 0usize..40, k in 0usize..150, bits in 0usize..4, size in 0usize..6, symmetric: bool, algorithm in 0usize..4,
        threads in 2usize..4, seed in 0u64..1000,
    ) {
        let scheme = BlockScheme::new(BlockScheme::BITS[bits], [0, 16, 32, 64, 128, 256][size], symmetric).unwrap();
        let values = weights(n, k.max(1), seed);
        let values = &values[..n * k];
        let transposed: Vec<f32> = (0..n * k).map(|at| values[at % n * k + at / n]).collect();
        let columns = Rows::new(&transposed, (n, k), Layout::Columns).unwrap();
        let one = quantize(rows(values, n, k), scheme, ALGORITHMS[algorithm], None, 1).unwrap();
        prop_assert_eq!(&quantize(rows(values, n, k), scheme, ALGORITHMS[algorithm], None, threads).unwrap(), &one);
        prop_assert_eq!(&quantize(columns, scheme, ALGORITHMS[algorithm], None, threads).unwrap(), &one);
        let codes = one.view().codes(false);
        let turned: Vec<u8> = (0..n * k).map(|at| codes[at % n * k + at / n]).collect();
        prop_assert_eq!(one.view().codes(true), turned);
    }
}
