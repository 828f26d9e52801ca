"""A metric of the user's: ``function(outputs, labels) -> float``.

``outputs`` holds one array for each output, all batches joined along the first axis; ``labels`` is an array with an
entry for each sample, or None. A function for which less is better says so by ``function.higher_is_better = False``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ConfigError, DataError, closest, first_line
from requant.metrics.spec import Against, Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from requant.metrics.spec import Array, Case

    Part = tuple[dict[str, Array], Array | None]


def metric_of(function: str | Callable[..., object]) -> Metric:
    """The metric that a function, or one named ``module:function``, computes.

    Raises:
        ConfigError: it cannot be imported or called.
    """
    if isinstance(function, str):
        name, function = function, _imported(function)
    elif callable(function):
        name = getattr(function, "__name__", type(function).__name__)
    else:
        raise ConfigError(f"expected a metric by name or a function, got {type(function).__name__}")
    better = bool(getattr(function, "higher_is_better", True))
    return Metric(name, Against.ANYTHING, better, _part, lambda parts: _value(name, function, parts))


def _imported(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # an installed command does not have it, and the function may import more when it runs
    try:
        found = importlib.import_module(module)
    except Exception as problem:
        raise ConfigError(
            f"metric {name!r}: {module!r} cannot be imported: {first_line(problem)}",
            hint="name a module on the path or in the current folder, and a function in it: module:function",
        ) from problem
    function = getattr(found, attribute, None)
    if not callable(function):
        known = [key for key, value in vars(found).items() if callable(value)]
        raise ConfigError(f"metric {name!r}: {module!r} has no function {attribute!r}{closest(attribute, known)}")
    return function  # type: ignore[no-any-return]  # anything callable may stand there


def _part(case: Case) -> Part:
    return dict(case.outputs), case.labels


def _value(name: str, function: Callable[..., Any], parts: Sequence[Part]) -> float:
    labels = [labels for _, labels in parts if labels is not None]
    joined = {key: _joined(name, key, [outputs[key] for outputs, _ in parts]) for key in parts[0][0]}
    try:
        return float(function(joined, _joined(name, "labels", labels) if labels else None))
    except Exception as problem:
        raise ConfigError(
            f"metric {name!r} failed: {type(problem).__name__}: {first_line(problem)}",
            hint="it is called with a dict of output arrays and the labels (or None), and returns a number",
        ) from problem


def _joined(name: str, what: str, arrays: list[Array]) -> Array:
    if len({array.shape[1:] for array in arrays}) > 1 or not arrays[0].ndim:
        shapes = " and ".join(str(list(shape)) for shape in sorted({array.shape for array in arrays})[:2])
        raise DataError(
            f"metric {name!r}: {what} of shapes {shapes} cannot be joined along the first axis",
            hint="a function needs samples of one shape",
        )
    return np.concatenate(arrays)
