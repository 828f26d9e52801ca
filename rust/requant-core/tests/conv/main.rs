//! Convolution on every kernel equals the definition, exactly.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "test data"
)]

#[path = "../common/bits.rs"]
mod bits;
#[path = "../common/mix.rs"]
mod mix;
mod naive;
mod operands;
mod refused;

use bits::{Bits, zero_points};
use naive::Attributes;
use operands::{channels_last, images_of, tensor_of};
use proptest::prelude::*;
use requant_core::{
    QuantType,
    conv::{Filters, Geometry, Images, PackedConv, conv2d},
    gemm::{Dequantize, Output},
    kernels::{
        depthwise::{self, DepthwiseKernel},
        gemm::{self, GemmKernel},
    },
    requantize::{Requantizer, Rounding, Scales},
};

const TYPES: [QuantType; 2] = [QuantType::U8, QuantType::I8];
const PLAIN: Attributes = Attributes {
    strides: [1, 1],
    dilations: [1, 1],
    pads: [0; 4],
    groups: 1,
};

/// One convolution with everything that decides its sums.
#[derive(Debug, Clone)]
struct Case {
    images: [usize; 4],
    filters: [usize; 4],
    attributes: Attributes,
    types: [QuantType; 2],
    x_zero_point: i32,
    w_zero_point: Vec<i32>,
    seed: u64,
}

impl Case {
    /// Random zero points, the filters' for each where `each`.
    fn new(images: [usize; 4], filters: [usize; 4], attributes: Attributes, types: [usize; 2], each: bool) -> Self {
        let types = types.map(|i| TYPES[i]);
        let seed = images.iter().chain(&filters).fold(7, |seed, &n| seed * 31 + n as u64);
        Self {
            images,
            filters,
            attributes,
            types,
            x_zero_point: zero_points(types[0], 1, seed)[0],
            w_zero_point: zero_points(types[1], if each { filters[0].max(1) } else { 1 }, seed + 1),
            seed,
        }
    }

    fn operands(&self) -> (Bits, Bits) {
        let size = |shape: [usize; 4]| shape.iter().product();
        (
            Bits::random(self.types[0], size(self.images), self.seed),
            Bits::random(self.types[1], size(self.filters), !self.seed),
        )
    }

    fn geometry(&self) -> Geometry {
        let Attributes {
            strides,
            dilations,
            pads,
            groups,
        } = self.attributes;
        Geometry {
            strides,
            dilations,
            pads,
            groups,
        }
    }

    fn pack(&self, kernels: Kernels, w: &Bits) -> PackedConv {
        let filters = Filters {
            data: w.bytes(),
            shape: self.filters,
            zero_point: &self.w_zero_point,
        };
        PackedConv::with_kernels(kernels.0, kernels.1, filters, self.geometry()).unwrap()
    }

    fn check(&self, threads: usize) {
        let (x, w) = self.operands();
        self.check_with(&x, &w, threads);
    }

    fn check_with(&self, x: &Bits, w: &Bits, threads: usize) {
        let (images, filters) = (images_of(x, self.images), tensor_of(w, self.filters));
        let zero_point = i64::from(self.x_zero_point);
        let sums = naive::conv(&images, zero_point, &filters, &self.w_zero_point, &self.attributes);
        let [n, m, h, width] = sums.shape;
        let want = channels_last(&sums);
        for kernels in all() {
            let conv = self.pack(kernels, w);
            assert_eq!(conv.output_shape(self.images).unwrap(), [n, h, width, m], "{self:?}");
            let mut got = vec![-77; want.len()];
            let images = Images::new(x.bytes(), self.images, self.x_zero_point).unwrap();
            conv2d(images, &conv, Output::I32(&mut got), threads).unwrap();
            let wrong: Vec<usize> = (0..want.len()).filter(|&i| i64::from(got[i]) != want[i]).collect();
            if let Some(&i) = wrong.first() {
                panic!(
                    "{}: {self:?}, {threads} threads: at {i} got {}, want {}; {} of {} wrong",
                    conv.kernel(),
                    got[i],
                    want[i],
                    wrong.len(),
                    want.len()
                );
            }
        }
    }
}

type Kernels = (&'static dyn GemmKernel, &'static dyn DepthwiseKernel);

/// Each kernel of either kind, beside one of the other.
fn all() -> impl Iterator<Item = Kernels> {
    let first = (
        gemm::available().next().unwrap(),
        depthwise::available().next().unwrap(),
    );
    let products = gemm::available().map(move |kernel| (kernel, first.1));
    products.chain(depthwise::available().map(move |kernel| (first.0, kernel)))
}

fn strategy() -> impl Strategy<Value = Case> {
    let pair = |range: std::ops::RangeInclusive<usize>| [range.clone(), range];
    (
        (0..3usize, 1..12usize, 1..14usize),
        // Groups, channels and filters of each; depthwise as often as not.
        prop_oneof![
            (1..70usize).prop_map(|channels| (channels, 1, 1)),
            (1..4usize, 1..20usize, 0..20usize)
        ],
        pair(1..=5),
        (pair(1..=3), pair(1..=3), [0..4usize, 0..4, 0..4, 0..4]),
        ([0..2usize, 0..2], any::<bool>()),
    )
        .prop_map(
            |((n, h, w), (groups, channels, filters), [rows, columns], (strides, dilations, pads), (types, each))| {
                let attributes = Attributes {
                    strides,
                    dilations,
                    pads,
                    groups,
                };
                let filters = [groups * filters, channels, rows, columns];
                Case::new([n, h, w, groups * channels], filters, attributes, types, each)
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 600 }))]

    #[test]
    fn any_convolution_is_exact(case in strategy(), threads in 0..4usize) {
        case.check(threads);
    }
}

#[test]
fn the_usual_layers_are_exact() {
    for types in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        for size in [3, 5] {
            for stride in [1, 2] {
                let side = size / 2;
                let attributes = Attributes {
                    strides: [stride, stride],
                    pads: [side; 4],
                    ..PLAIN
                };
                let groups = 40;
                let depthwise = Attributes { groups, ..attributes };
                Case::new([2, 15, 14, groups], [groups, 1, size, size], depthwise, types, true).check(1);
                Case::new([2, 9, 8, 24], [17, 24, size, size], attributes, types, true).check(2);
            }
        }
        Case::new([2, 7, 9, 33], [20, 33, 1, 1], PLAIN, types, false).check(1);
        let strided = Attributes {
            strides: [2, 2],
            ..PLAIN
        };
        Case::new([1, 7, 9, 33], [20, 33, 1, 1], strided, types, false).check(1);
        let multiplied = Attributes { groups: 5, ..PLAIN };
        Case::new([1, 4, 4, 5], [15, 1, 3, 3], multiplied, types, true).check(1);
        let sequence = Attributes {
            dilations: [1, 4],
            pads: [0, 8, 0, 0],
            ..PLAIN
        };
        Case::new([1, 1, 40, 6], [8, 6, 1, 3], sequence, types, false).check(1);
        Case::new(
            [1, 1, 40, 6],
            [6, 1, 1, 3],
            Attributes { groups: 6, ..sequence },
            types,
            false,
        )
        .check(1);
    }
}

#[test]
fn windows_that_see_only_padding_or_nothing() {
    let far = Attributes {
        pads: [9, 9, 9, 9],
        strides: [4, 5],
        dilations: [7, 8],
        groups: 3,
    };
    Case::new([1, 2, 2, 3], [3, 1, 3, 3], far, [0, 1], true).check(1);
    Case::new([1, 2, 2, 3], [6, 1, 3, 3], far, [1, 0], true).check(1);
    for groups in [1, 4] {
        let few = Attributes { groups, ..PLAIN };
        Case::new([1, 2, 2, 4], [4, 4 / groups, 3, 3], few, [0, 0], false).check(0);
        Case::new([0, 5, 5, 4], [4, 4 / groups, 3, 3], few, [0, 0], false).check(0);
    }
    // Taps that lie far apart take no more memory than the outputs need.
    let apart = Attributes {
        strides: [1, 1],
        dilations: [1, 1 << 40],
        pads: [0, 1 << 40, 0, 0],
        groups: 2,
    };
    Case::new([1, 3, 4, 2], [2, 1, 2, 2], apart, [0, 1], true).check(1);
    let strides = [1, 1 << 40];
    Case::new(
        [1, 3, 4, 2],
        [2, 1, 2, 2],
        Attributes { strides, ..apart },
        [0, 1],
        true,
    )
    .check(1);
}

#[test]
fn the_extremes_do_not_saturate() {
    for types in [[0, 0], [0, 1], [1, 0], [1, 1]] {
        for bits in [(0, 0), (255, 128), (128, 128), (127, 128), (255, 255), (0, 255)] {
            for groups in [1, 18] {
                let attributes = Attributes {
                    groups,
                    pads: [1; 4],
                    ..PLAIN
                };
                let mut case = Case::new([1, 4, 5, 18], [18, 18 / groups, 3, 3], attributes, types, false);
                let x = Bits::new(case.types[0], 4 * 5 * 18, |_| bits.0);
                let w = Bits::new(case.types[1], 18 * 18 / groups * 9, |_| bits.1);
                let [x_type, w_type] = case.types;
                for x_zero_point in [x_type.min(), x_type.max()] {
                    for w_zero_point in [w_type.min(), w_type.max()] {
                        (case.x_zero_point, case.w_zero_point) = (x_zero_point, vec![w_zero_point]);
                        case.check_with(&x, &w, 1);
                    }
                }
            }
        }
    }
}

#[test]
fn threads_do_not_change_the_result() {
    for groups in [1, 2, 16] {
        let attributes = Attributes {
            pads: [1; 4],
            groups,
            ..PLAIN
        };
        for threads in 0..=5 {
            Case::new(
                [2, 6, 7, 16],
                [32 / (32 / 16), 16 / groups, 3, 3],
                attributes,
                [0, 1],
                true,
            )
            .check(threads);
        }
    }
    // Few pixels and many filters: threads take columns.
    Case::new([1, 2, 2, 8], [300, 8, 2, 2], PLAIN, [0, 0], true).check(3);
}

#[test]
fn filters_unpack_to_themselves() {
    for (shape, groups) in [
        ([40, 1, 3, 5], 40),
        ([6, 4, 3, 2], 3),
        ([5, 7, 1, 1], 1),
        ([4, 1, 4, 4], 4),
    ] {
        for types in [[0, 0], [0, 1]] {
            let case = Case::new([1; 4], shape, Attributes { groups, ..PLAIN }, types, true);
            let (_, w) = case.operands();
            for kernels in all() {
                let conv = case.pack(kernels, &w);
                assert_eq!(conv.unpack(), w.bits, "{conv:?}");
                assert_eq!(
                    (conv.shape(), conv.dtype(), conv.geometry()),
                    (shape, w.dtype, case.geometry())
                );
                assert_eq!(conv.zero_point(), case.w_zero_point);
            }
        }
    }
}

#[test]
fn results_are_those_of_the_sums() {
    for groups in [1, 3, 21] {
        let attributes = Attributes {
            groups,
            pads: [0, 1, 1, 0],
            ..PLAIN
        };
        let case = Case::new([2, 5, 6, 21], [21, 21 / groups, 3, 3], attributes, [0, 1], true);
        let (x, w) = case.operands();
        let images = Images::new(x.bytes(), case.images, case.x_zero_point).unwrap();
        let scale: Vec<f32> = (0..21).map(|j| 1e-3 * (1.0 + j as f32)).collect();
        let scales = Scales {
            a: 0.3,
            b: &scale,
            y: 2.9,
        };
        let reals: Vec<f32> = (0..21).map(|j| j as f32 - 9.5).collect();
        let bias: Vec<i32> = (0..21).map(|j| j * 977 - 9_000).collect();
        for kernels in all() {
            let conv = case.pack(kernels, &w);
            let size = conv.output_shape(case.images).unwrap().iter().product();
            let mut sums = vec![0; size];
            conv2d(images, &conv, Output::I32(&mut sums), 1).unwrap();
            let mut floats = vec![0.0; size];
            let dequantize = Dequantize {
                a: &[0.3],
                b: &scale,
                bias: &reals,
            };
            conv2d(images, &conv, Output::F32(&mut floats, dequantize), 2).unwrap();
            for (at, (&got, &sum)) in floats.iter().zip(&sums).enumerate() {
                let want = sum as f32 * (0.3 * scale[at % 21]) + reals[at % 21];
                assert_eq!(got.to_bits(), want.to_bits(), "{conv:?} at {at}: {got} {want}");
            }
            for rounding in Rounding::ALL {
                let new = |dtype, zero_point| Requantizer::new(rounding, scales, dtype, zero_point).unwrap();
                let unsigned = new(QuantType::U8, 90).with_bias(bias.clone());
                let signed = new(QuantType::I8, -5)
                    .with_bias(bias.clone())
                    .with_clamp(-5, 60)
                    .unwrap();
                let (mut u, mut s) = (vec![0; size], vec![0; size]);
                conv2d(images, &conv, Output::U8(&mut u, &unsigned), 2).unwrap();
                conv2d(images, &conv, Output::I8(&mut s, &signed), 1).unwrap();
                for (at, &sum) in sums.iter().enumerate() {
                    assert_eq!(i32::from(u[at]), unsigned.apply(sum, at % 21), "{conv:?} at {at}");
                    assert_eq!(i32::from(s[at]), signed.apply(sum, at % 21), "{conv:?} at {at}");
                }
            }
        }
    }
}

#[test]
fn depthwise_results_are_those_of_the_sums_for_any_width_and_scale() {
    for (at, width) in (1..=14).enumerate() {
        let (channels, size) = ([16, 47, 83, 160][at % 4], [3, 5, 2][at % 3]);
        let attributes = Attributes {
            groups: channels,
            strides: [1 + at % 2, 1 + at / 2 % 2],
            pads: [size / 2; 4],
            ..PLAIN
        };
        let case = Case::new(
            [1, 7, width, channels],
            [channels, 1, size, size],
            attributes,
            [at % 2, 1],
            true,
        );
        let (x, w) = case.operands();
        let images = Images::new(x.bytes(), case.images, case.x_zero_point).unwrap();
        let bias: Vec<i32> = (0..channels as i32).map(|j| j * 97 - 3_000).collect();
        // The last scales carry sums beyond i32.
        for scale in [1e-12, 0.003, 7.0, 1e5, 1e30] {
            let scale: Vec<f32> = (0..channels).map(|j| scale * (1.0 + j as f32)).collect();
            let scales = Scales {
                a: 0.3,
                b: &scale,
                y: 2.9,
            };
            let new = |dtype, zero_point| {
                let requantizer = Requantizer::new(Rounding::HalfEvenFloat, scales, dtype, zero_point).unwrap();
                requantizer.with_bias(bias.clone())
            };
            let unsigned = new(QuantType::U8, 131);
            let signed = new(QuantType::I8, -5).with_clamp(-5, 60).unwrap();
            for kernels in all() {
                let conv = case.pack(kernels, &w);
                let length = conv.output_shape(case.images).unwrap().iter().product();
                let (mut sums, mut u, mut s) = (vec![0; length], vec![0; length], vec![0; length]);
                conv2d(images, &conv, Output::I32(&mut sums), 1).unwrap();
                conv2d(images, &conv, Output::U8(&mut u, &unsigned), 1).unwrap();
                conv2d(images, &conv, Output::I8(&mut s, &signed), 2).unwrap();
                for (at, &sum) in sums.iter().enumerate() {
                    let column = at % channels;
                    assert_eq!(
                        i32::from(u[at]),
                        unsigned.apply(sum, column),
                        "{conv:?} at {at}: {sum}, {scale:?}"
                    );
                    assert_eq!(
                        i32::from(s[at]),
                        signed.apply(sum, column),
                        "{conv:?} at {at}: {sum}, {scale:?}"
                    );
                }
            }
        }
    }
}
