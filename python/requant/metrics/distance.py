"""Distances between what a model gives and what it should: its labels, or another model's outputs.

Labels are the targets of the first output, of its size; of another model, every float output counts. Where the target
itself is not finite (masked scores), nothing is compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from requant.errors import DataError
from requant.metrics.spec import Against, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requant.metrics.spec import Array, Case

    Sums = tuple[float, ...]


def distance(
    name: str, sums: Callable[[Array, Array], Sums], value: Callable[..., float], *, higher_is_better: bool = False
) -> Metric:
    """A metric that is a function, ``value``, of sums over all pairs of a value and its target."""

    def measure(case: Case) -> Sums:
        found = [sums(got, wanted) for got, wanted in _pairs(name, case)]
        return tuple(float(sum(column)) for column in zip(*found, strict=True))

    def total(parts: Sequence[Sums]) -> float:
        return value(*(sum(column) for column in zip(*parts, strict=True)))

    return Metric(name, Against.TARGETS, higher_is_better, measure, total)


def mean(total: float, count: float) -> float:
    """``total / count``; 0 of nothing."""
    return total / count if count else 0.0


def _pairs(name: str, case: Case) -> list[tuple[Array, Array]]:
    """Float64 values and their targets, flat."""
    if case.labels is not None:
        if case.labels.size != case.output.size or case.labels.dtype.kind not in "biuf":
            raise DataError(
                f"{name} needs a target for each value of the first output, which is {list(case.output.shape)}, "
                f"got labels {case.labels.dtype} {list(case.labels.shape)}",
                hint="give targets of the output's shape; top1 and top5 take class indices",
            )
        pairs = [(case.output, case.labels)]
    else:
        wanted = case.reference or {}
        pairs = [(case.outputs[name], target) for name, target in wanted.items() if target.dtype.kind == "f"]
        if not pairs:
            raise DataError(f"{name} compares float outputs, and the model has none", hint="choose another metric")
    return [_finite(got, target) for got, target in pairs]


def _finite(got: Array, target: Array) -> tuple[Array, Array]:
    flat, wanted = got.reshape(-1).astype(np.float64), target.reshape(-1).astype(np.float64)
    finite = np.isfinite(wanted)
    return flat[finite], wanted[finite]
