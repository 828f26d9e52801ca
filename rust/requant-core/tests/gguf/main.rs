//! Blocks of GGUF: every set of kernels gives the generic bytes, and super-blocks are what a search one value after
//! another finds. The Python tests compare all types with the `gguf` package.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "small numbers"
)]

mod naive;
mod weighted;

use proptest::prelude::*;
use requant_core::{
    Error,
    gguf::{BlockType, dequantize, quantize},
    kernels::gguf,
};

const SUPER: [&str; 5] = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k"];

/// Near-normal numbers.
fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..6).map(|_| uniform()).sum()).collect()
}

fn encoded(dtype: BlockType, x: &[f32], columns: usize, importance: Option<&[f32]>, threads: usize) -> Vec<u8> {
    let mut out = vec![0; dtype.size_of(x.len()).unwrap()];
    quantize(dtype, x, columns, importance, &mut out, threads).unwrap();
    out
}

fn decoded(dtype: BlockType, data: &[u8]) -> Vec<f32> {
    let mut out = vec![0.0; data.len() / dtype.bytes() * dtype.block_size()];
    dequantize(dtype, data, &mut out, 1).unwrap();
    out
}

fn check_against_naive(name: &str, x: &[f32]) {
    let dtype: BlockType = name.parse().unwrap();
    let ours = decoded(dtype, &encoded(dtype, x, x.len(), None, 1));
    for (b, x) in x.chunks(256).enumerate() {
        let expected = naive::rounded(name, x);
        for (i, (ours, expected)) in ours[256 * b..].iter().zip(&expected).enumerate() {
            assert!(
                ours == expected,
                "{name}, super-block {b}, value {i} of {x:?}: {ours} is not {expected}"
            );
        }
    }
}

#[test]
fn super_blocks_are_what_the_search_finds() {
    let mut x = noise(8 * 256, 7);
    x[256..300].fill(0.0);
    x[512..768].fill(0.0);
    x[768..1024].fill(-2.5);
    x[1024] = 90.0;
    x[1300..1310].fill(-0.0);
    for v in &mut x[1536..1792] {
        *v = v.abs();
    }
    for v in &mut x[1792..] {
        *v *= 1e-4;
    }
    for name in SUPER {
        check_against_naive(name, &x);
    }
}

/// Where sums of the same levels differ in the last bit, a level that stays must not bring new ones.
#[test]
fn sums_change_only_with_levels() {
    let mut x = [0f32; 256];
    x[147] = -864.866_94;
    (x[154], x[156], x[157]) = (-996.088_6, 925.233, 849.585_9);
    let last = [
        543.926_7,
        379.521,
        -875.716_2,
        -885.276_25,
        687.936_16,
        -556.271_1,
        -921.052_5,
        166.788_04,
        853.636_35,
        0.0,
        276.991,
        374.102_9,
        -400.362_52,
        -583.348_1,
        535.387_5,
    ];
    x[208..208 + last.len()].copy_from_slice(&last);
    check_against_naive("q3_k", &x);
}

#[test]
fn importance_brings_the_weighted_error_near_the_least() {
    let x = noise(16 * 256, 21);
    let importance: Vec<f32> = noise(x.len(), 22).iter().map(|v| 9.0 * v * v + 0.05).collect();
    // Scales of few bits cost something, too: the more, the finer the levels.
    for (name, size, levels, mins, most) in [
        ("q2_k", 16, (0, 3), true, 1.2),
        ("q3_k", 16, (-4, 3), false, 1.1),
        ("q4_k", 32, (0, 15), true, 1.15),
        ("q5_k", 32, (0, 31), true, 1.4),
        ("q6_k", 16, (-32, 31), false, 1.4),
    ] {
        let dtype: BlockType = name.parse().unwrap();
        let error = |given: Option<&[f32]>| {
            let got = decoded(dtype, &encoded(dtype, &x, x.len(), given, 1));
            weighted::error(&x, &got, &importance)
        };
        let (without, with) = (error(None), error(Some(&importance)));
        let blocks = x.chunks(size).zip(importance.chunks(size));
        let least: f64 = blocks.map(|(x, w)| weighted::least(x, w, levels, mins)).sum();
        assert!(with < without, "{name}: {with} is not less than {without}");
        assert!(with < most * least, "{name}: {with} is far from {least}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_super_block_is_what_the_search_finds(x in prop::collection::vec(-1000f32..1000.0, 256), sparse in 0usize..4) {
        let mut x = x;
        for (i, v) in x.iter_mut().enumerate() {
            if i * 7 % 4 < sparse {
                *v = 0.0;
            }
        }
        for name in SUPER {
            check_against_naive(name, &x);
        }
    }
}

#[test]
fn every_set_gives_the_generic_bytes() {
    let mut x = noise(3 * 1024 + 256, 3);
    x[5] = 1e6;
    x[700] = 1e-39;
    x[1024..1280].fill(0.0);
    let importance: Vec<f32> = noise(x.len(), 4).iter().map(|v| v * v + 1e-3).collect();
    let generic = gguf::by_name("generic").unwrap();
    for kernel in gguf::available() {
        for dtype in BlockType::all() {
            for weights in [None, Some(&importance[..])] {
                let mut outs = [(); 2].map(|()| vec![0; dtype.size_of(x.len()).unwrap()]);
                let [ours, expected] = &mut outs;
                let fits = [
                    kernel.encode(dtype, &x, weights, ours),
                    generic.encode(dtype, &x, weights, expected),
                ];
                assert_eq!(fits[0], fits[1], "{} {dtype}", kernel.name());
                let bad = ours.iter().zip(expected.iter()).position(|(a, b)| a != b);
                assert_eq!(bad, None, "{} {dtype}, weighted: {}", kernel.name(), weights.is_some());
                let mut reals = [(); 2].map(|()| vec![0f32; x.len()]);
                kernel.decode(dtype, ours, &mut reals[0]);
                generic.decode(dtype, ours, &mut reals[1]);
                let [ours, expected] = reals.map(|r| r.iter().map(|v| v.to_bits()).collect::<Vec<_>>());
                assert_eq!(ours, expected, "{} {dtype}", kernel.name());
            }
        }
    }
}

#[test]
fn threads_do_not_matter() {
    let (rows, columns) = (700, 256);
    let x = noise(rows * columns, 11);
    let importance: Vec<f32> = (0..columns).map(|i| (i % 5) as f32).collect();
    for dtype in BlockType::all() {
        let one = encoded(dtype, &x, columns, Some(&importance), 1);
        assert!(one == encoded(dtype, &x, columns, Some(&importance), 3), "{dtype}");
        let mut reals = [(); 2].map(|()| vec![0f32; x.len()]);
        dequantize(dtype, &one, &mut reals[0], 1).unwrap();
        dequantize(dtype, &one, &mut reals[1], 3).unwrap();
        assert!(reals[0] == reals[1], "{dtype}");
    }
}

#[test]
fn the_first_bad_value_is_told() {
    let mut x = noise(700 * 256, 2);
    for at in [699 * 256 + 1, 650 * 256 + 9, 300 * 256 + 77] {
        x[at] = f32::NAN;
    }
    let mut out = vec![0; BlockType::Q4K.size_of(x.len()).unwrap()];
    for threads in [1, 4] {
        let error = quantize(BlockType::Q4K, &x, 256, None, &mut out, threads).unwrap_err();
        assert!(
            matches!(error, Error::NonFinite { index, .. } if index == [300, 77]),
            "{threads} threads"
        );
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let (x, mut out) = (vec![1e30f32; 512], vec![0; 2 * 144]);
    let mut q4 = |x: &[f32], columns, importance| quantize(BlockType::Q4K, x, columns, importance, &mut out, 1);
    assert!(matches!(
        q4(&x, 256, None),
        Err(Error::Magnitude { value: 1e30, index, dtype: "q4_k" }) if index == [0, 0]
    ));
    assert!(matches!(
        q4(&x, 255, None),
        Err(Error::RowLength {
            block_size: 256,
            got: 255,
            ..
        })
    ));
    assert!(matches!(q4(&x[1..], 256, None), Err(Error::Length { .. })));
    assert!(matches!(q4(&x, 512, Some(&[1.0; 511])), Err(Error::Length { .. })));
    assert!(matches!(
        q4(&x, 512, Some(&[-1.0; 512])),
        Err(Error::Importance { index: 0, .. })
    ));
    assert!(matches!(
        dequantize(BlockType::Q4K, &[0; 143], &mut [0.0; 256], 1),
        Err(Error::Length {
            expected: 144,
            got: 143,
            ..
        })
    ));
    assert!(BlockType::F32.size_of(usize::MAX).is_err());
    assert!(matches!("q9".parse::<BlockType>(), Err(Error::UnknownName { .. })));
}
