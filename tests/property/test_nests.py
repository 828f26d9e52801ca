"""Random nests of If, Loop and Scan: what is seen of their bodies is what they compute, and they can be quantized.

The oracle is the reference evaluator with a spy behind each tensor in question. Rows are appended in loops, so that
shapes change from one iteration to the next, and branches with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from tests.models import run

import requant
from requant.calibration.run import calibrate_graph
from requant.config import QuantConfig
from requant.data import open_data
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.onnx.reference import ReferenceRunner
from requant.planning.build import build_plan
from requant.runtime import OrtRunner
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]

WIDTH = 8
SEEDS = range(8)
#: Reasons to stay in float that a nest gives.
UNSEEN = "calibration has seen no value of its tensors"


class Nest:
    """Builds a model of random nested bodies; ``products`` are the tensors that its products give."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.serial = 0
        self.products: list[str] = []
        self.kinds: set[tuple[str, ...]] = set()
        self.weights: list[onnx.TensorProto] = []
        nodes: list[onnx.NodeProto] = []
        y = self.chain(nodes, "x", (), growing=True)
        self.proto = helper.make_model(
            helper.make_graph(
                [helper.make_node("Relu", ["input"], ["x"]), *nodes],
                "nest",
                [tensor("input", [2, WIDTH]), tensor("mode", [], TensorProto.INT64)],
                [tensor(y)],
                self.weights,
            ),
            opset_imports=[helper.make_opsetid("", int(self.rng.choice([13, 17])))],
            ir_version=8,
        )

    def name(self, what: str) -> str:
        self.serial += 1
        return f"{what}{self.serial}"

    def add(self, nodes: list[onnx.NodeProto], op_type: str, *inputs: str, **attributes: Any) -> str:
        output = self.name(op_type.lower())
        nodes.append(helper.make_node(op_type, inputs, [output], name=f"make_{output}", **attributes))
        return output

    def constant(self, nodes: list[onnx.NodeProto], value: Any) -> str:
        return self.add(nodes, "Constant", value=numpy_helper.from_array(np.array(value)))

    def chain(self, nodes: list[onnx.NodeProto], x: str, around: tuple[str, ...], *, growing: bool) -> str:
        """A product, bodies inside of as many others as ``around`` has, a clamp; the result has the rows of ``x``.

        It has more of them where ``growing``.
        """
        x = self.product(nodes, x)
        if len(around) < 3:
            for kind in self.rng.choice(["If", "Loop", "Scan"], 2 if not around else 1):
                self.kinds.add((*around, str(kind)))
                x = getattr(self, f"make_{kind.lower()}")(nodes, x, (*around, str(kind)), growing)
        if growing and self.rng.random() < 0.5:
            x = self.add(nodes, "Concat", x, x, axis=0)
        return self.product(nodes, x)

    def product(self, nodes: list[onnx.NodeProto], x: str) -> str:
        weight = self.name("w")
        array = self.rng.standard_normal((WIDTH, WIDTH)) / np.sqrt(WIDTH)
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), weight))
        x = self.add(nodes, "MatMul", x, weight)
        self.products.append(x)
        return self.add(nodes, str(self.rng.choice(["Tanh", "Relu"])), x)

    def make_if(self, nodes: list[onnx.NodeProto], x: str, around: tuple[str, ...], growing: bool) -> str:
        """Branches by the number of rows and an input, which rounding does not change."""
        rows = self.add(nodes, "Gather", self.add(nodes, "Shape", x), self.constant(nodes, 0))
        rest = self.add(nodes, "Mod", self.add(nodes, "Add", rows, "mode"), self.constant(nodes, 3))
        flag = self.add(nodes, "Equal", rest, self.constant(nodes, 1))
        branches = {}
        for which in ("then", "else"):
            inner: list[onnx.NodeProto] = []
            y = self.chain(inner, x, around, growing=growing)
            branches[f"{which}_branch"] = helper.make_graph(inner, which, [], [tensor(y)])
        return self.add(nodes, "If", flag, **branches)

    def make_loop(self, nodes: list[onnx.NodeProto], x: str, around: tuple[str, ...], growing: bool) -> str:
        inner: list[onnx.NodeProto] = []
        step, go, state = self.name("step"), self.name("go"), self.name("state")
        y = self.chain(inner, self.add(inner, "Add", state, state), around, growing=growing)
        mean = self.add(inner, "ReduceMean", y, keepdims=0)
        body = helper.make_graph(
            [*inner, helper.make_node("Identity", [go], [f"{go}_on"])],
            "body",
            [tensor(step, [], TensorProto.INT64), tensor(go, [], TensorProto.BOOL), tensor(state)],
            [tensor(f"{go}_on", [], TensorProto.BOOL), tensor(y), tensor(mean, [])],
        )
        count = self.constant(nodes, int(self.rng.integers(1, 4)))
        always = self.constant(nodes, True)  # left out, it means no iteration to the evaluator
        last, means = self.name("last"), self.name("means")
        nodes.append(helper.make_node("Loop", [count, always, x], [last, means], name=f"make_{last}", body=body))
        return self.add(nodes, "Add", last, self.add(nodes, "ReduceMax", means, keepdims=0))

    def make_scan(self, nodes: list[onnx.NodeProto], x: str, around: tuple[str, ...], growing: bool) -> str:
        """Over the rows of ``x``; a growing row is summed up again, as each must give the same."""
        inner: list[onnx.NodeProto] = []
        state, row = self.name("state"), self.name("row")
        mixed = self.add(inner, "Add", row, state)
        wide = self.add(inner, "Unsqueeze", mixed, self.constant(inner, [0]))
        y = self.chain(inner, wide, around, growing=growing)
        y = self.add(inner, "ReduceMax", y, axes=[0], keepdims=0)
        body = helper.make_graph(
            inner, "scan", [tensor(state, [WIDTH]), tensor(row, [WIDTH])], [tensor(y, [WIDTH]), tensor(mixed, [WIDTH])]
        )
        first, last, rows = self.constant(nodes, np.zeros(WIDTH, np.float32)), self.name("last"), self.name("rows")
        nodes.append(
            helper.make_node(
                "Scan",
                [first, x],
                [last, rows],
                name=f"make_{last}",
                body=body,
                num_scan_inputs=1,
            )
        )
        return self.add(nodes, "Add", rows, last)

    def feeds(self, count: int) -> Iterator[dict[str, Array]]:
        for _ in range(count):
            x = self.rng.standard_normal((2, WIDTH)).astype(np.float32)
            yield {"input": x, "mode": np.array(self.rng.integers(3))}


def tensor(name: str, shape: list[Any] | None = None, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    """A tensor of that shape, or of an unknown one."""
    found: onnx.ValueInfoProto = helper.make_tensor_value_info(name, kind, shape)
    return found


class Spy(OpRun):
    """Writes down what it reads."""

    op_domain = "test"
    seen: ClassVar[dict[str, list[Array]]] = {}

    def _run(self, x: Array, name: str | None = None) -> tuple[Array]:
        self.seen.setdefault(name or "", []).append(x)
        return (x,)


def spied(graph: onnx.GraphProto, names: set[str]) -> None:
    """Put a spy behind each of the tensors ``names`` in ``graph`` and its bodies."""
    for index in reversed(range(len(graph.node))):
        for name in names.intersection(graph.node[index].output):
            spy = helper.make_node("Spy", [name], [f"{name}_spied"], domain="test", name=name)
            spy.attribute.append(helper.make_attribute("name", name))
            graph.node.insert(index + 1, spy)
        for attribute in graph.node[index].attribute:
            if attribute.HasField("g"):
                spied(attribute.g, names)


def seen_by_spies(proto: onnx.ModelProto, names: list[str], feeds: Mapping[str, Array]) -> dict[str, list[Array]]:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    spied(copy.graph, set(names))
    copy.opset_import.append(helper.make_opsetid("test", 1))
    Spy.seen = {}
    ReferenceEvaluator(copy, new_ops=[Spy]).run(None, dict(feeds))
    return Spy.seen


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_seen_of_bodies_is_what_they_compute(seed: int) -> None:
    nest = Nest(seed)
    graph = Graph.load(nest.proto.SerializeToString())
    outputs = [output.name for output in graph.outputs]
    plain, seeing = (
        OrtRunner(graph.serialize(names), threads=1, as_is=True) for names in (outputs, [*outputs, *nest.products])
    )
    for feeds in nest.feeds(3):
        (own,) = plain.run(feeds)
        output, *seen = seeing.run(feeds)
        np.testing.assert_array_equal(own, output)
        expected = seen_by_spies(nest.proto, nest.products, feeds)
        for name, values in zip(nest.products, seen, strict=True):
            arrays = [values] if values.dtype != object else [array for array in values[()] if array.size]
            assert [array.shape for array in arrays] == [array.shape for array in expected.get(name, [])], name
            for array, reals in zip(arrays, expected.get(name, []), strict=True):
                np.testing.assert_allclose(array, reals, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_nests_are_calibrated_and_quantized(seed: int) -> None:
    nest = Nest(seed)
    data = nest.proto.SerializeToString()
    feeds = list(nest.feeds(12))
    prepared, _ = prepare(Graph.load(data))
    config = QuantConfig(threads=1, rest="keep", include=("MatMul",))
    table = calibrate_graph(prepared, build_plan(prepared, config), open_data(feeds, prepared.inputs), config)
    seen: dict[str, list[Array]] = {}
    for each in feeds:
        for name, arrays in seen_by_spies(nest.proto, list(table), each).items():
            seen.setdefault(name, []).extend(array.ravel() for array in arrays)
    assert len(set(table) & set(seen)) > len(nest.products) / 2
    for name in set(table) & set(seen):
        values = np.concatenate(seen[name])
        assert table[name].count == values.size, name
        np.testing.assert_allclose([table[name].min, table[name].max], [values.min(), values.max()], rtol=1e-4)
    result = requant.quantize(data, table=table, config=config)
    reasons = {skip.node: skip.reason for skip in result.report.skipped if skip.op_type == "MatMul"}
    assert set(reasons.values()) <= {UNSEEN}
    assert dict(result.report.quantized)["MatMul"] == len(nest.products) - len(reasons)
    for each in feeds[:2]:
        (wanted,) = ReferenceRunner(SerializedModel(result.data)).run(each)
        for optimize in (True, False):
            (got,) = run(result.data, each, optimize=optimize)
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.max(np.abs(wanted)))
