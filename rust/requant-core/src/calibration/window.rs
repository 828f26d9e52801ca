//! The quantizers among which a method that optimises chooses.
//!
//! Zero is always a level, so a quantizer is a step `D` with how many levels lie below zero and above it. A symmetric
//! scheme fixes those two numbers; an asymmetric one fixes their sum, and the split is the zero point. The steps tried
//! are those of ranges that are 1, 2, 3 .. bins wide (`a`, where symmetric), and of the exact full range.

use super::Request;
use crate::{Range, affine, kernels::density::to_f64};

/// The candidates for one tensor and scheme.
pub(super) struct Window {
    /// Levels below and above zero, where the scheme fixes them.
    pub(super) split: Option<(usize, usize)>,
    /// Levels other than zero.
    pub(super) levels: usize,
    /// Exact extent of the data, in bins: the width or, where symmetric, the largest magnitude.
    extent: f64,
    /// Step for each bin of extent.
    unit: f64,
}

impl Window {
    pub(super) fn new(request: &Request) -> Self {
        let (scheme, model) = (request.scheme, request.model);
        let (qmin, qmax) = affine::limits(scheme.dtype, scheme.narrow);
        let levels = qmax.abs_diff(qmin) as usize;
        let (below, above) = (model.negative.extent, model.positive.extent);
        if !scheme.symmetric {
            return Self {
                split: None,
                levels,
                extent: below + above,
                unit: 1.0 / to_f64(levels),
            };
        }
        // The arithmetic that will turn the range into parameters says what they are for a range of one bin.
        let one = Range {
            lo: if request.stats.min() < 0.0 { -1.0 } else { 0.0 },
            hi: 1.0,
        };
        let params = affine::params(one, scheme).expect("a finite interval");
        Self {
            split: Some((
                params.zero_point.abs_diff(qmin) as usize,
                params.zero_point.abs_diff(qmax) as usize,
            )),
            levels,
            extent: below.max(above),
            unit: f64::from(params.scale),
        }
    }

    #[cfg(test)]
    pub(super) fn of_levels(split: Option<(usize, usize)>, levels: usize) -> Self {
        Self {
            split,
            levels,
            extent: 1.0,
            unit: 1.0,
        }
    }

    /// How many steps there are.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most the bins of a histogram"
    )]
    pub(super) fn steps(&self) -> usize {
        self.extent.ceil() as usize
    }

    /// The step, in bins, whose range is `i` bins wide, from 1 on; that of the full range is the last.
    pub(super) fn step(&self, i: usize) -> f64 {
        to_f64(i).min(self.extent) * self.unit
    }

    /// The range of a step that [`Window::step`] gave, with a split.
    pub(super) fn range(&self, request: &Request, step: f64, (below, above): (usize, usize)) -> Range {
        let real = |x| request.model.real(x);
        if request.scheme.symmetric {
            request.symmetric(real(step / self.unit))
        } else {
            Range {
                lo: 0.0 - real(to_f64(below) * step),
                hi: real(to_f64(above) * step),
            }
        }
    }
}
