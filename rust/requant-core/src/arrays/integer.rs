//! The machine integers that hold quantized values.

use super::elements::{Integers, IntegersMut};
use crate::QuantType;

/// A machine integer that quantized values are held in; types of 2 and 4 bits are held in 8.
pub trait Integer: Copy + Default + Send + Sync + private::Sealed {
    /// The widest quantized type it holds.
    const TYPE: QuantType;
    /// `value`, which lies in the type.
    fn narrow(value: i32) -> Self;
    /// The value, widened.
    fn widen(self) -> i32;
    /// An array of them.
    fn borrowed(q: &[Self]) -> Integers<'_>;
    /// An array to write them to.
    fn borrowed_mut(q: &mut [Self]) -> IntegersMut<'_>;
}

mod private {
    pub trait Sealed {}
}

macro_rules! integer {
    ($($machine:ty => $name:ident),*) => {$(
        impl private::Sealed for $machine {}
        impl Integer for $machine {
            const TYPE: QuantType = QuantType::$name;
            #[inline(always)]
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "callers clamp first")]
            fn narrow(value: i32) -> Self {
                value as $machine
            }
            #[inline(always)]
            fn widen(self) -> i32 {
                i32::from(self)
            }
            fn borrowed(q: &[Self]) -> Integers<'_> {
                Integers::$name(q)
            }
            fn borrowed_mut(q: &mut [Self]) -> IntegersMut<'_> {
                IntegersMut::$name(q)
            }
        }
    )*};
}
integer!(i8 => I8, u8 => U8, i16 => I16, u16 => U16);
