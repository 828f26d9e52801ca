"""Top-k: the share of samples whose label is among the ``k`` highest scores.

Scores are the last axis of the first output ``[samples, ..., classes]``; of several positions the last one counts.
Equal scores rank in the order of the classes, as argmax has it; a row that holds NaN is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from requant.errors import DataError
from requant.metrics.spec import Against, Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.metrics.spec import Array, Case


def top(k: int) -> Metric:
    """The metric ``top<k>``."""

    def measure(case: Case) -> tuple[int, int]:
        scores = case.output
        labels = _class_labels(k, case, scores.shape)
        rows = scores.reshape(len(labels), -1, scores.shape[-1])[:, -1]
        own = np.take_along_axis(rows, labels[:, np.newaxis], axis=1)
        earlier = np.arange(rows.shape[1]) < labels[:, np.newaxis]
        better = np.sum((rows > own) | ((rows == own) & earlier), axis=1)
        return int(np.sum((better < k) & ~np.isnan(rows).any(axis=1))), len(labels)

    return Metric(f"top{k}", Against.LABELS, higher_is_better=True, measure=measure, value=_share)


def _share(parts: Sequence[tuple[int, int]]) -> float:
    return sum(right for right, _ in parts) / sum(count for _, count in parts)


def _class_labels(k: int, case: Case, shape: tuple[int, ...]) -> Array:
    """The labels as one class index to a sample, refused where they are not."""
    labels = np.asarray(case.labels)
    classes = shape[-1] if shape else 0
    if classes <= k:
        raise DataError(f"top-{k} needs an output of more than {k} classes on its last axis, got {list(shape)}")
    integral = labels.dtype.kind in "iu" or (labels.dtype.kind == "f" and np.all(labels == np.rint(labels)))
    if labels.size != case.count or not integral or not np.all((labels >= 0) & (labels < classes)):
        raise DataError(
            f"top-{k} needs one label in 0..{classes - 1} for each sample, got {labels.dtype} {list(labels.shape)}",
            hint="give class indices that count from 0; one-hot labels: labels.argmax(axis=-1)",
        )
    return labels.reshape(-1).astype(np.int64)
