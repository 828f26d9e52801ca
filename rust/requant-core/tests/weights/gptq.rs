//! GPTQ against its paper, and its promises.

use requant_core::{
    Error,
    kernels::feedback::{self, Columns, Factors, FeedbackKernel, LANES, LaneGrids, PANEL},
    weights::{ALGORITHMS, BlockScheme, BlockWeights, Gptq, Layout, Rows, quantize},
};

use super::{by, naive::Paper, real, rows};

fn usual(act_order: bool) -> Gptq {
    Gptq {
        algorithm: by("rtn"),
        damping: 0.01,
        act_order,
        static_groups: act_order,
    }
}

/// Second moments of inputs that are correlated, some columns louder than others.
fn hessian(k: usize, seed: u64) -> Vec<f64> {
    let samples = 3 * k;
    let factors = 1 + k / 4;
    let x: Vec<f64> = (0..samples * k)
        .map(|at| {
            let (row, column) = (at / k, at % k);
            let mixed: f32 = (0..factors)
                .map(|f| real(seed, row * factors + f) * real(seed + 1, f * k + column))
                .sum();
            let loud = 1.0 + 4.0 * real(seed + 2, column).powi(6);
            f64::from(loud * (mixed + 0.3 * real(seed + 3, at)))
        })
        .collect();
    let moment = |i: usize, j: usize| (0..samples).map(|s| x[s * k + i] * x[s * k + j]).sum();
    (0..k * k).map(|at| moment(at / k, at % k)).collect()
}

/// `trace((W - Q) H (W - Q)^T)`.
fn output_error(values: &[f32], found: &BlockWeights, hessian: &[f64], k: usize) -> f64 {
    let off: Vec<f64> = values
        .iter()
        .zip(found.dequantize())
        .map(|(x, r)| f64::from(x - r))
        .collect();
    let row = |d: &[f64]| -> f64 {
        (0..k)
            .map(|i| d[i] * (0..k).map(|j| hessian[i * k + j] * d[j]).sum::<f64>())
            .sum()
    };
    off.chunks(k).map(row).sum()
}

fn values(n: usize, k: usize) -> Vec<f32> {
    (0..n * k).map(|i| real(11, i) * (0.5 + real(12, i).abs())).collect()
}

#[test]
fn integers_are_those_of_the_paper() {
    for (k, size, bits, symmetric, act_order) in [
        (37, 16, 4, false, true),
        (64, 32, 3, true, true),
        (150, 0, 4, true, true),
        (150, 32, 2, false, true),
        (300, 64, 4, false, true),
        (150, 0, 4, false, false),
        (150, 32, 4, false, false),
        (300, 64, 4, true, false),
    ] {
        let (n, scheme) = (19, BlockScheme::new(bits, size, symmetric).unwrap());
        let (values, hessian) = (values(n, k), hessian(k, 5));
        let (found, damping) = usual(act_order)
            .quantize(rows(&values, n, k), &hessian, scheme, 1)
            .unwrap();
        assert_eq!(damping.to_bits(), 0.01f64.to_bits());
        let zero_points = found.view().unpacked_zero_points();
        let mut order: Vec<usize> = (0..k).collect();
        if act_order {
            order.sort_by(|a, b| hessian[b * k + b].total_cmp(&hessian[a * k + a]));
        }
        let (codes, blocks) = (found.view().codes(false), scheme.blocks(k));
        let mut different = 0;
        for (row, x) in values.chunks(k).enumerate() {
            let grid = |c: usize| row * blocks + c / scheme.block_size(k);
            let grids: Vec<(f32, u8)> = (0..k)
                .map(|c| (found.scales()[grid(c)], zero_points[grid(c)]))
                .collect();
            let paper = Paper {
                hessian: &hessian,
                damping: 0.01,
                order: &order,
                grids: &grids,
                limits: scheme.limits(),
            };
            // A sum in f32 that falls on the other side of a tie changes what follows it.
            different += usize::from(paper.quantize(x) != codes[row * k..][..k]);
        }
        assert!(different <= 1, "{scheme:?} k {k}: {different} of {n} rows differ");
    }
}

#[test]
fn outputs_are_nearer_than_those_of_round_to_nearest() {
    for (k, n) in [(96, 24), (200, 8)] {
        let (values, hessian) = (values(n, k), hessian(k, 21));
        for bits in [2, 3, 4] {
            for size in [16, 32, 128, 256, 0] {
                for symmetric in [false, true] {
                    let scheme = BlockScheme::new(bits, size, symmetric).unwrap();
                    let plain = quantize(rows(&values, n, k), scheme, by("rtn"), None, 1).unwrap();
                    let plain = output_error(&values, &plain, &hessian, k);
                    for act_order in [false, true] {
                        let (found, _) = usual(act_order)
                            .quantize(rows(&values, n, k), &hessian, scheme, 1)
                            .unwrap();
                        let found = output_error(&values, &found, &hessian, k);
                        assert!(found < 0.8 * plain, "{scheme:?} k {k} {act_order}: {found} of {plain}");
                    }
                }
            }
        }
    }
}

#[test]
fn threads_and_layouts_make_no_difference() {
    let (n, k) = (150, 170);
    let (values, hessian) = (values(n, k), hessian(k, 1));
    let transposed: Vec<f32> = (0..n * k).map(|at| values[at % n * k + at / n]).collect();
    let columns = Rows::new(&transposed, (n, k), Layout::Columns).unwrap();
    for (act_order, size) in [(true, 32), (false, 32), (false, 256)] {
        for algorithm in ALGORITHMS {
            let gptq = Gptq {
                algorithm: *algorithm,
                ..usual(act_order)
            };
            let scheme = BlockScheme::new(4, size, false).unwrap();
            let one = gptq.quantize(rows(&values, n, k), &hessian, scheme, 1).unwrap();
            assert!(
                gptq.quantize(rows(&values, n, k), &hessian, scheme, 3).unwrap() == one,
                "{}",
                algorithm.name
            );
            assert!(
                gptq.quantize(columns, &hessian, scheme, 2).unwrap() == one,
                "{}",
                algorithm.name
            );
        }
    }
}

#[test]
fn a_diagonal_hessian_leaves_round_to_nearest() {
    let (n, k) = (20, 70);
    let values = values(n, k);
    let mut hessian = vec![0.0; k * k];
    for i in (0..k).filter(|i| i % 3 != 0) {
        hessian[i * k + i] = 1.0 + i as f64; // every third column was never seen
    }
    for scheme in [BlockScheme::new(4, 16, true), BlockScheme::new(2, 0, false)] {
        let scheme = scheme.unwrap();
        let plain = quantize(rows(&values, n, k), scheme, by("rtn"), None, 1).unwrap();
        for act_order in [false, true] {
            for hessian in [&hessian, &vec![0.0; k * k]] {
                let (found, _) = usual(act_order)
                    .quantize(rows(&values, n, k), hessian, scheme, 1)
                    .unwrap();
                assert_eq!(found.view().codes(false), plain.view().codes(false));
                assert_eq!(found.scales(), plain.scales());
            }
        }
    }
}

#[test]
fn damping_grows_until_the_hessian_is_positive() {
    let (n, k) = (4, 24);
    let values = values(n, k);
    let scheme = BlockScheme::new(4, 16, false).unwrap();
    let ones = vec![1.0; k * k]; // of rank 1
    let gptq = Gptq {
        damping: 0.0,
        ..usual(true)
    };
    let (_, damping) = gptq.quantize(rows(&values, n, k), &ones, scheme, 1).unwrap();
    assert!(damping > 0.0 && damping < 0.01, "{damping}");
    let (_, damping) = usual(true).quantize(rows(&values, n, k), &ones, scheme, 1).unwrap();
    assert_eq!(damping.to_bits(), 0.01f64.to_bits());
    // Eigenvalues 1 - 2 and 1 + 2: no second moments, but damped by more than 1 of the mean they could be.
    let mut indefinite = vec![0.0; k * k];
    for i in 0..k {
        indefinite[i * k + i] = 1.0;
        indefinite[i * k + (i ^ 1)] = 2.0;
    }
    let (_, damping) = usual(false)
        .quantize(rows(&values, n, k), &indefinite, scheme, 1)
        .unwrap();
    assert!((damping - 10.0).abs() < 1e-9, "{damping}");
}

#[test]
fn a_column_that_repeats_another_is_damped_wherever_it_stands() {
    let (n, k) = (4, 300);
    let (values, scheme) = (values(n, k), BlockScheme::new(4, 32, false).unwrap());
    let gptq = Gptq {
        damping: 0.0,
        ..usual(false)
    };
    for (original, copy) in [(10, 60), (10, 120), (120, 250)] {
        for seed in 0..6 {
            let mut hessian = hessian(k, seed);
            for i in 0..k {
                hessian[copy * k + i] = hessian[original * k + i];
            }
            for i in 0..k {
                hessian[i * k + copy] = hessian[i * k + original];
            }
            let (_, damping) = gptq.quantize(rows(&values, n, k), &hessian, scheme, 1).unwrap();
            assert!(damping > 0.0, "{copy} repeats {original}, seed {seed}");
        }
    }
}

#[test]
fn kernels_of_all_sets_give_the_same_bits() {
    let wide = |seed, at| f64::from(real(seed, at));
    let generic = feedback::by_name("generic").unwrap();
    for kernel in feedback::available() {
        for k in [1, 7, 40] {
            let panel = |seed| -> Vec<[f64; PANEL]> {
                (0..k)
                    .map(|j| std::array::from_fn(|i| wide(seed, j * PANEL + i)))
                    .collect()
            };
            let (left, right) = (panel(1), panel(2));
            let product = |kernel: &dyn FeedbackKernel| {
                let mut out = std::array::from_fn(|j| std::array::from_fn(|i| wide(3, j * PANEL + i)));
                kernel.subtract(&left, &right, &mut out);
                out.map(|row| row.map(f64::to_bits))
            };
            assert_eq!(product(kernel), product(generic), "{}: subtract, k {k}", kernel.name());
            let mut triangle: Vec<f64> = (0..k * k).map(|at| wide(4, at)).collect();
            for j in 0..k {
                triangle[j * k + j] = 2.0 + wide(5, j).abs();
            }
            let solved = |kernel: &dyn FeedbackKernel| {
                let mut x = panel(6);
                kernel.solve(&triangle, &mut x);
                x.iter().map(|row| row.map(f64::to_bits)).collect::<Vec<_>>()
            };
            assert_eq!(solved(kernel), solved(generic), "{}: solve, k {k}", kernel.name());
            let rounded = |kernel: &dyn FeedbackKernel| columns(kernel, k);
            assert_eq!(rounded(kernel), rounded(generic), "{}: columns, k {k}", kernel.name());
        }
    }
}

type Bits = Vec<[u32; LANES]>;

/// What a kernel makes of `k` columns: integers, errors, what is carried on from them, and what is without rounding.
fn columns(kernel: &dyn FeedbackKernel, k: usize) -> (Vec<[u8; LANES]>, Bits, Bits, Bits) {
    let lanes = |seed: u64, j: usize| std::array::from_fn(|lane| real(seed, j * LANES + lane));
    let bits = |x: &[[f32; LANES]]| -> Bits { x.iter().map(|row| row.map(f32::to_bits)).collect() };
    let (stride, later) = (k + 5, k + 3);
    let values: Vec<f32> = (0..later * stride).map(|at| real(7, at)).collect();
    let factors = Factors {
        values: &values,
        stride,
    };
    let grids: Vec<LaneGrids> = (0..2)
        .map(|block| {
            let scale: [f32; LANES] =
                std::array::from_fn(|lane| if lane == 3 { 0.0 } else { 0.05 + 0.01 * lane as f32 });
            LaneGrids {
                scale,
                inverse: scale.map(|s| if s == 0.0 { 0.0 } else { 1.0 / s }),
                zero_point: [7.0 + block as f32; LANES],
            }
        })
        .collect();
    let blocks: Vec<u32> = (0..k).map(|j| u32::from(j >= k / 2)).collect();
    let mut weights: Vec<[f32; LANES]> = (0..k).map(|j| lanes(8, j)).collect();
    let mut carried: Vec<[f32; LANES]> = (0..later).map(|j| lanes(9, j)).collect();
    let mut relaxed = carried.clone();
    let mut codes = vec![[0; LANES]; k];
    let part = Columns {
        weights: &mut weights,
        carried: &mut carried,
        factors,
        codes: &mut codes,
    };
    kernel.quantize(part, &grids, &blocks, (0.0, 15.0));
    kernel.relax(&mut relaxed, factors);
    (codes, bits(&weights), bits(&carried), bits(&relaxed))
}

#[test]
fn wrong_input_is_refused() {
    let (n, k) = (3, 20);
    let (values, scheme) = (values(n, k), BlockScheme::new(4, 16, false).unwrap());
    let hessian = hessian(k, 2);
    let error = |gptq: Gptq, values: &[f32], hessian: &[f64]| {
        gptq.quantize(rows(values, n, k), hessian, scheme, 1).unwrap_err()
    };
    let good = usual(true);
    assert!(matches!(
        error(good, &values, &hessian[1..]),
        Error::Length { what: "hessian", .. }
    ));
    for (value, index) in [(f64::NAN, [7, 3]), (f64::INFINITY, [0, 0]), (-1.0, [5, 5])] {
        let mut hessian = hessian.clone();
        hessian[index[0] * k + index[1]] = value;
        assert!(matches!(error(good, &values, &hessian), Error::SecondMoment { index: at, .. } if at == index));
    }
    let mut wrong = values.clone();
    wrong[k + 2] = f32::NAN;
    assert!(matches!(error(good, &wrong, &hessian), Error::NonFinite { index, .. } if index == [1, 2]));
    for damping in [-0.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(
            error(Gptq { damping, ..good }, &values, &hessian),
            Error::Damping { .. }
        ));
    }
    assert_eq!(
        error(
            Gptq {
                static_groups: false,
                ..good
            },
            &values,
            &hessian
        ),
        Error::StaticGroups
    );
    let mut hopeless = vec![0.0; k * k];
    hopeless[0] = 1e-9;
    hopeless[1] = 1e9;
    hopeless[k] = 1e9;
    assert!(matches!(error(good, &values, &hopeless), Error::NotPositive { .. }));
    let none = Rows::new(&[], (0, 0), Layout::Rows).unwrap();
    assert!(good.quantize(none, &[], scheme, 1).unwrap().0.data().is_empty());
}
