//! Which integer stands for a real, and which real an integer stands for.
//!
//! ```text
//! q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax)        ONNX QuantizeLinear
//! x = (q - zero_point) * scale                                          ONNX DequantizeLinear
//! ```
//!
//! [`params`] turns a range into a scale and zero point, [`slice_ranges`] finds ranges in an array, and [`Affine`]
//! applies parameters to one. The division is a division, in f32: multiplying by `1 / scale` rounds twice and moves
//! values that lie on a tie; [`Rounding`] has the formulas of frameworks that do. Infinities and 3e9 saturate, NaN
//! gives the zero point. Every instruction set and any number of threads give the same bits.

mod drive;
mod dynamic;
mod layout;
mod params;
mod ranges;
mod rounding_error;
mod tiling;

use std::{borrow::Cow, ops::Range};

use drive::{Prepared, Scratch, for_each_tile};
use layout::{Layout, Segment};
use tiling::Tiling;

pub use crate::kernels::rounding::Rounding;
pub use dynamic::dynamic_error;
pub use params::{limits, params};
pub use ranges::{largest_terms, slice_ranges};
pub use rounding_error::RoundingError;

use crate::{
    Error, Granularity, QuantType, Result,
    arrays::{Cut, Integers, IntegersMut, Packed, Reals, RealsMut},
    error::check_length,
    kernels::elementwise::{self, Divisors, ElementwiseKernel, Slices},
    pack,
};

/// Results that are written past the caches from this many on, 16 MiB of f32: the first of them would have left before
/// the last came, and lines that are written whole need not be read before.
const STREAMED: usize = 1 << 22;

/// Parameters laid over a shape, checked once and then applied to any number of arrays of that shape.
///
/// Arrays are row-major. `scale` and `zero_point` are too, in the shape that the granularity gives: `x` of shape
/// `[64, 32]` has 1 (per tensor), 64 (per channel, axis 0), `64 x 2` (blocks of 16 along axis 1) or 64 (per token).
///
/// ```
/// use requant_core::{Granularity, QuantType, affine::Affine};
/// let map = Affine::new(&[2, 2], Granularity::PerChannel { axis: 0 }, QuantType::I8, false, &[0.5, 2.0], &[0, 1])?;
/// let mut q = [0i8; 4];
/// map.quantize(&[1.0, -0.25, 1.0, 1e9], &mut q)?;
/// assert_eq!(q, [2, 0, 1, 127]);
/// # Ok::<(), requant_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Affine<'a> {
    layout: Layout,
    elements: usize,
    dtype: QuantType,
    limits: (i32, i32),
    scale: Cow<'a, [f32]>,
    zero_point: Cow<'a, [i32]>,
    rounding: Rounding,
    threads: usize,
    kernel: &'static dyn ElementwiseKernel,
}

impl<'a> Affine<'a> {
    /// Lays `scale` and `zero_point` over `shape`.
    ///
    /// # Errors
    /// An axis outside the shape, a block size of 0, too few or too many parameters, a scale that is not finite and
    /// positive, a zero point outside the integers in use.
    pub fn new(
        shape: &[usize],
        granularity: Granularity,
        dtype: QuantType,
        narrow: bool,
        scale: &'a [f32],
        zero_point: &'a [i32],
    ) -> Result<Self> {
        let tiling = Tiling::new(shape, granularity)?;
        check_length("scale", tiling.slices(), scale.len())?;
        check_length("zero_point", tiling.slices(), zero_point.len())?;
        // All are looked at before the wrong one is looked for: blocks have many, and such a loop takes them by
        // vectors.
        let good = |s: f32| (s > 0.0) & (s < f32::INFINITY);
        if !scale.iter().fold(true, |all, s| all & good(*s))
            && let Some(index) = scale.iter().position(|s| !good(*s))
        {
            return Err(Error::Scale {
                value: scale[index],
                index,
            });
        }
        let limits @ (min, max) = limits(dtype, narrow);
        let within = |z: i32| (min <= z) & (z <= max);
        if !zero_point.iter().fold(true, |all, z| all & within(*z))
            && let Some(index) = zero_point.iter().position(|z| !within(*z))
        {
            return Err(Error::ZeroPoint {
                value: zero_point[index],
                index,
                min,
                max,
            });
        }
        let (layout, repeat) = Layout::new(&tiling).widened();
        Ok(Self {
            layout,
            elements: tiling.elements(),
            dtype,
            limits,
            scale: repeat.apply(scale),
            zero_point: repeat.apply(zero_point),
            rounding: Rounding::Onnx,
            threads: 0,
            kernel: elementwise::current(),
        })
    }

    /// The same with another formula than ONNX's.
    #[must_use]
    pub fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// The same on that many threads; 0, the default, is as many as the size is worth, up to all cores.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// The same on that kernel, instead of that of the set in use.
    #[must_use]
    pub fn with_kernel(self, kernel: &'static dyn ElementwiseKernel) -> Self {
        Self { kernel, ..self }
    }

    /// Writes the integer of each real.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or integers that do not hold the type.
    pub fn quantize<'x>(&self, x: impl Into<Reals<'x>>, out: impl Into<IntegersMut<'x>>) -> Result<()> {
        let (x, out) = (x.into(), out.into());
        self.check_holds(out.container())?;
        self.check_lengths(x.len(), out.len())?;
        for_each_tile((x, out), self.threads, |first, (x, out), scratch| {
            let Scratch { reals, prepared, .. } = scratch;
            self.quantize_tile(first, x, out, reals, prepared);
        });
        Ok(())
    }

    /// Writes the integer of each real of a type of 2 or 4 bits, packed as [`crate::pack`] does, in one pass.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or a wider type.
    pub fn quantize_packed<'x>(&self, x: impl Into<Reals<'x>>, out: &'x mut [u8]) -> Result<()> {
        let x = x.into();
        let per_byte = pack::per_byte(self.dtype)?;
        self.check_lengths(x.len(), self.elements)?;
        check_length("packed data", self.elements.div_ceil(per_byte), out.len())?;
        let out = Packed::new(out, per_byte, self.elements);
        for_each_tile((x, out), self.threads, |first, (x, out), scratch| {
            let Scratch {
                reals, held, prepared, ..
            } = scratch;
            let mut q = held.integers(self.dtype.signed(), x.len());
            self.quantize_tile(first, x, q.part(0..x.len()), reals, prepared);
            self.kernel.pack(q.borrowed(), per_byte, out.bytes);
        });
        Ok(())
    }

    /// Writes the real of each integer.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or integers that do not hold the type.
    pub fn dequantize<'x>(&self, q: impl Into<Integers<'x>>, out: impl Into<RealsMut<'x>>) -> Result<()> {
        let (q, out) = (q.into(), out.into());
        self.check_holds(q.container())?;
        self.check_lengths(q.len(), out.len())?;
        for_each_tile((q, out), self.threads, |first, (q, out), scratch| {
            self.dequantize_tile(first, q, out, &mut scratch.reals);
        });
        Ok(())
    }

    /// Writes the real of each integer of a packed array, in one pass.
    ///
    /// # Errors
    /// Lengths that differ from the shape's, or a type wider than 4 bits.
    pub fn dequantize_packed<'x>(&self, q: &'x [u8], out: impl Into<RealsMut<'x>>) -> Result<()> {
        let out = out.into();
        let per_byte = pack::per_byte(self.dtype)?;
        self.check_lengths(self.elements, out.len())?;
        check_length("packed data", self.elements.div_ceil(per_byte), q.len())?;
        let q = Packed::new(q, per_byte, self.elements);
        for_each_tile((q, out), self.threads, |first, (packed, out), scratch| {
            let Scratch { reals, held, .. } = scratch;
            let mut q = held.integers(self.dtype.signed(), out.len());
            self.kernel.unpack(packed.bytes, per_byte, q.part(0..out.len()));
            self.dequantize_tile(first, q.borrowed(), out, reals);
        });
        Ok(())
    }

    /// Writes the real that each real becomes when it is quantized and dequantized.
    ///
    /// # Errors
    /// Lengths that differ from the shape's.
    pub fn fake_quantize<'x>(&self, x: impl Into<Reals<'x>>, out: impl Into<RealsMut<'x>>) -> Result<()> {
        let (x, out) = (x.into(), out.into());
        self.check_lengths(x.len(), out.len())?;
        for_each_tile((x, out), self.threads, |first, (x, out), scratch| {
            self.fake_quantize_tile(first, x, out, scratch, |_, _, _| ());
        });
        Ok(())
    }

    /// [`Self::fake_quantize`], and whether the integer of each real lay within those in use before it was clamped
    /// (false for NaN): where a straight-through estimator passes the gradient on.
    ///
    /// # Errors
    /// Lengths that differ from the shape's.
    pub fn fake_quantize_with_mask<'x>(
        &self,
        x: impl Into<Reals<'x>>,
        out: impl Into<RealsMut<'x>>,
        mask: &'x mut [bool],
    ) -> Result<()> {
        let (x, out) = (x.into(), out.into());
        self.check_lengths(x.len(), out.len())?;
        check_length("mask", self.elements, mask.len())?;
        for_each_tile(((x, out), mask), self.threads, |first, ((x, out), mask), scratch| {
            self.fake_quantize_tile(first, x, out, scratch, |elements, x, divisors| {
                self.kernel.in_range(x, divisors, self.rounding, &mut mask[elements]);
            });
        });
        Ok(())
    }

    /// The tile whose first element is the `first` of the array.
    fn quantize_tile(
        &self,
        first: usize,
        x: Reals<'_>,
        mut out: IntegersMut<'_>,
        reals: &mut Vec<f32>,
        prepared: &mut Prepared,
    ) {
        let x = self.widened(x, reals);
        self.for_each_divided(first, x.len(), prepared, |elements, divisors| {
            let out = out.part(elements.clone());
            self.kernel.quantize(&x[elements], divisors, self.rounding, out);
        });
    }

    fn dequantize_tile(&self, first: usize, q: Integers<'_>, out: RealsMut<'_>, reals: &mut Vec<f32>) {
        let stream = self.elements >= STREAMED && matches!(out, RealsMut::F32(_));
        self.narrowed(out, reals, |out| {
            self.for_each_segment(first, q.len(), |elements, _, slices| {
                let q = q.part(elements.clone());
                self.kernel.dequantize(q, slices, stream, &mut out[elements]);
            });
        });
    }

    /// Also calls `beside` for each segment, with its place in the tile and its values.
    fn fake_quantize_tile(
        &self,
        first: usize,
        x: Reals<'_>,
        out: RealsMut<'_>,
        scratch: &mut Scratch,
        mut beside: impl FnMut(Range<usize>, &[f32], Divisors<'_>),
    ) {
        let Scratch {
            reals,
            results,
            prepared,
            ..
        } = scratch;
        let x = self.widened(x, reals);
        self.narrowed(out, results, |out| {
            self.for_each_divided(first, x.len(), prepared, |elements, divisors| {
                let x = &x[elements.clone()];
                self.kernel
                    .fake_quantize(x, divisors, self.rounding, &mut out[elements.clone()]);
                beside(elements, x, divisors);
            });
        });
    }

    /// `x` in f32, in `buffer` where it is not.
    fn widened<'b>(&self, x: Reals<'b>, buffer: &'b mut Vec<f32>) -> &'b [f32] {
        if let Reals::F32(x) = x {
            return x;
        }
        let buffer = drive::first(buffer, x.len());
        self.kernel.widen(x, buffer);
        buffer
    }

    /// Has `fill` write f32, to `buffer` where `out` is something else.
    fn narrowed(&self, out: RealsMut<'_>, buffer: &mut Vec<f32>, fill: impl FnOnce(&mut [f32])) {
        if let RealsMut::F32(out) = out {
            return fill(out);
        }
        let buffer = drive::first(buffer, out.len());
        fill(buffer);
        self.kernel.narrow(buffer, out);
    }

    /// Calls `f` for the parts of a tile whose slices follow one another, with their places in the tile.
    fn for_each_segment(&self, first: usize, len: usize, mut f: impl FnMut(Range<usize>, Segment, Slices<'_>)) {
        self.layout.for_each_segment(first..first + len, |segment| {
            let elements = segment.elements.start - first..segment.elements.end - first;
            let slices = self.slices(segment.run, segment.slices.clone());
            f(elements, segment, slices);
        });
    }

    /// [`Self::for_each_segment`] with all that dividing takes.
    fn for_each_divided(
        &self,
        first: usize,
        len: usize,
        prepared: &mut Prepared,
        mut f: impl FnMut(Range<usize>, Divisors<'_>),
    ) {
        self.for_each_segment(first, len, |elements, segment, slices| {
            let of_window = self.slices(segment.run, segment.window.clone());
            prepared.prepare(self.kernel, &segment.window, of_window);
            f(elements, prepared.divisors(slices, segment.slices));
        });
    }

    fn slices(&self, run: usize, range: Range<usize>) -> Slices<'_> {
        Slices {
            run,
            scale: &self.scale[range.clone()],
            zero_point: &self.zero_point[range],
            limits: self.limits,
        }
    }

    fn check_holds(&self, container: QuantType) -> Result<()> {
        if container.min() <= self.dtype.min() && self.dtype.max() <= container.max() {
            return Ok(());
        }
        Err(Error::Container {
            dtype: self.dtype,
            container,
        })
    }

    fn check_lengths(&self, input: usize, output: usize) -> Result<()> {
        check_length("input", self.elements, input)?;
        check_length("output", self.elements, output)
    }
}
