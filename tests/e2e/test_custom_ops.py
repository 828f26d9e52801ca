"""Models with ops of libraries: refused with the remedy, or run with them.

No library is built here: ops of com.microsoft, which onnxruntime brings, are treated as if they came from one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import Net, run, samples

import requant
from requant import ops
from requant.onnx import graph as graphs
from requant.onnx.foreign import typed
from requant.onnx.graph import Graph
from requant.planning.build import build_plan
from requant.runtime import custom_ops

if TYPE_CHECKING:
    from pathlib import Path

OP = "com.microsoft:QuickGelu"


def model() -> onnx.ModelProto:
    """Two products with an op of a library between them."""
    net = Net()
    hidden = net.op("MatMul", net.input("x", ["n", 32]), net.normal(32, 64, scale=0.2), name="first")
    custom = net.op("QuickGelu", hidden, domain="com.microsoft", name="custom", output="custom_out")
    last = net.op("MatMul", custom, net.normal(64, 32, scale=0.2), name="last", output="y")
    graph = onnx.helper.make_graph(
        net.nodes,
        "g",
        net.inputs,
        [onnx.helper.make_tensor_value_info(last, 1, ["n", 32])],
        net.initializers,
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.fixture(autouse=True)
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """No library is registered, and com.microsoft is a domain that nobody knows."""
    monkeypatch.setattr(graphs, "_DOMAINS", graphs._DOMAINS - {"com.microsoft"})
    monkeypatch.setenv(custom_ops.CUSTOM_OPS, "")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library is registered; the list tells how often sessions took it."""
    seen: list[str] = []
    monkeypatch.setattr(custom_ops, "take_ops", lambda _, library: seen.append(library))
    monkeypatch.setenv(custom_ops.CUSTOM_OPS, "lib.so")
    return seen


@pytest.mark.parametrize("how", [{}, {"dynamic": True}, {"weight_only": "int8"}])
def test_without_a_library_it_is_not_run_and_the_remedy_named(how: dict[str, Any]) -> None:
    data = samples(model(), 8)
    with pytest.raises(requant.ModelError, match=OP) as caught:
        requant.quantize(model(), data, **how)
    assert "--custom-ops LIBRARY" in str(caught.value)


def test_without_data_the_op_is_left_float_and_that_nothing_ran_is_said() -> None:
    result = requant.quantize(model(), dynamic=True)
    assert result.plan.dynamic
    assert any(skip.node == "custom" for skip in result.plan.skipped)
    notes = " ".join(result.report.notes)
    assert f"{OP}: unknown to onnxruntime, so the model was checked, but not loaded and run" in notes
    assert "checked on zeros" not in notes


def test_with_a_library_it_is_quantized_run_and_verified(taken: list[str]) -> None:
    data = samples(model(), 16)
    result = requant.quantize(model(), data)
    assert {node.name for node in result.plan.nodes} == {"first", "last"}
    assert [skip.node for skip in result.plan.skipped] == ["custom"]
    assert set(taken) == {"lib.so", ops.LIBRARY}  # calibration counts by an op of the core
    sqnr = result.report.outputs[0].sqnr_db
    assert sqnr is not None
    assert sqnr > 25
    (real,), (got,) = run(model(), data), run(result.data, data)
    assert np.max(np.abs(real - got)) < 0.1 * np.max(np.abs(real))
    assert requant.evaluate(result.data, data, metric="mse", float_model=model().SerializeToString()).value > 0


@pytest.mark.usefixtures("taken")
def test_the_library_says_of_which_type_a_tensor_is() -> None:
    graph = Graph.load(model())
    assert "last" not in {node.name for node in build_plan(graph, requant.QuantConfig()).nodes}
    assert {node.name for node in build_plan(typed(graph), requant.QuantConfig()).nodes} == {"first", "last"}
    assert [value.dtype for value in graph.nodes[1].outputs] == [None]


@pytest.mark.usefixtures("taken")
def test_a_library_without_the_op_is_told_from_one_with_it() -> None:
    proto = model()
    proto.graph.node[1].op_type = "Frob"
    with pytest.raises(requant.ModelError, match="Frob") as caught:
        requant.quantize(proto, samples(model(), 8))
    assert "--custom-ops LIBRARY" in str(caught.value)


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(requant.MissingFileError, match=r"there is no library of custom ops .*nothing\.so"):
        requant.register_custom_ops(tmp_path / "nothing.so")
    wrong = tmp_path / "wrong.so"
    wrong.write_bytes(b"no library")
    with pytest.raises(requant.ConfigError, match=r"cannot take custom ops from .*wrong\.so"):
        requant.register_custom_ops(wrong)
    assert custom_ops.custom_op_libraries() == ()


def test_libraries_are_registered_once_for_this_process_and_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(custom_ops, "take_ops", lambda *_: None)
    paths = [tmp_path / "a.so", tmp_path / "b.so"]
    for path in (*paths, *paths):
        path.write_bytes(b"")
        requant.register_custom_ops(path)
    assert custom_ops.custom_op_libraries() == tuple(map(str, paths))
    assert os.environ[custom_ops.CUSTOM_OPS].split(os.pathsep) == list(map(str, paths))
