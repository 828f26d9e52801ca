//! Every kernel gives the bits of the generic one, in all types, formulas and layouts, and halves are what IEEE says.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "tests know their numbers"
)]

mod division;
mod formulas;
mod halves;

use requant_core::{
    Granularity, QuantType,
    affine::{Affine, Rounding, limits},
    arrays::{Integer, Integers, Reals, RealsMut},
    kernels::elementwise::{self, ElementwiseKernel, Slices},
};

fn generic() -> &'static dyn ElementwiseKernel {
    elementwise::by_name("generic").expect("always present")
}

const SCALES: [f32; 10] = [
    0.1,
    1.0,
    0.5,
    1.0 / 255.0,
    3e-5,
    7.7e8,
    f32::MIN_POSITIVE,
    1e-45,
    1e-41,
    f32::MAX,
];

/// `len` values that break quantizers of `scale`: ties and their neighbours, both ends and beyond, subnormals, NaN.
fn awkward(len: usize, scale: f32, dtype: QuantType, seed: usize) -> Vec<f32> {
    const SPECIAL: [f32; 14] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        3e9,
        -3e9,
        f32::MAX,
        f32::MIN,
        1e-45,
        -1e-39,
        0.0,
        -0.0,
        -f32::NAN,
        f32::MIN_POSITIVE,
        1e30,
    ];
    let levels = 1_usize << (dtype.bits() + 1);
    let value = |i: usize| {
        let i = i + seed * 7919;
        let step = (i.wrapping_mul(2_654_435_761) >> 7) % levels;
        let tie = (step as f32 - levels as f32 / 2.0 + 0.5) * scale;
        match i % 7 {
            0 => tie,
            1 => tie.next_up(),
            2 => tie.next_down(),
            3 => tie * 0.999,
            4 => SPECIAL[i / 7 % SPECIAL.len()],
            5 => tie + scale * 0.25,
            _ => f32::from_bits(i.wrapping_mul(2_246_822_519) as u32),
        }
    };
    (0..len).map(value).collect()
}

fn zero_points(dtype: QuantType, narrow: bool) -> [i32; 4] {
    let (min, max) = limits(dtype, narrow);
    [min, max, i32::midpoint(min, max), min + 1]
}

/// Bits, since a NaN or a sign of zero would compare wrongly.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// What one kernel makes of `x`, everything it can do.
fn everything<Q: Integer>(map: &Affine<'_>, x: &[f32]) -> (Vec<i32>, Vec<u32>, Vec<u32>, Vec<bool>) {
    let (mut q, mut y, mut fake, mut mask) = (
        vec![Q::default(); x.len()],
        vec![0.0; x.len()],
        vec![f32::NAN; x.len()],
        vec![true; x.len()],
    );
    map.quantize(x, &mut q).unwrap();
    map.dequantize(&q, &mut y).unwrap();
    map.fake_quantize_with_mask(x, &mut fake, &mut mask).unwrap();
    let mut again = vec![0.0; x.len()];
    map.fake_quantize(x, &mut again).unwrap();
    assert_eq!(bits(&again), bits(&fake));
    (q.iter().map(|q| q.widen()).collect(), bits(&y), bits(&fake), mask)
}

fn everything_of(map: &Affine<'_>, dtype: QuantType, x: &[f32]) -> (Vec<i32>, Vec<u32>, Vec<u32>, Vec<bool>) {
    match (dtype.bits(), dtype.signed()) {
        (16, true) => everything::<i16>(map, x),
        (16, false) => everything::<u16>(map, x),
        (_, true) => everything::<i8>(map, x),
        (_, false) => everything::<u8>(map, x),
    }
}

#[test]
fn every_kernel_equals_generic_at_every_length() {
    let lengths: Vec<usize> = if cfg!(miri) { vec![0, 1, 33] } else { (0..=67).collect() };
    for kernel in elementwise::available() {
        for dtype in QuantType::ALL {
            for rounding in Rounding::ALL {
                for (s, scale) in SCALES.into_iter().enumerate() {
                    let narrow = s % 2 == 1;
                    for zero_point in zero_points(dtype, narrow) {
                        for &len in &lengths {
                            let x = awkward(len, scale, dtype, s + len);
                            let (scale, zero_point) = ([scale], [zero_point]);
                            let map = Affine::new(&[len], Granularity::PerTensor, dtype, narrow, &scale, &zero_point);
                            let map = map.unwrap().with_rounding(rounding);
                            let want = everything_of(&map.clone().with_kernel(generic()), dtype, &x);
                            let got = everything_of(&map.with_kernel(kernel), dtype, &x);
                            assert_eq!(
                                got,
                                want,
                                "{}, {dtype}, {rounding:?}, scale {scale:?}, zero point {zero_point:?}, {x:?}",
                                kernel.name()
                            );
                        }
                    }
                }
            }
        }
    }
}

/// [`awkward`] without what makes a vector kernel take a second look: NaN, and reals far below the smallest integer's.
fn tame(len: usize, scale: f32, dtype: QuantType, seed: usize) -> Vec<f32> {
    let x = awkward(len, scale, dtype, seed);
    x.into_iter()
        .map(|x| if x > -3e4 * scale { x } else { -scale })
        .collect()
}

#[test]
fn every_kernel_equals_generic_where_all_is_well() {
    let lengths: Vec<usize> = if cfg!(miri) {
        vec![33]
    } else {
        (0..=67).chain([1000]).collect()
    };
    for kernel in elementwise::available() {
        for (dtype, rounding) in QuantType::ALL.into_iter().zip(Rounding::ALL.into_iter().cycle()) {
            for rounding in [rounding, Rounding::Onnx] {
                for (s, scale) in SCALES.into_iter().enumerate() {
                    let narrow = s % 2 == 1;
                    for zero_point in zero_points(dtype, narrow) {
                        for &len in &lengths {
                            let x = tame(len, scale, dtype, s + len);
                            // One scale, and one for each value.
                            for granularity in [Granularity::PerTensor, Granularity::PerChannel { axis: 0 }] {
                                let slices = if granularity == Granularity::PerTensor { 1 } else { len };
                                let (scale, zero_point) = (vec![scale; slices], vec![zero_point; slices]);
                                let map = Affine::new(&[len], granularity, dtype, narrow, &scale, &zero_point);
                                let map = map.unwrap().with_rounding(rounding);
                                let want = everything_of(&map.clone().with_kernel(generic()), dtype, &x);
                                let got = everything_of(&map.with_kernel(kernel), dtype, &x);
                                let name = kernel.name();
                                assert_eq!(
                                    got, want,
                                    "{name}, {dtype}, {rounding:?}, {scale:?}, {zero_point:?}, {x:?}"
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_written_past_the_caches_is_the_same() {
    let q: Vec<u8> = (0..=255).cycle().take(300).collect();
    for kernel in elementwise::available() {
        for (run, slices) in [(300, 1), (16, 19), (1, 300)] {
            let scale: Vec<f32> = (1..=slices).map(|i| i as f32 * 0.1).collect();
            let zero_point = vec![7; slices as usize];
            let slices = Slices {
                run,
                scale: &scale,
                zero_point: &zero_point,
                limits: (0, 255),
            };
            // Aligned memory, and some that is not.
            for first in 0..5 {
                let [mut plain, mut streamed] = [vec![0.0; 310], vec![0.0; 310]];
                kernel.dequantize(Integers::U8(&q), slices, false, &mut plain[first..][..300]);
                kernel.dequantize(Integers::U8(&q), slices, true, &mut streamed[first..][..300]);
                assert_eq!(
                    bits(&plain),
                    bits(&streamed),
                    "{}, runs of {run}, at {first}",
                    kernel.name()
                );
            }
        }
    }
}

fn granularities(rank: usize) -> Vec<Granularity> {
    let sizes = [1, 3, 8, 16, 32, 64, 128];
    let axes = (0..rank).flat_map(|axis| {
        let blocks = sizes.map(|block_size| Granularity::PerBlock { axis, block_size });
        [Granularity::PerChannel { axis }].into_iter().chain(blocks)
    });
    axes.chain([Granularity::PerTensor, Granularity::PerToken]).collect()
}

const SHAPES: [[usize; 3]; 6] = [
    [3, 5, 7],
    [2, 64, 96],
    [9, 3, 3],
    [70, 2, 33],
    [1, 1, 9000],
    [5, 130, 16],
];

fn slices(shape: &[usize; 3], granularity: Granularity) -> usize {
    let (axis, length) = match granularity {
        Granularity::PerTensor => return 1,
        Granularity::PerToken => return shape[0] * shape[1],
        Granularity::PerChannel { axis } => return shape[axis],
        Granularity::PerBlock { axis, block_size } => (axis, shape[axis].div_ceil(block_size)),
    };
    shape.iter().product::<usize>() / shape[axis] * length
}

/// Layouts take different ways through tiles and segments; `tests/affine` compares them with the naive definition.
#[test]
fn every_kernel_and_any_number_of_threads_equal_generic_in_every_layout() {
    for kernel in elementwise::available() {
        for shape in SHAPES {
            for granularity in granularities(3) {
                for (dtype, rounding) in [
                    (QuantType::U8, Rounding::Onnx),
                    (QuantType::I4, Rounding::TorchPerChannel),
                    (QuantType::I16, Rounding::Onnx),
                ] {
                    let count = slices(&shape, granularity);
                    let scale: Vec<f32> = (0..count).map(|i| 0.01 + (i % 97) as f32 * 0.013).collect();
                    let zero_point: Vec<i32> = (0..count).map(|i| zero_points(dtype, false)[i % 4]).collect();
                    let x = awkward(shape.iter().product(), 0.1, dtype, count);
                    let map = Affine::new(&shape, granularity, dtype, false, &scale, &zero_point).unwrap();
                    let map = map.with_rounding(rounding).with_threads(1);
                    let want = everything_of(&map.clone().with_kernel(generic()), dtype, &x);
                    for threads in [0, 1, 3] {
                        let got = everything_of(&map.clone().with_kernel(kernel).with_threads(threads), dtype, &x);
                        let name = kernel.name();
                        assert_eq!(
                            got, want,
                            "{name}, {shape:?}, {granularity:?}, {dtype}, {threads} threads"
                        );
                    }
                }
            }
        }
    }
}

/// Several pieces of many tiles.
#[test]
fn threads_give_the_serial_result() {
    let n = if cfg!(miri) { 5000 } else { 1_000_003 };
    let x = awkward(n, 0.1, QuantType::U8, 1);
    let (scale, zero_point) = ([0.1, 0.2, 0.3], [0, 128, 255]);
    let map = Affine::new(
        &[n, 1],
        Granularity::PerTensor,
        QuantType::U8,
        false,
        &scale[..1],
        &zero_point[..1],
    )
    .unwrap();
    let want = everything::<u8>(&map.clone().with_threads(1), &x);
    for threads in [0, 2, 5] {
        assert!(
            everything::<u8>(&map.clone().with_threads(threads), &x) == want,
            "{threads} threads"
        );
    }
}

#[test]
fn every_kernel_adds_squares_in_one_order() {
    for kernel in elementwise::available() {
        for len in (0..70).chain([255, 256, 1029]) {
            let x: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.173).collect();
            let y: Vec<f32> = x.iter().map(|x| x.round()).collect();
            let got = kernel.squares(&x, &y);
            let (signal, noise) = generic().squares(&x, &y);
            assert_eq!(
                (got.0.to_bits(), got.1.to_bits()),
                (signal.to_bits(), noise.to_bits()),
                "{}, {len} values",
                kernel.name()
            );
            let naive = |of: fn(f32, f32) -> f32| {
                x.iter()
                    .zip(&y)
                    .map(|(x, y)| f64::from(of(*x, *y)).powi(2))
                    .sum::<f64>()
            };
            assert!(
                (signal - naive(|x, _| x)).abs() <= 1e-12 * signal,
                "{len} values: {signal}"
            );
            assert!(
                (noise - naive(|x, y| y - x)).abs() <= 1e-12 * noise,
                "{len} values: {noise}"
            );
        }
    }
}

/// Packing in one pass gives the bytes of packing afterwards.
#[test]
fn packed_arrays_are_the_packed_integers() {
    fn check<Q: Integer>(kernel: &'static dyn ElementwiseKernel, dtype: QuantType, len: usize) {
        let x = awkward(len, 0.3, dtype, len);
        let (scale, zero_point) = ([0.3], [dtype.max()]);
        let map = Affine::new(&[len], Granularity::PerTensor, dtype, false, &scale, &zero_point).unwrap();
        let map = map.with_kernel(kernel).with_threads(2);
        let mut q = vec![Q::default(); len];
        map.quantize(&x, &mut q).unwrap();
        let want = requant_core::pack::pack(&q, dtype).unwrap();
        let mut packed = vec![0xAA; want.len()];
        map.quantize_packed(&x, &mut packed).unwrap();
        assert_eq!(packed, want, "{}, {dtype}, {len}", kernel.name());
        let (mut y, mut direct) = (vec![0.0; len], vec![f32::NAN; len]);
        map.dequantize(&q, &mut y).unwrap();
        map.dequantize_packed(&packed, &mut direct).unwrap();
        assert_eq!(bits(&direct), bits(&y), "{}, {dtype}, {len}", kernel.name());
    }
    for kernel in elementwise::available() {
        for len in (0..=67).chain([4095, 4097, 9001]) {
            for dtype in [QuantType::I2, QuantType::I4] {
                check::<i8>(kernel, dtype, len);
            }
            for dtype in [QuantType::U2, QuantType::U4] {
                check::<u8>(kernel, dtype, len);
            }
        }
    }
}

/// Halves are widened exactly, and results are rounded once more.
#[test]
fn halves_go_in_and_out_as_their_f32() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    let n = halves.len();
    let wide =
        [halves::F16, halves::BF16].map(|format| halves.iter().map(|half| format.real(*half)).collect::<Vec<_>>());
    let (scale, zero_point) = ([0.07], [3]);
    for kernel in elementwise::available() {
        let map = Affine::new(&[n], Granularity::PerTensor, QuantType::I16, false, &scale, &zero_point).unwrap();
        let map = map.with_kernel(kernel);
        for (input, wide) in [(Reals::F16(&halves), &wide[0]), (Reals::Bf16(&halves), &wide[1])] {
            let (mut q, mut want) = (vec![0i16; n], vec![0i16; n]);
            map.quantize(input, &mut q).unwrap();
            map.quantize(wide, &mut want).unwrap();
            assert_eq!(q, want, "{}", kernel.name());
            let (mut half, mut full) = (vec![0u16; n], vec![0f32; n]);
            map.dequantize(&q, &mut full).unwrap();
            map.dequantize(&q, RealsMut::F16(&mut half)).unwrap();
            assert_eq!(half, full.iter().map(|x| halves::F16.nearest(*x)).collect::<Vec<_>>());
            map.dequantize(&q, RealsMut::Bf16(&mut half)).unwrap();
            assert_eq!(half, full.iter().map(|x| halves::BF16.nearest(*x)).collect::<Vec<_>>());
        }
    }
}
