"""The integer executor and a float one agree: every integer of every tensor, on random graphs over the op table.

Each quantized tensor of a random model is made an output. Given the integers that onnxruntime computed for what a node
reads, NumPy computes the node in float64 and quantizes: the integers that onnxruntime computed for what the node gives
must be those, to one step. So errors do not add up along the graph, and none hides behind another. That the model
without the additional outputs gives the same bits shows that looking did not change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from onnx import helper, numpy_helper
from tests.models import Net, run
from tests.property.numpy_ops import OPS as NUMPY_OPS
from tests.quantized import Quantized

from requant.onnx.ops import OPS, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    Array = np.ndarray[Any, Any]

BATCH, CHANNELS, SIDE = 2, 4, 8
FULL = (BATCH, CHANNELS, SIDE, SIDE)

#: Ways to go on from feature maps of ``FULL`` size, keeping it; ``other`` is another such tensor.
STEPS: dict[str, Callable[[Net, str, str], str]] = {
    "Conv": lambda n, x, _: n.conv(x, CHANNELS, CHANNELS),
    "grouped Conv": lambda n, x, _: n.conv(x, CHANNELS, CHANNELS, group=2),
    "depthwise Conv": lambda n, x, _: n.conv(x, CHANNELS, CHANNELS, group=CHANNELS),
    "MatMul": lambda n, x, _: n.op("MatMul", x, n.normal(SIDE, SIDE, scale=0.4)),
    "ConvTranspose": lambda n, x, _: n.op(
        "ConvTranspose",
        n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]),
        n.normal(CHANNELS, CHANNELS, 2, 2, scale=0.5),
        n.normal(CHANNELS, scale=0.1),
        strides=[2, 2],
    ),
    **{op: lambda n, x, other, op=op: n.op(op, x, other) for op in ("Add", "Sub", "Mul")},  # type: ignore[misc]
    "Div": lambda n, x, other: n.op("Div", x, n.op("Clip", other, n.const(0.5), n.const(2.0))),
    "Where": lambda n, x, other: n.op("Where", n.const(n.rng.random(FULL) > 0.5), x, other),
    "Concat": lambda n, x, other: n.conv(n.op("Concat", x, other, axis=1), 2 * CHANNELS, CHANNELS, 1),
    **{
        op: lambda n, x, _, op=op: n.op(op, x)  # type: ignore[misc]
        for op in ("Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu")
    },
    "Clip": lambda n, x, _: n.op("Clip", x, n.const(0.0), n.const(1.5)),
    "Softmax": lambda n, x, _: n.op("Softmax", x, axis=1),
    "LeakyRelu": lambda n, x, _: n.op("LeakyRelu", x, alpha=0.2),
    "PRelu": lambda n, x, _: n.op("PRelu", x, n.const(n.rng.random((CHANNELS, 1, 1)))),
    "AveragePool": lambda n, x, _: n.op(
        "Resize",
        n.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]),
        "",
        n.const([1.0, 1.0, 2.0, 2.0]),
        mode="nearest",
    ),
    "GlobalAveragePool": lambda n, x, _: n.op("Mul", x, n.op("GlobalAveragePool", x)),
    "Reshape": lambda n, x, _: n.op(
        "Reshape", n.op("Reshape", x, n.const(np.array([0, -1]))), n.const(np.array([0, CHANNELS, SIDE, SIDE]))
    ),
    "Flatten": lambda n, x, _: n.op(
        "Reshape",
        n.gemm(n.op("Flatten", x), CHANNELS * SIDE**2, CHANNELS * SIDE**2),
        n.const(np.array([0, CHANNELS, SIDE, SIDE])),
    ),
    "Transpose": lambda n, x, _: n.op("Transpose", x, perm=[0, 1, 3, 2]),
    "Squeeze": lambda n, x, _: n.op("Squeeze", n.op("Unsqueeze", x, n.const(np.array([1]))), n.const(np.array([1]))),
    "Slice": lambda n, x, _: n.op(
        "Tile",
        n.op("Slice", x, n.const(np.array([2])), n.const(np.array([4])), n.const(np.array([1]))),
        n.const(np.array([1, 2, 1, 1])),
    ),
    "Split": lambda n, x, _: n.op(
        "Concat",
        *n.ops(
            "Split", x, n.const(np.array([1, 3])), outputs=[f"{x}_s0_{len(n.nodes)}", f"{x}_s1_{len(n.nodes)}"], axis=1
        ),
        axis=1,
    ),
    "Gather": lambda n, x, _: n.op("Gather", x, n.const(np.array([3, 1, 0, 2])), axis=1),
    "GatherND": lambda n, x, _: n.op("GatherND", x, n.const(np.arange(FULL[0])[::-1, None].copy())),
    "GatherElements": lambda n, x, _: n.op("GatherElements", x, n.const(n.rng.integers(0, SIDE, FULL)), axis=3),
    "ReduceMax": lambda n, x, _: n.op("Mul", x, n.op("ReduceMax", x, n.const(np.array([2, 3])))),
    "ReduceMin": lambda n, x, _: n.op("Add", x, n.op("ReduceMin", x, n.const(np.array([2, 3])))),
    "Expand": lambda n, x, _: n.op(
        "Expand", n.op("ReduceMax", x, n.const(np.array([3]))), n.const(np.array([BATCH, CHANNELS, SIDE, SIDE]))
    ),
    "DepthToSpace": lambda n, x, _: n.op("DepthToSpace", n.op("SpaceToDepth", x, blocksize=2), blocksize=2),
}


@st.composite
def models(draw: st.DrawFn) -> onnx.ModelProto:
    """A convolution, steps that each go on from one of the last tensors, and a convolution or product at the end."""
    net = Net(opset=20, seed=draw(st.integers(0, 2**16)), ir_version=9)
    found = [net.conv(net.input("x", list(FULL)), CHANNELS, CHANNELS)]
    for step in draw(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5)):
        x, other = (draw(st.sampled_from(found[-3:])) for _ in range(2))
        found.append(STEPS[step](net, x, other))
    return net.model(net.conv(found[-1], CHANNELS, 2, 1, output="y"))


def test_all_of_the_op_table_takes_part() -> None:
    net = Net(opset=20, ir_version=9)
    x = net.conv(net.input("x", list(FULL)), CHANNELS, CHANNELS)
    for step in STEPS.values():
        step(net, x, x)
    known = {op_type for op_type, row in OPS.items() if row.kind is not Kind.RECURRENT}
    assert known <= {node.op_type for node in net.nodes}
    assert known <= set(NUMPY_OPS)


class Narrowed(Quantized):
    """Quantized with ranges of a share of what is seen, so that values saturate."""

    def __init__(self, model: onnx.ModelProto, share: float, **options: Any) -> None:
        self.share = share
        super().__init__(model, **options)

    def _ranges(self) -> Any:
        return {name: type(r)(r.lo * self.share, r.hi * self.share) for name, r in super()._ranges().items()}


def with_integers(data: bytes, count: int) -> bytes:
    """The model with all integers that it quantizes to as further outputs."""
    proto = onnx.load_from_string(data)
    kinds = {node.output[0]: node.input[2] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    types = {i.name: i.data_type for i in proto.graph.initializer}
    for index in range(1, count + 1):
        name = f"q{index}"
        proto.graph.output.append(helper.make_tensor_value_info(name, types[kinds[name]], None))
    return bytes(proto.SerializeToString())


def disagreement(q: Quantized, integers: dict[str, Array], outputs: dict[str, Array]) -> dict[str, float]:
    """For each tensor by how many steps what onnxruntime computed is off, given what it read."""
    proto = onnx.load_from_string(q.graph.to_bytes()).graph
    params = {n: (float(p.scale), int(p.zero_point), p.scheme.dtype) for n, p in q.resolved.activations.items()}
    quantized = {name: (integers[name] - params[name][1]) * params[name][0] for name in params}
    constants = {i.name: numpy_helper.to_array(i) for i in proto.initializer}
    planned = {node.name: node for node in q.plan.nodes}
    exact: dict[str, Array] = {name: np.asarray(value, np.float64) for name, value in q.feeds.items()}
    off: dict[str, float] = {}

    def settle(name: str, given: bool) -> None:
        """Compare what is quantized; where an integer op gives it, all that follows reads it so."""
        if name in params:
            scale, zero_point, dtype = params[name]
            wanted = np.clip(exact[name] / scale + zero_point, dtype.min, dtype.max)
            off[name] = float(np.max(np.abs(np.rint(wanted) - integers[name]), initial=0))
            if given:
                exact[name] = quantized[name]

    for name in q.feeds:
        settle(name, given=False)
    integer: set[str] = set()
    for node in proto.node:
        plan = planned.get(node.name)
        reads = dict(plan.activations) if plan is not None else {}
        inputs: list[Array | None] = []
        for index, name in enumerate(node.input):
            value = None if not name else quantized[name] if index in reads else exact.get(name, constants.get(name))
            for kind, place in ((q.resolved.weights, 1), (q.resolved.biases, 2)):
                if plan is not None and index == place and plan.name in kind:
                    tensor = kind[plan.name]
                    value = _reals(tensor.data, tensor.params, plan.weight_axis if place == 1 else 0)
            inputs.append(value)
        results = NUMPY_OPS[node.op_type](_attributes(node), *inputs)
        for name, value in zip(node.output, results if isinstance(results, list) else [results], strict=True):
            exact[name] = value
            clamps = node.op_type in ("Relu", "Clip") and node.input[0] in integer and node.input[0] not in params
            if plan is not None or clamps:
                integer.add(name)
            settle(name, given=name in integer)
    for name, got in outputs.items():
        step = float(np.max(np.abs(exact[name]), initial=1e-6)) * 1e-3
        off[f"output {name}"] = float(np.max(np.abs(exact[name] - got))) / step if name not in params else 0.0
    return off


def _reals(data: Array, params: Any, axis: int | None) -> Array:
    shape = [1] * data.ndim
    if params.scale.ndim:
        shape[axis or 0] = -1
    centred: Array = data.astype(np.float64) - params.zero_point.astype(np.float64).reshape(shape)
    reals: Array = centred * params.scale.astype(np.float64).reshape(shape)
    return reals


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


OPTIONS: dict[str, dict[str, Any]] = {
    "ort-cpu": {},
    "ort-cpu symmetric": {"symmetric": True},
    "ort-cpu per tensor": {"per_channel": False},
    "generic": {"target": "generic", "weights": "uint8"},
    "generic int8": {"target": "generic", "activations": "int8", "weights": "uint8"},
    "tflite": {"target": "tflite"},
}


@pytest.mark.parametrize("options", OPTIONS)
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(model=models(), share=st.sampled_from([0.3, 1.0]))
def test_every_integer_is_what_numpy_says(options: str, model: onnx.ModelProto, share: float) -> None:
    q = Narrowed(model, share, count=BATCH, **OPTIONS[options])
    names = list(q.plan.tensors)
    seen = with_integers(q.data, len(names))
    outputs = [output.name for output in q.graph.outputs]
    for optimize in (False, True):
        if optimize and options == "tflite":
            continue  # with all 8 bits of weights, fused kernels saturate on CPUs before VNNI
        got = run(seen, q.feeds, optimize=optimize)
        reals = dict(zip(outputs, got, strict=False))
        integers = {n: v.astype(np.int64) for n, v in zip(names, got[len(outputs) :], strict=True)}
        off = {name: steps for name, steps in disagreement(q, integers, reals).items() if steps > 1}
        assert off == {}, f"optimize={optimize}"
        for plain, looked_at in zip(run(q.data, q.feeds, optimize=optimize), reals.values(), strict=True):
            np.testing.assert_array_equal(plain, looked_at)
