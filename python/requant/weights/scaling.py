"""Factors for the input channels of layers, so that those which matter lose least when weights are rounded.

Layers that read one tensor multiply each channel of their weights by a factor, and what computes the tensor divides by
it (see ``requant.onnx.sites``). Factors are powers of two: the float model stays the same bits, and an op before whose
weights are rounded already only divides their scales. As in AWQ they follow the size of the activations, with an
exponent that is searched by the error of the layers' outputs; here also against the size of the weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.onnx.rescale import powers_of_two

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from requant.weights.spec import Moments

    #: The error of layers' outputs, whose weights are rounded after scaling by factors.
    Error = Callable[[NDArray[np.float32]], float]

_STEPS = 10
#: What the error must fall by: less is not worth a changed model.
_GAIN = 0.98


def choose_factors(
    rows: Sequence[NDArray[Any]], moments: Moments, error: Error
) -> tuple[NDArray[np.float32], float] | None:
    """Factors ``[K]`` and the error they leave; None where none clearly lowers it.

    Args:
        rows: the weights ``[N, K]`` of the layers.
        moments: of the tensor that they read.
        error: what is to be made small; it is called for each set of factors that differs from those before.
    """
    channels = moments.matrix.shape[0]
    plain = np.ones(channels, np.float32)
    x = np.sqrt(moments.diagonal)
    w = np.max([np.abs(each).max(axis=0) for each in rows], axis=0).astype(np.float64)
    live = (x > 0) & (w > 0)
    if not live.any():
        return None
    x, w = np.where(live, x, 1.0), np.where(live, w, 1.0)
    tried = {plain.tobytes(): error(plain)}
    least, best = tried[plain.tobytes()] * _GAIN, None
    for step in range(1, _STEPS + 1):
        alpha = step / _STEPS
        for wanted in (x**alpha, x**alpha / w ** (1 - alpha)):
            factors = powers_of_two(np.where(live, wanted, np.exp(np.log(wanted[live]).mean())))
            if factors.tobytes() in tried:
                continue
            found = tried[factors.tobytes()] = error(factors)
            if found < least:
                least, best = found, factors
    return None if best is None else (best, least)
