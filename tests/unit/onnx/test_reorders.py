"""Outputs that are not put in order hold the same values, sample by sample, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tests.models import Net, samples

from requant.onnx.graph import Graph
from requant.onnx.reorders import reordered, without_reorders
from requant.runtime import OrtRunner, open_observing, open_runner, optimized
from requant.serialized import SerializedModel

#: What is mapped into the memory of this process.
MAPS = Path("/proc/self/maps")


def network(channels: int) -> onnx.ModelProto:
    """Two convolutions, an activation that does not keep 0, a sum, and a reader that needs the usual order."""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    first = net.op("Sigmoid", net.conv(x, 3, channels), output="gate")
    second = net.op("Relu", net.conv(first, channels, channels, group=channels), output="deep")
    joined = net.op("Add", first, second, output="sum")
    flat = net.op("Reshape", joined, net.const(np.array([0, -1])), output="flat")
    return net.model(net.op("Softmax", flat, output="y"))


FETCHED = ("x", "gate", "deep", "sum", "y")


@pytest.mark.parametrize("channels", [8, 12, 16, 24, 32, 48])
def test_each_sample_has_the_same_values(channels: int) -> None:
    model = network(channels)
    feeds = samples(model, 3)
    fetched = Graph.load(model).serialize(FETCHED)
    expected = open_runner(fetched).run(feeds)
    for name, a, b in zip(FETCHED, expected, open_runner(fetched, ordered=False).run(feeds), strict=True):
        assert a.shape == b.shape, name
        np.testing.assert_array_equal(np.sort(a.reshape(3, -1)), np.sort(b.reshape(3, -1)), err_msg=name)


def test_what_is_not_read_is_not_reordered() -> None:
    fetched = Graph.load(network(32)).serialize(FETCHED)
    before = optimized(fetched)
    assert before is not None
    after = without_reorders(before)
    if b"ReorderOutput" not in before:
        assert after is None  # a CPU on which onnxruntime keeps the usual order
        return
    assert after is not None
    counts = [
        [node.op_type for node in onnx.load_from_string(data).graph.node].count("ReorderOutput")
        for data in (before, after)
    ]
    assert counts == [3, 1]  # the sum is also read by the Reshape
    OrtRunner(SerializedModel(after), as_is=True)


def test_weights_are_read_from_a_file_that_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = network(32)
    fetched = Graph.load(model).serialize(FETCHED)
    saved: list[int] = []

    def change(data: bytes) -> bytes | None:
        saved.extend(path.stat().st_size for path in tmp_path.glob("*/weights"))
        return without_reorders(data)

    monkeypatch.setattr("requant.onnx.reorders.without_reorders", change)
    runner = open_runner(fetched, ordered=False)
    assert saved[0] >= 32 * 3 * 9 * 4
    assert not [*tmp_path.iterdir()]
    feeds = samples(model, 3)
    for a, b in zip(open_runner(fetched).run(feeds), runner.run(feeds), strict=True):
        np.testing.assert_array_equal(np.sort(a.reshape(3, -1)), np.sort(b.reshape(3, -1)))


@pytest.mark.skipif(not MAPS.exists(), reason="the system does not say what is mapped")
def test_where_mapped_files_stay_they_go_with_the_runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on Windows, which refuses to remove a file that is mapped."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    remove = shutil.rmtree

    def rmtree(folder: str, **options: Any) -> None:
        if folder not in MAPS.read_text("utf-8"):
            remove(folder, **options)

    monkeypatch.setattr("shutil.rmtree", rmtree)
    monkeypatch.setattr("tempfile.TemporaryDirectory._rmtree", lambda _, folder, **__: rmtree(folder))
    fetched = Graph.load(network(32)).serialize(FETCHED)
    if b"ReorderOutput" not in (optimized(fetched) or b""):
        pytest.skip("onnxruntime keeps the usual order on this CPU")
    runner = open_runner(fetched, ordered=False)
    (folder,) = tmp_path.iterdir()
    assert str(folder / "weights") in MAPS.read_text("utf-8")
    del runner
    assert not folder.exists()


def test_outputs_are_put_in_order_where_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    model = network(32)
    fetched = Graph.load(model).serialize(FETCHED)
    assert open_observing(fetched, [0], threads=1, ordered=False) is None
    feeds = samples(model, 3)
    runners = [open_runner(fetched, ordered=ordered) for ordered in (True, False)]
    for a, b in zip(*(runner.run(feeds) for runner in runners), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tensor_that_a_body_reads_stays() -> None:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    deep = net.op("Relu", net.conv(x, 3, 16), output="deep")
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Neg", [deep], ["negated"])],
        "body",
        [],
        [onnx.helper.make_tensor_value_info("negated", onnx.TensorProto.FLOAT, None)],
    )
    always = net.const(np.array(True))
    y = net.op("If", always, then_branch=body, else_branch=body, output="y")
    model = net.model(y)
    feeds = samples(model, 2)
    fetched = Graph.load(model).serialize(["deep", "y"])
    for a, b in zip(open_runner(fetched).run(feeds), open_runner(fetched, ordered=False).run(feeds), strict=True):
        np.testing.assert_array_equal(np.sort(a.reshape(2, -1)), np.sort(b.reshape(2, -1)))


def test_values_to_reorder_are_those_of_convolutional_models() -> None:
    graph = Graph.load(onnx.shape_inference.infer_shapes(network(16)))
    assert reordered(graph, {"gate", "deep"}) == 2 * 16 * 64
    assert reordered(graph, {"y", "flat"}) == 0  # nothing but samples and channels
    net = Net()
    plain = Graph.load(net.model(net.op("Relu", net.input("x", ["n", 3, 8, 8]))))
    assert reordered(plain, {"t0"}) == 0
