//! The range that holds `p` % of the values.
//!
//! | scheme | data | range |
//! |---|---|---|
//! | asymmetric | both signs | `(100 - p) / 2` % of the values lie below it, and as many above |
//! | asymmetric | one sign | from 0; `(100 - p)` % lie beyond the other end |
//! | symmetric | any | `(100 - p)` % of the magnitudes exceed `a` |
//!
//! A quantile divides its bin in proportion to the bin's mass, and never lies beyond the exact extremes. Zeros count as
//! values. (McKinstry et al. 2018, "Discovering low-precision networks close to full-precision networks for efficient
//! embedded inference".)

use super::Request;
use crate::Range;

pub(super) const NAME: &str = "percentile";

pub(super) fn range(request: &Request) -> Range {
    let model = request.model;
    let outside = model.total * (100.0 - request.seen.percentile) / 100.0;
    if request.scheme.symmetric {
        return request.symmetric(model.real(model.magnitudes().quantile(outside)));
    }
    let one_sided = model.negative.is_empty() || model.positive.is_empty();
    let outside = if one_sided { outside } else { outside / 2.0 };
    Range {
        lo: 0.0 - model.real(model.negative.quantile(outside)),
        hi: model.real(model.positive.quantile(outside)),
    }
}
