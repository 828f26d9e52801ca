//! Blocks side by side: lane `c` of each vector belongs to block `c`.
//!
//! Sums over a block then run along it in order, one addition after another, in each lane by itself: the bits are those
//! of a loop over the single block, and the instructions those of the whole register.

use std::ops::{Add, AddAssign, Div, Mul, Sub};

/// A value of each of `N` blocks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct V<const N: usize>(pub(crate) [f32; N]);

/// Adding it and taking it away again rounds to an integer, half to even, below 2^22.
pub(super) const MAGIC: f32 = 12_582_912.0;

impl<const N: usize> V<N> {
    #[inline(always)]
    pub(crate) fn all(value: f32) -> Self {
        Self([value; N])
    }

    #[inline(always)]
    pub(crate) fn map(self, f: impl Fn(f32) -> f32) -> Self {
        Self(std::array::from_fn(|c| f(self.0[c])))
    }

    #[inline(always)]
    fn with(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|c| f(self.0[c], other.0[c])))
    }

    /// The smaller; `self` where either is NaN.
    #[inline(always)]
    pub(crate) fn min(self, other: Self) -> Self {
        self.with(other, |a, b| if b < a { b } else { a })
    }

    /// The larger; `self` where either is NaN.
    #[inline(always)]
    pub(crate) fn max(self, other: Self) -> Self {
        self.with(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    pub(crate) fn abs(self) -> Self {
        self.map(f32::abs)
    }

    /// The nearest integer from `lo` to `hi`; `lo` of NaN.
    #[inline(always)]
    pub(crate) fn level(self, lo: f32, hi: f32) -> Self {
        self.map(|v| level(v, lo, hi))
    }

    /// `yes` where `self` is greater than `other`, else `no`.
    #[inline(always)]
    pub(crate) fn if_greater(self, other: Self, yes: Self, no: Self) -> Self {
        Self(std::array::from_fn(|c| {
            if self.0[c] > other.0[c] { yes.0[c] } else { no.0[c] }
        }))
    }
}

/// The integer nearest to `v`, half to even, from `lo` to `hi`; `lo` of NaN.
#[inline(always)]
pub(crate) fn level(v: f32, lo: f32, hi: f32) -> f32 {
    let rounded = (v + MAGIC) - MAGIC;
    let above = if rounded > lo { rounded } else { lo };
    if above < hi { above } else { hi }
}

macro_rules! operator {
    ($($trait:ident $name:ident $symbol:tt),*) => {
        $(impl<const N: usize> $trait for V<N> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                self.with(other, |a, b| a $symbol b)
            }
        })*
    };
}
operator!(Add add +, Sub sub -, Mul mul *, Div div /);

impl<const N: usize> AddAssign for V<N> {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// `LANES` blocks of `N` neighbouring values each, side by side.
#[inline(always)]
pub(crate) fn side_by_side<const N: usize, const LANES: usize>(x: &[f32]) -> [V<LANES>; N] {
    let mut across = [V::all(0.0); N];
    for (c, block) in x.as_chunks::<N>().0.iter().take(LANES).enumerate() {
        for (across, &v) in across.iter_mut().zip(block) {
            across.0[c] = v;
        }
    }
    across
}
