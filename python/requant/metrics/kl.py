"""Mean Kullback-Leibler divergence of the next token's distribution from the float model's."""

from __future__ import annotations

import numpy as np

from requant.metrics.divergence import divergence

METRIC = divergence("kl", np.mean)
