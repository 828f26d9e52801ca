//! The block types of GGUF files, as llama.cpp and the `gguf` package define them.
//!
//! A row of a matrix is cut into blocks along its last axis, and each block is a few bytes: float16 scales, and
//! integers.
//!
//! | | values | bytes | a value is |
//! |---|---|---|---|
//! | F32, F16, BF16 | 1 | 4, 2, 2 | itself, rounded half to even |
//! | Q8_0, Q4_0, Q5_0 | 32 | 34, 18, 22 | `d * q` |
//! | Q4_1, Q5_1 | 32 | 20, 24 | `d * q + m` |
//! | Q2_K | 256 in 16 | 84 | `(d * scale) * q - dmin * min`, scales and mins of 4 bits |
//! | Q3_K, Q6_K | 256 in 16 | 110, 210 | `(d * scale) * q`, scales of 6 and 8 bits |
//! | Q4_K, Q5_K | 256 in 32 | 144, 176 | `(d * scale) * q - dmin * min`, scales and mins of 6 bits |
//!
//! The types without `_K` give the bytes of the `gguf` package. Those with it search the scales as llama.cpp does, and
//! so do the others when the importance of each column is known (the mean square of what it is multiplied with).

mod affine_k;
mod bytes;
pub(crate) mod integers;
pub(crate) mod lanes;
mod rows;
mod search;
mod simple;
mod symmetric_k;

use std::{fmt, str::FromStr};

pub(crate) use rows::{decode, encode};
pub use rows::{dequantize, quantize};

use crate::{Error, Result};

/// Values of a super-block.
pub(crate) const SUPER: usize = 256;

/// A type of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table of the module says what they are")]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q8_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

/// What identifies a type, and the size of its blocks.
struct Row {
    dtype: BlockType,
    name: &'static str,
    id: u32,
    values: usize,
    bytes: usize,
}

const fn row(dtype: BlockType, name: &'static str, id: u32, values: usize, bytes: usize) -> Row {
    Row {
        dtype,
        name,
        id,
        values,
        bytes,
    }
}

/// In the order of the enum.
const TABLE: [Row; 13] = [
    row(BlockType::F32, "f32", 0, 1, 4),
    row(BlockType::F16, "f16", 1, 1, 2),
    row(BlockType::BF16, "bf16", 30, 1, 2),
    row(BlockType::Q8_0, "q8_0", 8, 32, 34),
    row(BlockType::Q4_0, "q4_0", 2, 32, 18),
    row(BlockType::Q4_1, "q4_1", 3, 32, 20),
    row(BlockType::Q5_0, "q5_0", 6, 32, 22),
    row(BlockType::Q5_1, "q5_1", 7, 32, 24),
    row(BlockType::Q2K, "q2_k", 10, SUPER, 84),
    row(BlockType::Q3K, "q3_k", 11, SUPER, 110),
    row(BlockType::Q4K, "q4_k", 12, SUPER, 144),
    row(BlockType::Q5K, "q5_k", 13, SUPER, 176),
    row(BlockType::Q6K, "q6_k", 14, SUPER, 210),
];

impl BlockType {
    /// Every type.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|row| row.dtype)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Its name, in lower case.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().name
    }

    /// The number that stands for it in a file.
    #[must_use]
    pub fn id(self) -> u32 {
        self.row().id
    }

    /// How many values a block has.
    #[must_use]
    pub fn block_size(self) -> usize {
        self.row().values
    }

    /// How many bytes a block has.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.row().bytes
    }

    /// How many bytes that many values take.
    ///
    /// # Errors
    /// They are no whole number of blocks, or too many.
    pub fn size_of(self, values: usize) -> Result<usize> {
        let row = self.row();
        if !values.is_multiple_of(row.values) {
            return Err(Error::RowLength {
                dtype: row.name,
                block_size: row.values,
                got: values,
            });
        }
        (values / row.values).checked_mul(row.bytes).ok_or(Error::Length {
            what: "a tensor",
            expected: isize::MAX.unsigned_abs(),
            got: values,
        })
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BlockType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::all()
            .find(|t| t.name() == name)
            .ok_or_else(|| Error::UnknownName {
                what: "GGUF type",
                name: name.to_owned(),
                known: Self::all().map(Self::name).collect::<Vec<_>>().join(", "),
            })
    }
}
