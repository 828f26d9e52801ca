//! Conversions of halves against the definition of their formats, in f64.

use requant_core::{
    arrays::{Reals, RealsMut},
    kernels::elementwise,
};

/// A binary format of 16 bits.
#[derive(Clone, Copy)]
pub(crate) struct Format {
    mantissa_bits: u32,
    bias: i32,
}

pub(crate) const F16: Format = Format {
    mantissa_bits: 10,
    bias: 15,
};
pub(crate) const BF16: Format = Format {
    mantissa_bits: 7,
    bias: 127,
};

impl Format {
    fn wrap(self, halves: &[u16]) -> Reals<'_> {
        if self.bias == BF16.bias {
            Reals::Bf16(halves)
        } else {
            Reals::F16(halves)
        }
    }

    fn wrap_mut(self, halves: &mut [u16]) -> RealsMut<'_> {
        if self.bias == BF16.bias {
            RealsMut::Bf16(halves)
        } else {
            RealsMut::F16(halves)
        }
    }

    fn infinity(self) -> u16 {
        0x7fff >> self.mantissa_bits << self.mantissa_bits
    }

    /// What the bits stand for; every half is an f32.
    pub(crate) fn real(self, half: u16) -> f32 {
        let (sign, magnitude) = (if half >> 15 == 1 { -1.0 } else { 1.0 }, half & 0x7fff);
        let exponent = i32::from(magnitude >> self.mantissa_bits);
        let mantissa = f64::from(magnitude & ((1 << self.mantissa_bits) - 1)) / f64::from(1 << self.mantissa_bits);
        (sign
            * match magnitude {
                m if m > self.infinity() => f64::NAN,
                m if m == self.infinity() => f64::INFINITY,
                _ if exponent == 0 => mantissa * 2f64.powi(1 - self.bias),
                _ => (1.0 + mantissa) * 2f64.powi(exponent - self.bias),
            }) as f32
    }

    /// The nearest half, by search: of the two around `x` the nearer, and the even one of equally near ones. `x` is no
    /// NaN.
    pub(crate) fn nearest(self, x: f32) -> u16 {
        let magnitude = f64::from(x.abs());
        let sign = if x.is_sign_negative() { 0x8000 } else { 0 };
        // As if there were one more exponent, infinity is the next float after the last.
        let real = |half: u16| match half {
            half if half == self.infinity() => 2.0 * f64::from(self.real(half - 1)) - f64::from(self.real(half - 2)),
            half => f64::from(self.real(half)),
        };
        let (mut below, mut above) = (0, self.infinity());
        if magnitude >= real(above) {
            return sign | above;
        }
        while above - below > 1 {
            let middle = u16::midpoint(below, above);
            if real(middle) <= magnitude {
                below = middle;
            } else {
                above = middle;
            }
        }
        let (down, up) = (magnitude - real(below), real(above) - magnitude);
        sign | if down < up || (down == up && below % 2 == 0) {
            below
        } else {
            above
        }
    }
}

#[test]
fn every_half_is_widened_exactly_and_comes_back() {
    let halves: Vec<u16> = (0..=u16::MAX).collect();
    for kernel in elementwise::available() {
        for format in [F16, BF16] {
            let (mut wide, mut back) = (vec![0.0; halves.len()], vec![0; halves.len()]);
            kernel.widen(format.wrap(&halves), &mut wide);
            kernel.narrow(&wide, format.wrap_mut(&mut back));
            for ((half, wide), back) in halves.iter().zip(wide).zip(back) {
                let real = format.real(*half);
                let name = kernel.name();
                assert_eq!(wide.is_nan(), real.is_nan(), "{name}, {half:#06x}");
                if real.is_nan() {
                    assert!(format.real(back).is_nan(), "{name}, {half:#06x} became {back:#06x}");
                } else {
                    assert_eq!((wide.to_bits(), back), (real.to_bits(), *half), "{name}, {half:#06x}");
                }
            }
        }
    }
}

/// Each half, the middle to the next one, and what lies beside them.
#[test]
fn reals_are_rounded_to_the_nearest_half() {
    for format in [F16, BF16] {
        let around = |half: u16| {
            let (low, high) = (format.real(half), format.real(half.saturating_add(1)));
            let middle = f32::midpoint(low, high);
            [low.next_up(), middle.next_down(), middle, middle.next_up(), -middle]
        };
        let mut x: Vec<f32> = (0..format.infinity() - 1).flat_map(around).collect();
        x.extend([
            0.0,
            -0.0,
            65519.996,
            65520.0,
            1e30,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            1e-45,
            -1e-45,
            2f32.powi(-25),
        ]);
        for kernel in elementwise::available() {
            let mut halves = vec![0; x.len()];
            kernel.narrow(&x, format.wrap_mut(&mut halves));
            for (x, half) in x.iter().zip(halves) {
                assert_eq!(half, format.nearest(*x), "{}, {x:e}", kernel.name());
            }
        }
    }
}
