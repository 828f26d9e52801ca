"""The rule of samples: what one array after another means for a model's inputs.

An array with one dimension more than its input is a stack of samples: sample ``i`` is ``x[i]``. With as many
dimensions, its first axis is the batch and each row is a sample, if the model's first axis is a batch at all
(``spec.batching_of``); otherwise the array is one whole sample or, beside stacks, shared by all samples, as a scalar
always is. All arrays must hold the same number of samples. An array of labels has one entry for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from requant.data.convert import check_dtype, conform
from requant.data.npy import StoredArray
from requant.data.spec import InputSpec, batching_of, describe, fits, listed, mismatch
from requant.errors import DataError, closest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from requant.data.convert import Array
    from requant.data.tables import Column, Table


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sample as a feed.

    Attributes:
        feeds: An array for each input, as the model takes it.
        index: Its place in the source.
        row: It has one row in all inputs (scalars aside) and may be joined with others to a batch.
        label: Its label, if there are labels.
    """

    feeds: dict[str, Array]
    index: int
    row: bool
    label: Array | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for samples that may be joined: the shapes agree, and so do the values that a batch shares."""
        label = None if self.label is None else (self.label.shape, self.label.dtype)
        return (label, *((x.shape if x.ndim else x.tobytes()) for x in self.feeds.values()))


class Samples:
    """The samples of a table.

    Args:
        table: What was given; its names, ranks, sizes and dtypes are checked here.
        inputs: What the model takes.

    Raises:
        DataError: the table does not fit the inputs.
    """

    def __init__(self, table: Table, inputs: Sequence[InputSpec]) -> None:
        _check_names(table, inputs)
        self._table, self._inputs = table, inputs
        self._batching = batching_of(inputs)
        shapes = {spec.name: table.columns[spec.name].shape for spec in inputs}
        self._stacked = {s.name for s in inputs if len(shapes[s.name]) == len(s.shape) + 1}
        empty: dict[str, set[object]] = {}
        filled: set[object] = set()
        for spec in inputs:
            sizes = self._check(spec, table.columns[spec.name])
            if spec.shape:
                empty[spec.name] = {dim for dim, size in sizes if not size}
            filled |= {dim for dim, size in sizes if size and isinstance(dim, str)}
        self._check_filled(empty, filled)
        self._shared: dict[str, Array] = {}
        counts = {s.name: shapes[s.name][0] for s in inputs if s.name in self._stacked or self._in_rows(s)}
        if len(set(counts.values())) > 1:
            raise mismatch(
                f"the inputs differ in their number of samples in {table.where}",
                "as many of each",
                ", ".join(f"{name!r}: {count}" for name, count in counts.items()),
                "save one entry along the first axis of every array for each sample"
                + ("; where that axis is no batch, add one: x[numpy.newaxis]" if not self._stacked else ""),
            )
        self.count: int = next(iter(counts.values()), 1)
        self._check_labels()

    def read(self, index: int, source_index: int) -> Sample:
        """Sample ``index`` of the table, converted and checked; ``source_index`` is its place in the whole source."""
        where = f"sample {source_index} ({self._table.where})"
        feeds = {spec.name: self._feed(spec, index, where) for spec in self._inputs}
        row = self._batching.rows and all(x.shape[0] == 1 for x in feeds.values() if x.ndim)
        label = None if self._table.labels is None else np.asarray(self._table.labels[index])
        return Sample(feeds, source_index, row, label)

    def _in_rows(self, spec: InputSpec) -> bool:
        return self._batching.rows and bool(spec.shape) and spec.name not in self._stacked

    def _feed(self, spec: InputSpec, index: int, where: str) -> Array:
        name, column = spec.name, self._table.columns[spec.name]
        if name in self._stacked:
            return conform(spec, np.asarray(column[index]), where)
        if self._in_rows(spec):
            return conform(spec, np.asarray(column[index])[np.newaxis], where)
        if name not in self._shared:
            whole = column.load() if isinstance(column, StoredArray) else np.asarray(column)
            self._shared[name] = conform(spec, whole, where)
        return self._shared[name]

    def _check(self, spec: InputSpec, column: Column) -> list[tuple[int | str | None, int]]:
        """Check what ``column`` is; returns the dimensions of a sample with their sizes."""
        shape, stacked, where = column.shape, spec.name in self._stacked, self._table.where
        check_dtype(spec, column.dtype, shape, where)
        got = f"{describe(column.dtype, shape)} in {where}"
        if not stacked and len(shape) != len(spec.shape):
            hint = _missing_axis(shape, spec.shape)
            raise mismatch(f"input {spec.name!r} has the wrong rank", f"{spec}, or a stack of them", got, hint)
        dims, sample = spec.shape, shape[stacked:]
        if dims and self._batching.rows:
            rows = sample[0] if stacked else 1
            if not stacked or rows == 1:
                dims, sample = dims[1:], sample[1:]  # rows are joined to whatever batch the model takes
            elif self._stacked >= {s.name for s in self._inputs if s.shape}:
                pass  # whole feeds; the batch is checked like any dimension
            else:
                raise mismatch(
                    f"input {spec.name!r} is a stack of {rows} rows a sample beside inputs that are not stacked",
                    f"{spec}, or a stack of one row a sample",
                    got,
                    "stack all inputs or none",
                )
        if not fits(sample, dims):
            raise mismatch(
                f"input {spec.name!r} has the wrong shape",
                f"{spec}, or a stack of them",
                got,
                _transposition(shape, sample, dims),
            )
        return list(zip(dims, sample, strict=True))

    def _check_filled(self, empty: Mapping[str, set[object]], filled: set[object]) -> None:
        """Refuse arrays without values: all of them, or one whose empty dimension is not empty in another.

        A single input may be empty, as a language model's cache is before the first token.

        Args:
            empty: The dimensions of size 0 of each input that has dimensions.
            filled: The dimensions of other sizes.
        """
        for spec in self._inputs:
            if empty.get(spec.name) and (filled & empty[spec.name] or all(empty.values())):
                column = self._table.columns[spec.name]
                got = f"{describe(column.dtype, column.shape)} in {self._table.where}"
                raise mismatch(f"input {spec.name!r} holds no values", f"{spec}, or a stack of them", got)

    def _check_labels(self) -> None:
        labels = self._table.labels
        if labels is None:
            return
        if labels.dtype.hasobject:
            raise DataError(f"the labels in {self._table.where} are Python objects", hint="save a numeric array")
        if labels.shape[:1] != (self.count,):
            raise mismatch(
                f"the labels do not match the samples in {self._table.where}",
                f"{self.count} labels",
                describe(labels.dtype, labels.shape),
                "save one label for each sample",
            )


def _check_names(table: Table, inputs: Sequence[InputSpec]) -> None:
    names = [spec.name for spec in inputs]
    unknown = [name for name in table.columns if name not in names]
    missing = [name for name in names if name not in table.columns]
    if not unknown and not missing:
        return
    problem = (
        f"unknown input {unknown[0]!r} in {table.where}{closest(unknown[0], missing or names)}"
        if unknown
        else f"input {missing[0]!r} is missing in {table.where}"
    )
    hint = "name the arrays like the model's inputs" if missing else "leave out what the model does not take"
    raise mismatch(problem, listed(names), listed(table.columns), hint)


def _missing_axis(shape: tuple[int, ...], dims: tuple[int | str | None, ...]) -> str | None:
    """How to add the axis that is missing, if only one is, and adding one there helps: that of the batch if it does."""
    if len(shape) + 1 != len(dims):
        return None
    last = len(shape)
    inner = ((axis, "missing", ":, " * axis) for axis in range(1, last))
    for axis, name, before in ((0, "batch", ""), (last, "last", "..., "), *inner):
        if fits((*shape[:axis], 1, *shape[axis:])[1:], dims[1:]):
            return f"add the {name} axis: x[{before}numpy.newaxis]"
    return None


def _transposition(shape: tuple[int, ...], sample: tuple[int, ...], dims: tuple[int | str | None, ...]) -> str | None:
    """How to turn channels-last data into channels-first, or back, if that makes it fit."""
    for order, given, wanted in (((-1, -3, -2), "NHWC", "NCHW"), ((-2, -1, -3), "NCHW", "NHWC")):
        if len(sample) >= len(order) and fits((*sample[:-3], *(sample[axis] for axis in order)), dims):
            axes = (*range(len(shape) - 3), *(len(shape) + axis for axis in order))
            return f"the data looks like {given} and the model takes {wanted}; use numpy.transpose(x, {axes})"
    return None
