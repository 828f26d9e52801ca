"""Half-quadratic quantization (Badri and Shaji 2023): zero points for a norm that forgives outliers."""

from __future__ import annotations

from requant.weights.spec import on_grids

ALGORITHM = on_grids("hqq")
