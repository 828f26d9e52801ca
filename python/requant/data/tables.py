"""What a source gives, one after another: arrays by input name, in memory or not, and where they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from requant.data.convert import nested_numbers, to_array
from requant.data.spec import describe, listed, mismatch
from requant.errors import DataError, closest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.data.spec import InputSpec

LABEL_NAMES = ("labels", "label", "targets", "target", "y")


class Column(Protocol):
    """An array, in memory or not; ``x[i]`` is asked for in ascending order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """As of an array."""

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Table:
    """Arrays that belong together, by input name, where they came from, and their labels."""

    columns: Mapping[str, Column]
    where: str
    labels: Column | None = None


def table_of(arrays: Mapping[str, Column], inputs: Sequence[InputSpec], where: str, labels: str | None) -> Table:
    """A table of arrays by name; the one called ``labels``, or one of ``LABEL_NAMES``, holds the labels.

    Raises:
        DataError: ``labels`` names no array.
    """
    names = {spec.name for spec in inputs}
    if labels is not None and labels not in arrays:
        raise DataError(f"no labels {labels!r} in {where}{closest(labels, arrays)}", hint=f"it holds {listed(arrays)}")
    key = labels or next((name for name in LABEL_NAMES if name in arrays and name not in names), None)
    columns = {name: x for name, x in arrays.items() if name != key or name in names}
    return Table(columns, where, None if key is None else arrays[key])


def single(array: Column, inputs: Sequence[InputSpec], where: str) -> Table:
    """A table of one array, for a model with one input.

    Raises:
        DataError: the model has more.
    """
    if len(inputs) != 1:
        raise mismatch(
            f"{where} is one array, and the model has {len(inputs)} inputs",
            f"an array for each of {listed(s.name for s in inputs)}",
            describe(array.dtype, array.shape),
            "give a dict or .npz keyed by input name",
        )
    return Table({inputs[0].name: array}, where)


def table_of_item(item: object, inputs: Sequence[InputSpec], where: str, labels: str | None) -> Table:
    """A table of what an iterable gives: a dict, an array, or a tuple or list of arrays in the order of the inputs.

    One element more than the model has inputs is the labels: ``(x, y)``, ``({"x": x}, y)``. For a model with one input,
    nested lists of numbers with the rank of that input are an array.

    Raises:
        DataError: it is none of these, or has the wrong length.
    """
    if isinstance(item, PathLike):
        raise DataError(f"{where} is a path", hint="give a list of paths, such as sorted(folder.glob('*.npz'))")
    if isinstance(item, Mapping):
        return table_of({str(k): to_array(x, f"{k!r} of {where}") for k, x in item.items()}, inputs, where, labels)
    if not isinstance(item, tuple | list):
        return single(to_array(item, where), inputs, where)
    if len(inputs) == 1 and (array := nested_numbers(item, (len(inputs[0].shape),))) is not None:
        return single(array, inputs, where)
    if item and isinstance(item[0], Mapping) and len(item[1:]) == 1:
        return _labelled(table_of_item(item[0], inputs, where, None), item[1])
    if len(item) not in (len(inputs), len(inputs) + 1):
        raise mismatch(
            f"{where} has {len(item)} elements",
            f"{len(inputs)}, in the order {listed(s.name for s in inputs)}, and at most a label more",
            f"a {type(item).__name__} of {', '.join(type(x).__name__ for x in item[:4])}",
            "give a dict keyed by input name",
        )
    pairs = zip(inputs, item, strict=False)
    table = Table({s.name: to_array(x, f"element {i} of {where}") for i, (s, x) in enumerate(pairs)}, where)
    return _labelled(table, item[-1]) if len(item) > len(inputs) else table


def copied(table: Table) -> Table:
    """The table with arrays of its own, for producers that fill one buffer again and again."""
    columns = {name: np.array(x) for name, x in table.columns.items()}
    return Table(columns, table.where, None if table.labels is None else np.array(table.labels))


def _labelled(table: Table, labels: object) -> Table:
    array = to_array(labels, f"the label of {table.where}")
    return Table(table.columns, table.where, array.reshape(1) if array.ndim == 0 else array)
