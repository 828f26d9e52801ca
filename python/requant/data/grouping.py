"""Samples to batches: the same samples give the same cuts, whatever form they came in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from requant.data.convert import Array
    from requant.data.samples import Sample

# Without a batch size, rows are joined until a batch has so many, as long as its inputs have at most so many bytes:
# joining spares the fixed cost of an inference, which counts for small models only, and costs activation memory for big
# ones. The larger number is for rows of no more values than a few tokens or features.
DEFAULT_BATCHES = ((32, 8 << 10), (8, 256 << 10))


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Feeds for one inference.

    Attributes:
        feeds: An array for each input: native byte order, C-contiguous, of the dtype and rank of the input.
        indices: Place of each sample in the source.
        labels: Their labels ``[count, ...]``, if there are labels.
    """

    feeds: Mapping[str, Array]
    indices: tuple[int, ...]
    labels: Array | None = None

    @property
    def first(self) -> int:
        """Place in the source of the first sample."""
        return self.indices[0]

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.indices)


def batch_rows(sample: Sample, batch_size: int | None) -> int:
    """Rows in a batch of samples like this one."""
    if batch_size is not None:
        return batch_size
    row_bytes = sum(x.nbytes for x in sample.feeds.values())
    return max(1, *(min(rows, most_bytes // max(row_bytes, 1)) for rows, most_bytes in DEFAULT_BATCHES))


def group(samples: Iterable[Sample], batch_size: int | None) -> Iterator[Batch]:
    """Neighbouring rows of equal shape (and equal scalars) joined to batches; whole samples each on their own."""
    pending: list[Sample] = []
    for sample in samples:
        if pending and not (sample.row and sample.key == pending[0].key):
            yield _join(pending)
            pending = []
        pending.append(sample)
        if not sample.row or len(pending) == batch_rows(sample, batch_size):
            yield _join(pending)
            pending = []
    if pending:
        yield _join(pending)


def group_exactly(samples: Iterable[Sample], rows: int, drop: Callable[[int], None]) -> Iterator[Batch]:
    """Batches of exactly ``rows`` rows; samples that do not fill one are dropped, and ``drop`` told how many."""
    for batch in group(samples, rows):
        if all(len(x) == rows for x in batch.feeds.values() if x.ndim):
            yield batch
        else:
            drop(batch.count)


def _join(samples: list[Sample]) -> Batch:
    head = samples[0]
    feeds = {name: _concatenate([s.feeds[name] for s in samples]) for name in head.feeds}
    labels = [s.label for s in samples if s.label is not None]
    return Batch(feeds, tuple([s.index for s in samples]), np.stack(labels) if labels else None)


def _concatenate(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 or not arrays[0].ndim else np.concatenate(arrays)
