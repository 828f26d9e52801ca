"""Weights that lie in a file, whatever its format: what is known of them before they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor of reals by its name.

    Attributes:
        name: what it is called.
        shape: its shape; the last axis is the one that products sum over.
        read: gives the array, in float32, C-contiguous.
        activation: the tensor that it is multiplied with along the last axis, where a graph says so.
        used: whether a product or a lookup takes it; a checkpoint does not say (None).
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]] = field(repr=False, compare=False)
    activation: str | None = None
    used: bool | None = None
