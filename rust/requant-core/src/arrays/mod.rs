//! Borrowed arrays of any element type, and the machine integers in them.

mod elements;
mod integer;
mod matrix;

pub(crate) use elements::{Cut, Packed};
pub use elements::{Integers, IntegersMut, Reals, RealsMut};
pub use integer::Integer;
pub use matrix::{Bytes, BytesMut, Matrix};
