"""What an algorithm that rounds weights says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.lowbit import quantize_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockScheme, BlockWeights


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Second moments of what a layer reads: ``mean(x.T @ x)`` over all rows ``x``.

    Attributes:
        matrix: float64 ``[K, K]``.
        rows: how many rows were seen.
    """

    matrix: NDArray[np.float64]
    rows: int

    @property
    def diagonal(self) -> NDArray[np.float64]:
        """The mean square of each input channel, ``[K]``."""
        return np.diagonal(self.matrix).copy()

    def divided(self, factors: NDArray[Any]) -> Moments:
        """The moments of inputs that are divided by ``factors``, ``[K]``."""
        each = np.asarray(factors, np.float64)
        return Moments(self.matrix / np.outer(each, each), self.rows)


@dataclass(frozen=True, slots=True, eq=False)
class WeightAlgorithm:
    """Rounds the weights of one layer.

    Attributes:
        name: as the user types it.
        needs_data: whether it must see what the layers read.
        quantize: ``(rows [N, K], scheme, moments) -> BlockWeights``; without data ``moments`` is None.
        scales: whether input channels are scaled first, by factors that the op before takes in (see ``scaling``).
    """

    name: str
    needs_data: bool
    quantize: Callable[[NDArray[Any], BlockScheme, Moments | None], BlockWeights]
    scales: bool = False


def on_grids(name: str) -> WeightAlgorithm:
    """The one of ``ALGORITHMS`` with that name: each block gets a grid, each weight its nearest integer.

    With data, the errors of a column weigh the mean square of what it is multiplied with.
    """

    def quantize(rows: NDArray[Any], scheme: BlockScheme, moments: Moments | None) -> BlockWeights:
        return quantize_blocks(rows, scheme, name, importance=None if moments is None else moments.diagonal)

    return WeightAlgorithm(name, needs_data=False, quantize=quantize)
