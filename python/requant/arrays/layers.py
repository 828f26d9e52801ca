"""What stands between quantized products in a network: residual additions, activations and pooling, on 8-bit integers.

Images are channels last, ``[N, H, W, C]``. Results equal onnxruntime's QLinearAdd, QLinearAveragePool,
QLinearGlobalAveragePool and MaxPool to the bit, and a :class:`LookupTable` equals DequantizeLinear, the function and
QuantizeLinear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.arrays.affine import quantize_array
from requant.arrays.conv import axis_values
from requant.arrays.intake import as_bytes, as_float32, output
from requant.errors import ConfigError
from requant.types import QuantizedTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import ArrayLike, NDArray

    from requant.types import QuantParams

__all__ = ["LookupTable", "qadd", "qaverage_pool", "qglobal_average_pool", "qmax_pool"]


def qadd(
    a: QuantizedTensor,
    b: QuantizedTensor,
    y: QuantParams,
    *,
    clamp: tuple[int, int] | None = None,
    out: NDArray[Any] | None = None,
) -> QuantizedTensor:
    """``a + b`` of one shape and dtype, quantized with ``y``: onnxruntime's QLinearAdd.

    Args:
        a: int8 or uint8, quantized per tensor.
        b: The same.
        y: Parameters of the sum, of the same dtype.
        clamp: Lowest and highest integer of the sum, both included: ``(zero_point, 255)`` is a ReLU.
        out: Where to write: C-contiguous, of the result's shape and dtype.

    Raises:
        ConfigError: Shapes, dtypes or parameters that do not fit.
        TypeError: Data that is neither int8 nor uint8.
    """
    left, right = _contiguous("a", a.data), _contiguous("b", b.data)
    if (left.shape, left.dtype) != (right.shape, right.dtype) or y.scheme.dtype.numpy != left.dtype:
        got = f"{left.shape} {left.dtype}, {right.shape} {right.dtype} and {y.scheme.dtype.value}"
        raise ConfigError(f"expected a, b and y of one shape and dtype, got {got}")
    result = output(out, left.shape, left.dtype)
    ops.add_into(left, right, result, _tensor("a", a.params), _tensor("b", b.params), _tensor("y", y), clamp)
    return QuantizedTensor(result, y)


class LookupTable:
    """Any function of one value, from 8-bit integers to 8-bit integers; immutable.

    Args:
        function: Reals ``[256]`` to reals ``[256]``, elementwise, in float32.
        x: Parameters of what it is applied to, per tensor, int8 or uint8.
        y: Parameters of the results, likewise.

    Raises:
        ConfigError: Parameters that are not per tensor or not of 8 bits, or a function that gives another shape.
    """

    __slots__ = ("_table", "_x", "_y")

    def __init__(self, function: Callable[[NDArray[np.float32]], ArrayLike], x: QuantParams, y: QuantParams) -> None:
        for name, params in (("x", x), ("y", y)):
            _tensor(name, params)
            if params.scheme.dtype.bits != 8:
                raise ConfigError(f"expected {name} of 8 bits, got {params.scheme.dtype.value}")
        every = np.arange(256, dtype=np.uint8).view(x.scheme.dtype.numpy)
        reals = as_float32(function(QuantizedTensor(every, x).dequantize()))
        if reals.shape != every.shape:
            raise ConfigError(f"expected a function that keeps the shape (256,), got {reals.shape}")
        self._x, self._y = x, y
        self._table = quantize_array(reals, y).data.view(np.uint8)

    def __call__(self, x: ArrayLike, *, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """The results for integers of any shape, or ``out``.

        Raises:
            ConfigError: ``x`` is not of the dtype that the table was made for, or ``out`` does not fit.
            TypeError: ``x`` is neither int8 nor uint8.
        """
        array = _contiguous("x", x)
        if array.dtype != self._x.scheme.dtype.numpy:
            raise ConfigError(f"expected x of dtype {self._x.scheme.dtype.numpy}, got {array.dtype}")
        result = output(out, array.shape, self._y.scheme.dtype.numpy)
        ops.look_up_into(self._table, array, result)
        return result


def qmax_pool(
    x: ArrayLike,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    out: NDArray[Any] | None = None,
) -> NDArray[Any]:
    """The largest integer under each place of a window, ``[N, H', W', C]``; padding is never it. ONNX MaxPool.

    Args:
        x: int8 or uint8, ``[N, H, W, C]``.
        kernel: Height and width of the window.
        strides: From one place to the next; 1 by default.
        dilations: From one tap to the next; 1 by default.
        pads: Top, left, bottom, right; none by default, and less than the window reaches over.
        out: Where to write: C-contiguous, of the result's shape and dtype.

    Raises:
        ConfigError: Shapes or values that do not fit.
        TypeError: ``x`` is neither int8 nor uint8.
    """
    array, attributes = _images(x), _window(kernel, strides, dilations, pads)
    result = output(out, _places(array.shape, *attributes), array.dtype)
    ops.max_pool_into(array, array.shape, attributes, result)
    return result


def qaverage_pool(
    x: QuantizedTensor,
    y: QuantParams,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    include_pad: bool = False,
    out: NDArray[Any] | None = None,
) -> QuantizedTensor:
    """The average under each place of a window, quantized with ``y``: onnxruntime's QLinearAveragePool.

    Args:
        x: int8 or uint8, ``[N, H, W, C]``, quantized per tensor.
        y: Parameters of the result, of the same dtype.
        kernel: Height and width of the window.
        strides: From one place to the next; 1 by default.
        dilations: From one tap to the next; 1 by default.
        pads: Top, left, bottom, right; none by default, and less than the window reaches over.
        include_pad: Whether padding counts as zeros, or not at all.
        out: Where to write: C-contiguous, of the result's shape and dtype.

    Raises:
        ConfigError: Shapes, dtypes or parameters that do not fit.
        TypeError: Data that is neither int8 nor uint8.
    """
    array, attributes = _images(x.data), _window(kernel, strides, dilations, pads)
    result = output(out, _places(array.shape, *attributes), y.scheme.dtype.numpy)
    x_params, y_params = _tensor("x", x.params), _tensor("y", y)
    ops.average_pool_into(array, array.shape, attributes, include_pad, x_params, y_params, result)
    return QuantizedTensor(result, y)


def qglobal_average_pool(x: QuantizedTensor, y: QuantParams, *, out: NDArray[Any] | None = None) -> QuantizedTensor:
    """The average of each channel, ``[N, 1, 1, C]``, quantized with ``y``: onnxruntime's QLinearGlobalAveragePool.

    Args:
        x: int8 or uint8, ``[N, H, W, C]``, quantized per tensor.
        y: Parameters of the result, of the same dtype.
        out: Where to write: C-contiguous, of the result's shape and dtype.

    Raises:
        ConfigError: Shapes, dtypes or parameters that do not fit.
        TypeError: Data that is neither int8 nor uint8.
    """
    array = _images(x.data)
    result = output(out, (array.shape[0], 1, 1, array.shape[3]), y.scheme.dtype.numpy)
    ops.global_average_pool_into(array, array.shape, _tensor("x", x.params), _tensor("y", y), result)
    return QuantizedTensor(result, y)


def _contiguous(name: str, value: ArrayLike) -> NDArray[Any]:
    return np.require(as_bytes(name, value), requirements="C")


def _images(x: ArrayLike) -> NDArray[Any]:
    array = _contiguous("x", x)
    if array.ndim != 4:
        raise ConfigError(f"expected x of shape (N, H, W, C), got {array.shape}", hint="channels come last")
    return array


def _tensor(name: str, params: QuantParams) -> tuple[float, int]:
    """Scale and zero point of a whole tensor."""
    if np.size(params.scale) != 1:
        raise ConfigError(f"expected {name} quantized per tensor, got scales of shape {np.shape(params.scale)}")
    return np.asarray(params.scale).item(), np.asarray(params.zero_point).item()


def _window(
    kernel: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None, pads: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, strides, dilations and pads of both axes."""
    attributes = (
        axis_values("kernel", kernel, 2, 1),
        axis_values("strides", strides, 2, 1),
        axis_values("dilations", dilations, 2, 1),
    )
    for name, values in zip(("kernel", "strides", "dilations"), attributes, strict=True):
        if 0 in values:
            raise ConfigError(f"expected {name} of at least 1 on each axis, got {values}")
    return (*attributes, axis_values("pads", pads, 4, 0))


def _places(
    shape: tuple[int, ...], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> tuple[int, ...]:
    n, *sides, channels = shape
    places = [
        max(0, (side + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1)
        for i, side in enumerate(sides)
    ]
    return (n, *places, channels)
