"""The Kullback-Leibler divergence from the float model that 99 % of the tokens stay below."""

from __future__ import annotations

import numpy as np

from requant.metrics.divergence import divergence

METRIC = divergence("kl99", lambda values: float(np.quantile(values, 0.99)))
