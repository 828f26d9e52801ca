//! Two 4-bit integers to a byte, the first in the low bits (the layout of ONNX int4 and uint4 tensors).
//!
//! ```text
//! integers   a  b  c        bytes   b<<4 | a,  0<<4 | c
//! ```

use crate::{Error, QuantType, Result, affine::Integer};

/// Bytes that `count` 4-bit integers take.
pub const fn packed_len(count: usize) -> usize {
    count.div_ceil(2)
}

/// Packs integers held one to a byte, `i8` in -8..=7 or `u8` in 0..=15; an odd end is padded with zero bits.
///
/// # Errors
/// An integer that does not fit 4 bits.
pub fn pack_int4<Q: Integer>(q: &[Q]) -> Result<Vec<u8>> {
    let dtype = four_bit::<Q>();
    let (min, max) = (dtype.min(), dtype.max());
    if let Some(index) = q.iter().position(|q| !(min..=max).contains(&q.widen())) {
        return Err(Error::Overflow {
            value: q[index].widen(),
            index,
            dtype,
        });
    }
    let nibble = |q: &Q| u8::narrow(q.widen() & 0xF);
    Ok(q.chunks(2)
        .map(|pair| pair.iter().rev().fold(0, |byte, q| byte << 4 | nibble(q)))
        .collect())
}

/// The first `count` integers of `data`, one to a byte: `i8` sign-extended, `u8` as they are.
///
/// # Errors
/// A length of `data` other than `packed_len(count)`.
pub fn unpack_int4<Q: Integer>(data: &[u8], count: usize) -> Result<Vec<Q>> {
    if data.len() != packed_len(count) {
        return Err(Error::Length {
            what: "packed data",
            expected: packed_len(count),
            got: data.len(),
        });
    }
    let sign = if four_bit::<Q>().signed() { 8 } else { 0 };
    // (n ^ 8) - 8 copies bit 3 into the bits above it.
    let extend = |nibble: u8| Q::narrow((i32::from(nibble) ^ sign) - sign);
    let mut q: Vec<Q> = data
        .iter()
        .flat_map(|byte| [extend(byte & 0xF), extend(byte >> 4)])
        .collect();
    q.truncate(count);
    Ok(q)
}

const fn four_bit<Q: Integer>() -> QuantType {
    if Q::TYPE.signed() { QuantType::I4 } else { QuantType::U4 }
}
