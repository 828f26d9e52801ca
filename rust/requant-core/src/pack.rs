//! Integers of 2 and 4 bits, several to a byte, the first in the low bits (the layout of ONNX's int2, uint2, int4,
//! uint4).
//!
//! ```text
//! 4 bits   a  b  c         bytes   b<<4 | a,  0<<4 | c
//! 2 bits   a  b  c  d  e   bytes   d<<6 | c<<4 | b<<2 | a,  e
//! ```

use crate::{
    Error, QuantType, Result,
    arrays::{Cut, Integer, Integers, IntegersMut},
    error::check_length,
    kernels::elementwise,
};

/// Integers that are checked and packed while they are in the cache; a multiple of all that fit a byte.
const PIECE: usize = 1 << 14;

/// How many integers of a type of 2 or 4 bits a byte holds.
///
/// # Errors
/// A wider type.
pub fn per_byte(dtype: QuantType) -> Result<usize> {
    match dtype.bits() {
        2 => Ok(4),
        4 => Ok(2),
        _ => Err(Error::Unpacked { dtype }),
    }
}

/// Packs integers held one to a byte, signed or unsigned as `dtype` is; an incomplete last byte is padded with zero
/// bits.
///
/// # Errors
/// An integer outside `dtype`, a machine integer of the other signedness, a `dtype` wider than 4 bits.
pub fn pack<'q>(q: impl Into<Integers<'q>>, dtype: QuantType) -> Result<Vec<u8>> {
    let q = q.into();
    let mut packed = vec![0; q.len().div_ceil(check_held(q.container(), dtype)?)];
    pack_into(q, dtype, &mut packed)?;
    Ok(packed)
}

/// [`pack`] to where the caller wants it; of no use after an error.
///
/// # Errors
/// As [`pack`], or a length of `out` other than that of the packed integers.
pub fn pack_into<'q>(q: impl Into<Integers<'q>>, dtype: QuantType, out: &mut [u8]) -> Result<()> {
    let q = q.into();
    let per_byte = check_held(q.container(), dtype)?;
    check_length("packed data", q.len().div_ceil(per_byte), out.len())?;
    let kernel = elementwise::current();
    for (i, packed) in out.chunks_mut(PIECE / per_byte).enumerate() {
        let piece = q.part(i * PIECE..q.len().min((i + 1) * PIECE));
        if !kernel.pack(piece, per_byte, packed) {
            return Err(overflow(q, dtype));
        }
    }
    Ok(())
}

/// The first `count` integers of `data`, one to a byte, those of a signed type sign-extended.
///
/// # Errors
/// A length of `data` other than `count` takes, a machine integer of the other signedness, a `dtype` wider than 4 bits.
pub fn unpack<Q: Integer>(data: &[u8], count: usize, dtype: QuantType) -> Result<Vec<Q>> {
    let mut q = vec![Q::default(); count];
    unpack_into(data, dtype, &mut q)?;
    Ok(q)
}

/// [`unpack`] to where the caller wants it, as many as fit there.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_into<'q>(data: &[u8], dtype: QuantType, out: impl Into<IntegersMut<'q>>) -> Result<()> {
    let out = out.into();
    let per_byte = check_held(out.container(), dtype)?;
    check_length("packed data", out.len().div_ceil(per_byte), data.len())?;
    elementwise::current().unpack(data, per_byte, out);
    Ok(())
}

/// How many integers to a byte, if integers of `dtype` are held in those of `container`.
fn check_held(container: QuantType, dtype: QuantType) -> Result<usize> {
    let per_byte = per_byte(dtype)?;
    if container.signed() == dtype.signed() {
        return Ok(per_byte);
    }
    Err(Error::Container { dtype, container })
}

fn overflow(q: Integers<'_>, dtype: QuantType) -> Error {
    let outside = |value: &i32| !(dtype.min()..=dtype.max()).contains(value);
    let (index, value) = (0..q.len())
        .map(|index| (index, q.get(index)))
        .find(|(_, value)| outside(value))
        .unwrap_or_default();
    Error::Overflow { value, index, dtype }
}
