"""Foreign arrays to numpy, and numpy arrays to exactly what an input takes.

Casts keep values: float to float (checked for overflow), integer or bool to integer or bool (checked for range).
An integer is never made a float: 8-bit pixels fed to a float input nearly always miss their scaling.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import is_bfloat16
from requant.data.spec import describe, mismatch
from requant.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection

    from requant.data.spec import InputSpec

Array = np.ndarray[Any, np.dtype[Any]]

_INTEGERS = "biu"


def to_array(value: object, what: str) -> Array:
    """A numpy array of anything with ``__array__`` or ``__dlpack__``, a number, or nested lists of numbers.

    Raises:
        DataError: ``value`` is none of these, or has masked values; ``what`` names it.
    """
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(f"{what} has masked values, and a model takes none", hint="fill them: x.filled(0)")
    try:
        for step in ("detach", "cpu"):  # tensors that carry gradients or live on a device
            if not isinstance(value, np.ndarray) and callable(method := getattr(value, step, None)):
                value = method()
        if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
            return np.from_dlpack(value)
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        reason = str(error).partition("\n")[0]
        has_type = callable(getattr(value, "float", None))  # a tensor: of a type that numpy lacks
        raise DataError(
            f"{what} cannot be made an array: {reason}",
            hint="convert it first: x.float()" if has_type else "pass numpy arrays or tensors",
        ) from error


def nested_numbers(value: object, ranks: Collection[int]) -> Array | None:
    """Nested lists of numbers as an array of one of ``ranks``; None for whatever else ``value`` is."""
    inner = value
    while isinstance(inner, list | tuple) and inner:
        inner = inner[0]
    if inner is value or not isinstance(inner, float | int | np.generic):
        return None
    try:
        array = np.asarray(value)
    except ValueError:  # rows of several lengths
        return None
    return array if array.ndim in ranks else None


def check_dtype(spec: InputSpec, dtype: np.dtype[Any], shape: tuple[int, ...], where: str) -> None:
    """Refuse a dtype that cannot become that of ``spec`` without changing values.

    Raises:
        DataError: it cannot.
    """
    want = spec.dtype
    if want.kind == "O" and dtype.kind in "OU":  # strings: numpy's own, or objects, which ``conform`` looks at
        return
    both_floats = (dtype.kind == "f" or is_bfloat16(dtype)) and want.kind == "f"
    both_integers = dtype.kind in _INTEGERS and want.kind in _INTEGERS
    if dtype.newbyteorder("=") == want.newbyteorder("=") and not dtype.hasobject and dtype.kind not in "SUc":
        return
    if both_floats or both_integers:
        return
    if dtype.hasobject:
        hint = "objects are never unpickled; give one numeric array"
    elif dtype.kind in _INTEGERS and want.kind == "f":
        hint = f"scale pixels as in training: (x / 255).astype({want.name!r}); cast with .astype if already to scale"
    elif dtype.kind in "f" + _INTEGERS:
        hint = f"cast it with .astype({want.name!r}) if its values are meant as {want.name}"
    else:
        hint = "give numbers"
    raise mismatch(f"input {spec.name!r} has the wrong dtype", spec, f"{describe(dtype, shape)} in {where}", hint)


def conform(spec: InputSpec, x: Array, where: str) -> Array:
    """``x`` with the native dtype of ``spec``, C-contiguous and aligned; a copy only where it must be.

    Raises:
        DataError: a value is NaN or infinite, or does not fit the dtype.
    """
    if spec.dtype.kind == "O":
        return _strings(spec, x, where)
    want = spec.dtype.newbyteorder("=")
    result = x
    if x.dtype.newbyteorder("=") != want:
        with np.errstate(over="ignore", invalid="ignore"):
            result = x.astype(want)
        lost = np.isinf(result) & ~np.isinf(x) if want.kind == "f" else _out_of_range(x, want)
        if lost.any():
            raise DataError(
                f"input {spec.name!r}: {_count(lost)} in {where} do not fit {want.name}",
                hint=f"the first is {x[lost][0]}; the model takes {spec}",
            )
    result = np.require(np.asarray(result), want, ["C", "A"])
    if want.kind == "f" and not _all_finite(result):
        bad = ~np.isfinite(result)
        raise DataError(
            f"input {spec.name!r}: {_count(bad)} in {where} are NaN or infinite",
            hint=f"the first is {result[bad][0]} at index {_first(bad)}; remove or repair the sample",
        )
    return result


def _strings(spec: InputSpec, x: Array, where: str) -> Array:
    """``x`` as an array of Python strings, which is what runtimes take for tensors of strings."""
    strings = np.ascontiguousarray(x.astype(object)).reshape(x.shape)
    odd = [value for value in strings.flat if not isinstance(value, str)]
    if odd:
        raise mismatch(
            f"input {spec.name!r} holds values that are no strings in {where}", spec, f"a {type(odd[0]).__name__}"
        )
    return strings


def _all_finite(x: Array) -> bool:
    # A finite sum proves all terms finite without a temporary; an overflowing one is looked into.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(np.add.reduce(x, axis=None))) or bool(np.isfinite(x).all())


def _out_of_range(x: Array, want: np.dtype[Any]) -> Array:
    lo, hi = (0, 1) if want.kind == "b" else (np.iinfo(want).min, np.iinfo(want).max)
    values = x.view(np.uint8) if x.dtype.kind == "b" else x
    return np.asarray((values < lo) | (values > hi))


def _count(mask: Array) -> str:
    return f"{np.count_nonzero(mask)} of {mask.size} values"


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])
