"""Mean absolute error."""

from __future__ import annotations

import numpy as np

from requant.metrics.distance import distance, mean

METRIC = distance("mae", lambda got, wanted: (float(np.sum(np.abs(got - wanted))), float(got.size)), mean)
