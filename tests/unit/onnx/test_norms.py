"""Gains that stand out go from a normalization into the products behind it; what the model computes stays the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.models import Array, Net, run, samples

from requant.onnx.graph import Graph
from requant.onnx.passes.norms import even_out_norms

WIDE = 32


class Normed(Net):
    """A network that begins with a normalization, two of its channels fifty times the others."""

    def __init__(self, *shape: int, outlier: float = 50.0, bias: bool = True) -> None:
        super().__init__()
        self.gain = np.ones(WIDE, np.float32)
        self.gain[[3, 17]] = outlier
        parameters = [self.const(self.gain, "gain")]
        if bias:
            parameters.append(self.const(self.gain * self.rng.standard_normal(WIDE), "bias"))
        self.x = self.op("LayerNormalization", self.input("x", ["n", *(shape or (4, WIDE))]), *parameters)

    def weight(self, name: str, *, transposed: bool = False) -> str:
        w = self.rng.standard_normal((WIDE, 8)).astype(np.float32) / self.gain[:, None]
        return self.const(w.T if transposed else w, name)


def evened(model: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    graph = Graph.load(model)
    count = even_out_norms(graph.model)
    return count, onnx.load_from_string(graph.to_bytes())


def constants(model: onnx.ModelProto) -> dict[str, Array]:
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op_type", ["MatMul", "Gemm", "shared"])
def test_outstanding_gains_move_and_not_a_bit_changes(op_type: str, bias: bool) -> None:
    net = Normed(4, WIDE, bias=bias) if op_type != "Gemm" else Normed(WIDE, bias=bias)
    x = net.x
    if op_type == "Gemm":
        y = net.op("Gemm", x, net.weight("w", transposed=True), transB=1)
    elif op_type == "shared":
        y = net.op("Add", net.op("MatMul", x, net.weight("w")), net.op("MatMul", x, "w"))
    else:
        y = net.op("Add", net.op("MatMul", x, net.weight("w")), net.op("MatMul", x, net.weight("v")))
    model = net.model(y)
    count, changed = evened(model)
    assert count == 1
    feeds = samples(model)
    np.testing.assert_array_equal(run(model, feeds, optimize=False), run(changed, feeds, optimize=False))
    gain = constants(changed)["gain_evened"]
    assert gain.max() / np.median(gain) <= 3
    assert sum("evened" in name for name in constants(changed)) == 1 + bias + (2 if op_type == "MatMul" else 1)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("bias", [False, True])
def test_a_normalization_spelled_out_is_found(bias: bool, first: int) -> None:
    net = Normed(bias=False)
    net.nodes.clear()
    x = net.inputs[0].name
    mean = net.op("ReduceMean", net.op("Mul", x, x), axes=[-1])
    y = net.op("Div", x, net.op("Sqrt", net.op("Add", mean, net.const(1e-5))))
    y = net.op("Mul", *(("gain", y) if first else (y, "gain")))
    if bias:
        shift = net.const(net.gain * net.rng.standard_normal(WIDE), "bias")
        y = net.op("Add", *((shift, y) if first else (y, shift)))
    model = net.model(net.op("MatMul", y, net.weight("w")))
    count, changed = evened(model)
    assert count == 1
    feeds = samples(model)
    np.testing.assert_array_equal(run(model, feeds, optimize=False), run(changed, feeds, optimize=False))
    assert np.ptp(np.log2(next(a for name, a in constants(changed).items() if "evened" in name and a.ndim == 1))) < 7


def unlike(net: Normed, what: str) -> onnx.ModelProto:
    product = net.op("MatMul", net.x, net.weight("w"))
    outputs = {
        "even": [product],
        "read by an Add": [product, net.op("Add", net.x, net.x)],
        "an output": [product, net.x],
        "a weight read elsewhere": [product, net.op("Relu", "w")],
        "a weight of rank 3": [net.op("MatMul", net.x, net.normal(1, WIDE, 8))],
        "a computed weight": [net.op("MatMul", net.x, net.op("Relu", "w"))],
        "a gain of something else": [net.op("MatMul", net.op("Mul", net.x, "gain"), "w")],
        "not the first input": [net.op("MatMul", net.const(np.ones((3, 4))), net.x)],
    }[what]
    used = {name for node in net.nodes for name in node.input} | set(outputs)
    net.nodes = [node for node in net.nodes if node.output[0] in used]
    return net.model(*outputs)


@pytest.mark.parametrize(
    "what",
    [
        "even",
        "read by an Add",
        "an output",
        "a weight read elsewhere",
        "a weight of rank 3",
        "a computed weight",
        "a gain of something else",
        "not the first input",
    ],
)
def test_what_would_change_or_gain_nothing_is_left_alone(what: str) -> None:
    model = unlike(Normed(outlier=4.0 if what == "even" else 50.0), what)
    count, changed = evened(model)
    assert count == 0
    assert constants(changed).keys() == constants(model).keys()


@pytest.mark.parametrize("values", [0.0, np.nan, np.inf])
def test_degenerate_gains_are_left_alone(values: Any) -> None:
    net = Normed(bias=False)
    net.initializers[0].CopyFrom(numpy_helper.from_array(np.full(WIDE, values, np.float32), "gain"))
    assert evened(net.model(net.op("MatMul", net.x, net.normal(WIDE, 8))))[0] == 0


def test_weights_that_would_leave_float32_are_left_alone() -> None:
    net = Normed(bias=False)
    w = np.full((WIDE, 8), 3e38, np.float32)
    assert evened(net.model(net.op("MatMul", net.x, net.const(w))))[0] == 0


def test_dead_channels_stay_as_they_are() -> None:
    net = Normed(bias=False)
    gain, w = net.gain.copy(), net.rng.standard_normal((WIDE, 8)).astype(np.float32)
    gain[5], w[6] = 0, 0
    net.initializers[0].CopyFrom(numpy_helper.from_array(gain, "gain"))
    model = net.model(net.op("MatMul", net.x, net.const(w, "w")))
    count, changed = evened(model)
    assert count == 1
    np.testing.assert_array_equal(constants(changed)["gain_evened"][[5, 6]], [0, 1])
    np.testing.assert_array_equal(constants(changed)["w_evened"][[5, 6]], [w[5], w[6]])
