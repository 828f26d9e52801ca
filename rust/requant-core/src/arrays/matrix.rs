//! A borrowed 8-bit matrix.

use crate::{Error, QuantType, Result, error::check_length};

/// Bytes, signed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bytes<'a> {
    /// uint8
    U8(&'a [u8]),
    /// int8
    I8(&'a [i8]),
}

impl<'a> Bytes<'a> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::U8(x) => x.len(),
            Self::I8(x) => x.len(),
        }
    }

    /// int8 or uint8.
    pub(crate) fn dtype(&self) -> QuantType {
        match self {
            Self::U8(_) => QuantType::U8,
            Self::I8(_) => QuantType::I8,
        }
    }

    /// Those from `first` on.
    pub(crate) fn after(self, first: usize) -> Bytes<'a> {
        match self {
            Self::U8(x) => Self::U8(&x[first..]),
            Self::I8(x) => Self::I8(&x[first..]),
        }
    }

    /// One of them, widened.
    #[inline(always)]
    pub(crate) fn get(self, index: usize) -> i32 {
        match self {
            Self::U8(x) => i32::from(x[index]),
            Self::I8(x) => i32::from(x[index]),
        }
    }

    /// The sum of all, modulo 2^32.
    #[inline(always)]
    pub fn sum(&self) -> i32 {
        let mut sum = 0i32;
        match self {
            Self::U8(x) => {
                for &v in *x {
                    sum = sum.wrapping_add(i32::from(v));
                }
            }
            Self::I8(x) => {
                for &v in *x {
                    sum = sum.wrapping_add(i32::from(v));
                }
            }
        }
        sum
    }
}

/// Bytes to be written.
#[derive(Debug)]
pub enum BytesMut<'a> {
    /// uint8
    U8(&'a mut [u8]),
    /// int8
    I8(&'a mut [i8]),
}

impl BytesMut<'_> {
    /// Fails unless there are so many of a type.
    pub(crate) fn check(&self, dtype: QuantType, expected: usize) -> Result<()> {
        let (container, got) = match self {
            Self::U8(x) => (QuantType::U8, x.len()),
            Self::I8(x) => (QuantType::I8, x.len()),
        };
        if container != dtype {
            return Err(Error::Container { dtype, container });
        }
        check_length("output", expected, got)
    }
}

/// A row-major matrix, its rows at a constant distance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Matrix<'a> {
    data: Bytes<'a>,
    rows: usize,
    columns: usize,
    stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows that follow each other.
    ///
    /// # Errors
    /// `data` has not `rows * columns` elements.
    pub fn new(data: Bytes<'a>, rows: usize, columns: usize) -> Result<Self> {
        check_length("matrix", rows.saturating_mul(columns), data.len())?;
        Self::with_stride(data, rows, columns, columns)
    }

    /// Rows that follow each other and fill `data`.
    pub(crate) fn packed(data: Bytes<'a>, rows: usize, columns: usize) -> Self {
        Self {
            data,
            rows,
            columns,
            stride: columns,
        }
    }

    /// Row `i` begins at `data[i * stride]`.
    ///
    /// # Errors
    /// Rows that overlap (`stride < columns`), or that leave `data`.
    pub fn with_stride(data: Bytes<'a>, rows: usize, columns: usize, stride: usize) -> Result<Self> {
        let end = rows
            .saturating_sub(1)
            .checked_mul(stride)
            .and_then(|last| last.checked_add(columns));
        if stride < columns || (rows > 0 && end.is_none_or(|end| end > data.len())) {
            return Err(Error::Rows {
                columns,
                stride,
                rows,
                length: data.len(),
            });
        }
        Ok(Self {
            data,
            rows,
            columns,
            stride,
        })
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// How many columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// int8 or uint8.
    pub fn dtype(&self) -> QuantType {
        self.data.dtype()
    }

    /// One row.
    #[inline(always)]
    pub fn row(&self, i: usize) -> Bytes<'a> {
        let span = i * self.stride..i * self.stride + self.columns;
        match self.data {
            Bytes::U8(x) => Bytes::U8(&x[span]),
            Bytes::I8(x) => Bytes::I8(&x[span]),
        }
    }

    /// One element.
    #[inline(always)]
    pub fn get(&self, row: usize, column: usize) -> i32 {
        self.data.get(row * self.stride + column)
    }
}
