"""AWQ (Lin et al. 2023, arXiv:2306.00978): channels that carry large activations are scaled up before rounding.

The factors are those of ``scaling``; what is rounded then is clipped where that lowers the error of the outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requant.arrays.lowbit import quantize_blocks
from requant.weights.spec import WeightAlgorithm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockScheme, BlockWeights
    from requant.weights.spec import Moments


def _quantize(rows: NDArray[Any], scheme: BlockScheme, moments: Moments | None) -> BlockWeights:
    assert moments is not None  # it needs data
    return quantize_blocks(rows, scheme, "mse", importance=moments.diagonal)


ALGORITHM = WeightAlgorithm("awq", needs_data=True, quantize=_quantize, scales=True)
