"""What weights of any size hold, looked at part by part: neither a copy nor all pages of a file are in memory."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays import affine
from requant.errors import DataError, ModelError
from requant.onnx.mapped import forget
from requant.types import PerChannel, QuantizedTensor, QuantParams, QuantScheme, QuantType
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.floating[Any]]

_VALUES = 1 << 16  # a cacheful
_MANY = 1 << 22  # as many as are worth a call of the core, and threads there
_FORGET = 1 << 26  # bytes of a file that are looked at before its pages are given back
_TINY = np.finfo(np.float32).tiny


def blocks(array: NDArray[Any], values: int | None = None) -> Iterator[slice]:
    """Ranges of the first axis, each of an even number of rows and about so many values, a cacheful by default."""
    rows = 2 * max(1, (values or _VALUES) * len(array) // max(array.size, 1) // 2)
    seen = 0
    for start in range(0, len(array), rows):
        yield slice(start, start + rows)
        seen += array.nbytes * rows // len(array)
        if seen > _FORGET:
            forget(array)
            seen = 0


def count_not_finite(array: Floats) -> int:
    """How many values are NaN or infinite."""
    flat = np.atleast_1d(array)
    return sum(flat[part].size - int(np.count_nonzero(np.isfinite(flat[part]))) for part in blocks(flat))


def finite(array: NDArray[Any] | None, name: str) -> Floats:
    """The weight ``name``.

    Raises:
        ModelError: it is missing, or holds NaN or infinity.
    """
    if array is None:
        raise ModelError(f"weight {name!r} is not a constant")
    bad = count_not_finite(array)
    if bad:
        turned = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous  # it lies the other way
        stored = array.T if turned else array
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(stored))[0])
        raise ModelError(
            f"weight {name!r} {stored.shape} holds {counted(bad, 'NaN or infinite value(s)')}, the first at {where}",
            hint="repair the float model; a weight that is not finite cannot be quantized",
        )
    return array


def extent(array: Floats) -> tuple[float, float, float]:
    """The least and largest value, and the mean square, in the order in which values lie in memory."""
    flat = array.T if array.flags.f_contiguous else array
    low, high, power = np.inf, -np.inf, 0.0
    for part in blocks(flat):
        block = flat[part]
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        power += _power(block)
    return low, high, power / array.size


def _power(block: Floats) -> float:
    """The sum of squares, in float64."""
    flat = block.astype(np.float64).reshape(-1)
    return float(np.einsum("i,i->", flat, flat))  # in this thread: BLAS would wake others for a cacheful


def holds_subnormals(array: Floats) -> bool:
    """Whether a value is below 2^-126 in magnitude, and not zero."""
    flat = np.atleast_1d(array)
    return any(bool(np.any((size > 0) & (size < _TINY))) for size in (np.abs(flat[part]) for part in blocks(flat)))


def largest_terms(rows: Floats) -> NDArray[np.float64]:
    """The largest magnitude in each row of a matrix; NaN where one of its values is not finite."""
    return _largest(rows, pairs=False)


def largest_pairs(rows: Floats) -> NDArray[np.float64]:
    """For each row the largest term, or sum of two at 2i and 2i + 1 of one sign: what a kernel adds in 16 bits.

    That is the largest of ``|a|``, ``|b|`` and ``|a + b|``, since of unlike signs the sum is smaller than a term.
    """
    return _largest(rows, pairs=True)


def _largest(rows: Floats, *, pairs: bool) -> NDArray[np.float64]:
    """By parts that lie together in memory."""
    found = np.zeros(len(rows))
    columns = rows.T if rows.flags.f_contiguous and not rows.flags.c_contiguous else None
    try:
        for part in blocks(rows if columns is None else columns, _MANY):
            if columns is None:
                found[part] = ops.largest_terms(np.ascontiguousarray(rows[part], np.float32), 1, pairs)
            else:
                np.maximum(found, ops.largest_terms(np.asarray(columns[part], np.float32), 0, pairs), out=found)
    except DataError:
        found.fill(np.nan)
    return found


def quantized(array: Floats, params: QuantParams) -> NDArray[Any]:
    """The integers of ``array`` with a scale and zero point to each index of an axis."""
    scheme = params.scheme
    assert isinstance(scheme.granularity, PerChannel)
    out = np.empty(array.shape, scheme.dtype.numpy)
    for part in blocks(array, _MANY):
        own = params
        if scheme.granularity.axis == 0:
            own = QuantParams(params.scale[part], params.zero_point[part], scheme)
        affine.quantize_array(array[part], own, out=out[part])
    return out


def rounding_error(
    weight: Floats, data: NDArray[Any], scale: Floats, zero_point: int
) -> tuple[float, float, float, float]:
    """How well ``(data - zero_point) * scale``, whose shapes broadcast, stands for ``weight``.

    Returns:
        The least and largest value of ``weight``, its mean square, and that of its distance from the reals in float32.
    """
    scales, shape = _scales(scale, weight.shape)
    exact, integers, dtype = weight.reshape(shape), data.reshape(shape), QuantType(data.dtype.name)
    found = []
    for part in blocks(exact, _MANY):
        along = (scales[part], 0) if len(shape) == 2 else (scales, 1)
        tensor = QuantizedTensor(integers[part], _params(dtype, zero_point, *along))
        found.append(affine.rounding_error(exact[part], tensor))
    lows, highs, signals, noises = zip(*found, strict=True)
    return min(lows), max(highs), sum(signals) / weight.size, sum(noises) / weight.size


def _scales(scale: Floats, shape: tuple[int, ...]) -> tuple[Floats, tuple[int, ...]]:
    """A vector of scales, and the shape of a weight that it lies over: ``[scales, n]`` or ``[m, scales, n]``."""
    if scale.size == 1:
        return scale.reshape(1), (shape[0], 1, math.prod(shape[1:]))
    scale = scale.reshape((1,) * (len(shape) - scale.ndim) + scale.shape)
    own = [axis for axis, size in enumerate(scale.shape) if size > 1]
    first, last = own[0], own[-1] + 1
    scales = np.broadcast_to(scale.reshape(scale.shape[first:last]), shape[first:last]).reshape(-1)
    before, behind = shape[:first], math.prod(shape[last:])
    return scales, (scales.size, behind) if math.prod(before) == 1 else (math.prod(before), scales.size, behind)


def _params(dtype: QuantType, zero_point: int, scales: Floats, axis: int) -> QuantParams:
    scheme = QuantScheme(dtype, symmetric=False, granularity=PerChannel(axis))
    return QuantParams(scales, np.full(scales.shape, zero_point, dtype.numpy), scheme)
