"""What a model is judged by: a metric is a file here and a line in ``METRICS``, or a function of the user's."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import TYPE_CHECKING

from requant.errors import ConfigError, closest
from requant.metrics.spec import Against, Case, Metric
from requant.metrics.user import metric_of

if TYPE_CHECKING:
    from collections.abc import Callable

#: Name of each metric and the module that computes it.
METRICS = {
    "top1": "top1",
    "top5": "top5",
    "mae": "mae",
    "mse": "mse",
    "cosine": "cosine",
    "perplexity": "perplexity",
    "kl": "kl",
    "kl99": "kl99",
}
#: What judges where nobody says otherwise.
DEFAULT = "top1"


def get_metric(metric: str | Callable[..., object]) -> Metric:
    """The metric of that name, or the one that ``module:function`` or a function computes.

    Raises:
        ConfigError: there is none, or the function cannot be imported.
    """
    if not isinstance(metric, str) or ":" in metric:
        return replace(metric_of(metric), source=metric)
    if metric not in METRICS:
        raise ConfigError(
            f"unknown metric {metric!r}{closest(metric, METRICS)}",
            hint=f"choose one of {', '.join(METRICS)}, or name a function of yours as module:function",
        )
    found: Metric = importlib.import_module(f"requant.metrics.{METRICS[metric]}").METRIC
    return replace(found, source=metric)


__all__ = ["DEFAULT", "METRICS", "Against", "Case", "Metric", "get_metric"]
