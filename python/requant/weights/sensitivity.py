"""What a model's outputs lose when one of its weights alone has few bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.evaluation.distance import Distance
from requant.onnx.names import name_of
from requant.onnx.segments import Walk
from requant.weights import get_algorithm
from requant.weights.plan import in_columns, weights_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan

    Key = tuple[str, bool]

_SAMPLES = 8


def output_noise(graph: Graph, plan: QuantPlan, batches: Sequence[Batch], *, threads: int = 0) -> dict[Key, float]:
    """Power of the outputs' error over that of the outputs, with each weight of ``plan`` alone rounded as it says.

    Some samples are looked at; of several outputs the one that loses most counts. Weights of bodies are left out.
    """
    feeds: list[Mapping[str, NDArray[Any]]] = []
    count = 0
    for batch in batches:
        if count < _SAMPLES:
            feeds.append(batch.feeds)
            count += batch.count
    replaced: dict[Key, dict[str, NDArray[Any]]] = {}
    for planned, node, rows in weights_of(graph, plan):
        value = node.inputs[planned.index]
        name = "" if value is None else name_of(value)
        if name not in graph.model.graph.initializers:
            continue
        names = replaced.setdefault(planned.key, {})
        if name not in names:
            reals = get_algorithm("mse").quantize(rows, planned.scheme, None).dequantize()
            names[name] = np.ascontiguousarray(reals.T if in_columns(node) else reals)
    expected = _outputs(graph, feeds, {}, threads)
    return {key: _noise(expected, _outputs(graph, feeds, names, threads)) for key, names in replaced.items()}


def _outputs(
    graph: Graph, feeds: Sequence[Mapping[str, NDArray[Any]]], weights: Mapping[str, NDArray[Any]], threads: int
) -> list[list[NDArray[Any]]]:
    """Each output of the model with other ``weights``, batch after batch."""
    walk = Walk(graph, feeds, threads=threads)
    for name, array in weights.items():
        walk.replace(name, array)
    walk.advance(len(graph.nodes))
    return [list(walk.arrays(output.name)) for output in graph.outputs]


def _noise(expected: Sequence[Sequence[NDArray[Any]]], got: Sequence[Sequence[NDArray[Any]]]) -> float:
    noise = 0.0
    for wanted, found in zip(expected, got, strict=True):
        distance = Distance()
        for w, f in zip(wanted, found, strict=True):
            if w.dtype.kind == "f":
                distance.add(w, f)
        noise = max(noise, distance.relative)
    return noise
