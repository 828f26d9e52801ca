"""What 8-bit weights in the order of a kernel have in common, be they a matrix or filters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant import ops


class PackedBytes:
    """Base of ``PackedWeights`` and ``PackedConv``."""

    __slots__ = ("_core", "_zero_point")

    _core: ops.PackedMatrix | ops.PackedFilters
    _zero_point: NDArray[np.int32]

    @property
    def dtype(self) -> np.dtype[Any]:
        """``int8`` or ``uint8``."""
        return np.dtype(self._core.dtype)

    @property
    def kernel(self) -> str:
        """The instruction set that it is packed for, as ``requant.cpu_info()`` names it."""
        return self._core.kernel

    @property
    def zero_point(self) -> NDArray[np.int32]:
        """As it was given: one, of shape ``()``, or one for each column or filter."""
        return self._zero_point.copy()
