//! The formulas by name, read aloud.

use requant_core::{
    Error, Granularity, QuantType,
    affine::{Affine, Rounding, limits},
};

use super::{SCALES, awkward, zero_points};

fn oracle(rounding: Rounding, x: f32, scale: f32, zero_point: i32) -> f64 {
    let (inverse, z) = (1.0 / scale, zero_point as f32);
    let half_even = |v: f32| f64::from(v).round_ties_even();
    match rounding {
        Rounding::Onnx => half_even(x / scale) + f64::from(z),
        Rounding::TorchPerTensor => half_even(x.mul_add(inverse, z)),
        Rounding::TorchPerChannel => half_even(x * inverse + z),
        Rounding::TorchFakeQuantize => half_even(x * inverse) + f64::from(z),
    }
}

#[test]
fn each_name_is_its_formula() {
    for rounding in Rounding::ALL {
        for dtype in QuantType::ALL {
            let (min, max) = limits(dtype, false);
            for scale in SCALES {
                for zero_point in zero_points(dtype, false) {
                    let x = awkward(200, scale, dtype, 5);
                    let (scales, zero_points) = ([scale], [zero_point]);
                    let whole = Granularity::PerTensor;
                    let map = Affine::new(&[x.len()], whole, dtype, false, &scales, &zero_points).unwrap();
                    let map = map.with_rounding(rounding);
                    let (mut fake, mut mask) = (vec![0.0; x.len()], vec![false; x.len()]);
                    map.fake_quantize_with_mask(&x, &mut fake, &mut mask).unwrap();
                    for ((x, fake), inside) in x.into_iter().zip(fake).zip(mask) {
                        let level = oracle(rounding, x, scale, zero_point);
                        let case = format!("{rounding:?}, {dtype}, {x:e}, scale {scale:e}, zero point {zero_point}");
                        assert_eq!(inside, (f64::from(min)..=f64::from(max)).contains(&level), "{case}");
                        let level = if level.is_nan() { f64::from(zero_point) } else { level };
                        let steps = level.clamp(min.into(), max.into()) - f64::from(zero_point);
                        assert_eq!(fake, steps as f32 * scale, "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn the_formulas_differ_and_have_names() {
    let x = awkward(5000, 0.07, QuantType::U8, 1);
    let results = Rounding::ALL.map(|rounding| {
        let mut q = vec![0u8; x.len()];
        let map = Affine::new(
            &[x.len()],
            Granularity::PerTensor,
            QuantType::U8,
            false,
            &[0.07],
            &[127],
        )
        .unwrap();
        map.with_rounding(rounding).quantize(&x, &mut q).unwrap();
        q
    });
    for other in &results[1..] {
        assert!(*other != results[0], "the same as ONNX's on {} values", x.len());
    }
    for rounding in Rounding::ALL {
        assert_eq!(rounding.name().parse(), Ok(rounding));
    }
    assert!(matches!(
        "tflite".parse::<Rounding>(),
        Err(Error::UnknownName { what: "rounding", .. })
    ));
}
