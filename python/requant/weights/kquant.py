"""The grids of llama.cpp's k-quants: scale and zero point fitted in turn with the integers."""

from __future__ import annotations

from requant.weights.spec import on_grids

ALGORITHM = on_grids("kquant")
