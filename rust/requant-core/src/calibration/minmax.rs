//! Everything that was seen: no value is clipped, and one outlier stretches the steps of all the others.

use super::Request;
use crate::Range;

pub(super) const NAME: &str = "minmax";

pub(super) fn range(request: &Request) -> Range {
    request.widened(request.stats.min(), request.stats.max())
}
