"""Models before and after preparation, held against each other in onnxruntime."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from tests.models import run, samples

from requant.onnx.graph import Graph
from requant.onnx.passes import prepare


def op_types(graph: Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph.nodes)


def prepared_equals(model: onnx.ModelProto, *, rtol: float = 1e-5) -> Graph:
    """Prepare ``model``, hold its outputs against the original's, and return the prepared graph."""
    graph = Graph.load(model)
    before = graph.to_bytes()
    prepared, _ = prepare(graph)
    assert graph.to_bytes() == before, "the graph it was given has changed"
    data = prepared.to_bytes()
    onnx.checker.check_model(onnx.load_from_string(data))
    feeds = samples(model, 2)
    for expected, got in zip(run(model, feeds, optimize=False), run(data, feeds, optimize=False), strict=True):
        assert got.shape == expected.shape
        largest = float(np.max(np.abs(expected), where=np.isfinite(expected), initial=0.0))
        np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * largest)
    return prepared
