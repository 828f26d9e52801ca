"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are rounded in turn, later ones make up for earlier errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requant.arrays.lowbit import gptq
from requant.weights.spec import WeightAlgorithm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockScheme, BlockWeights
    from requant.weights.spec import Moments


def quantize(rows: NDArray[Any], scheme: BlockScheme, moments: Moments | None) -> BlockWeights:
    """Round ``rows`` so that the layer's outputs change least, as its inputs' ``moments`` tell."""
    assert moments is not None  # it needs data
    return gptq(rows, moments.matrix, scheme)


ALGORITHM = WeightAlgorithm("gptq", needs_data=True, quantize=quantize)
