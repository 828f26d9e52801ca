"""The rows of ``ort-cpu`` that say no, and those that say float, beside what the installed onnxruntime does.

The models are written out by hand: requant would not write most of them. What is fused and what moves stands in
``tests/unit/onnx/test_export.py``.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Net, session

from requant.onnx.ops import OPS, Kind
from requant.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TARGET = get_target("ort-cpu")


def quantized(net: Net, x: str, dtype: Any = np.uint8) -> str:
    parameters = net.const(0.05), net.const(dtype(128 if dtype is np.uint8 else 0))
    return net.op("DequantizeLinear", net.op("QuantizeLinear", x, *parameters), *parameters)


def weight(net: Net, *shape: int) -> str:
    integers = net.rng.integers(-100, 100, shape).astype(np.int8)
    return net.op("DequantizeLinear", net.const(integers), net.const(0.01), net.const(np.int8(0)))


def optimized(model: onnx.ModelProto, folder: Path) -> Counter[str]:
    path = folder / "optimized.onnx"
    session(model, save_to=str(path))
    return Counter(node.op_type for node in onnx.load(path).graph.node)


#: Ops that a neighbouring quantizer may surround with Q/DQ in vain, each between them.
NEVER: dict[str, Callable[[Net, str], str]] = {
    "ConvTranspose": lambda n, x: n.op("ConvTranspose", x, weight(n, 8, 4, 3, 3)),
    "Sub": lambda n, x: n.op("Sub", x, quantized(n, n.op("Relu", x))),
    "Div": lambda n, x: n.op("Div", x, quantized(n, n.op("Exp", x))),
    "Gelu": lambda n, x: n.op("Gelu", x),
    "Erf": lambda n, x: n.op("Erf", x),
    "LayerNormalization": lambda n, x: n.op("LayerNormalization", x, n.normal(8), n.normal(8)),
    "InstanceNormalization": lambda n, x: n.op("InstanceNormalization", x, n.normal(8), n.normal(8)),
    "ReduceMean": lambda n, x: n.op("ReduceMean", x, n.const(np.array([2, 3]))),
    "HardSwish": lambda n, x: n.op("HardSwish", x),
    "HardSigmoid": lambda n, x: n.op("HardSigmoid", x),
    "Pad": lambda n, x: n.op("Pad", x, n.const(np.array([0, 0, 1, 1, 0, 0, 1, 1]))),
    "Tanh": lambda n, x: n.op("Tanh", x),
    "Elu": lambda n, x: n.op("Elu", x),
    "PRelu": lambda n, x: n.op("PRelu", x, n.normal(8, 1, 1)),
    "Relu": lambda n, x: n.op("Relu", x),
    "Clip": lambda n, x: n.op("Clip", x, n.const(0.0), n.const(6.0)),
    "SpaceToDepth": lambda n, x: n.op("SpaceToDepth", x, blocksize=2),
    "GlobalMaxPool": lambda n, x: n.op("GlobalMaxPool", x),
    "Max": lambda n, x: n.op("Max", x, quantized(n, n.op("Exp", x))),
    "GatherND": lambda n, x: n.op("GatherND", x, n.const(np.array([[0]]))),
    "linear Resize": lambda n, x: n.op("Resize", x, "", n.const([1.0, 1.0, 2.0, 2.0]), mode="linear"),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("op_type", NEVER)
def test_what_is_never_fused_stays_between_conversions(op_type: str, dtype: Any, tmp_path: Path) -> None:
    net = Net(opset=20)
    y = NEVER[op_type](net, quantized(net, net.input("x", ["n", 8, 8, 8]), dtype))
    counts = optimized(net.model(quantized(net, y, dtype)), tmp_path)
    assert not any(name.startswith("QLinear") for name in counts), counts
    assert counts["QuantizeLinear"] >= 2, counts


def test_every_row_without_a_kernel_is_tried() -> None:
    """Whatever the op table knows and the target does not run is among the models above; clamps are absorbed."""
    known = {op_type for op_type, row in OPS.items() if row.kind is not Kind.RECURRENT}
    assert known - TARGET.fused - TARGET.moves <= set(NEVER)
    assert not (TARGET.fused | TARGET.moves) & set(NEVER)


@pytest.mark.parametrize("op_type", sorted(TARGET.fused))
def test_products_alone_give_float_from_integers(op_type: str, tmp_path: Path) -> None:
    net = Net(opset=17)
    shape: tuple[int | str, ...] = ("n", 8) if op_type == "Gemm" else ("n", 8, 8, 8)
    x = quantized(net, net.input("x", shape))
    match op_type:
        case "Gemm" | "MatMul":
            y = net.op(op_type, x, weight(net, 8, 4))
        case "Conv":
            y = net.op("Conv", x, weight(net, 4, 8, 3, 3))
        case "Where":
            y = net.op("Where", net.input("mask", ["n", 8, 8, 8], onnx.TensorProto.BOOL), x, quantized(net, x))
        case "Concat":
            y = net.op("Concat", x, quantized(net, net.op("Exp", x)), axis=1)
        case "Add" | "Mul":
            y = net.op(op_type, x, quantized(net, net.op("Exp", x)))
        case "AveragePool":
            y = net.op(op_type, x, kernel_shape=[2, 2])
        case _:
            y = net.op(op_type, x)
    counts = optimized(net.model(y), tmp_path)
    integer = counts["QGemm"] + counts["MatMulIntegerToFloat"]
    assert bool(integer) == (op_type in TARGET.float_output), counts
    assert not any(name.startswith("QLinear") for name in counts), counts


@pytest.mark.parametrize(("shape", "joined"), [((8,), True), ((1, 8), False)])
def test_a_vector_added_to_a_product_of_known_shape_makes_it_a_float_gemm(
    shape: tuple[int, ...], joined: bool, tmp_path: Path
) -> None:
    net = Net(opset=17)
    product = net.op("MatMul", quantized(net, net.input("x", [1, 4, 8])), weight(net, 8, 8))
    counts = optimized(net.model(net.op("Add", product, net.normal(*shape))), tmp_path)
    assert TARGET.joins_biases
    assert (counts["Gemm"], counts["MatMulIntegerToFloat"]) == ((1, 0) if joined else (0, 1)), counts


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
@pytest.mark.parametrize("clamp", ["Relu", "Max"])
def test_a_clamp_behind_a_product_that_gives_float_makes_it_float(op_type: str, clamp: str, tmp_path: Path) -> None:
    net = Net(opset=17)
    product = net.op(op_type, quantized(net, net.input("x", ["n", 8])), weight(net, 8, 8))
    bound = (net.const(np.float32(0)),) if clamp == "Max" else ()
    counts = optimized(net.model(net.op("Exp", net.op(clamp, product, *bound))), tmp_path)
    assert TARGET.skips_clamps
    assert bool(counts["QGemm"] + counts["MatMulIntegerToFloat"]) == (clamp == "Max"), counts


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_the_types_of_activations_are_those_that_every_kernel_takes(dtype: str, tmp_path: Path) -> None:
    """Ops of one activation are fused for int8 too, turned to uint8; at every other op a chain of integers breaks."""
    kind = np.dtype(dtype).type
    net = Net(opset=17)
    x = quantized(net, net.input("x", ["n", 8, 8, 8]), kind)
    y = quantized(net, net.op("Add", x, quantized(net, net.op("Exp", x), kind)), kind)
    counts = optimized(net.model(y), tmp_path)
    assert bool(counts["QLinearAdd"]) == (dtype in TARGET.activations), counts
