"""Models with external data: tensors stay in their files, and model and data are replaced together or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.models import Net, run

import requant
from requant.errors import ModelError, OutputError
from requant.onnx import graph as graph_module, saving
from requant.onnx.graph import Graph
from requant.onnx.mapped import MappedTensor, fingerprint, tensor_of
from requant.onnx.nodes import constant
from requant.onnx.saving import save_model, self_contained
from requant.runtime import open_runner
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from numpy.typing import NDArray


def network(*, seed: int = 0) -> onnx.ModelProto:
    """Two layers of 64 x 64 weights, which take more than a page each, and a constant that takes less."""
    net = Net(seed=seed)
    x = net.input("x", ["n", 64])
    return net.model(net.op("Add", net.gemm(net.op("Relu", net.gemm(x, 64, 64)), 64, 64, trans_b=1), net.normal(64)))


def with_data(folder: Path, *, seed: int = 0) -> Path:
    """The network, its weights in a file beside it, saved by ONNX's own functions."""
    path = folder / "float.onnx"
    onnx.save(network(seed=seed), path, save_as_external_data=True, location="float.bin", size_threshold=0)
    return path


def feeds() -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_large_tensors_are_mapped_and_small_ones_are_taken_in(tmp_path: Path) -> None:
    graph = Graph.load(with_data(tmp_path))
    tensors = [value.const_value for value in graph.model.graph.initializers.values()]
    mapped = [tensor for tensor in tensors if isinstance(tensor, MappedTensor)]
    assert [tensor.nbytes for tensor in mapped] == [64 * 64 * 4] * 2
    assert graph.size == sum((tmp_path / name).stat().st_size for name in ("float.onnx", "float.bin"))
    expected = [numpy_helper.to_array(t) for t in network().graph.initializer]
    for tensor, array in zip(tensors, expected, strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array, strict=True)
        assert tensor.tobytes() == array.tobytes()
    assert not mapped[0].numpy().flags.writeable


def test_it_runs_from_where_its_data_lies(tmp_path: Path) -> None:
    graph = Graph.load(with_data(tmp_path))
    model = graph.serialize()
    assert len(model.proto) < 64 * 64 * 4 < model.external_bytes
    (expected,) = run(network().SerializeToString(), feeds())
    np.testing.assert_array_equal(open_runner(model).run(feeds())[0], expected)
    np.testing.assert_array_equal(run(graph.to_bytes(), feeds())[0], expected)
    fetched = graph.serialize(["t1"])
    inside = Graph.load(network()).to_bytes(["t1"])
    np.testing.assert_array_equal(open_runner(fetched).run(feeds())[0], run(inside, feeds())[0])


def test_its_digest_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    path = with_data(here)
    shutil.copytree(here, there)
    first, second = Graph.load(path), Graph.load(there / path.name)
    assert first.serialize().external_bytes > 0
    assert first.digest == second.digest


def test_quantizing_it_gives_the_same_bytes_as_without_external_data(tmp_path: Path) -> None:
    data = {"x": np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)}
    for dynamic in (True, False):
        outside = requant.quantize(with_data(tmp_path), data, threads=1, dynamic=dynamic)
        inside = requant.quantize(network().SerializeToString(), data, threads=1, dynamic=dynamic)
        assert outside.data == inside.data
        assert outside.report.quantized_bytes == len(outside.data)


@pytest.mark.parametrize(
    "options", [{"dynamic": True}, {"rounding": "nearest"}, {"rounding": "nearest", "rest": "float16"}]
)
def test_a_model_that_is_too_large_for_memory_goes_through_a_file(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Reconstruction would see the last bits of the float model, which differ when it runs from a file.
    data = {"x": np.random.default_rng(2).standard_normal((8, 64)).astype(np.float32)}
    path = with_data(tmp_path)
    expected = requant.quantize(path, data, threads=1, **options).data
    monkeypatch.setattr(graph_module, "IN_MEMORY", 0)
    monkeypatch.setattr(graph_module, "_SPILLED", 0)
    result = requant.quantize(path, data, threads=1, **options)
    assert result.model.external_bytes >= 2 * 64 * 64
    assert result.data == expected
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == expected


def test_saved_with_external_data_it_is_the_same_model(tmp_path: Path) -> None:
    result = requant.quantize(network().SerializeToString(), dynamic=True)
    path = tmp_path / "out.onnx"
    result.save(path, external_data=True)
    data_file = next(name for name in listing(tmp_path) if name != "out.onnx")
    assert len(path.read_bytes()) < len(result.data)
    onnx.checker.check_model(str(path))
    expected = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(result.data).graph.initializer}
    tensors = onnx.load(path).graph.initializer
    assert {t.name for t in tensors} == set(expected)
    for tensor in tensors:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected[tensor.name], strict=True)
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        entry = {e.key: e.value for e in tensor.external_data}
        assert tensor.data_location != onnx.TensorProto.EXTERNAL or (
            entry["location"] == data_file and int(entry["offset"]) % 4096 == 0
        )
    np.testing.assert_array_equal(
        open_runner(Graph.load(path).serialize()).run(feeds())[0], run(result.data, feeds())[0]
    )
    result.save(path, external_data=True)
    assert listing(tmp_path) == sorted(["out.onnx", data_file])


def test_the_data_of_a_model_that_is_replaced_goes(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    (tmp_path / "out.onnx.0123456789abcdef.data").write_bytes(b"not named by a model of ours")
    models = [SerializedModel(network(seed=seed).SerializeToString()) for seed in (0, 1)]
    save_model(models[0], path, external_data=True)
    first = set(listing(tmp_path))
    save_model(models[1], path, external_data=True)
    second = set(listing(tmp_path))
    assert len(first - second) == len(second - first) == 1
    save_model(models[0], path)
    assert listing(tmp_path) == ["out.onnx", "out.onnx.0123456789abcdef.data"]


@pytest.mark.parametrize(
    ("step", "call"), [(step, n) for step in ("open", "fdopen", "fsync", "replace") for n in (1, 2)]
)
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("old", [None, 1])
def test_a_failure_at_any_step_leaves_the_old_model_and_its_data(
    step: str, call: int, problem: BaseException, old: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "out.onnx"
    if old is not None:
        save_model(SerializedModel(network(seed=old).SerializeToString()), path, external_data=True)
    before = {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)}
    real, calls = getattr(os, step), 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        folder = (
            step in ("open", "fsync")
            and args
            and (
                Path(str(args[0])).is_dir() or (isinstance(args[0], int) and Path(f"/proc/self/fd/{args[0]}").is_dir())
            )
        )
        calls += not folder
        if calls == call and not folder:
            raise problem
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OutputError if isinstance(problem, OSError) else KeyboardInterrupt):
            save_model(SerializedModel(network().SerializeToString()), path, external_data=True)
    assert {name: (tmp_path / name).read_bytes() for name in listing(tmp_path)} == before


def test_the_old_model_has_its_data_until_the_new_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.onnx"
    save_model(SerializedModel(network(seed=1).SerializeToString()), path, external_data=True)
    real, runs = os.replace, []

    def look(*args: Any) -> None:
        for _ in range(2):  # before and after each rename
            runs.append(open_runner(Graph.load(path).serialize()).run(feeds())[0])
            if len(runs) % 2:
                real(*args)

    monkeypatch.setattr(os, "replace", look)
    save_model(SerializedModel(network().SerializeToString()), path, external_data=True)
    old, new = (run(network(seed=seed).SerializeToString(), feeds())[0] for seed in (1, 0))
    assert len(runs) == 4
    for got, expected in zip(runs, (old, old, old, new), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_a_model_beyond_one_file_gets_external_data_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "ONE_FILE", 20_000)
    model = Graph.load(with_data(tmp_path)).serialize()
    with pytest.raises(ModelError, match="does not fit into one 2 GiB file"):
        self_contained(model)
    save_model(model, tmp_path / "out.onnx")
    assert len(listing(tmp_path)) == 4
    with pytest.raises(OutputError, match="no file"):
        save_model(model, "/dev/null")


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    graph = Graph.load(with_data(tmp_path))
    weight = next(t for v in graph.model.graph.initializers.values() if isinstance(t := v.const_value, MappedTensor))
    (tmp_path / "float.bin").write_bytes(b"short")
    with pytest.raises(ModelError, match="was changed while it was read"):
        weight.numpy()
    (tmp_path / "float.bin").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        weight.numpy()


def test_an_array_that_lies_in_a_file_is_not_written_again(tmp_path: Path) -> None:
    graph = Graph.load(with_data(tmp_path))
    value = next(v for v in graph.model.graph.initializers.values() if isinstance(v.const_value, MappedTensor))
    array = constant(value)
    assert array is not None
    part = array[8:24]
    found = tensor_of(part, "part", None)
    assert isinstance(found, MappedTensor)
    np.testing.assert_array_equal(found.numpy(), part, strict=True)
    for other in (array.T, array[:, ::2], array.copy()):
        assert not isinstance(tensor_of(other, "other", None), MappedTensor)
    again = constant(graph.copy().model.graph.initializers[value.name or ""])
    assert again is not None
    assert fingerprint(array) == fingerprint(again)
    assert fingerprint(array.copy()) == fingerprint(array.copy()) != fingerprint(array.copy() + 1)


def test_weights_in_bodies_stay_in_their_files_too(tmp_path: Path) -> None:
    body = network().graph
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    inputs = [flag, body.input[0]]
    del body.input[:]
    call = onnx.helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
    outer = onnx.helper.make_graph([call], "g", inputs, [onnx.ValueInfoProto(name="y", type=body.output[0].type)])
    model = onnx.helper.make_model(outer, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    expected = run(model.SerializeToString(), {**feeds(), "flag": np.array(True)})
    path = tmp_path / "out.onnx"
    save_model(SerializedModel(model.SerializeToString()), path, external_data=True)
    graph = Graph.load(path)
    assert graph.serialize().external_bytes == 4 * 64 * 64 * 4
    got = open_runner(graph.serialize()).run({**feeds(), "flag": np.array(True)})
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(run(graph.to_bytes(), {**feeds(), "flag": np.array(True)})[0], expected[0])
