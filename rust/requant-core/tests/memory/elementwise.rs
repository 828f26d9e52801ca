//! Quantizing, dequantizing, packing and halves.

use requant_core::{
    QuantType,
    affine::Rounding,
    arrays::{Integers, IntegersMut, Reals, RealsMut},
    kernels::elementwise::{self, Divisors, ElementwiseKernel, Slices},
};

use crate::{bits, compare, noise, reals};

/// Every type, and each kind of run with one formula; whole blocks, eights and tails.
#[test]
fn maps() {
    let runs = [(3_usize, 1), (41, 1), (50, 16), (67, 32), (69, 69), (45, 20)];
    for ((length, run), rounding) in runs.into_iter().zip(Rounding::ALL.into_iter().cycle()) {
        let slices = length.div_ceil(run);
        let scale: Vec<f32> = (0..slices).map(|i| 0.02 + i as f32 * 0.01).collect();
        let zero_point = vec![5; slices];
        let mut x = reals(length);
        for doubtful in [0.0, f32::NAN] {
            x[length / 2] += doubtful;
            compare(elementwise::available(), |k| {
                let run = Run {
                    k,
                    run,
                    scale: &scale,
                    zero_point: &zero_point,
                    rounding,
                };
                run.all(&x)
            });
        }
    }
}

#[derive(Clone, Copy)]
struct Run<'a> {
    k: &'static dyn ElementwiseKernel,
    run: usize,
    scale: &'a [f32],
    zero_point: &'a [i32],
    rounding: Rounding,
}

/// Integers, their reals, what fake quantization makes, and what was in range.
type Made = (Vec<i32>, Vec<u32>, Vec<u32>, Vec<bool>);

impl Run<'_> {
    fn all(self, x: &[f32]) -> [Made; 4] {
        let n = x.len();
        let (mut i8s, mut u8s, mut i16s, mut u16s) = (vec![0i8; n], vec![0u8; n], vec![0i16; n], vec![0u16; n]);
        [
            self.made(QuantType::I8, x, IntegersMut::I8(&mut i8s)),
            self.made(QuantType::U8, x, IntegersMut::U8(&mut u8s)),
            self.made(QuantType::I16, x, IntegersMut::I16(&mut i16s)),
            self.made(QuantType::U16, x, IntegersMut::U16(&mut u16s)),
        ]
    }

    fn made(self, dtype: QuantType, x: &[f32], mut q: IntegersMut<'_>) -> Made {
        let Self {
            k,
            run,
            scale,
            zero_point,
            rounding,
        } = self;
        let slices = Slices {
            run,
            scale,
            zero_point,
            limits: (dtype.min(), dtype.max()),
        };
        let [mut inverse, mut min, mut max] = [(); 3].map(|()| vec![0.0; scale.len()]);
        let ordinary = k.prepare(slices, &mut inverse, &mut min, &mut max);
        let divisors = Divisors {
            slices,
            inverse: &inverse,
            min: &min,
            max: &max,
            ordinary,
        };
        let (mut fake, mut inside) = (vec![0.0; x.len()], vec![false; x.len()]);
        k.fake_quantize(x, divisors, rounding, &mut fake);
        k.in_range(x, divisors, rounding, &mut inside);
        let mut back = [vec![0.0; x.len()], vec![0.0; x.len()]];
        let mut dequantize = |q: Integers<'_>| {
            k.dequantize(q, slices, false, &mut back[0]);
            k.dequantize(q, slices, true, &mut back[1]);
        };
        let widened: Vec<i32> = match &mut q {
            IntegersMut::I8(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::I8(q));
                dequantize(Integers::I8(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
            IntegersMut::U8(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::U8(q));
                dequantize(Integers::U8(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
            IntegersMut::I16(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::I16(q));
                dequantize(Integers::I16(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
            IntegersMut::U16(q) => {
                k.quantize(x, divisors, rounding, IntegersMut::U16(q));
                dequantize(Integers::U16(q));
                q.iter().map(|q| i32::from(*q)).collect()
            }
        };
        assert_eq!(bits(&back[0]), bits(&back[1]), "{}, past the caches", k.name());
        (widened, bits(&back[0]), bits(&fake), inside)
    }
}

#[test]
fn packing_and_halves() {
    for length in [0_usize, 1, 63, 64, 131] {
        let nibbles: Vec<u8> = noise(length).iter().map(|byte| byte & 3).collect();
        // No NaN, whose bits Miri draws at random.
        let halves: Vec<u16> = (0..length as u16).map(|i| i.wrapping_mul(0x1357) & 0xbfff).collect();
        compare(elementwise::available(), |k: &dyn ElementwiseKernel| {
            let packed = [2, 4].map(|per_byte| {
                let (mut out, mut back) = (vec![0; length.div_ceil(per_byte)], vec![0i8; length]);
                let fits = k.pack(Integers::U8(&nibbles), per_byte, &mut out);
                k.unpack(&out, per_byte, IntegersMut::I8(&mut back));
                (fits, out, back)
            });
            let (mut wide, mut narrow) = (vec![0.0; length], vec![0; length]);
            k.widen(Reals::F16(&halves), &mut wide);
            // Miri does not know the instruction of AVX2.
            if !cfg!(miri) {
                k.narrow(&wide, RealsMut::F16(&mut narrow));
            }
            (packed, bits(&wide), narrow)
        });
    }
}
