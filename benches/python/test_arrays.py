"""Array functions and statistics beside NumPy and onnxruntime on the same arrays (``make bench-python``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import requant
from requant import ops

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BINS = 2048
SIZES = {"64Ki": 1 << 16, "16Mi": 1 << 24}


@pytest.fixture(params=SIZES, scope="module")
def x(request: pytest.FixtureRequest) -> NDArray[np.float32]:
    """Normal values; the larger size does not fit any cache."""
    return np.random.default_rng(0).normal(size=SIZES[request.param]).astype(np.float32)


def onnxruntime_op(op_type: str, x: NDArray[np.float32]) -> Callable[[], Any]:
    """A session of one Quantize- or DequantizeLinear node on one thread, ready to run on ``x``."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    quantized = op_type == "DequantizeLinear"
    kinds = (TensorProto.FLOAT, TensorProto.UINT8)[:: -1 if quantized else 1]
    parameters = [numpy_helper.from_array(np.float32(0.03), "s"), numpy_helper.from_array(np.uint8(128), "z")]
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "s", "z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kinds[0], ["n"])],
        [helper.make_tensor_value_info("y", kinds[1], ["n"])],
        parameters,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": np.random.default_rng(1).integers(0, 255, x.shape, np.uint8) if quantized else x}
    return lambda: session.run(None, feeds)


def params() -> requant.QuantParams:
    """Per-tensor uint8 parameters for a standard normal."""
    return ops.compute_params(-3.84, 3.81, requant.QuantScheme(requant.QuantType.UINT8))


@pytest.mark.benchmark(group="statistics")
def test_statistics_requant(benchmark: Any, x: NDArray[np.float32]) -> None:
    seen = ops.TensorStatistics()
    benchmark(seen.observe, x)


@pytest.mark.benchmark(group="statistics")
def test_histogram_numpy(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark.pedantic(np.histogram, (x, BINS), rounds=3, warmup_rounds=1)


@pytest.mark.benchmark(group="statistics")
def test_read_numpy(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(x.max)


@pytest.mark.benchmark(group="quantize")
def test_quantize_requant(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(ops.quantize_array, x, params())


@pytest.mark.benchmark(group="quantize")
def test_quantize_onnxruntime(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(onnxruntime_op("QuantizeLinear", x))


@pytest.mark.benchmark(group="quantize")
def test_quantize_numpy(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(lambda: np.clip(np.rint(x / np.float32(0.03)) + 128, 0, 255).astype(np.uint8))


@pytest.mark.benchmark(group="dequantize")
def test_dequantize_requant(benchmark: Any, x: NDArray[np.float32]) -> None:
    quantized = ops.quantize_array(x, params())
    benchmark(ops.dequantize_array, quantized)


@pytest.mark.benchmark(group="dequantize")
def test_dequantize_onnxruntime(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(onnxruntime_op("DequantizeLinear", x))


@pytest.mark.benchmark(group="search")
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("method", ops.CALIBRATION_METHODS)
def test_range_requant(benchmark: Any, method: str, symmetric: bool) -> None:
    seen = ops.TensorStatistics()
    seen.observe(np.random.default_rng(0).normal(size=1 << 20).astype(np.float32))
    benchmark(seen.range, method, "uint8", symmetric, 99.99)


@pytest.mark.benchmark(group="search")
def test_entropy_onnxruntime(benchmark: Any) -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    counts, edges = np.histogram(values, BINS)
    threshold = float(np.abs(values).max())
    collector = HistogramCollector("entropy", False, BINS, 128, 99.99, "same")
    histogram = (counts, edges, float(values.min()), float(values.max()), threshold)
    benchmark.pedantic(collector.get_entropy_threshold, (histogram, 128), rounds=2)
