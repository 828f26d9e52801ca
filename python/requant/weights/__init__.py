"""How weights of a few bits are chosen: an algorithm is a file here and a line in ``ALGORITHMS``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from requant.weights.spec import WeightAlgorithm

#: Name of each algorithm and the module that has it, simplest first.
ALGORITHMS = {
    "rtn": "rtn",
    "mse": "mse",
    "hqq": "hqq",
    "kquant": "kquant",
    "gptq": "gptq",
    "awq": "awq",
    "awq+gptq": "awq_gptq",
}
#: The name that stands for whichever of them errs least.
AUTO = "auto"


def get_algorithm(name: str) -> WeightAlgorithm:
    """The algorithm of that name, one of ``ALGORITHMS``."""
    found: WeightAlgorithm = importlib.import_module(f"requant.weights.{ALGORITHMS[name]}").ALGORITHM
    return found


def needs_data(name: str) -> bool:
    """Whether an algorithm cannot do without data; ``auto`` can."""
    return name != AUTO and get_algorithm(name).needs_data


__all__ = ["ALGORITHMS", "AUTO", "get_algorithm", "needs_data"]
