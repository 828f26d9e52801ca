//! Arrays of any element type, borrowed.

use std::ops::Range;

use super::integer::Integer;
use crate::QuantType;

/// Borrowed reals. Halves are given by their bits, and stand for exactly the f32 that they widen to.
#[derive(Debug, Clone, Copy)]
pub enum Reals<'a> {
    /// IEEE binary32.
    F32(&'a [f32]),
    /// The bits of IEEE binary16.
    F16(&'a [u16]),
    /// The bits of bfloat16: the upper half of an f32.
    Bf16(&'a [u16]),
}

/// Where reals are written; halves are f32 results rounded to nearest even.
#[derive(Debug)]
pub enum RealsMut<'a> {
    /// IEEE binary32.
    F32(&'a mut [f32]),
    /// The bits of IEEE binary16.
    F16(&'a mut [u16]),
    /// The bits of bfloat16.
    Bf16(&'a mut [u16]),
}

/// Borrowed integers, one to an element.
#[derive(Debug, Clone, Copy)]
pub enum Integers<'a> {
    /// Also holds int4 and int2.
    I8(&'a [i8]),
    /// Also holds uint4 and uint2.
    U8(&'a [u8]),
    /// int16.
    I16(&'a [i16]),
    /// uint16.
    U16(&'a [u16]),
}

/// Where integers are written, one to an element.
#[derive(Debug)]
pub enum IntegersMut<'a> {
    /// Also holds int4 and int2.
    I8(&'a mut [i8]),
    /// Also holds uint4 and uint2.
    U8(&'a mut [u8]),
    /// int16.
    I16(&'a mut [i16]),
    /// uint16.
    U16(&'a mut [u16]),
}

/// Something with a length that can be cut in two, so that a call can work on a part of each of its arrays.
pub(crate) trait Cut: Sized {
    /// How many elements.
    fn len(&self) -> usize;
    /// The first `at` elements, and the others.
    fn cut(self, at: usize) -> (Self, Self);
}

impl<T> Cut for &[T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at(at)
    }
}

impl<T> Cut for &mut [T] {
    fn len(&self) -> usize {
        <[T]>::len(self)
    }
    fn cut(self, at: usize) -> (Self, Self) {
        self.split_at_mut(at)
    }
}

impl<A: Cut, B: Cut> Cut for (A, B) {
    fn len(&self) -> usize {
        self.0.len()
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let ((a, a_tail), (b, b_tail)) = (self.0.cut(at), self.1.cut(at));
        ((a, b), (a_tail, b_tail))
    }
}

/// Several elements to a byte; is cut between bytes only.
pub(crate) struct Packed<B> {
    pub(crate) bytes: B,
    per_byte: usize,
    len: usize,
}

impl<B> Packed<B> {
    pub(crate) fn new(bytes: B, per_byte: usize, len: usize) -> Self {
        Self { bytes, per_byte, len }
    }
}

impl<B: Cut> Cut for Packed<B> {
    fn len(&self) -> usize {
        self.len
    }
    fn cut(self, at: usize) -> (Self, Self) {
        let (head, tail) = self.bytes.cut(at.div_ceil(self.per_byte));
        (
            Self::new(head, self.per_byte, at),
            Self::new(tail, self.per_byte, self.len - at),
        )
    }
}

macro_rules! cut {
    ($($name:ident { $($variant:ident),* })*) => {$(
        impl Cut for $name<'_> {
            fn len(&self) -> usize {
                match self { $(Self::$variant(x) => x.len(),)* }
            }
            fn cut(self, at: usize) -> (Self, Self) {
                match self {
                    $(Self::$variant(x) => {
                        let (head, tail) = x.cut(at);
                        (Self::$variant(head), Self::$variant(tail))
                    })*
                }
            }
        }
    )*};
}
cut! {
    Reals { F32, F16, Bf16 }
    RealsMut { F32, F16, Bf16 }
    Integers { I8, U8, I16, U16 }
    IntegersMut { I8, U8, I16, U16 }
}

/// Slices, and what is easily one.
macro_rules! from_f32 {
    ($([$($n:tt)*] $array:ty),*) => {$(
        impl<'a, $($n)*> From<&'a $array> for Reals<'a> {
            fn from(x: &'a $array) -> Self {
                Self::F32(x)
            }
        }

        impl<'a, $($n)*> From<&'a mut $array> for RealsMut<'a> {
            fn from(x: &'a mut $array) -> Self {
                Self::F32(x)
            }
        }
    )*};
}
from_f32!([] [f32], [] Vec<f32>, [const N: usize] [f32; N]);

macro_rules! from_integers {
    ($([$($n:tt)*] $array:ty),*) => {$(
        impl<'a, Q: Integer, $($n)*> From<&'a $array> for Integers<'a> {
            fn from(q: &'a $array) -> Self {
                Q::borrowed(q)
            }
        }

        impl<'a, Q: Integer, $($n)*> From<&'a mut $array> for IntegersMut<'a> {
            fn from(q: &'a mut $array) -> Self {
                Q::borrowed_mut(q)
            }
        }
    )*};
}
from_integers!([] [Q], [] Vec<Q>, [const N: usize] [Q; N]);

impl Integers<'_> {
    /// The widest quantized type that an element holds.
    pub const fn container(&self) -> QuantType {
        match self {
            Self::I8(_) => QuantType::I8,
            Self::U8(_) => QuantType::U8,
            Self::I16(_) => QuantType::I16,
            Self::U16(_) => QuantType::U16,
        }
    }

    /// All of them, widened.
    pub fn to_i32(&self) -> Vec<i32> {
        match self {
            Self::I8(q) => widened(q),
            Self::U8(q) => widened(q),
            Self::I16(q) => widened(q),
            Self::U16(q) => widened(q),
        }
    }

    pub(crate) fn get(&self, index: usize) -> i32 {
        match self {
            Self::I8(q) => q[index].into(),
            Self::U8(q) => q[index].into(),
            Self::I16(q) => q[index].into(),
            Self::U16(q) => q[index].into(),
        }
    }

    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        match self {
            Self::I8(q) => Self::I8(&q[range]),
            Self::U8(q) => Self::U8(&q[range]),
            Self::I16(q) => Self::I16(&q[range]),
            Self::U16(q) => Self::U16(&q[range]),
        }
    }
}

fn widened<Q: Integer>(q: &[Q]) -> Vec<i32> {
    q.iter().map(|q| q.widen()).collect()
}

impl IntegersMut<'_> {
    /// The widest quantized type that an element holds.
    pub const fn container(&self) -> QuantType {
        match self {
            Self::I8(_) => QuantType::I8,
            Self::U8(_) => QuantType::U8,
            Self::I16(_) => QuantType::I16,
            Self::U16(_) => QuantType::U16,
        }
    }

    pub(crate) fn part(&mut self, range: Range<usize>) -> IntegersMut<'_> {
        match self {
            Self::I8(q) => IntegersMut::I8(&mut q[range]),
            Self::U8(q) => IntegersMut::U8(&mut q[range]),
            Self::I16(q) => IntegersMut::I16(&mut q[range]),
            Self::U16(q) => IntegersMut::U16(&mut q[range]),
        }
    }

    pub(crate) fn borrowed(&self) -> Integers<'_> {
        match self {
            Self::I8(q) => Integers::I8(q),
            Self::U8(q) => Integers::U8(q),
            Self::I16(q) => Integers::I16(q),
            Self::U16(q) => Integers::U16(q),
        }
    }
}
