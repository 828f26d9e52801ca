//! Statistics as bytes.
//!
//! ```text
//! "RQST"  version u8  nan, inf, zeros varint
//! if any value was finite:  min, max f32   sum, sum of squares 88 bytes each
//!                           counts varint, from the most negative bin; a 0 is followed by how many more 0s follow
//! check u32                 FNV-1a of everything before it
//! ```
//!
//! Little endian. A varint is LEB128. The bins follow from min and max, so nothing is allocated that the input sizes.

use super::{ExactSum, Histogram, TensorStatistics};
use crate::{Error, Result};

const MAGIC: &[u8; 5] = b"RQST\x01";

impl TensorStatistics {
    /// A compact copy, the same bytes for equal statistics: at most a few bytes for each bin in use.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for count in [self.nan_count, self.inf_count, self.zeros()] {
            put_varint(&mut out, count);
        }
        if self.count > 0 {
            out.extend(self.min.to_le_bytes());
            out.extend(self.max.to_le_bytes());
            out.extend(self.sum.to_bytes());
            out.extend(self.sum_sq.to_bytes());
            let mut counts = self.histogram.nonzero_counts().peekable();
            while let Some(count) = counts.next() {
                put_varint(&mut out, count);
                if count == 0 {
                    put_varint(&mut out, std::iter::from_fn(|| counts.next_if_eq(&0)).count() as u64);
                }
            }
        }
        let check = fnv1a(&out);
        out.extend(check.to_le_bytes());
        out
    }

    /// The statistics that [`TensorStatistics::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Damaged`] where the bytes are anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let (body, check) = bytes.split_last_chunk().ok_or(Error::Damaged("too short"))?;
        let mut input = Reader(body);
        if input.take()? != *MAGIC {
            return Err(Error::Damaged("not statistics of this version"));
        }
        if fnv1a(body) != u32::from_le_bytes(*check) {
            return Err(Error::Damaged("the check value does not match"));
        }
        let mut stats = Self {
            nan_count: input.varint()?,
            inf_count: input.varint()?,
            ..Self::default()
        };
        let zeros = input.varint()?;
        if !input.0.is_empty() {
            stats.min = f32::from_le_bytes(input.take()?);
            stats.max = f32::from_le_bytes(input.take()?);
            if !(stats.min.is_finite() && stats.max.is_finite() && stats.min <= stats.max) {
                return Err(Error::Damaged("the range is not a finite interval"));
            }
            stats.sum = ExactSum::from_bytes(&input.take()?);
            stats.sum_sq = ExactSum::from_bytes(&input.take()?);
            let mut run = 0;
            let next = || {
                if run > 0 {
                    run -= 1;
                    return Ok(0);
                }
                let count = input.varint()?;
                if count == 0 {
                    run = input.varint()?;
                }
                Ok(count)
            };
            stats.histogram = Histogram::restore(stats.min, stats.max, zeros, next)?;
            if run > 0 || !input.0.is_empty() {
                return Err(Error::Damaged("more counts than bins"));
            }
            stats.count = stats.histogram.total().ok_or(Error::Damaged("the counts overflow"))?;
        }
        if stats.count == 0 && (stats.min <= stats.max || zeros > 0) {
            return Err(Error::Damaged("a range without values"));
        }
        Ok(stats)
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk().ok_or(Error::Damaged("it ends too early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Error::Damaged("a number does not fit 64 bits"))
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low seven bits")]
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Fowler, Noll and Vo: each step is a bijection, so that any single changed byte shows.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
    })
}
