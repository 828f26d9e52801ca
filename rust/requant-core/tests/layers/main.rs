//! Pooling, residual addition and look-up tables equal their definitions on every set of kernels.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test data"
)]

mod naive;

use proptest::{collection::vec, prelude::*};
use requant_core::{
    Error, QuantParams, QuantType,
    arrays::{Bytes, BytesMut},
    conv::{Images, Window},
    elementwise::{Addition, Table},
    kernels::{self, Terms},
    pool::{Average, average_pool, global_average_pool, max_pool, output_shape},
};

const TYPES: [QuantType; 2] = [QuantType::U8, QuantType::I8];

fn params(scale: f32, zero_point: i32) -> QuantParams {
    QuantParams { scale, zero_point }
}

/// Runs `f` on bits as a type, and gives what it wrote as integers.
fn run(dtype: QuantType, x: &[u8], length: usize, f: impl Fn(Bytes<'_>, BytesMut<'_>)) -> Vec<i32> {
    if dtype.signed() {
        let x: Vec<i8> = x.iter().map(|v| v.cast_signed()).collect();
        let mut out = vec![77; length];
        f(Bytes::I8(&x), BytesMut::I8(&mut out));
        out.into_iter().map(i32::from).collect()
    } else {
        let mut out = vec![77; length];
        f(Bytes::U8(x), BytesMut::U8(&mut out));
        out.into_iter().map(i32::from).collect()
    }
}

fn integer(dtype: QuantType, bits: u8) -> i32 {
    if dtype.signed() {
        i32::from(bits.cast_signed())
    } else {
        i32::from(bits)
    }
}

/// Half to even in the reals, then into the type.
fn rounded(v: f32, dtype: QuantType) -> i32 {
    (f64::from(v).round_ties_even()).clamp(f64::from(dtype.min()), f64::from(dtype.max())) as i32
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 300 }))]

    #[test]
    fn pools_are_their_definitions(
        (shape, bits) in [0..3usize, 1..9, 1..9, 1..70]
            .prop_flat_map(|shape| (Just(shape), vec(any::<u8>(), shape.iter().product::<usize>()))),
        kernel in [1..4usize, 1..4],
        strides in [1..3usize, 1..3],
        dilations in [1..3usize, 1..3],
        pads in [0..3usize, 0..3, 0..3, 0..3],
        signed in 0..2usize,
        scales in (0.01..2f32, 0.01..2f32),
        zero_points in (0..256i32, 0..256i32),
        include_pad: bool,
    ) {
        let dtype = TYPES[signed];
        let pads = [0, 1, 2, 3].map(|i| pads[i].min((kernel[i % 2] - 1) * dilations[i % 2]));
        let x: Vec<i32> = bits.iter().map(|&b| integer(dtype, b)).collect();
        let (x_zero_point, y_zero_point) = (zero_points.0 + dtype.min(), zero_points.1 + dtype.min());
        let seen = naive::windows(&x, shape, kernel, strides, dilations, pads);
        let windows = Window::both(kernel, strides, dilations, pads).unwrap();
        prop_assert_eq!(output_shape(shape, windows).iter().product::<usize>(), seen.len());

        let got = run(dtype, &bits, seen.len(), |x, out| {
            max_pool(Images::new(x, shape, x_zero_point).unwrap(), windows, out).unwrap();
        });
        let want: Vec<i32> = seen.iter().map(|v| v.iter().copied().max().unwrap_or(dtype.min())).collect();
        prop_assert_eq!(got, want);

        let average = Average { x_scale: scales.0, y: params(scales.1, y_zero_point), include_pad };
        let got = run(dtype, &bits, seen.len(), |x, out| {
            average_pool(Images::new(x, shape, x_zero_point).unwrap(), windows, average, out).unwrap();
        });
        let want: Vec<i32> = seen.iter().map(|values| {
            let sum = values.iter().fold(0f32, |sum, v| sum + (v - x_zero_point) as f32 * scales.0);
            let count = if include_pad { kernel[0] * kernel[1] } else { values.len().max(1) };
            rounded(sum / count as f32 / scales.1 + y_zero_point as f32, dtype)
        }).collect();
        prop_assert_eq!(got, want);

        let [n, h, w, c] = shape;
        let got = run(dtype, &bits, n * c, |x, out| {
            global_average_pool(Images::new(x, shape, x_zero_point).unwrap(), average, out).unwrap();
        });
        let want: Vec<i32> = (0..n * c).map(|i| {
            let sum: i32 = (0..h * w).map(|place| x[(i / c * h * w + place) * c + i % c] - x_zero_point).sum();
            let v = sum as f32 * (scales.0 / (scales.1 * (h * w) as f32));
            (i64::from(rounded(v, QuantType::I16)) + i64::from(y_zero_point))
                .clamp(i64::from(dtype.min()), i64::from(dtype.max())) as i32
        }).collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn sums_are_their_definition(
        signed in 0..2usize,
        scales in (1..200i32, 1..200i32, 1..200i32),
        zero_points in (0..256i32, 0..256i32, 0..256i32),
        seed: u8,
    ) {
        // Scales of few digits have many ties.
        let dtype = TYPES[signed];
        let of = |s: i32, z: i32| params(s as f32 / 64.0, z + dtype.min());
        let (a, b, y) = (of(scales.0, zero_points.0), of(scales.1, zero_points.1), of(scales.2, zero_points.2));
        let add = Addition::new(dtype, a, b, y).unwrap();
        let left: Vec<u8> = (0..=255).collect();
        let right: Vec<u8> = left.iter().map(|v| v.wrapping_mul(167) ^ seed).collect();
        let got = run(dtype, &left, 256, |x, out| match x {
            Bytes::U8(x) => add.apply(Bytes::U8(x), Bytes::U8(&right), out).unwrap(),
            Bytes::I8(x) => {
                let right: Vec<i8> = right.iter().map(|v| v.cast_signed()).collect();
                add.apply(Bytes::I8(x), Bytes::I8(&right), out).unwrap();
            }
        });
        let (ra, rb) = (a.scale / y.scale, b.scale / y.scale);
        let inputs = naive::fused(f64::from(a.zero_point), ra, rb * b.zero_point as f32);
        let constant = y.zero_point as f32 - inputs;
        let want: Vec<i32> = left.iter().zip(&right).map(|(&l, &r)| {
            let second = naive::fused(f64::from(integer(dtype, r)), rb, constant);
            rounded(naive::fused(f64::from(integer(dtype, l)), ra, second), dtype)
        }).collect();
        prop_assert_eq!(got, want);
    }
}

#[test]
fn every_set_maps_alike() {
    let table: [u8; 256] = std::array::from_fn(|i| (i as u8).wrapping_mul(29) ^ 0x5a);
    let terms = Terms {
        a: 0.75,
        b: -1.5,
        constant: 60.5,
        min: -100,
        max: 99,
        signed: true,
    };
    let generic = kernels::by_name("generic").unwrap();
    for set in kernels::available() {
        for length in (0..=67).chain([1000]) {
            let x: Vec<u8> = (0..length).map(|i: usize| (i * 37 + length) as u8).collect();
            let y: Vec<u8> = x.iter().map(|v| v.wrapping_mul(11)).collect();
            let (mut got, mut want) = (vec![0; length], vec![1; length]);
            set.look_up(&table, &x, &mut got);
            assert_eq!(
                got,
                x.iter().map(|&v| table[usize::from(v)]).collect::<Vec<_>>(),
                "{}",
                set.name()
            );
            for signed in [false, true] {
                let (min, max) = if signed { (-100, 99) } else { (3, 250) };
                let terms = Terms {
                    min,
                    max,
                    signed,
                    ..terms
                };
                set.add(&x, &y, &terms, &mut got);
                generic.add(&x, &y, &terms, &mut want);
                assert_eq!(got, want, "{} {length}", set.name());
            }
        }
    }
    let x: Vec<u8> = (0..=255).collect();
    let mut got = vec![0; 256];
    for set in kernels::available() {
        set.look_up(&table, &x, &mut got);
        assert_eq!(got, table, "{}", set.name());
    }
}

#[test]
fn tables_dequantize_map_and_quantize() {
    for x in TYPES {
        for y in TYPES {
            let (from, to) = (params(0.1, x.min() + 100), params(0.25, y.min() + 50));
            let table = Table::new(x, from, y, to, |v| if v > 12.0 { f32::NAN } else { v * v }).unwrap();
            assert_eq!((table.x(), table.y()), (x, y));
            let bits: Vec<u8> = (0..=255).collect();
            for &b in &bits {
                let real = (integer(x, b) - from.zero_point) as f32 * 0.1;
                let mapped = if real > 12.0 { 0.0 } else { real * real };
                let want = ((mapped / 0.25).round_ties_even() as i32 + to.zero_point).clamp(y.min(), y.max());
                let got = if x.signed() {
                    run(y, &[], 1, |_, out| {
                        table.apply(Bytes::I8(&[b.cast_signed()]), out).unwrap()
                    })
                } else {
                    run(y, &[], 1, |_, out| table.apply(Bytes::U8(&[b]), out).unwrap())
                };
                assert_eq!(got, [want], "{x} {b} to {y}");
            }
        }
    }
}

#[test]
fn misfits_are_refused() {
    let one = params(1.0, 0);
    let add = Addition::new(QuantType::U8, one, one, one).unwrap();
    let mut out = [0u8; 2];
    let message = |result: Result<(), Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(add.apply(Bytes::U8(&[1, 2]), Bytes::U8(&[1]), BytesMut::U8(&mut out))),
        "b has 1 elements, expected 2"
    );
    assert_eq!(
        message(add.apply(Bytes::I8(&[1, 2]), Bytes::U8(&[1, 2]), BytesMut::U8(&mut out))),
        "uint8 does not fit integers of type int8"
    );
    assert_eq!(
        message(add.apply(Bytes::U8(&[1]), Bytes::U8(&[1]), BytesMut::U8(&mut out))),
        "output has 2 elements, expected 1"
    );
    assert!(Addition::new(QuantType::U16, one, one, one).is_err());
    assert!(Addition::new(QuantType::I8, one, params(0.0, 0), one).is_err());
    assert!(Addition::new(QuantType::I8, one, params(1.0, 200), one).is_err());
    assert!(Addition::new(QuantType::I8, params(1e38, 0), one, params(1e-3, 0)).is_err());
    assert!(add.with_clamp(5, 4).is_err() && add.with_clamp(0, 256).is_err());

    let table = Table::new(QuantType::U8, one, QuantType::I8, one, |v| v).unwrap();
    assert!(table.apply(Bytes::I8(&[1, 2]), BytesMut::I8(&mut [0; 2])).is_err());
    assert!(table.apply(Bytes::U8(&[1, 2]), BytesMut::U8(&mut out)).is_err());
    assert!(Table::new(QuantType::I4, one, QuantType::I8, one, |v| v).is_err());

    let images = Images::new(Bytes::U8(&[0; 9]), [1, 3, 3, 1], 0).unwrap();
    let windows = |pads| Window::both([2, 2], [1, 1], [1, 1], pads).unwrap();
    assert_eq!(
        message(max_pool(images, windows([0, 2, 0, 0]), BytesMut::U8(&mut [0; 8]))),
        "pads is [2, 0], expected less than the 2 that the window reaches over"
    );
    assert_eq!(
        message(max_pool(images, windows([0; 4]), BytesMut::U8(&mut [0; 5]))),
        "output has 5 elements, expected 4"
    );
    assert!(max_pool(images, windows([0; 4]), BytesMut::I8(&mut [0; 4])).is_err());
    let average = Average {
        x_scale: 1.0,
        y: params(1.0, -1),
        include_pad: true,
    };
    assert!(average_pool(images, windows([0; 4]), average, BytesMut::U8(&mut [0; 4])).is_err());
    assert!(global_average_pool(images, average, BytesMut::U8(&mut [0; 1])).is_err());
    let average = Average {
        x_scale: f32::MAX,
        y: params(1e-3, 0),
        include_pad: true,
    };
    assert!(global_average_pool(images, average, BytesMut::U8(&mut [0; 1])).is_err());
}
