//! The range with the highest ratio of signal to quantization noise.
//!
//! `SQNR = 10 log10(sum of X^2 / sum of (X - Q(X))^2)`. The signal does not depend on the range, so on one histogram
//! the highest SQNR *is* the least squared error: this is [`mse`](super::mse) under the name of its other definition.
//! What differs is only what a user compares across tensors: SQNR is relative to the tensor's power.

pub(super) const NAME: &str = "sqnr";
