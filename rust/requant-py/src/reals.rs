//! Numpy arrays of reals and integers, whatever their width.

use numpy::{PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn, PyReadwriteArrayDyn, PyUntypedArrayMethods};
use pyo3::{exceptions::PyTypeError, intern, prelude::*};
use requant_core::arrays::{Integers, IntegersMut, Reals, RealsMut};

use crate::arrays::slice;

/// Borrowed float32, float16 or bfloat16; halves are viewed as their bits.
pub(crate) enum RealArray<'py> {
    F32(PyReadonlyArrayDyn<'py, f32>),
    F16(PyReadonlyArrayDyn<'py, u16>),
    Bf16(PyReadonlyArrayDyn<'py, u16>),
}

impl<'py> RealArray<'py> {
    pub(crate) fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.extract() {
            return Ok(Self::F32(array));
        }
        let (bfloat16, bits) = half_bits(array)?;
        let bits = bits.readonly();
        Ok(if bfloat16 { Self::Bf16(bits) } else { Self::F16(bits) })
    }

    pub(crate) fn reals(&self) -> PyResult<Reals<'_>> {
        Ok(match self {
            Self::F32(x) => Reals::F32(slice(x)?),
            Self::F16(x) => Reals::F16(slice(x)?),
            Self::Bf16(x) => Reals::Bf16(slice(x)?),
        })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::F32(x) => x.shape(),
            Self::F16(x) | Self::Bf16(x) => x.shape(),
        }
    }
}

/// [`RealArray`], to write to.
pub(crate) enum RealArrayMut<'py> {
    F32(PyReadwriteArrayDyn<'py, f32>),
    F16(PyReadwriteArrayDyn<'py, u16>),
    Bf16(PyReadwriteArrayDyn<'py, u16>),
}

impl<'py> RealArrayMut<'py> {
    pub(crate) fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.extract() {
            return Ok(Self::F32(array));
        }
        let (bfloat16, bits) = half_bits(array)?;
        let bits = bits.try_readwrite()?;
        Ok(if bfloat16 { Self::Bf16(bits) } else { Self::F16(bits) })
    }

    pub(crate) fn reals(&mut self) -> PyResult<RealsMut<'_>> {
        Ok(match self {
            Self::F32(x) => RealsMut::F32(x.as_slice_mut()?),
            Self::F16(x) => RealsMut::F16(x.as_slice_mut()?),
            Self::Bf16(x) => RealsMut::Bf16(x.as_slice_mut()?),
        })
    }

    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::F32(x) => x.shape(),
            Self::F16(x) | Self::Bf16(x) => x.shape(),
        }
    }
}

/// Whether an array is of bfloat16 (else of float16), and its bits.
fn half_bits<'py>(array: &Bound<'py, PyAny>) -> PyResult<(bool, Bound<'py, PyArrayDyn<u16>>)> {
    let py = array.py();
    let name = array.getattr(intern!(py, "dtype"))?.getattr(intern!(py, "name"))?;
    let bfloat16 = match name.extract::<String>()?.as_str() {
        "float16" => false,
        "bfloat16" => true,
        other => {
            let message = format!("expected an array of float32, float16 or bfloat16, got {other}");
            return Err(PyTypeError::new_err(message));
        }
    };
    let bits = array.call_method1(intern!(py, "view"), (intern!(py, "uint16"),))?;
    Ok((bfloat16, bits.extract()?))
}

macro_rules! integer_arrays {
    ($($variant:ident: $type:ty),*) => {
        /// Borrowed int8, uint8, int16 or uint16.
        pub(crate) enum IntegerArray<'py> {
            $($variant(PyReadonlyArrayDyn<'py, $type>),)*
        }

        impl<'py> IntegerArray<'py> {
            pub(crate) fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
                $(if let Ok(array) = array.cast::<PyArrayDyn<$type>>() {
                    return Ok(Self::$variant(array.try_readonly()?));
                })*
                Err(PyTypeError::new_err("expected an array of int8, uint8, int16 or uint16"))
            }

            pub(crate) fn integers(&self) -> PyResult<Integers<'_>> {
                Ok(match self {
                    $(Self::$variant(q) => Integers::$variant(slice(q)?),)*
                })
            }
        }

        /// [`IntegerArray`], to write to.
        pub(crate) enum IntegerArrayMut<'py> {
            $($variant(PyReadwriteArrayDyn<'py, $type>),)*
        }

        impl<'py> IntegerArrayMut<'py> {
            pub(crate) fn new(array: &Bound<'py, PyAny>) -> PyResult<Self> {
                $(if let Ok(array) = array.cast::<PyArrayDyn<$type>>() {
                    return Ok(Self::$variant(array.try_readwrite()?));
                })*
                Err(PyTypeError::new_err("expected a writable array of int8, uint8, int16 or uint16"))
            }

            pub(crate) fn integers(&mut self) -> PyResult<IntegersMut<'_>> {
                Ok(match self {
                    $(Self::$variant(q) => IntegersMut::$variant(q.as_slice_mut()?),)*
                })
            }
        }
    };
}
integer_arrays!(I8: i8, U8: u8, I16: i16, U16: u16);
