//! The values that name a quantization.

use std::{fmt, str::FromStr};

use crate::{Error, Result};

/// An integer type that reals are quantized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantType {
    /// -2..=1
    I2,
    /// 0..=3
    U2,
    /// -8..=7
    I4,
    /// 0..=15
    U4,
    /// -128..=127
    I8,
    /// 0..=255
    U8,
    /// -32768..=32767
    I16,
    /// 0..=65535
    U16,
}

impl QuantType {
    /// Every type, narrowest first.
    pub const ALL: [Self; 8] = [
        Self::I2,
        Self::U2,
        Self::I4,
        Self::U4,
        Self::I8,
        Self::U8,
        Self::I16,
        Self::U16,
    ];

    /// Width in bits.
    pub const fn bits(self) -> u32 {
        match self {
            Self::I2 | Self::U2 => 2,
            Self::I4 | Self::U4 => 4,
            Self::I8 | Self::U8 => 8,
            Self::I16 | Self::U16 => 16,
        }
    }

    /// Whether negative integers are representable.
    pub const fn signed(self) -> bool {
        matches!(self, Self::I2 | Self::I4 | Self::I8 | Self::I16)
    }

    /// Smallest integer.
    pub const fn min(self) -> i32 {
        if self.signed() { -(1 << (self.bits() - 1)) } else { 0 }
    }

    /// Largest integer.
    pub const fn max(self) -> i32 {
        self.min() + (1 << self.bits()) - 1
    }

    /// The field's name for it, as numpy and ONNX write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I2 => "int2",
            Self::U2 => "uint2",
            Self::I4 => "int4",
            Self::U4 => "uint4",
            Self::I8 => "int8",
            Self::U8 => "uint8",
            Self::I16 => "int16",
            Self::U16 => "uint16",
        }
    }
}

impl fmt::Display for QuantType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for QuantType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| Error::UnknownName {
                what: "integer type",
                name: name.to_owned(),
                known: Self::ALL.map(Self::name).join(", "),
            })
    }
}

/// How many scales a tensor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// One: shape `[64, 32]` has 1 scale.
    PerTensor,
    /// One for each index of `axis`: shape `[64, 32]`, axis 0, has 64.
    PerChannel {
        /// The channel axis.
        axis: usize,
    },
    /// One for each `block_size` values along `axis`, the last block possibly shorter: `[64, 32]`, axis 1, 12, has 64 x
    /// 3.
    PerBlock {
        /// The axis that is cut into blocks.
        axis: usize,
        /// Values to a block.
        block_size: usize,
    },
    /// One for each row, the last axis being the row: `[8, 128, 32]` has 8 x 128.
    PerToken,
}

/// A closed interval of reals that the integers are spread over.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Range {
    /// Lower end.
    pub lo: f32,
    /// Upper end.
    pub hi: f32,
}

/// To which integers, around zero or not, and whether the lowest integer of a symmetric scheme stays unused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantScheme {
    /// The integer type.
    pub dtype: QuantType,
    /// Whether the range is widened to `[-a, a]` (to `[0, a]` where nothing is negative).
    pub symmetric: bool,
    /// Whether a symmetric scheme uses -127..=127 instead of -128..=127 (1..=255 for unsigned).
    pub narrow: bool,
}

/// One scale with its zero point.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantParams {
    /// Distance of two neighbouring integers in reals; finite, positive, normal.
    pub scale: f32,
    /// The integer that stands for 0.0.
    pub zero_point: i32,
}
