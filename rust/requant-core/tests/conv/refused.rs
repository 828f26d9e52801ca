//! What a convolution is not made of, and the names of its kernels.

use requant_core::{
    Error,
    arrays::Bytes,
    conv::{Filters, Geometry, Images, PackedConv, conv2d},
    gemm::{Dequantize, Output},
    kernels::depthwise::{self, DepthwiseKernel},
};

#[test]
fn misfits_are_refused() {
    let data = [1i8; 36];
    let filters = |shape, zero_point| Filters {
        data: Bytes::I8(&data),
        shape,
        zero_point,
    };
    let pack = |shape, zero_point, geometry| PackedConv::new(filters(shape, zero_point), geometry);
    let plain = Geometry::default();
    let refused = |shape, zero_point, geometry| pack(shape, zero_point, geometry).unwrap_err().to_string();
    assert_eq!(
        refused([2, 2, 3, 4], &[0], plain),
        "filters has 36 elements, expected 48"
    );
    assert_eq!(
        refused([4, 1, 3, 3], &[0], Geometry { groups: 3, ..plain }),
        "groups is [3], expected a divisor of the 4 filters"
    );
    assert!(refused([4, 1, 3, 3], &[0], Geometry { groups: 0, ..plain }).starts_with("groups is [0]"));
    let strides = [1, 0];
    assert_eq!(
        refused([4, 1, 3, 3], &[0], Geometry { strides, ..plain }),
        "strides is [1, 0], expected at least 1 on each axis"
    );
    assert!(refused([4, 1, 3, 3], &[0, 0], plain).starts_with("zero_point of the filters has 2"));
    assert!(refused([4, 1, 3, 3], &[128], plain).starts_with("zero_point 128"));
    let empty = Filters {
        data: Bytes::U8(&[]),
        shape: [4, 1, 0, 3],
        zero_point: &[0],
    };
    assert!(
        PackedConv::new(empty, plain)
            .unwrap_err()
            .to_string()
            .starts_with("kernel is [0, 3]")
    );

    let conv = pack([4, 1, 3, 3], &[0], plain).unwrap();
    assert_eq!(
        conv.output_shape([1, 5, 5, 2]).unwrap_err().to_string(),
        "shape of the images is [1, 5, 5, 2], expected 1 channels, the last axis"
    );
    let x = [0u8; 25];
    assert!(Images::new(Bytes::U8(&x), [1, 5, 6, 1], 0).is_err());
    assert!(Images::new(Bytes::U8(&x), [1, 5, 5, 1], 256).is_err());
    let images = Images::new(Bytes::U8(&x), [1, 5, 5, 1], 0).unwrap();
    let run = |output: Output<'_>| conv2d(images, &conv, output, 1).unwrap_err().to_string();
    assert_eq!(run(Output::I32(&mut [0; 35])), "output has 35 elements, expected 36");
    let scales = Dequantize {
        a: &[1.0; 9],
        b: &[1.0],
        bias: &[],
    };
    assert_eq!(
        run(Output::F32(&mut [0.0; 36], scales)),
        "scale of the images has 9 elements, expected 1"
    );
}

#[test]
fn sums_too_long_for_i32_are_refused() {
    for groups in [1, 2] {
        let filters = Filters {
            data: Bytes::U8(&[255; 66_052]),
            shape: [2, 1, 1, 33_026],
            zero_point: &[0],
        };
        let conv = PackedConv::new(
            filters,
            Geometry {
                groups,
                ..Geometry::default()
            },
        )
        .unwrap();
        let x = vec![255; 33_026 * groups];
        let images = Images::new(Bytes::U8(&x), [1, 1, 33_026, groups], 0).unwrap();
        let error = conv2d(images, &conv, Output::I32(&mut [0; 2]), 1).unwrap_err();
        assert_eq!(
            error,
            Error::Accumulator {
                k: 33_026,
                limit: 33_025
            }
        );
    }
}

#[test]
fn names_are_those_of_the_sets() {
    let names: Vec<_> = depthwise::available().map(DepthwiseKernel::name).collect();
    assert_eq!(names.last(), Some(&"generic"));
    assert!(
        depthwise::by_name("none")
            .err()
            .unwrap()
            .to_string()
            .contains("generic")
    );
    for name in names {
        assert_eq!(depthwise::by_name(name).unwrap().name(), name);
    }
}
