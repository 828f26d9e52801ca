"""A model on the edge: integers in, integers out, verified before it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import MODELS, Net, conv_relu, run, samples, session

import requant
import requant.editing
from requant.onnx.editing import integer_input

if TYPE_CHECKING:
    from pathlib import Path

    from requant.onnx.boundary import Boundary, Wanted
    from requant.onnx.graph import Graph

pytestmark = pytest.mark.usefixtures("quick_latency")


@pytest.fixture(scope="module")
def small() -> bytes:
    return requant.quantize(conv_relu(), samples(conv_relu(), 16), threads=1).data


def test_an_editor_says_what_has_become_integer(small: bytes) -> None:
    editor = requant.ModelEditor(small)
    assert repr(editor) == "ModelEditor(model)"
    name = requant.inspect(small).inputs[0].name
    editor.convert_input_type(name, "uint8")
    assert repr(editor) == f"ModelEditor(model; input {name}: uint8)"


def test_raw_pixels_in_and_integer_scores_out_keep_the_accuracy(digits: Path, tmp_path: Path) -> None:
    result = requant.quantize(digits / "digits.onnx", digits / "calib.npz", threads=1)
    result.save(tmp_path / "q.onnx")
    editor = requant.ModelEditor(tmp_path / "q.onnx")
    image = editor.convert_input_type("image", "uint8", mean=0.0)
    scores = editor.convert_output_type("logits", "int8", (-24, 24))
    assert editor.boundaries == (image, scores)
    edited = editor.save(tmp_path / "edge.onnx")
    assert (tmp_path / "edge.onnx").read_bytes() == edited.data
    assert edited.differences is not None
    assert edited.differences["logits"] <= 1
    with np.load(digits / "eval.npz") as data:
        images, labels = data["image"], data["labels"]
    pixels = np.rint(images * 255).astype(np.uint8)
    runtime = session(edited.data)
    (got,) = runtime.run(None, {"image": pixels})
    assert got.dtype == np.int8
    assert np.mean(got.argmax(axis=1) == labels) >= 0.98
    # The file alone tells a service what the integers mean.
    said = json.loads(runtime.get_modelmeta().custom_metadata_map["requant.output.logits"])
    reals = (got.astype(np.float32) - said["zero_point"]) * np.float32(said["scale"])
    np.testing.assert_array_equal(reals, scores.dequantize(got))
    (float_logits,) = run(result.data, {"image": image.dequantize(pixels)})
    assert np.abs(reals - np.clip(float_logits, -24, 24)).max() <= scores.scale


@pytest.mark.parametrize("last", [False, True])
def test_a_layer_that_stays_float_stays_so_behind_an_integer_input(*, last: bool) -> None:
    """Behind a DequantizeLinear with one scale onnxruntime would make the float layer integer."""
    net = Net()
    x = net.input("x", ["n", 8, 8, 3] if last else ["n", 3, 8, 8])
    x = net.op("Transpose", x, perm=[0, 3, 1, 2]) if last else x
    model = net.model(net.conv(net.op("Relu", net.conv(x, 3, 8, name="stem")), 8, 4))
    quantized = requant.quantize(model, samples(model, 8), exclude="stem", threads=1)
    editor = requant.ModelEditor(quantized.data)
    with pytest.raises(requant.ConfigError, match="no scale follows"):
        editor.convert_input_type("x", "uint8")
    editor.convert_input_type("x", "uint8", scale=0.02, zero_point=128)
    assert editor.finish().differences == {model.graph.output[0].name: 0.0}


def test_a_refused_conversion_changes_nothing(small: bytes) -> None:
    editor = requant.ModelEditor(small)
    with pytest.raises(requant.ConfigError, match="nothing was converted"):
        editor.finish()
    editor.convert_input_type("x", np.uint8)
    before = editor.finish()
    for name, dtype, scale in (("x", "int8", None), ("z", "int8", None), ("x", "float16", None), ("y", "int8", -1.0)):
        with pytest.raises(requant.ConfigError):
            editor.convert_input_type(name, dtype, scale=scale)
        with pytest.raises(requant.ConfigError):
            editor.convert_output_type(name, dtype, scale=scale)
    assert editor.finish().data == before.data
    assert editor.finish().to_dict() == before.to_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"range": (-1, 1), "scale": 0.1}, "one or the other"),
        ({"zero_point": 3}, "without a scale"),
        ({"scale": 1e-45}, "positive, normal float32"),
        ({"scale": float("inf")}, "positive, normal float32"),
        ({"scale": 0.1, "zero_point": 128}, "-128..127"),
        ({"range": (1, -1)}, "range"),
        ({"range": (float("nan"), 1)}, "range"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(small: bytes, options: dict[str, Any], words: str) -> None:
    with pytest.raises(requant.RequantError) as refusal:
        requant.ModelEditor(small).convert_output_type("y", "int8", **options)
    assert words in str(refusal.value)
    assert refusal.value.exit_status == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean": [0.1, 0.2]}, "mean and std have 2 values"),
        ({"std": 0.0}, "std is 0"),
        ({"std": 1e-60}, "std is 1e-60"),
        ({"mean": float("inf")}, "mean is inf"),
        ({"mean": 1e300}, "mean is 1e+300"),
    ],
)
def test_normalisations_that_mean_nothing_are_refused(small: bytes, options: dict[str, Any], words: str) -> None:
    with pytest.raises(requant.ConfigError) as refusal:
        requant.ModelEditor(small).convert_input_type("x", "uint8", **options)
    assert words in str(refusal.value)


def test_float_models_are_refused() -> None:
    with pytest.raises(requant.ModelError, match="is not quantized"):
        requant.ModelEditor(conv_relu())


def test_the_model_it_was_made_from_is_never_overwritten(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    path.write_bytes(small)
    editor = requant.ModelEditor(path)
    editor.convert_input_type("x", "uint8")
    with pytest.raises(requant.OutputError, match="would overwrite"):
        editor.save(path)
    with pytest.raises(requant.OutputError, match="would overwrite"):
        editor.finish().save(path)
    assert path.read_bytes() == small


def test_a_model_that_is_not_what_it_was_is_not_written(
    small: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks the surgery: the integers are shifted by one too few."""

    def broken(graph: Graph, name: str, wanted: Wanted) -> tuple[Graph, Boundary]:
        edited, boundary = integer_input(graph, name, wanted)
        return edited, replace(boundary, zero_point=boundary.zero_point + 1)

    monkeypatch.setattr(requant.editing, "integer_input", broken)
    editor = requant.ModelEditor(small)
    editor.convert_input_type("x", "int8")
    with pytest.raises(requant.VerificationError, match="'y' of the edited model"):
        editor.save(tmp_path / "out.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_runs_on_no_guessed_shape_is_loaded_at_least() -> None:
    net = Net()
    x = net.input("x", ["n", 4])
    scale, zero = net.const(0.1), net.const(np.uint8(7))
    real = net.op("DequantizeLinear", net.op("QuantizeLinear", x, scale, zero), scale, zero)
    model = net.model(net.op("Reshape", real, net.const(np.array([2, 4], np.int64)), output="y"))
    editor = requant.ModelEditor(model)
    editor.convert_input_type("x", "uint8")
    edited = editor.finish()
    assert edited.differences is None
    assert "were not compared" in edited.findings()[0]


def test_findings_are_in_steps_or_shares() -> None:
    model = requant.quantize(MODELS["split"](), samples(MODELS["split"](), 16), threads=1).data
    editor = requant.ModelEditor(model)
    editor.convert_output_type("y0", "uint8")
    assert editor.finish().findings() == [
        "output y0: equal to the model as it was on random inputs",
        "output y1: equal to the model as it was on random inputs",
    ]
    assert (
        onnx.load_from_string(editor.finish().data).graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    )
