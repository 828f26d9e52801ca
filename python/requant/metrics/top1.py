"""Share of samples whose label has the highest score."""

from __future__ import annotations

from requant.metrics.ranking import top

METRIC = top(1)
