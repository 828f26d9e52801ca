"""Round to nearest on the grid with the least squared error, which may clip."""

from __future__ import annotations

from requant.weights.spec import on_grids

ALGORITHM = on_grids("mse")
