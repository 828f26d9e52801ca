"""Models and checkpoints as GGUF files, against the package's reader, and the way back."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

import requant
from requant.gguf.choice import FALLBACKS, Rules
from requant.gguf.metadata import file_metadata, typed
from requant.stored import StoredWeight

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(0)
W1 = RNG.standard_normal((512, 96)).astype(np.float32)  # [K, N]
W2 = RNG.standard_normal((512, 96)).astype(np.float32)  # [N, K]
B2 = RNG.standard_normal(512).astype(np.float32)
SAMPLES = (RNG.standard_normal((16, 512)) * np.where(np.arange(512) % 8, 0.1, 3.0)).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "first.weight"], ["h"]),
        helper.make_node("Gemm", ["h", "second.weight", "second.bias"], ["y"], transB=1),
    ]
    tensors = {"first.weight": W1, "second.weight": W2, "second.bias": B2}
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 512])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 512])],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    carried = {"llama.block_count": "2", "llama.eps": "1e-5", "general.author": "7", "note": "mine", "a.b": "true"}
    helper.set_model_props(proto, carried)
    path = tmp_path / "tiny.onnx"
    onnx.save(proto, path)
    return path


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    reader = gguf.GGUFReader(path)
    return {key: field.contents() for key, field in reader.fields.items()}, {t.name: t for t in reader.tensors}


def test_a_model_becomes_a_file_that_the_package_reads(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf"
    result = requant.export_gguf(model, path, "q4_k", metadata={"general.architecture": "mlp", "mlp.width": 96})
    fields, tensors = contents(path)
    assert fields["general.architecture"] == "mlp"
    assert fields["general.name"] == "tiny"
    assert fields["general.author"] == "7"
    assert fields["llama.block_count"] == 2
    assert fields["llama.eps"] == pytest.approx(1e-5)
    assert fields["a.b"] is True
    assert fields["mlp.width"] == 96
    assert fields["general.quantization_version"] == 2
    assert "note" not in fields
    assert tensors["first.weight"].shape.tolist() == [512, 96]  # as GGUF lists it: the row first
    assert tensors["first.weight"].tensor_type == gguf.GGMLQuantizationType.Q4_K
    assert tensors["second.weight"].tensor_type == gguf.GGMLQuantizationType.Q5_0
    assert np.array_equal(tensors["second.bias"].data, B2)
    expected = requant.quantize_gguf(W1.T, "q4_k")
    assert np.array_equal(tensors["first.weight"].data, expected)
    by_name = {tensor.name: tensor for tensor in result.tensors}
    assert by_name["second.weight"].reason == "rows of 96 values do not divide into blocks of 256"
    assert by_name["second.bias"].reason == "no matrix"
    assert by_name["second.bias"].sqnr_db is None
    error = requant.dequantize_gguf(expected, "q4_k") - W1.T
    assert by_name["first.weight"].sqnr_db == pytest.approx(10 * np.log10(np.sum(W1**2) / np.sum(error**2)), abs=1e-3)
    assert result.bytes == path.stat().st_size
    assert json.loads(json.dumps(result.to_dict()))["schema"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "tiny.onnx"]


@pytest.mark.parametrize("shape", [(0,), (0, 32), (32, 0)])
def test_a_weight_without_values_goes_there_and_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    save_file({"first.weight": W1, "empty": np.zeros(shape, np.float32)}, tmp_path / "in.safetensors")
    requant.export_gguf(tmp_path / "in.safetensors", tmp_path / "out.gguf", "f32")
    requant.unpack_gguf(tmp_path / "out.gguf", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back["empty"].shape == shape
    assert np.array_equal(back["first.weight"], W1)


def test_data_weigh_the_columns(model: Path, tmp_path: Path) -> None:
    plain = requant.export_gguf(model, tmp_path / "a.gguf", "q4_k")
    weighted = requant.export_gguf(model, tmp_path / "b.gguf", "q4_k", data={"x": SAMPLES})
    assert [tensor.weighted for tensor in plain.tensors] == [False] * 3
    assert {tensor.name: tensor.weighted for tensor in weighted.tensors}["first.weight"]
    importance = np.mean(SAMPLES.astype(np.float64) ** 2, axis=0)
    expected = requant.quantize_gguf(W1.T, "q4_k", importance=importance)
    assert np.array_equal(contents(tmp_path / "b.gguf")[1]["first.weight"].data, expected)
    outputs = [SAMPLES @ (requant.read_gguf(tmp_path / name)["first.weight"].T - W1) for name in ("a.gguf", "b.gguf")]
    assert np.sum(outputs[1] ** 2) < 0.9 * np.sum(outputs[0] ** 2)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0", "q2_k"])
def test_checkpoints_and_the_way_back(dtype: str, tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a": W1, "b.half": W2.astype(np.float16), "c": B2, "ids": np.arange(3)}
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / "out.gguf"
    requant.export_gguf(tmp_path / "model.safetensors", path, dtype)
    assert contents(path)[0]["general.architecture"] == "llama"
    weights = requant.read_gguf(path)
    assert set(weights) == {"a", "b.half", "c"}
    for suffix in ("npz", "safetensors"):
        result = requant.unpack_gguf(path, tmp_path / f"back.{suffix}")
        back = dict(np.load(tmp_path / "back.npz")) if suffix == "npz" else load_file(tmp_path / "back.safetensors")
        assert set(back) == set(weights)
        assert all(np.array_equal(back[name], weights[name]) for name in weights)
        assert {tensor.name for tensor in result.tensors} == set(weights)


def test_the_same_bytes_for_any_threads(model: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{threads}.gguf" for threads in (1, 3)]
    for threads, path in zip((1, 3), files, strict=True):
        requant.export_gguf(model, path, "q6_k", threads=threads)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_single_tensors_get_another_type(model: Path, tmp_path: Path) -> None:
    types = {r".*\.weight": "q8_0", "second.weight": "f16"}
    result = requant.export_gguf(model, tmp_path / "out.gguf", "q4_k", tensor_types=types)
    assert [tensor.dtype for tensor in result.tensors] == ["q8_0", "f16", "f32"]
    for bad, message in (
        ({"third": "q8_0"}, "no tensor is called 'third'"),
        ({"second.weight": "q4_k"}, "rows of 96 values do not divide into blocks of 256"),
        ({"second.weight": "q4_x"}, "unknown GGUF type 'q4_x'"),
        ({"[": "q8_0"}, "no tensor is called"),
    ):
        with pytest.raises(requant.ConfigError, match=message):
            requant.export_gguf(model, tmp_path / "out.gguf", "q4_k", tensor_types=bad)


def weight(shape: tuple[int, ...], *, used: bool | None = True) -> StoredWeight:
    return StoredWeight("w", shape, lambda: np.zeros(shape), None, used)


@pytest.mark.parametrize(
    ("wanted", "stored", "largest", "expected"),
    [
        ("q4_k", weight((8, 256)), 1.0, "q4_k"),
        ("q4_k", weight((64, 2, 2, 256)), 1.0, "q4_k"),
        ("q4_k", weight((100, 96)), 1.0, "q5_0"),
        ("q6_k", weight((100, 96)), 1.0, "q8_0"),
        ("q2_k", weight((100, 96)), 1.0, "q4_0"),
        ("q4_k", weight((100, 100)), 1.0, "f16"),
        ("q8_0", weight((100, 100)), 1.0, "f16"),
        ("q4_k", weight((2048,)), 1.0, "f32"),
        ("q4_k", weight((2, 256)), 1.0, "f32"),
        ("q4_k", weight((8, 256), used=False), 1.0, "f32"),
        ("q4_k", weight((8, 256), used=None), 1.0, "q4_k"),
        ("q4_k", weight((8, 256)), 70000.0, "f32"),
        ("f16", weight((8, 256)), 70000.0, "f32"),
        ("bf16", weight((8, 256)), 1e38, "bf16"),
        ("f16", weight((100, 7)), 1.0, "f32"),
        ("f32", weight((8, 256)), 1e38, "f32"),
    ],
)
def test_types_by_shape(wanted: str, stored: StoredWeight, largest: float, expected: str) -> None:
    choice = Rules(wanted).choose(stored, largest)
    assert choice.kind.name == expected
    assert (choice.reason is None) == (expected == wanted)


def test_fallbacks_have_smaller_blocks() -> None:
    for wanted, smaller in FALLBACKS.items():
        kinds = [Rules(name).wanted for name in (wanted, smaller)]
        assert kinds[0].block_size == 256
        assert kinds[1].block_size == 32
        assert kinds[1].bits > kinds[0].bits


def test_five_axes_are_refused() -> None:
    with pytest.raises(requant.ModelError, match="has 5 axes, GGUF holds at most 4"):
        Rules("q4_k").choose(weight((2, 2, 2, 2, 256)), 1.0)


def test_metadata() -> None:
    assert [
        typed("a.b", text) for text in ("3", "-2", "0.5", "true", "false", "nan", "x", "1e999", "9" * 30, "1e300")
    ] == [
        *(3, -2, 0.5, True, False, "nan", "x", "1e999"),
        pytest.approx(1e30),
        "1e300",
    ]
    for bad, message in (
        ({"nodots": 1}, "no metadata key"),
        ({"a b.c": 1}, "no metadata key"),
        ({"general.alignment": 64}, "is set by what is written"),
        ({"a.b": 2**64}, "does not fit 64 bits"),
        ({"a.b": 1e300}, "does not fit 32 bits"),
        ({"a.b": [1]}, "is a list"),
        ({"a.b": "\ud800"}, "not Unicode"),
    ):
        with pytest.raises(requant.ConfigError, match=message):
            file_metadata("n", "onnx", {}, bad, "q4_k")  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_with_their_place(bad: float, model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    broken = W1.copy()
    broken[5, 7] = bad
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "first.weight"))
    with pytest.raises(requant.DataError, match=r"'first.weight' holds (nan|inf) at index \(7, 5\)"):
        requant.export_gguf(proto, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_be_exported(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()
    with pytest.raises(requant.OutputError, match="would overwrite"):
        requant.export_gguf(model, model)
    assert model.read_bytes() == before
    with pytest.raises(requant.ConfigError, match="unknown GGUF type 'q4'"):
        requant.export_gguf(model, tmp_path / "out.gguf", "q4")
    save_file({"a": W1}, tmp_path / "model.safetensors")
    with pytest.raises(requant.ConfigError, match="no graph to run data through"):
        requant.export_gguf(tmp_path / "model.safetensors", tmp_path / "out.gguf", data={"x": SAMPLES})
    save_file({"ids": np.arange(3)}, tmp_path / "ids.safetensors")
    with pytest.raises(requant.ModelError, match="holds no weights"):
        requant.export_gguf(tmp_path / "ids.safetensors", tmp_path / "out.gguf")
    quantized = requant.quantize(model, {"x": SAMPLES})
    quantized.save(tmp_path / "int8.onnx")
    with pytest.raises(requant.ModelError, match="is quantized already"):
        requant.export_gguf(tmp_path / "int8.onnx", tmp_path / "out.gguf")
    requant.export_gguf(model, tmp_path / "done.gguf")
    with pytest.raises(requant.ConfigError, match="is a GGUF file already"):
        requant.export_gguf(tmp_path / "done.gguf", tmp_path / "out.gguf")
    with pytest.raises(requant.ConfigError, match=r"expected .npz or .safetensors"):
        requant.unpack_gguf(tmp_path / "done.gguf", tmp_path / "out.txt")
    assert not (tmp_path / "out.gguf").exists()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(requant.MissingDependencyError, match=r"pip install 'requant\[gguf\]'"):
        requant.export_gguf(model, tmp_path / "out.gguf")


def test_what_does_not_read_back_is_not_kept(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.gguf"
    path.write_bytes(b"before")
    original = gguf.GGUFWriter.write_tensor_data

    def damaged(self: Any, tensor: np.ndarray, *rest: Any) -> None:
        original(self, tensor ^ np.uint8(1), *rest)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", damaged)
    with pytest.raises(requant.VerificationError, match="read back otherwise"):
        requant.export_gguf(model, path)
    assert path.read_bytes() == b"before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "tiny.onnx"]


def test_long_names_are_told(tmp_path: Path) -> None:
    save_file({"x" * 64: W1}, tmp_path / "model.safetensors")
    result = requant.export_gguf(tmp_path / "model.safetensors", tmp_path / "out.gguf")
    assert any("longer than the 63 bytes" in note for note in result.notes)
    assert any("no architecture is known" in note for note in result.notes)
