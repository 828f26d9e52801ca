"""What cannot be quantized is refused, with what was found and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import Net, conv_relu, samples, two_gemm

import requant
from requant.errors import (
    CalibrationError,
    ConfigError,
    DataError,
    ModelError,
    RequantError,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


def refuses(kind: type[RequantError], match: str, model: Any, data: Any = None, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        requant.quantize(model, data, **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_no_data_is_refused() -> None:
    refuses(DataError, "needs calibration data, and none was given\nhelp: pass samples", two_gemm())
    refuses(DataError, "no samples", two_gemm(), [])
    refuses(DataError, "no samples", two_gemm(), iter(()))
    refuses(DataError, "no samples", two_gemm(), np.zeros((0, 8), np.float32))


def test_arguments_of_other_types_are_refused_by_name() -> None:
    model, x = two_gemm(), samples(two_gemm(), 8)
    made = requant.quantize(model, x, threads=1)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("expected config as a QuantConfig or its options by name, got str", {"config": "mse"}),
        ("expected data_options as DataOptions, got dict", {"data_options": {"samples": 3}}),
        ("expected a CalibrationTable, .* got str", {"table": "table.json"}),
        ("expected an executor with submit, .* got int", {"executor": 3}),
        (
            "expected a model as a path, bytes, ModelProto or onnx_ir.Model, got QuantizedModel; give its .data",
            {"model": made},
        ),
    ]
    for match, options in wrong:
        with pytest.raises(TypeError, match=match):
            requant.quantize(**{"model": model, "data": x, "threads": 1, **options})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_sample_that_is_not_finite_is_named(bad: float) -> None:
    x = samples(two_gemm(), 16)["x"]
    x[5, 3] = bad
    refuses(DataError, r"sample 5\b", two_gemm(), x)


def test_wrong_names_shapes_and_types_are_told() -> None:
    x = samples(two_gemm(), 16)["x"]
    refuses(DataError, "'X'|'x'", two_gemm(), {"X": x})
    refuses(DataError, "expected", two_gemm(), x[:, :5])
    refuses(DataError, "expected", two_gemm(), x.astype(np.complex64))
    refuses(DataError, "expected", conv_relu(), samples(conv_relu(), 8)["x"].transpose(0, 2, 3, 1))


def test_bad_options_are_refused_before_any_work() -> None:
    refuses(ConfigError, "did you mean 'method'", "nowhere.onnx", None, methd="mse")


def test_a_model_that_is_quantized_already_is_refused() -> None:
    result = requant.quantize(two_gemm(), samples(two_gemm(), 8), threads=1)
    refuses(
        ModelError, "quantized already: it holds DequantizeLinear, QuantizeLinear", result.data, samples(two_gemm())
    )
    assert requant.inspect(result.data).quantized_ops == ("DequantizeLinear", "QuantizeLinear")


def test_a_model_with_nothing_to_quantize_is_refused() -> None:
    net = Net()
    model = net.model(net.op("Erf", net.input("x", ["n", 4])))
    refuses(ModelError, "nothing in model can be quantized: 1 Erf .Erf has no integer form here", model, samples(model))


def test_a_model_without_weights_for_blocks_is_refused_with_another_way() -> None:
    net = Net()
    model = net.model(net.op("Relu", net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)))
    with pytest.raises(ModelError, match=r"1 Conv \(Conv has no form with weights in blocks\), 1 Relu .*") as caught:
        requant.quantize(model, weight_only="int4")
    assert "leave out weight_only" in str(caught.value.hint)


def test_a_model_of_other_operators_alone_is_refused_by_their_domain() -> None:
    net = Net()
    model = net.model(net.op("Relu", net.input("x", ["n", 4])))
    del model.opset_import[:]
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    refuses(ModelError, "no version of the standard operators, only of ai.onnx.ml", model, samples(model))


def test_a_weight_that_is_not_finite_is_refused() -> None:
    net = Net()
    w = np.ones((4, 4))
    w[1, 2] = np.nan
    model = net.model(net.op("MatMul", net.op("Relu", net.input("x", ["n", 4])), net.const(w, "w")))
    refuses(RequantError, "'w'|'x'", model, samples(model))


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    requant.calibrate(two_gemm(), samples(two_gemm())).save(tmp_path / "t.json")
    table = requant.CalibrationTable.load(tmp_path / "t.json")
    refuses(CalibrationError, "belongs to another model", conv_relu(), table=table)


def test_a_table_without_data_serves_any_shape_of_input() -> None:
    """Sizes that a model leaves open, as names or as -1, are of no matter where nothing but the table is given."""
    model = two_gemm()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    table = requant.calibrate(model, samples(two_gemm()), threads=1)
    assert requant.quantize(model, table=table, threads=1).data
