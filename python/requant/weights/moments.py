"""Second moments of what layers read, and the errors that follow from them without reading it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import CalibrationError
from requant.onnx.blocks import extent
from requant.weights.spec import Moments

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockWeights

#: Of inverses, as a share of the mean of the diagonal.
DAMPING = 0.01
#: Values of the longest rows whose moments are collected: 1.2 GB of them, and work on them takes six times that.
LONGEST = 12288
_TINY = float(np.finfo(np.float32).tiny)
_PART = 1 << 20  # values of a weight that are looked at at a time
_TOKENS = 8192  # rows of an activation that are multiplied at a time


def moments_of_rows(name: str, arrays: Iterable[NDArray[Any]]) -> Moments:
    """The second moments of a tensor's last axis.

    Raises:
        CalibrationError: it holds NaN or infinity.
    """
    total: NDArray[np.float64] | None = None
    count = 0
    for array in arrays:
        rows = array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)
        if total is None:
            total = np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, len(rows), _TOKENS):
            part = rows[start : start + _TOKENS]
            total += part.T @ part
        count += len(rows)
    if total is None or not np.isfinite(total).all():
        raise CalibrationError(f"activation {name!r} holds NaN or infinity", hint="check the samples")
    return Moments(total / max(count, 1), count)


def measure_error(rows: NDArray[Any], weights: BlockWeights, moments: Moments | None) -> float:
    """Power of the error over that of the layer's outputs, or of its weights without ``moments``."""
    if moments is not None:
        signal = _power(rows, moments)
        return weights.error(rows, moments.matrix) / signal if signal else 0.0
    signal = extent(rows)[2] * rows.size
    return weights.error(rows) / signal if signal else 0.0


def _power(rows: NDArray[Any], moments: Moments) -> float:
    """The mean square of the layer's outputs, summed over them."""
    step = max(1, _PART // max(rows.shape[1], 1))
    parts = (rows[i : i + step].astype(np.float64, order="C") for i in range(0, len(rows), step))
    return sum(float(np.vdot(part @ moments.matrix, part)) for part in parts)


def carried_error(moments: Moments, seen: Iterable[NDArray[Any]], exact: Iterable[NDArray[Any]]) -> NDArray[np.float32]:
    """What the rows of a weight are multiplied with and raised by, so that errors of earlier layers are made up for.

    Inputs ``x`` of the float model have become ``y``. The weights with the least ``mean |w x - v y|^2`` are
    ``v = w + w E[(x - y) y'] E[y y']^-1``, and those are rounded (Li et al. 2025, GPTAQ, arXiv:2504.02692, do so
    column by column). The inverse is damped as in GPTQ.
    """
    off = np.zeros_like(moments.matrix)
    for y, x in zip(seen, exact, strict=True):
        rows = y.reshape(-1, y.shape[-1]).astype(np.float32, copy=False)
        differences = x.reshape(rows.shape).astype(np.float32, copy=False) - rows
        for start in range(0, len(rows), _TOKENS):
            off += differences[start : start + _TOKENS].T @ rows[start : start + _TOKENS]
    off /= max(moments.rows, 1)
    channels = len(off)
    damped = moments.matrix + np.eye(channels) * (DAMPING * np.trace(moments.matrix) / channels + _TINY)
    solved: NDArray[np.float64] = np.linalg.solve(damped, off.T).T
    return solved.astype(np.float32)
