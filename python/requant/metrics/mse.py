"""Mean squared error."""

from __future__ import annotations

import numpy as np

from requant.metrics.distance import distance, mean

METRIC = distance("mse", lambda got, wanted: (float(np.sum((got - wanted) ** 2)), float(got.size)), mean)
