"""Round to nearest: the grid of a block spans its least and largest weight; byte-equal to onnxruntime's quantizer."""

from __future__ import annotations

from requant.weights.spec import on_grids

ALGORITHM = on_grids("rtn")
