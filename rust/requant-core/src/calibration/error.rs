//! What given parameters cost, by the histogram.

use super::model::Model;
use crate::{Error, QuantParams, QuantType, Result, stats::TensorStatistics};

/// Quantization error for each value, mass taken to be even within a bin.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantError {
    /// Mean squared error from rounding: that of the values within half a step of the levels, over all values.
    pub granular: f64,
    /// Mean squared error from clipping: that of the other values, over all values.
    pub overload: f64,
    /// Share of values that are clipped, 0 to 1.
    pub clipped: f64,
    /// `10 log10(signal / (granular + overload))`; infinite where the error is 0.
    pub sqnr_db: f64,
}

/// The error of quantizing what was seen with `params` to `dtype`.
///
/// # Errors
/// A scale that is not finite and positive, a zero point outside the type, statistics without a finite value.
pub fn error(stats: &TensorStatistics, params: QuantParams, dtype: QuantType) -> Result<QuantError> {
    let QuantParams { scale, zero_point } = params;
    if !(scale.is_finite() && scale > 0.0) {
        return Err(Error::Scale { value: scale, index: 0 });
    }
    let (min, max) = (dtype.min(), dtype.max());
    if !(min..=max).contains(&zero_point) {
        return Err(Error::ZeroPoint {
            value: zero_point,
            index: 0,
            min,
            max,
        });
    }
    if stats.count() == 0 {
        return Err(Error::Empty);
    }
    let model = Model::new(stats.histogram());
    let step = model.bins(scale);
    let sides = [
        (&model.negative, zero_point.abs_diff(min)),
        (&model.positive, zero_point.abs_diff(max)),
    ];
    let (mut squared, mut overload, mut clipped) = (0.0, 0.0, 0.0);
    for (side, levels) in sides {
        let (side_overload, side_clipped) = side.overload(step, levels as usize);
        squared += side.squared_error(step, levels as usize).max(side_overload);
        overload += side_overload;
        clipped += side_clipped;
    }
    let unit = model.real_sq(1.0) / model.total;
    let signal = model.negative.excess_sq(0.0) + model.positive.excess_sq(0.0);
    Ok(QuantError {
        granular: (squared - overload) * unit,
        overload: overload * unit,
        clipped: clipped / model.total,
        sqnr_db: if squared > 0.0 {
            10.0 * (signal / squared).log10()
        } else {
            f64::INFINITY
        },
    })
}
