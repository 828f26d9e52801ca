"""What the outputs lose to one weight in few bits, against whole models with that weight replaced."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from tests.models import language_model, run, tokens

from requant.arrays.lowbit import quantize_blocks
from requant.config import QuantConfig
from requant.data.grouping import Batch
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.weights.plan import in_columns, plan_weights
from requant.weights.sensitivity import output_noise


def test_noise_is_that_of_the_model_with_one_weight_replaced() -> None:
    graph = prepare(Graph.load(language_model()))[0]
    plan = plan_weights(graph, QuantConfig(weight_only="int4", algorithm="rtn"))
    feeds = tokens(4)
    found = output_noise(graph, plan, [Batch(feeds, tuple(range(4)))], threads=1)
    assert set(found) == {node.key for node in plan.blocked}
    proto = onnx.load_from_string(graph.to_bytes())
    (exact,) = run(proto, feeds)
    nodes = {node.name: node for node in graph.nodes}
    for planned in plan.blocked:
        one = onnx.ModelProto()
        one.CopyFrom(proto)
        value = nodes[planned.name].inputs[planned.index]
        assert value is not None
        name = value.name
        (tensor,) = (each for each in one.graph.initializer if each.name == name)
        weight = onnx.numpy_helper.to_array(tensor)
        turned = in_columns(nodes[planned.name])
        rows = np.ascontiguousarray(weight.T if turned else weight)
        reals = quantize_blocks(rows, planned.scheme, algorithm="mse").dequantize()
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(reals.T if turned else reals), name))
        (got,) = run(one, feeds)
        error = sum((float(a) - float(b)) ** 2 for a, b in zip(got.flat, exact.flat, strict=True))
        assert found[planned.key] == pytest.approx(error / sum(float(a) ** 2 for a in exact.flat), rel=1e-3)
