"""The ops of the table in NumPy and float64, each as its definition reads; nothing of requant is used."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Attributes = Mapping[str, Any]


def conv(a: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    group, (top, left, bottom, right) = a.get("group", 1), a.get("pads", (0, 0, 0, 0))
    rows, columns = a.get("strides", (1, 1))
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = sliding_window_view(padded, w.shape[2:], axis=(2, 3))[:, :, ::rows, ::columns]
    parts = [
        np.einsum("nchwij,ocij->nohw", part, weight)
        for part, weight in zip(np.split(windows, group, axis=1), np.split(w, group), strict=True)
    ]
    y: Array = np.concatenate(parts, axis=1)
    return y if b is None else y + b.reshape(-1, 1, 1)


def conv_transpose(a: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    rows, columns = a.get("strides", (1, 1))
    n, _, h, width = x.shape
    _, out, kh, kw = w.shape
    y = np.zeros((n, out, (h - 1) * rows + kh, (width - 1) * columns + kw))
    for i in range(h):
        for j in range(width):
            y[:, :, i * rows : i * rows + kh, j * columns : j * columns + kw] += np.einsum(
                "nc,coij->noij", x[:, :, i, j], w
            )
    return y if b is None else y + b.reshape(-1, 1, 1)


def gemm(a: Attributes, x: Array, w: Array, b: Array | None = None) -> Array:
    y: Array = x @ (w.T if a.get("transB", 0) else w)
    return y if b is None else y + b


def pooled(a: Attributes, x: Array) -> Array:
    """The windows of a pooling without padding, the last two axes being the window."""
    rows, columns = a.get("strides", (1, 1))
    return sliding_window_view(x, tuple(a["kernel_shape"]), axis=(2, 3))[:, :, ::rows, ::columns]


def softmax(a: Attributes, x: Array) -> Array:
    e = np.exp(x - x.max(axis=a.get("axis", -1), keepdims=True))
    shares: Array = e / e.sum(axis=a.get("axis", -1), keepdims=True)
    return shares


def gelu(a: Attributes, x: Array) -> Array:
    assert a.get("approximate", b"none") in (b"none", "none")
    y: Array = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return y


def cut(_: Attributes, x: Array, starts: Array, ends: Array, axes: Array) -> Array:
    where = [slice(None)] * x.ndim
    for start, end, axis in zip(starts, ends, axes, strict=True):
        where[axis] = slice(int(start), int(end))
    return x[tuple(where)]


def reshape(_: Attributes, x: Array, shape: Array) -> Array:
    return x.reshape([x.shape[i] if d == 0 else int(d) for i, d in enumerate(shape)])


def depth_to_space(a: Attributes, x: Array) -> Array:
    n, c, h, w = x.shape
    size = a["blocksize"]
    blocks = x.reshape(n, size, size, c // size**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // size**2, h * size, w * size)


def space_to_depth(a: Attributes, x: Array) -> Array:
    n, c, h, w = x.shape
    size = a["blocksize"]
    blocks = x.reshape(n, c, h // size, size, w // size, size).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * size**2, h // size, w // size)


def clip(_: Attributes, x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    return np.clip(x, -np.inf if low is None else low, np.inf if high is None else high)


def split(a: Attributes, x: Array, sizes: Array | None = None) -> list[Array]:
    assert sizes is not None
    return np.split(x, np.cumsum(sizes)[:-1], axis=a.get("axis", 0))


def resize(_: Attributes, x: Array, _roi: Array | None, scales: Array) -> Array:
    """To the nearest, by whole factors."""
    for axis, scale in enumerate(scales):
        x = np.repeat(x, int(scale), axis=axis)
    return x


def hard_sigmoid(a: Attributes, x: Array) -> Array:
    y: Array = np.clip(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1)
    return y


OPS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": lambda _, x, y: x @ y,
    "Add": lambda _, x, y: x + y,
    "Sub": lambda _, x, y: x - y,
    "Mul": lambda _, x, y: x * y,
    "Div": lambda _, x, y: x / y,
    "Where": lambda _, condition, x, y: np.where(condition, x, y),
    "Sigmoid": lambda _, x: 1 / (1 + np.exp(-x)),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": lambda _, x: x * np.clip(x / 6 + 0.5, 0, 1),
    "Softmax": softmax,
    "Tanh": lambda _, x: np.tanh(x),
    "LeakyRelu": lambda a, x: np.where(x < 0, a.get("alpha", 0.01) * x, x),
    "PRelu": lambda _, x, slope: np.where(x < 0, slope * x, x),
    "Elu": lambda a, x: np.where(x < 0, a.get("alpha", 1.0) * np.expm1(x), x),
    "Gelu": gelu,
    "Relu": lambda _, x: np.maximum(x, 0),
    "Clip": clip,
    "AveragePool": lambda a, x: pooled(a, x).mean(axis=(-2, -1)),
    "GlobalAveragePool": lambda _, x: x.mean(axis=(2, 3), keepdims=True),
    "MaxPool": lambda a, x: pooled(a, x).max(axis=(-2, -1)),
    "Concat": lambda a, *x: np.concatenate(x, axis=a["axis"]),
    "Reshape": reshape,
    "Flatten": lambda _, x: x.reshape(len(x), -1),
    "Transpose": lambda a, x: np.transpose(x, a["perm"]),
    "Squeeze": lambda _, x, axes: np.squeeze(x, tuple(axes)),
    "Unsqueeze": lambda _, x, axes: np.expand_dims(x, tuple(axes)),
    "Slice": cut,
    "Split": split,
    "Gather": lambda a, x, indices: np.take(x, indices, axis=a.get("axis", 0)),
    "GatherND": lambda a, x, indices: x[tuple(np.moveaxis(indices, -1, 0))],
    "GatherElements": lambda a, x, indices: np.take_along_axis(x, indices, axis=a.get("axis", 0)),
    "ReduceMax": lambda _, x, axes: x.max(axis=tuple(axes), keepdims=True),
    "ReduceMin": lambda _, x, axes: x.min(axis=tuple(axes), keepdims=True),
    "Expand": lambda _, x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape))),
    "Tile": lambda _, x, repeats: np.tile(x, repeats),
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Resize": resize,
}
