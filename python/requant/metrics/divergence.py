"""How far the distributions of the next token are from those of another model: Kullback-Leibler divergence, in nats.

For logits ``p`` of the float model and ``q`` of this one, ``sum(softmax(p) * (log softmax(p) - log softmax(q)))`` over
the last axis of the first output, for every token that was fed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from requant.errors import DataError
from requant.metrics.spec import Against, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requant.metrics.spec import Array, Case

_BLOCK = 1 << 20  # logits that are made float64 at a time


def _measure(case: Case) -> Array:
    own = case.output
    if case.reference is None:
        raise DataError("a divergence needs a float model to compare with", hint="give it (--float FILE)")
    other = next(iter(case.reference.values()))
    if own.dtype.kind != "f" or own.ndim < 2 or own.shape != other.shape:
        raise DataError(
            f"a divergence needs logits [..., vocabulary] of one shape as the first output, "
            f"got {own.dtype} {list(own.shape)} and {list(other.shape)}",
            hint="choose another metric for this model",
        )
    p, q = (logits.reshape(-1, logits.shape[-1]) for logits in (other, own))
    step = max(1, _BLOCK // p.shape[1])
    parts = [_divergence(p[i : i + step], q[i : i + step]) for i in range(0, len(p), step)]
    return np.concatenate(parts) if parts else np.zeros(0)


def _divergence(p: Array, q: Array) -> Array:
    logs = [_log_softmax(x.astype(np.float64)) for x in (p, q)]
    result: Array = np.sum(np.exp(logs[0]) * (logs[0] - logs[1]), axis=1)
    return np.maximum(result, 0.0)  # rounding may leave a little below 0


def _log_softmax(x: Array) -> Array:
    x = x - x.max(axis=1, keepdims=True)
    result: Array = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return result


def _joined(reduce: Callable[[Array], float]) -> Callable[[Sequence[Array]], float]:
    def value(parts: Sequence[Array]) -> float:
        all_parts = np.concatenate(parts)
        if not len(all_parts):
            raise DataError("a divergence found no token to compare", hint="give sequences of at least one token")
        return float(reduce(all_parts))

    return value


def divergence(name: str, reduce: Callable[[Array], float]) -> Metric:
    """The metric that makes one figure of the divergences of all tokens."""
    return Metric(name, Against.MODEL, higher_is_better=False, measure=_measure, value=_joined(reduce))
