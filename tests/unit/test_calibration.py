"""Statistics of what a model computes: the same however the data is cut, saved and read back whole."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tests.models import Array, Net, concat, conv_relu, run, samples, two_gemm

from requant import ops
from requant.calibration.observing import Observer
from requant.calibration.run import calibrate_graph
from requant.calibration.table import CalibrationTable
from requant.config import METHODS, QuantConfig
from requant.data import Batch, DataOptions, open_data
from requant.errors import CalibrationError, DataError, MissingFileError, ModelError
from requant.onnx.graph import Graph
from requant.onnx.passes import prepare
from requant.planning.build import build_plan
from requant.types import QuantScheme, QuantType

if TYPE_CHECKING:
    from pathlib import Path

Progress = Callable[[int, int | None], None]


def calibrated(
    model: onnx.ModelProto,
    data: object,
    *,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> CalibrationTable:
    graph = prepare(Graph.load(model))[0]
    config = QuantConfig().with_options(**options)
    dataset = open_data(data, graph.inputs, DataOptions(batch_size=batch_size))
    return calibrate_graph(graph, build_plan(graph, config), dataset, config, progress)


def bits(table: CalibrationTable) -> dict[str, bytes]:
    return {name: seen.to_bytes() for name, seen in table.items()}


def test_the_statistics_are_those_of_the_tensors() -> None:
    model = concat()
    feeds = samples(model, 12)
    table = calibrated(model, feeds)
    assert table.samples == 12
    graph = prepare(Graph.load(model))[0]
    inner = [name for name in table if name != "x"]
    values = feeds | dict(zip(inner, run(graph.to_bytes(inner), feeds), strict=True))
    assert set(values) == set(table) == set(build_plan(graph, QuantConfig()).calibrated)
    for name, seen in table.items():
        x = values[name]
        assert seen.count == x.size
        assert seen.min == pytest.approx(x.min(), rel=1e-5)
        assert seen.max == pytest.approx(x.max(), rel=1e-5)
        assert seen.mean == pytest.approx(x.mean(), abs=1e-4)
        assert seen.std == pytest.approx(x.std(), rel=1e-4)


def elementwise() -> onnx.ModelProto:
    """Only the input is calibrated, so that no order of sums can differ between batches."""
    net = Net()
    return net.model(net.gemm(net.input("x", ["n", 8]), 8, 4, output="y"))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 16, None])
@pytest.mark.parametrize("threads", [1, 2])
def test_any_cut_of_the_data_gives_the_same_table(batch_size: int | None, threads: int) -> None:
    model = elementwise()
    x = samples(model, 16)["x"]
    whole = seen(calibrated(model, x, threads=1)["x"])
    assert seen(calibrated(model, x, batch_size=batch_size, threads=threads)["x"]) == whole
    assert seen(calibrated(model, x[::-1], batch_size=batch_size, threads=threads)["x"]) == whole


def seen(tensor: ops.TensorStatistics) -> dict[str, Any]:
    """All that can be read of a statistic; moments are sums, whose last bits may depend on the cut."""
    edges, counts = tensor.histogram()
    moments = {"mean": pytest.approx(tensor.mean, rel=1e-12), "std": pytest.approx(tensor.std, rel=1e-12)}
    exact = {"count": tensor.count, "min": tensor.min, "max": tensor.max, "zeros": tensor.zeros}
    ranges = {(m, s): tensor.range(m, "uint8", s, 99.9) for m in METHODS for s in (False, True)}
    return {**moments, **exact, "edges": edges.tolist(), "counts": counts.tolist(), "ranges": ranges}


@pytest.mark.parametrize("threads", [1, 2, 0])
def test_any_number_of_threads_gives_the_same_table(threads: int) -> None:
    model = concat()
    x = samples(model, 16)["x"]
    assert bits(calibrated(model, x, threads=threads, batch_size=4)) == bits(
        calibrated(model, x, threads=1, batch_size=4)
    )


def test_progress_tells_samples_done_and_to_do() -> None:
    model, calls = two_gemm(), []
    calibrated(model, samples(model, 10), batch_size=4, progress=lambda *call: calls.append(call))
    assert calls == [(4, 10), (8, 10), (10, 10)]
    calls.clear()
    calibrated(model, (row[np.newaxis] for row in samples(model, 3)["x"]), progress=lambda *call: calls.append(call))
    assert calls[-1] == (3, None)


def test_batches_of_varying_shape_are_seen_whole() -> None:
    net = Net()
    x = net.input("x", ["n", 4, "h", "w"])
    model = net.model(net.conv(net.op("Relu", net.conv(x, 4, 4)), 4, 2))
    sizes = [(4, 4), (8, 6), (5, 9)]
    images = [np.ones((1, 4, *size), np.float32) for size in sizes]
    assert calibrated(model, images)["x"].count == sum(4 * h * w for h, w in sizes)


@pytest.mark.parametrize("threads", [1, 2])
def test_short_batches_of_one_shape_take_one_thread_less(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    x = net.input("x", ["n", 4, "h", "w"])
    model = net.model(net.conv(net.op("Relu", net.conv(x, 4, 4)), 4, 2))
    sizes = [*[(4, 4)] * 9, (8, 6), (4, 4)]
    images = [np.full((1, 4, *size), i, np.float32) for i, size in enumerate(sizes)]
    where: dict[int, threading.Thread] = {}
    observe = Observer.observe

    def watched(observer: Observer, statistics: Any, batch: Batch) -> None:
        where[batch.first] = threading.current_thread()
        observe(observer, statistics, batch)

    monkeypatch.setattr(Observer, "observe", watched)
    tables = []
    for short in (0.0, 60.0):
        monkeypatch.setattr(
            "requant.calibration.run._SHORT" if threads > 1 else "requant.calibration.run._SHORT_ALONE", short
        )
        where.clear()
        tables.append(bits(calibrated(model, images, threads=threads, batch_size=1)))
        assert sorted(where) == list(range(11))
        here = {i for i, thread in where.items() if thread is threading.current_thread()}
        if short and threads == 1:
            assert set(range(2, 9)) <= here <= set(range(1, 9))  # the second may be taken while the first one runs
        else:
            assert not here
    assert len({where[i] for i in range(threads + 1, 9)}) == 1
    assert tables[0] == tables[1]


def test_batches_that_become_long_are_left_to_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    model = two_gemm()
    x = samples(model, 12)
    where: dict[int, threading.Thread] = {}
    observe = Observer.observe

    def watched(observer: Observer, statistics: Any, batch: Batch) -> None:
        where[batch.first] = threading.current_thread()
        start = time.thread_time()
        while batch.first >= 6 and time.thread_time() - start < 0.3:
            pass
        observe(observer, statistics, batch)

    want = bits(calibrated(model, x, threads=1, batch_size=1))
    monkeypatch.setattr("requant.calibration.run._SHORT_ALONE", 0.3)
    monkeypatch.setattr(Observer, "observe", watched)
    assert bits(calibrated(model, x, threads=1, batch_size=1)) == want
    assert sorted(where) == list(range(12))
    here = {i for i, thread in where.items() if thread is threading.current_thread()}
    assert set(range(2, 7)) <= here <= set(range(1, 7))


# -- what is not finite ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, None])
@pytest.mark.parametrize("sample", [0, 4, 9, 11])
def test_a_sample_on_which_the_model_overflows_is_named(sample: int, batch_size: int | None) -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    model = net.model(net.gemm(net.op("Exp", net.gemm(x, 4, 8), output="boom"), 8, 2))
    data = np.zeros((12, 4), np.float32)
    data[sample] = 1e20
    with pytest.raises(CalibrationError, match=rf"'boom' holds .* infinite values, first in sample {sample}\b"):
        calibrated(model, data, batch_size=batch_size)


def test_held_back_samples_count_in_the_number_of_a_sample() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    model = net.model(net.gemm(net.op("Exp", net.gemm(x, 4, 8), output="boom"), 8, 2))
    data = np.zeros((12, 4), np.float32)
    data[9] = 1e20
    graph = prepare(Graph.load(model))[0]
    dataset = open_data(data, graph.inputs, DataOptions(batch_size=12), hold_back=True)  # sample 7 is held back
    with pytest.raises(CalibrationError, match="first in sample 9"):
        calibrate_graph(graph, build_plan(graph, QuantConfig()), dataset, QuantConfig())


# -- stopping --------------------------------------------------------------------------------------------------------


def test_an_interrupt_stops_it_and_leaves_no_thread() -> None:
    model = conv_relu()
    before = threading.active_count()

    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        calibrated(model, samples(model, 64), batch_size=1, progress=interrupt)
    assert time.perf_counter() - start < 2
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)  # what was running ends by itself
    assert threading.active_count() <= before  # those of a test before this one may have ended, too


def test_a_failure_of_the_data_comes_through() -> None:
    model = two_gemm()

    def rows() -> Any:
        yield samples(model, 1)["x"]
        raise DataError("the disk is gone")

    with pytest.raises(DataError, match="the disk is gone"):
        calibrated(model, rows())


# -- tables ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table() -> CalibrationTable:
    model = two_gemm()
    return calibrated(model, samples(model, 16))


def test_a_table_is_read_back_whole(table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    first = path.read_bytes()
    loaded = CalibrationTable.load(path)
    assert bits(loaded) == bits(table)
    assert dict(loaded) == dict(table)
    assert (loaded.digest, loaded.samples) == (table.digest, table.samples)
    loaded.save(path)
    assert path.read_bytes() == first
    scheme = QuantScheme(QuantType.UINT8)
    for method in METHODS:
        assert [loaded.range(n, method, scheme, 99.9) for n in loaded] == [
            table.range(n, method, scheme, 99.9) for n in table
        ]


def test_factors_are_read_back(table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.with_factors({"x": np.array([0.25, 8.0], np.float32)}).save(path)
    loaded = CalibrationTable.load(path)
    assert {name: list(each) for name, each in loaded.factors.items()} == {"x": [0.25, 8.0]}
    assert bits(loaded) == bits(table)
    assert table.factors == {}


def test_ranges_are_written_beside_for_reading(table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    scheme = QuantScheme(QuantType.UINT8)
    table.save(path, {name: {"minmax": table.range(name, "minmax", scheme, 100)} for name in table})
    entry = json.loads(path.read_text())["tensors"]["x"]
    assert entry["ranges"]["minmax"] == [entry["min"], entry["max"]]
    assert bits(CalibrationTable.load(path)) == bits(table)


def test_a_table_of_a_tensor_that_was_empty_can_be_saved(tmp_path: Path) -> None:
    table = CalibrationTable({"x": ops.TensorStatistics()}, digest="d", samples=1)
    table.save(tmp_path / "t.json")
    assert CalibrationTable.load(tmp_path / "t.json")["x"].count == 0
    with pytest.raises(CalibrationError, match="tensor 'x'"):
        table.range("x", "minmax", QuantScheme(QuantType.UINT8), 100)


def test_a_table_of_another_model_is_refused(table: CalibrationTable) -> None:
    table.check(Graph.load(two_gemm()))
    with pytest.raises(CalibrationError, match="belongs to another model"):
        table.check(Graph.load(conv_relu()))


def test_a_tensor_that_was_not_calibrated_is_named(table: CalibrationTable) -> None:
    with pytest.raises(CalibrationError, match=r"no statistics for tensor 'nowhere'\nhelp: calibrate again"):
        table.range("nowhere", "minmax", QuantScheme(QuantType.UINT8), 100)


def change(entry: str, value: object) -> Callable[[dict[str, Any]], object]:
    def apply(document: dict[str, Any]) -> object:
        document[entry] = value
        return document

    return apply


def statistics(value: object) -> Callable[[dict[str, Any]], object]:
    def apply(document: dict[str, Any]) -> object:
        document["tensors"]["x"]["statistics"] = value
        return document

    return apply


def flipped(document: dict[str, Any]) -> object:
    text = document["tensors"]["x"]["statistics"]
    document["tensors"]["x"]["statistics"] = text[: len(text) // 2 // 4 * 4]
    return document


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "format": change("format", "other"),
    "version": change("version", 1),
    "factors": change("factors", {"x": [1.0, -2.0]}),
    "no tensors": change("tensors", None),
    "a list": lambda document: [document],
    "text": lambda document: "table",
    "null": lambda document: None,
    "samples": change("samples", "many"),
    "negative samples": change("samples", -1),
    "unproven": change("unproven", "a"),
    "names that are none": change("unproven", [1]),
    "endless": change("version", "2\n" * 50),
    "infinite samples": change("samples", float("inf")),
    "base64": statistics("!!!"),
    "empty": statistics(""),
    "zeros": statistics("AAAA"),
    "number": statistics(5),
    "cut": flipped,
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_table_is_refused(case: str, table: CalibrationTable, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    table.save(path)
    path.write_text(json.dumps(DAMAGE[case](json.loads(path.read_text()))))
    with pytest.raises(CalibrationError, match="is not a calibration table of version 2, or it is damaged"):
        CalibrationTable.load(path)


HOSTILE: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def places_in(document: Any) -> Iterator[tuple[Any, Any]]:
    """Each list or object in ``document`` with each of its keys."""
    keys = document if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in list(keys):
        yield document, key
        yield from places_in(document[key])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=HOSTILE, choice=st.integers(0, 999))
def test_tables_with_a_strange_value_are_read_or_refused(
    table: CalibrationTable, tmp_path: Path, value: object, choice: int
) -> None:
    path = tmp_path / "table.json"
    table.with_factors({"x": np.array([2.0, 0.5], np.float32)}, {"x": np.array([1.0], np.float32)}).save(path)
    document = json.loads(path.read_text())
    places = list(places_in(document))
    inner, key = places[choice % len(places)]
    inner[key] = value
    path.write_text(json.dumps(document))
    try:
        found = CalibrationTable.load(path)
    except CalibrationError:
        return
    assert all(isinstance(seen, ops.TensorStatistics) for seen in found.values())
    assert 0 <= found.samples < 2**63


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}'])
def test_what_is_not_json_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(data)
    with pytest.raises(CalibrationError):
        CalibrationTable.load(path)


def test_a_missing_table_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError):
        CalibrationTable.load(tmp_path / "nowhere.json")
    with pytest.raises(CalibrationError, match="cannot be read"):
        CalibrationTable.load(tmp_path)


def test_a_model_that_the_runtime_refuses_is_our_error() -> None:
    net = Net()
    node = onnx.helper.make_node("Unknown", ["x"], ["u"], domain="com.example")
    net.input("x", ["n", 4])
    net.nodes.append(node)
    hidden = net.op("Gemm", "x", net.normal(4, 4), output="h")
    graph = onnx.helper.make_graph(
        [*net.nodes, onnx.helper.make_node("Gemm", [hidden, net.normal(4, 4)], ["y"])],
        "g",
        net.inputs,
        [onnx.helper.make_tensor_value_info(name, 1, ["n", 4]) for name in ("y", "u")],
        net.initializers,
    )
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    data: Array = np.zeros((4, 4), np.float32)
    with pytest.raises(ModelError, match="onnxruntime cannot load the model"):
        calibrated(model, data)
