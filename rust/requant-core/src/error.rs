//! Errors that carry what was expected and what was got.

use crate::QuantType;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything this crate refuses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that is in no list.
    #[error("unknown {what} {name:?}; choose one of {known}")]
    UnknownName {
        /// What kind of thing was named.
        what: &'static str,
        /// The name as given.
        name: String,
        /// The names that exist, comma separated.
        known: String,
    },
    /// An axis outside the shape.
    #[error("axis {axis} is out of bounds for shape {shape:?}")]
    Axis {
        /// The axis as given.
        axis: usize,
        /// The shape it was to index.
        shape: Vec<usize>,
    },
    /// A block size of zero.
    #[error("block_size must be at least 1")]
    BlockSize,
    /// A block size that packed weights cannot have.
    #[error("block_size {got} is not 16, 32, 64, 128 or 256")]
    BlockSizes {
        /// The block size as given.
        got: usize,
    },
    /// A width that weights in blocks cannot have.
    #[error("bits {got} is not 2, 3, 4 or 8")]
    Bits {
        /// The width as given.
        got: u32,
    },
    /// Two lengths that must agree.
    #[error("{what} has {got} elements, expected {expected}")]
    Length {
        /// Which argument.
        what: &'static str,
        /// What its length must be.
        expected: usize,
        /// What it is.
        got: usize,
    },
    /// A scale that is zero, negative, NaN or infinite.
    #[error("scale {value:?} at index {index} is not finite and positive")]
    Scale {
        /// The offending value.
        value: f32,
        /// Where it is.
        index: usize,
    },
    /// A weight of errors that is negative, NaN or infinite.
    #[error("importance {value} at index {index} is not finite and at least 0")]
    Importance {
        /// The offending value.
        value: f32,
        /// Where it is.
        index: usize,
    },
    /// A second moment that is NaN or infinite, or a negative one of a value with itself.
    #[error("{what} has {value} at {index:?}; second moments are finite, and at least 0 on the diagonal")]
    SecondMoment {
        /// Which matrix.
        what: &'static str,
        /// The offending value.
        value: f64,
        /// Its row and column, after its matrix where there are several.
        index: Vec<usize>,
    },
    /// A Hessian that no damping makes positive definite.
    #[error("hessian is not positive definite, even with {damping} of its mean added to the diagonal")]
    NotPositive {
        /// The most that was tried.
        damping: f64,
    },
    /// A damping that is negative, NaN or infinite.
    #[error("damping {value} is not finite and at least 0")]
    Damping {
        /// The offending value.
        value: f64,
    },
    /// Grids that are chosen when columns of other blocks have gone before.
    #[error("act_order needs static_groups: its columns do not go block by block")]
    StaticGroups,
    /// A range with a NaN or infinite end, or with its ends swapped.
    #[error("range [{lo}, {hi}] is not a finite interval")]
    Range {
        /// Lower end.
        lo: f32,
        /// Upper end.
        hi: f32,
    },
    /// A zero point outside the integers in use.
    #[error("zero_point {value} at index {index} is outside {min}..={max}")]
    ZeroPoint {
        /// The offending value.
        value: i32,
        /// Where it is.
        index: usize,
        /// Smallest integer in use.
        min: i32,
        /// Largest integer in use.
        max: i32,
    },
    /// A NaN or an infinity where a finite value is needed.
    #[error("value {value} at index {index:?} is not finite")]
    NonFinite {
        /// The offending value.
        value: f32,
        /// Where it is, an index for each axis.
        index: Vec<usize>,
    },
    /// A value that blocks with float16 scales cannot hold.
    #[error("value {value:e} at index {index:?} is too large for {dtype}, whose scales are float16")]
    Magnitude {
        /// The offending value.
        value: f32,
        /// Row and column.
        index: Vec<usize>,
        /// The type of the blocks.
        dtype: &'static str,
    },
    /// Rows that are no whole number of blocks.
    #[error("rows of {got} values do not divide into the blocks of {block_size} of {dtype}")]
    RowLength {
        /// The type of the blocks.
        dtype: &'static str,
        /// Values of a block.
        block_size: usize,
        /// Values of a row.
        got: usize,
    },
    /// A machine integer that is too small for a type.
    #[error("{dtype} does not fit integers of type {container}")]
    Container {
        /// The type of the quantized values.
        dtype: QuantType,
        /// The widest type that the machine integer holds.
        container: QuantType,
    },
    /// An integer that a type cannot hold.
    #[error("integer {value} at index {index} is outside {dtype}")]
    Overflow {
        /// The offending value.
        value: i32,
        /// Where it is.
        index: usize,
        /// The type that was to hold it.
        dtype: QuantType,
    },
    /// A type that is not packed.
    #[error("{dtype} takes whole bytes; only integers of 2 and 4 bits are packed")]
    Unpacked {
        /// The type.
        dtype: QuantType,
    },
    /// A statistic that has seen no finite value.
    #[error("no finite value was observed, so there is no range to choose")]
    Empty,
    /// A percentage outside (0, 100].
    #[error("percentile {0} is outside (0, 100]")]
    Percentile(f64),
    /// Serialised statistics that cannot be read.
    #[error("serialised statistics are damaged: {0}")]
    Damaged(&'static str),
    /// A matrix whose rows overlap or leave its data.
    #[error("rows of {columns} bytes, {stride} apart, do not fit {rows} times into {length} bytes")]
    Rows {
        /// How many rows.
        rows: usize,
        /// How many bytes to a row.
        columns: usize,
        /// Distance from one row to the next.
        stride: usize,
        /// How many bytes there are.
        length: usize,
    },
    /// A shape, or numbers that belong to its axes, that an operation cannot take.
    #[error("{what} is {got:?}, expected {expected}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        got: Vec<usize>,
    },
    /// A product whose sums may not fit i32.
    #[error(
        "sums over k = {k} can leave int32: at most {limit} is safe with these types, zero points and bias; split k"
    )]
    Accumulator {
        /// Length of the sums.
        k: usize,
        /// The largest safe length.
        limit: usize,
    },
    /// A requantization multiplier beyond what its rounding can represent.
    #[error("multiplier {value:?} at index {index} is too large; check the scales")]
    Multiplier {
        /// The multiplier, input scale * weight scale / output scale.
        value: f64,
        /// Where it is.
        index: usize,
    },
    /// A forced kernel set that this CPU cannot run.
    #[error("REQUANT_ISA={name:?} cannot run here; this machine has {available}")]
    Isa {
        /// The set that was asked for.
        name: String,
        /// The sets that can run, comma separated.
        available: String,
    },
}

/// Fails unless there are as many as expected.
pub(crate) fn check_length(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if expected == got {
        Ok(())
    } else {
        Err(Error::Length { what, expected, got })
    }
}
