"""Share of samples whose label has one of the five highest scores."""

from __future__ import annotations

from requant.metrics.ranking import top

METRIC = top(5)
