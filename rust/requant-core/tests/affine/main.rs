//! The affine map against its naive definition, and the laws that it keeps.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "the oracle converts on purpose"
)]

mod laws;
mod naive;

use proptest::prelude::*;
use requant_core::{
    Error, Granularity, QuantParams, QuantScheme, QuantType, Range,
    affine::{self, Affine, RoundingError},
    arrays::{Integer, Integers, IntegersMut},
};

const GRANULARITIES: usize = 8;

/// Each granularity on each axis that `shape` (of rank 3) has.
fn granularity(choice: usize, block_size: usize) -> Granularity {
    match choice {
        0 => Granularity::PerTensor,
        1 => Granularity::PerToken,
        2..=4 => Granularity::PerChannel { axis: choice - 2 },
        _ => Granularity::PerBlock {
            axis: choice - 5,
            block_size,
        },
    }
}

/// Values that break quantizers, then the bits of any float.
fn real() -> impl Strategy<Value = f32> {
    const AWKWARD: [f32; 24] = [
        0.0,
        -0.0,
        0.5,
        -0.5,
        1.5,
        2.5,
        -2.5,
        126.5,
        127.5,
        -127.5,
        -128.5,
        3e9,
        -3e9,
        4.2e9,
        1e-45,
        -1e-45,
        1e-39,
        1e38,
        f32::MAX,
        f32::MIN,
        f32::MIN_POSITIVE,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    prop_oneof![
        prop::sample::select(&AWKWARD[..]),
        any::<u32>().prop_map(f32::from_bits),
        -300.0f32..300.0
    ]
}

fn scale() -> impl Strategy<Value = f32> {
    prop_oneof![
        prop::sample::select(&[1.0, 0.5, 2.0, 0.1, 1e-45, f32::MIN_POSITIVE, f32::MAX, 1.0 / 255.0][..]),
        1e-3f32..10.0
    ]
}

#[derive(Debug)]
struct Case {
    shape: Vec<usize>,
    granularity: Granularity,
    dtype: QuantType,
    narrow: bool,
    x: Vec<f32>,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
}

fn case() -> impl Strategy<Value = Case> {
    let lengths = prop::collection::vec(prop_oneof![4 => 1usize..6, 1 => 14usize..20, 1 => Just(0)], 3);
    let types = prop::sample::select(&QuantType::ALL[..]);
    (lengths, 0..GRANULARITIES, 1usize..9, types, any::<bool>()).prop_flat_map(
        |(shape, choice, block, dtype, narrow)| {
            let granularity = granularity(choice, block);
            let slices: usize = naive::scale_shape(&shape, granularity).iter().product();
            let (qmin, qmax) = affine::limits(dtype, narrow);
            (
                prop::collection::vec(real(), shape.iter().product::<usize>()),
                prop::collection::vec(scale(), slices),
                prop::collection::vec(qmin..=qmax, slices),
            )
                .prop_map(move |(x, scale, zero_point)| Case {
                    shape: shape.clone(),
                    granularity,
                    dtype,
                    narrow,
                    x,
                    scale,
                    zero_point,
                })
        },
    )
}

impl Case {
    fn map(&self) -> Affine<'_> {
        Affine::new(
            &self.shape,
            self.granularity,
            self.dtype,
            self.narrow,
            &self.scale,
            &self.zero_point,
        )
        .unwrap()
    }

    fn params_of(&self, flat: usize) -> (f32, i32) {
        let slice = naive::slice_of(flat, &self.shape, self.granularity);
        (self.scale[slice], self.zero_point[slice])
    }

    /// That of the integers of `x`, and their reals.
    fn rounding_error<Q: Integer>(&self, threads: usize) -> (RoundingError, Vec<f32>)
    where
        for<'a> &'a [Q]: Into<Integers<'a>>,
        for<'a> &'a mut [Q]: Into<IntegersMut<'a>>,
    {
        let (mut q, mut reals) = (vec![Q::default(); self.x.len()], vec![0.0; self.x.len()]);
        self.map().quantize(&self.x, q.as_mut_slice()).unwrap();
        self.map().dequantize(q.as_slice(), reals.as_mut_slice()).unwrap();
        let map = self.map().with_threads(threads);
        (map.rounding_error(self.x.as_slice(), q.as_slice()).unwrap(), reals)
    }

    fn quantized<Q: Integer>(&self) -> (Vec<i64>, Vec<f32>) {
        let (mut q, mut x) = (vec![Q::default(); self.x.len()], vec![0.0; self.x.len()]);
        self.map().quantize(&self.x, &mut q).unwrap();
        self.map().dequantize(&q, &mut x).unwrap();
        (q.into_iter().map(|q| i64::from(q.widen())).collect(), x)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]

    #[test]
    fn equals_the_naive_definition(case in case()) {
        let (q, x) = match case.dtype {
            QuantType::I2 | QuantType::I4 | QuantType::I8 => case.quantized::<i8>(),
            QuantType::U2 | QuantType::U4 | QuantType::U8 => case.quantized::<u8>(),
            QuantType::I16 => case.quantized::<i16>(),
            QuantType::U16 => case.quantized::<u16>(),
        };
        let mut fake = vec![0.0; case.x.len()];
        case.map().fake_quantize(&case.x, &mut fake).unwrap();
        for i in 0..q.len() {
            let (scale, zero_point) = case.params_of(i);
            let expected = naive::quantize(case.x[i], scale, zero_point, case.dtype, case.narrow);
            prop_assert_eq!(q[i], expected, "element {} = {:e}, scale {:e}, zero point {}", i, case.x[i], scale, zero_point);
            let expected = naive::dequantize(q[i], scale, zero_point);
            prop_assert_eq!(x[i].to_bits(), expected.to_bits(), "element {}: {:e} != {:e}", i, x[i], expected);
            prop_assert_eq!(fake[i].to_bits(), expected.to_bits(), "element {}: {:e} != {:e}", i, fake[i], expected);
        }
    }

    #[test]
    fn rounding_errors_are_those_of_each_element(mut case in case(), threads in 1usize..4) {
        case.x.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 7.0);
        let x = &case.x;
        let (error, reals) = match case.dtype {
            QuantType::I2 | QuantType::I4 | QuantType::I8 => case.rounding_error::<i8>(threads),
            QuantType::U2 | QuantType::U4 | QuantType::U8 => case.rounding_error::<u8>(threads),
            QuantType::I16 => case.rounding_error::<i16>(threads),
            QuantType::U16 => case.rounding_error::<u16>(threads),
        };
        let lowest = x.iter().copied().fold(f32::INFINITY, f32::min);
        let highest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        prop_assert_eq!((error.range.lo, error.range.hi), (lowest, highest));
        let signal: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let noise: f64 = x.iter().zip(&reals).map(|(x, real)| f64::from(real - x).powi(2)).sum();
        prop_assert!((error.signal - signal).abs() <= 1e-9 * signal, "{} != {}", error.signal, signal);
        prop_assert!((error.noise - noise).abs() <= 1e-9 * noise || error.noise == noise, "{} != {}", error.noise, noise);
    }

    #[test]
    fn largest_terms_are_those_of_each_row_and_column(
        rows in 0usize..6, columns in prop_oneof![0usize..6, 30usize..40], pairs in any::<bool>(), axis in 0usize..2,
        values in prop::collection::vec(real(), 200),
    ) {
        let finite = |v: &f32| if v.is_finite() { *v } else { -3.5 };
        let x: Vec<f32> = values.iter().take(rows * columns).map(finite).collect();
        let peaks = affine::largest_terms(&x, [rows, columns], axis, pairs).unwrap();
        let (lines, length) = if axis == 0 { (columns, rows) } else { (rows, columns) };
        prop_assert_eq!(peaks.len(), lines);
        for (line, peak) in peaks.iter().enumerate() {
            let at = |i: usize| f64::from(x[if axis == 0 { i * columns + line } else { line * columns + i }]);
            let terms = (0..length).map(|i| at(i).abs());
            let sums = (0..length / 2 * usize::from(pairs)).map(|i| (at(2 * i) + at(2 * i + 1)).abs());
            prop_assert_eq!(*peak, terms.chain(sums).fold(0.0, f64::max), "line {}", line);
        }
    }

    #[test]
    fn slice_ranges_are_the_extremes_of_each_slice(mut case in case()) {
        case.x.iter_mut().filter(|x| !x.is_finite()).for_each(|x| *x = 7.0);
        let ranges = affine::slice_ranges(&case.x, &case.shape, case.granularity).unwrap();
        prop_assert_eq!(ranges.len(), case.scale.len());
        for (slice, range) in ranges.iter().enumerate() {
            let members = (0..case.x.len()).filter(|&i| naive::slice_of(i, &case.shape, case.granularity) == slice);
            let mut members: Vec<f32> = members.map(|i| case.x[i]).collect();
            members.sort_by(f32::total_cmp);
            let expected = (members.first().copied().unwrap_or(0.0), members.last().copied().unwrap_or(0.0));
            prop_assert_eq!((range.lo, range.hi), expected, "slice {}", slice);
        }
    }

    #[test]
    fn slice_ranges_tell_where_a_value_is_not_finite(
        case in case(), at in any::<prop::sample::Index>(), bad in prop::sample::select(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY][..]),
    ) {
        prop_assume!(!case.x.is_empty());
        let at = at.index(case.x.len());
        let mut x = vec![1.0; case.x.len()];
        x[at] = bad;
        match affine::slice_ranges(&x, &case.shape, case.granularity) {
            Err(Error::NonFinite { value, index }) => {
                prop_assert_eq!(value.to_bits(), bad.to_bits());
                prop_assert_eq!(index, naive::index_of(at, &case.shape));
            }
            other => prop_assert!(false, "{:?}", other),
        }
    }
}

#[test]
fn scalars_and_empty_arrays() {
    let map = Affine::new(&[], Granularity::PerTensor, QuantType::U8, false, &[0.5], &[3]).unwrap();
    let mut q = [0u8];
    map.quantize(&[2.0], &mut q).unwrap();
    assert_eq!(q, [7]);
    for granularity in (0..GRANULARITIES).map(|choice| granularity(choice, 2)) {
        let shape = [3, 0, 2];
        let slices = naive::scale_shape(&shape, granularity).iter().product();
        let (scale, zero_point) = (vec![1.0; slices], vec![0; slices]);
        let map = Affine::new(&shape, granularity, QuantType::I8, false, &scale, &zero_point).unwrap();
        map.quantize(&[], &mut [0i8; 0]).unwrap();
        let ranges = affine::slice_ranges(&[], &shape, granularity).unwrap();
        assert_eq!(ranges, vec![Range { lo: 0.0, hi: 0.0 }; slices], "{granularity:?}");
    }
}

#[test]
fn refusals() {
    let new = |shape: &[usize], granularity, dtype, scale: &[f32], zero_point: &[i32]| {
        Affine::new(shape, granularity, dtype, false, scale, zero_point)
            .map(drop)
            .unwrap_err()
    };
    let whole = Granularity::PerTensor;
    let (axis, scalar) = (Granularity::PerChannel { axis: 2 }, vec![]);
    assert_eq!(
        new(&[4, 2], axis, QuantType::I8, &[1.0], &[0]),
        Error::Axis {
            axis: 2,
            shape: vec![4, 2]
        }
    );
    assert_eq!(
        new(&[], Granularity::PerToken, QuantType::I8, &[1.0], &[0]),
        Error::Axis { axis: 0, shape: scalar }
    );
    let block = Granularity::PerBlock { axis: 0, block_size: 0 };
    assert_eq!(new(&[4], block, QuantType::I8, &[], &[]), Error::BlockSize);
    let channels = Granularity::PerChannel { axis: 0 };
    let length = |what, expected, got| Error::Length { what, expected, got };
    assert_eq!(
        new(&[4], channels, QuantType::I8, &[1.0; 3], &[0; 4]),
        length("scale", 4, 3)
    );
    assert_eq!(
        new(&[4], channels, QuantType::I8, &[1.0; 4], &[0; 5]),
        length("zero_point", 4, 5)
    );
    for value in [0.0, -1.0, f32::INFINITY] {
        assert_eq!(
            new(&[2], channels, QuantType::I8, &[1.0, value], &[0, 0]),
            Error::Scale { value, index: 1 }
        );
    }
    assert!(matches!(
        new(&[], whole, QuantType::I8, &[f32::NAN], &[0]),
        Error::Scale { index: 0, .. }
    ));
    for (dtype, value) in [
        (QuantType::I8, 128),
        (QuantType::U8, -1),
        (QuantType::I4, 8),
        (QuantType::U16, 65536),
    ] {
        let (min, max) = (dtype.min(), dtype.max());
        assert_eq!(
            new(&[], whole, dtype, &[1.0], &[value]),
            Error::ZeroPoint {
                value,
                index: 0,
                min,
                max
            }
        );
    }
    let map = Affine::new(&[3], whole, QuantType::U8, false, &[1.0], &[0]).unwrap();
    assert_eq!(map.quantize(&[0.0; 2], &mut [0u8; 3]), Err(length("input", 3, 2)));
    assert_eq!(map.quantize(&[0.0; 3], &mut [0u8; 2]), Err(length("output", 3, 2)));
    let container = Error::Container {
        dtype: QuantType::U8,
        container: QuantType::I8,
    };
    assert_eq!(map.quantize(&[0.0; 3], &mut [0i8; 3]), Err(container));
    assert!(
        affine::slice_ranges(&[], &[usize::MAX, usize::MAX], whole).is_err(),
        "the product of the shape overflows"
    );
}
