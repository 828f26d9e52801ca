//! 8-bit integers of either signedness as their bits.

use crate::arrays::{Bytes, BytesMut};

/// The bits of each.
pub(crate) fn bits(x: Bytes<'_>) -> &[u8] {
    match x {
        Bytes::U8(x) => x,
        // SAFETY: i8 and u8 have one size and alignment, and every bit pattern is a value of both.
        Bytes::I8(x) => unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) },
    }
}

/// The bits of each, to be written.
pub(crate) fn bits_mut(x: BytesMut<'_>) -> &mut [u8] {
    match x {
        BytesMut::U8(x) => x,
        // SAFETY: as in `bits`; the borrow is handed over.
        BytesMut::I8(x) => unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) },
    }
}
