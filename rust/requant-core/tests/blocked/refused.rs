//! What weights in blocks are not made of, and the names of their kernels.

use requant_core::{
    Error,
    arrays::{Bytes, Matrix},
    gemm::blocked::{Activations, PackedBlocks, matmul},
    kernels::blocked_gemm::{self, BlockedKernel},
};

#[test]
fn misfits_are_refused() {
    let q = Matrix::new(Bytes::U8(&[1, 2, 3, 4]), 2, 2).unwrap();
    let new = |b, size, scales: &[f32], zero_points: &[i32]| {
        PackedBlocks::new(b, size, scales, zero_points).unwrap_err().to_string()
    };
    assert_eq!(
        new(q, 48, &[1.0; 2], &[8]),
        "block_size 48 is not 16, 32, 64, 128 or 256"
    );
    assert_eq!(new(q, 16, &[1.0; 3], &[8]), "scales has 3 elements, expected 2");
    assert_eq!(
        new(q, 16, &[1.0, f32::NAN], &[8]),
        "value NaN at index [0, 1] is not finite"
    );
    assert_eq!(new(q, 16, &[1.0; 2], &[8; 3]), "zero_points has 3 elements, expected 2");
    assert_eq!(
        new(q, 16, &[1.0; 2], &[16]),
        "zero_point 16 at index 0 is outside 0..=15"
    );
    let wide = Matrix::new(Bytes::U8(&[1, 2, 16, 4]), 2, 2).unwrap();
    assert_eq!(new(wide, 16, &[1.0; 2], &[8]), "integer 16 at index 2 is outside uint4");
    let signed = Matrix::new(Bytes::I8(&[-9, 7]), 1, 2).unwrap();
    assert_eq!(
        new(signed, 16, &[1.0; 2], &[0]),
        "integer -9 at index 0 is outside int4"
    );
    let b = PackedBlocks::new(q, 16, &[1.0; 2], &[8]).unwrap();
    let run = |a: &[f32], bias: &[f32], out: &mut [f32]| {
        matmul(a, 1, &b, Activations::Float, bias, out, 1)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(run(&[1.0; 3], &[], &mut [0.0; 2]), "a has 3 elements, expected 2");
    assert_eq!(run(&[1.0; 2], &[1.0], &mut [0.0; 2]), "bias has 1 elements, expected 2");
    assert_eq!(run(&[1.0; 2], &[], &mut [0.0; 3]), "output has 3 elements, expected 2");
    assert_eq!(
        "int4".parse::<Activations>().unwrap_err().to_string(),
        "unknown activations \"int4\"; choose one of int8, int8_per_row, float"
    );
    assert!(matches!(blocked_gemm::by_name("mmx").err(), Some(Error::Isa { .. })));
}

#[test]
fn names_are_those_of_the_sets() {
    let names: Vec<_> = blocked_gemm::available().map(BlockedKernel::name).collect();
    assert_eq!(names.last(), Some(&"generic"));
    let sets: Vec<_> = requant_core::kernels::available()
        .map(requant_core::kernels::Kernels::name)
        .collect();
    assert!(names.iter().all(|name| sets.contains(name)), "{names:?} {sets:?}");
    if std::env::var_os("REQUANT_ISA").is_none() {
        assert_eq!(
            PackedBlocks::new(Matrix::new(Bytes::I8(&[]), 0, 0).unwrap(), 32, &[], &[0])
                .unwrap()
                .kernel()
                .name(),
            names[0]
        );
    }
}
