"""Tensors that are counted within a run: the statistics are those of the tensors that are given out, to the bit."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.models import Net, concat, language_model, mlp, residual, samples, tokens
from tests.unit.onnx.test_bodies import branching, looping
from tests.unit.onnx.test_reorders import network

from requant import ops
from requant.calibration import observing
from requant.calibration.observing import Observation, Observer
from requant.calibration.run import calibrate_graph
from requant.config import QuantConfig
from requant.data import DataOptions, open_data
from requant.errors import CalibrationError
from requant.onnx.graph import Graph
from requant.onnx.observers import observable, with_observers
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.runtime import OrtRunner, open_observing

if TYPE_CHECKING:
    from collections.abc import Callable

    from requant.serialized import SerializedModel

MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "residual": residual,
    "concat": concat,
    "mlp": mlp,
    "transformer": language_model,
    **{f"nchwc of {channels}": partial(network, channels) for channels in (8, 12, 16, 24, 48)},
}


def bits(model: onnx.ModelProto, *, threads: int = 1, batch_size: int = 4) -> dict[str, bytes]:
    """The statistics of each planned tensor."""
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig(threads=threads)
    feeds = tokens(10) if model.graph.input[0].type.tensor_type.elem_type == TensorProto.INT64 else samples(model, 10)
    data = open_data(feeds, graph.inputs, DataOptions(batch_size=batch_size))
    table = calibrate_graph(graph, build_plan(graph, config), data, config)
    return {name: seen.to_bytes() for name, seen in table.items()}


def refuse(*_: object, **__: object) -> None:
    """No runner that counts."""


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tables_are_the_same(name: str, reopened: bool, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("requant.calibration.run._is_worth_reopening", lambda *_: reopened)
    model = MODELS[name]()
    monkeypatch.setattr(Observer, "_give", lambda *_: pytest.fail("tensors were given out"))
    counted = bits(model, threads=threads)
    monkeypatch.undo()
    monkeypatch.setattr("requant.calibration.run._is_worth_reopening", lambda *_: reopened)
    monkeypatch.setattr(observing, "open_observing", refuse)
    assert counted == bits(model, threads=threads)


@pytest.mark.parametrize("name", ["branching", "looping", "half"])
def test_what_cannot_be_counted_there_is_given_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, feeds = {"branching": branches, "looping": loops, "half": half}[name]()
    values = [value for node in graph.all_nodes() for value in node.outputs if watched(value)]
    fetched = tuple(dict.fromkeys(str(value.name) for value in values))
    found = observable(graph, fetched)
    assert len(found) < len(fetched)
    what = Observation(graph.serialize(fetched), (), fetched, found)
    tables = []
    for open_runner in (open_observing, refuse):
        monkeypatch.setattr(observing, "open_observing", open_runner)
        observer = Observer(what, threads=1)
        statistics = observer.statistics()
        for batch in open_data(feeds, graph.inputs, DataOptions(batch_size=1)).batches():
            observer.observe(statistics, batch)
        tables.append([seen.to_bytes() for seen in statistics])
    assert tables[0] == tables[1]


def watched(value: object) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is None or dtype.name in {"FLOAT", "FLOAT16"}


def branches() -> tuple[Graph, dict[str, np.ndarray]]:
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    return prepare(Graph.load(branching()))[0], {"flag": np.array([True, False, True]), "x": x}


def loops() -> tuple[Graph, dict[str, np.ndarray]]:
    return prepare(Graph.load(looping()))[0], {"x": np.ones((1, 16), np.float32)}


def half() -> tuple[Graph, dict[str, np.ndarray]]:
    """A part in half precision."""
    net = Net()
    x = net.input("x", ["n", 4])
    wide = net.op("Relu", net.gemm(x, 4, 8), output="wide")
    low = net.op("Cast", wide, to=TensorProto.FLOAT16, output="low")
    model = net.model(net.op("Cast", net.op("Neg", low, output="minus"), to=TensorProto.FLOAT, output="y"))
    return Graph.load(onnx.shape_inference.infer_shapes(model)), samples(model, 3)


def observed() -> tuple[SerializedModel, tuple[str, ...]]:
    graph = prepare(Graph.load(residual()))[0]
    fetched = tuple(name for name in build_plan(graph, QuantConfig()).calibrated if name != "x")
    return graph.serialize(fetched), fetched


def test_nothing_is_given_out() -> None:
    model, fetched = observed()
    runner = open_observing(model, range(len(fetched)), threads=1, ordered=True)
    assert runner is not None
    feeds = samples(residual(), 2)
    statistics = [ops.TensorStatistics() for _ in fetched]
    assert ops.observe_here(statistics, 1) == 0
    assert [output.tolist() for output in runner.run(feeds)] == [0]
    assert ops.observe_here([], 1) == len(fetched)
    assert all(seen.count for seen in statistics)


def test_a_thread_that_names_no_statistics_gets_an_error() -> None:
    model, fetched = observed()
    runner = open_observing(model, range(len(fetched)), threads=1, ordered=True)
    assert runner is not None
    with pytest.raises(Exception, match="no statistics on this thread"):
        runner.run(samples(residual(), 2))
    assert ops.observe_here([], 1) == 0


def test_nodes_run_right_after_what_they_read() -> None:
    model, fetched = observed()
    graph = onnx.load_from_string(with_observers(model.proto, range(len(fetched)))).graph
    nodes = [node for node in graph.node if node.op_type == "Observe"]
    places = {name: place for place, node in enumerate(graph.node) for name in node.output}
    read = [places[node.input[0]] for node in nodes]
    assert read == sorted(read, reverse=True)  # onnxruntime starts from the last node without outputs
    assert {node.input[0]: node.attribute[0].i for node in nodes} == {name: i for i, name in enumerate(fetched)}


@pytest.mark.parametrize("cause", ["library", "thread"])
def test_where_it_fails_tensors_are_given_out(
    cause: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = bits(residual(), threads=2)
    if cause == "library":
        monkeypatch.setattr(ops, "LIBRARY", __file__)
        caplog.set_level(logging.DEBUG, "requant.runtime")
    else:
        monkeypatch.setattr(ops, "observe_here", lambda *_: 0)  # as if nodes ran in another thread
    runs: list[str] = []
    give = OrtRunner.run

    def run(runner: OrtRunner, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        outputs = give(runner, feeds)
        runs.append("given")
        return outputs

    monkeypatch.setattr(OrtRunner, "run", run)
    assert bits(residual(), threads=2) == expected
    assert len(runs) == 3
    assert ("given out to be counted" in caplog.text) == (cause == "library")


def test_a_stop_is_no_reason_to_run_again() -> None:
    model, fetched = observed()
    observer = Observer(Observation(model, (), fetched, tuple(range(len(fetched)))), threads=1)
    graph = prepare(Graph.load(residual()))[0]
    (batch,) = open_data(samples(residual(), 2), graph.inputs, DataOptions(batch_size=2)).batches()
    observer.stop()
    with pytest.raises(CalibrationError, match="samples 0 to 1"):
        observer.observe(observer.statistics(), batch)


def test_what_was_not_finite_may_be_so_when_it_is_computed_again() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    drawn = net.op("RandomUniformLike", x, low=-2.0, high=-1.0)
    model = net.model(net.op("Identity", net.op("Log", drawn, output="found"), output="y"))
    graph = Graph.load(onnx.shape_inference.infer_shapes(model))
    observer = Observer(Observation(graph.serialize(["found"]), (), ("found",), (0,)), threads=1)
    observer._give = lambda batch: [np.zeros((2, 4), np.float32)]  # type: ignore[method-assign]
    (batch,) = open_data(samples(model, 2), graph.inputs, DataOptions(batch_size=2)).batches()
    with pytest.raises(CalibrationError, match="'found' holds NaN or infinity in some runs"):
        observer.observe(observer.statistics(), batch)


def test_memory_that_was_fed_is_counted_at_any_address() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    flat = net.op("Flatten", x, axis=0, output="flat")  # in the memory of its input
    model = onnx.shape_inference.infer_shapes(net.model(net.op("Relu", flat, output="y")))
    runner = open_observing(Graph.load(model).serialize(["flat"]), (0,), threads=1, ordered=True)
    assert runner is not None
    fed = np.frombuffer(bytearray(33), np.uint8)[1:].view(np.float32).reshape(2, 4)
    fed[:] = np.arange(8).reshape(2, 4)
    seen = ops.TensorStatistics()
    ops.observe_here([seen], 1)
    runner.run({"x": fed})
    assert ops.observe_here([], 1) == 1
    assert (seen.count, seen.min, seen.max) == (8, 0.0, 7.0)


def test_what_the_runtime_folds_is_counted_as_well() -> None:
    model = network(16)
    model.graph.node.extend(
        [
            onnx.helper.make_node("Constant", [], ["given"], value=onnx.helper.make_tensor("v", 1, [4], [1, 2, 3, 4])),
            onnx.helper.make_node("Exp", ["given"], ["folded"]),
        ]
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("folded", TensorProto.FLOAT, [4]))
    graph = Graph.load(onnx.shape_inference.infer_shapes(model))
    fetched = (*(str(node.outputs[0].name) for node in graph.nodes if node.op_type == "Conv"), "given", "folded")
    tables = []
    for ordered in (True, False):
        what = Observation(graph.serialize(fetched), (), fetched, observable(graph, fetched), ordered)
        assert len(what.observable) == len(fetched)
        observer = Observer(what, threads=1)
        statistics = observer.statistics()
        (batch,) = open_data(samples(model, 2), graph.inputs, DataOptions(batch_size=2)).batches()
        observer.observe(statistics, batch)
        tables.append([(seen.count, seen.min, seen.max) for seen in statistics])
    assert tables[0] == tables[1]
    assert [count for count, *_ in tables[0]][-2:] == [4, 4]
