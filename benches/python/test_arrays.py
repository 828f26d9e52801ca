"""Array functions and statistics beside NumPy and onnxruntime on the same arrays (``make bench-python``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import requant
from requant import ops
from requant.arrays import affine, packing

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
    return affine.compute_params(-3.84, 3.81, requant.QuantScheme(requant.QuantType.UINT8))


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


RANGES = {
    "tensor": (requant.PerTensor(), None),
    "channel 0": (requant.PerChannel(0), (1,)),
    "channel 1": (requant.PerChannel(1), (0,)),
    "token": (requant.PerToken(), (-1,)),
}


@pytest.mark.benchmark(group="min/max 1 Mi")
@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("who", ["requant", "numpy"])
def test_extremes(benchmark: Any, who: str, name: str) -> None:
    values = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    granularity, axes = RANGES[name]
    scheme = requant.QuantScheme(requant.QuantType.UINT8, granularity=granularity)
    if who == "requant":
        benchmark(affine.params_from_data, values, scheme)
    else:
        benchmark(lambda: (values.min(axis=axes), values.max(axis=axes)))


@pytest.mark.benchmark(group="quantize")
def test_quantize_requant(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(affine.quantize_array, x, params(), threads=1)


@pytest.mark.benchmark(group="quantize")
def test_quantize_requant_out(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(affine.quantize_array, x, params(), threads=1, out=np.empty(x.shape, np.uint8))


@pytest.mark.benchmark(group="quantize")
def test_quantize_onnxruntime(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(onnxruntime_op("QuantizeLinear", x))


@pytest.mark.benchmark(group="quantize")
def test_quantize_numpy(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(lambda: np.clip(np.rint(x / np.float32(0.03)) + 128, 0, 255).astype(np.uint8))


@pytest.mark.benchmark(group="dequantize")
def test_dequantize_requant(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(affine.dequantize_array, affine.quantize_array(x, params()), threads=1)


@pytest.mark.benchmark(group="dequantize")
def test_dequantize_requant_out(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(affine.dequantize_array, affine.quantize_array(x, params()), threads=1, out=np.empty_like(x))


@pytest.mark.benchmark(group="dequantize")
def test_dequantize_onnxruntime(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(onnxruntime_op("DequantizeLinear", x))


@pytest.mark.benchmark(group="fake-quantize")
def test_fake_quantize_requant(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(affine.fake_quantize_array, x, params(), threads=1)


@pytest.mark.benchmark(group="fake-quantize")
def test_fake_quantize_requant_out(benchmark: Any, x: NDArray[np.float32]) -> None:
    benchmark(affine.fake_quantize_array, x, params(), threads=1, out=np.empty_like(x))


@pytest.mark.benchmark(group="fake-quantize")
def test_fake_quantize_numpy(benchmark: Any, x: NDArray[np.float32]) -> None:
    scale, zero_point = np.float32(0.03), np.float32(128)
    benchmark(lambda: (np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale)


@pytest.fixture
def nibbles(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 16, x.shape, np.uint8)


@pytest.mark.benchmark(group="pack")
def test_pack_requant(benchmark: Any, nibbles: NDArray[np.uint8]) -> None:
    benchmark(packing.pack_int4, nibbles)


@pytest.mark.benchmark(group="pack")
def test_pack_onnx(benchmark: Any, nibbles: NDArray[np.uint8]) -> None:
    from onnx import numpy_helper

    benchmark(numpy_helper._pack_4bitx2, nibbles)  # noqa: SLF001 - the public way converts element types first


@pytest.mark.benchmark(group="unpack")
def test_unpack_requant(benchmark: Any, nibbles: NDArray[np.uint8]) -> None:
    benchmark(packing.unpack_int4, packing.pack_int4(nibbles), nibbles.shape, requant.QuantType.UINT4)


@pytest.mark.benchmark(group="unpack")
def test_unpack_onnx(benchmark: Any, nibbles: NDArray[np.uint8]) -> None:
    from onnx import numpy_helper

    benchmark(numpy_helper._unpack_4bit, packing.pack_int4(nibbles), nibbles.shape)  # noqa: SLF001


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
