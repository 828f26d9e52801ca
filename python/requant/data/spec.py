"""What a model takes: names, dtypes and shapes of its inputs, and whether their first axis is a batch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

# A first axis of such a name counts steps or nodes of one sample, not samples.
_NOT_A_BATCH = re.compile(r"seq|time|len|frame|step|token|node|edge|point|height|width|^[tlhw]$", re.IGNORECASE)

_LISTED = 8  # names in a message


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: Its name in the graph.
        dtype: Its element type.
        shape: A size for each fixed dimension, a name for each symbolic one, None (or a number below 1, which
            exporters also write) for an unknown one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        dims = (d if fixed_size(d) is not None or isinstance(d, str) else "?" for d in self.shape)
        return f"{type_name(self.dtype)} [{', '.join(map(str, dims))}]"


def fixed_size(dim: int | str | None) -> int | None:
    """The size of a fixed dimension, None of any other."""
    return dim if isinstance(dim, int) and dim > 0 else None


def fits(shape: Sequence[int], dims: Sequence[int | str | None]) -> bool:
    """Whether ``shape`` has the rank and the fixed sizes of ``dims``."""
    return len(shape) == len(dims) and all(fixed_size(d) in (None, n) for n, d in zip(shape, dims, strict=True))


@dataclass(frozen=True, slots=True)
class Batching:
    """What the first axis of the inputs means.

    Attributes:
        rows: It counts samples, so they may be cut and joined along it.
        fixed: How many the model takes at once; None if it takes any number.
    """

    rows: bool
    fixed: int | None = None


def batching_of(inputs: Sequence[InputSpec]) -> Batching:
    """How the inputs of a model are batched; scalars take no part.

    The first axis is the batch when it is of the same fixed size in all inputs, or dynamic in all, or 1 where it is
    not dynamic (then the batch is fixed at 1). It is no batch when every input is a vector or a scalar, when its
    symbol stands on another axis too (``[nodes, nodes]``), or when it is named for the steps or nodes of one sample
    (``sequence_length``).
    """
    shapes = [spec.shape for spec in inputs if spec.shape]
    if not any(shape[1:] for shape in shapes):
        return Batching(rows=False)
    sizes = {fixed_size(shape[0]) for shape in shapes}
    known = sizes - {None}
    symbols = {shape[0] for shape in shapes if isinstance(shape[0], str)}
    elsewhere = {dim for shape in shapes for dim in shape[1:]}
    if symbols & elsewhere or any(map(_names_steps, symbols)):
        return Batching(rows=False)
    if len(known) > 1 or (len(sizes) > 1 and known != {1}):
        return Batching(rows=False)
    return Batching(rows=True, fixed=known.pop() if known else None)


def _names_steps(symbol: str) -> bool:
    return "batch" not in symbol.lower() and _NOT_A_BATCH.search(symbol) is not None


def mismatch(problem: str, expected: object, got: object, hint: str | None = None) -> DataError:
    """The error for data that does not fit: what is wrong, what was expected, what was got, the remedy."""
    return DataError(f"{problem}\n  expected {expected}\n  got {got}", hint=hint)


def type_name(dtype: np.dtype[Any]) -> str:
    """An element type in words; inputs that take strings have Python objects in numpy."""
    return "string" if dtype.kind in "OU" else dtype.name


def describe(dtype: np.dtype[Any], shape: Sequence[int]) -> str:
    """An array in words: ``float32 (256, 3, 32, 32)``."""
    return f"{dtype.name} {tuple(shape)}"


def listed(names: Iterable[str]) -> str:
    """Quoted names; of many, the first few."""
    quoted = [repr(name) for name in names]
    shown = ", ".join(quoted[:_LISTED])
    return (shown if len(quoted) <= _LISTED else f"{shown}, ... ({len(quoted)})") or "nothing"
