"""Round to nearest: the grid of a block spans its least and largest weight; byte-equal to onnxruntime's quantizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from requant.lowbit import quantize_blocks
from requant.weights.spec import WeightAlgorithm

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.lowbit import BlockScheme, BlockWeights
    from requant.weights.spec import Moments


def _quantize(rows: NDArray[Any], scheme: BlockScheme, moments: Moments | None) -> BlockWeights:
    return quantize_blocks(rows, scheme, "rtn", importance=None if moments is None else moments.diagonal)


ALGORITHM = WeightAlgorithm("rtn", needs_data=False, quantize=_quantize)
