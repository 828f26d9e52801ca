"""A quantized model beside its float model, with figures computed by hand."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from tests.models import MODELS, Array, Net, conv_relu, run, samples, two_gemm

import requant
from requant.errors import ConfigError, DataError, RequantError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


def fetch(model: bytes, name: str, feeds: dict[str, Array]) -> Array:
    proto = onnx.load_from_string(model)
    del proto.graph.output[:]
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    return run(proto, feeds)[0].astype(np.float64)


@pytest.mark.parametrize("name", ["residual", "pool_chain", "silu", "mlp", "split"])
def test_every_figure_is_that_of_the_tensors(name: str) -> None:
    model, feeds = MODELS[name](), samples(MODELS[name](), 64)
    quantized = requant.quantize(model, feeds, threads=1, smooth="none").data
    found = requant.compare(model, quantized, feeds, measure=False, threads=2)
    assert found.samples == 64
    assert found.tensors
    assert [out.name for out in found.outputs] == [out.name for out in model.graph.output]
    for tensor in found.tensors:
        wanted = (
            fetch(model.SerializeToString(), tensor.name, feeds) if tensor.name not in feeds else feeds[tensor.name]
        )
        got = fetch(quantized, tensor.stand_in, feeds)
        noise = np.sum((wanted - got) ** 2)
        if tensor.sqnr_db is None:
            assert noise == 0
            continue
        assert tensor.sqnr_db == pytest.approx(10 * np.log10(np.sum(wanted.astype(np.float64) ** 2) / noise), abs=0.01)
        assert tensor.max_error == pytest.approx(np.abs(wanted - got).max(), rel=1e-4)
        assert tensor.sqnr_db > 15
    assert {t.name for t in found.tensors if t.clipped is not None}
    assert found.worst[0].sqnr_db == min(t.sqnr_db for t in found.tensors if t.sqnr_db is not None)


def test_the_clip_share_counts_what_saturates() -> None:
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    rules = [{"match": "x", "range": [-1.0, 1.55]}]
    quantized = requant.quantize(model, x, rules=rules, threads=1).data
    found = requant.compare(model, quantized, x, measure=False)
    share = np.mean((x < -1.005) | (x > 1.555))
    assert share > 0.1
    assert {t.name: t.clipped for t in found.tensors}["x"] == pytest.approx(share)


def test_a_model_equals_itself(digits: Path) -> None:
    found = requant.compare(digits / "digits.onnx", digits / "digits.onnx", digits / "calib.npz", measure=False)
    assert all(t.sqnr_db is None and t.max_error == 0 and t.clipped is None for t in found.tensors)
    assert [(o.sqnr_db, o.max_error) for o in found.outputs] == [(None, 0)]
    assert found.timings == ()
    assert found.float_memory is None


def test_speed_and_memory_are_told(digits: Path) -> None:
    quantized = requant.quantize(digits / "digits.onnx", digits / "calib.npz", threads=1).data
    found = requant.compare(digits / "digits.onnx", quantized, digits / "calib.npz", threads=2, batch_sizes=(1, 4))
    expected = {(t, b) for t in {1, requant.QuantConfig(threads=2).cores} for b in (1, 4)}
    assert {(t.threads, t.batch_size) for t in found.timings} == expected
    for t in found.timings:
        for speed in (t.in_float, t.quantized):
            assert 0 < speed.p50_ms <= speed.p95_ms
            assert speed.per_second > 0
        assert t.speedup == t.in_float.p50_ms / t.quantized.p50_ms
    assert found.float_memory
    assert found.quantized_memory
    assert found.quantized_bytes == len(quantized) < found.float_bytes
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert len(document["worst"]) == 10


def test_namesakes_of_another_shape_are_left_out() -> None:
    def model(rows: int) -> onnx.ModelProto:
        net = Net()
        h = net.op("Tile", net.input("x", ["n", 8]), net.const(np.array([1, rows])), output="h")
        return net.model(net.op("ReduceMean", h, axes=[1], output="y"))

    found = requant.compare(model(1), model(2), samples(model(1)), measure=False)
    assert found.tensors == ()
    assert len(found.outputs) == 1


def refuses(kind: type[RequantError], match: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        requant.compare(*arguments, **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_what_cannot_be_compared_is_refused() -> None:
    model, x = two_gemm(), samples(two_gemm())["x"]
    other = conv_relu()
    other.graph.input[0].name = other.graph.node[0].input[0] = "image"
    refuses(DataError, "has the inputs x, .* has image", model, other, x)
    refuses(DataError, "no samples", model, model, x[:0])
    refuses(ConfigError, r"batch sizes are \[0\]", model, model, x, batch_sizes=(0,))
    refuses(ConfigError, "threads is -2", model, model, x, threads=-2)


@pytest.mark.parametrize("tokens", [1, 6])
def test_a_language_model_is_told_about_by_token(tokens: int) -> None:
    net = Net()
    ids = net.input("input_ids", ["n", tokens], onnx.TensorProto.INT64)
    hidden = net.op("Gather", net.normal(11, 16), ids)
    model = net.model(net.op("MatMul", hidden, net.normal(16, 11), output="logits"))
    feeds = {"input_ids": np.random.default_rng(3).integers(0, 11, (40, tokens))}
    quantized = requant.quantize(model, feeds).data
    found = requant.compare(model, quantized, feeds, threads=1, batch_sizes=[1])
    p, q = (run(each, feeds)[0].astype(np.float64).reshape(-1, 11) for each in (model, quantized))
    divergences = []
    for a, b in zip(p, q, strict=True):
        shares = zip(np.exp(a) / np.exp(a).sum(), np.exp(b) / np.exp(b).sum(), strict=True)
        divergences.append(sum(x * np.log(x / y) for x, y in shares))
    language = found.language
    assert language is not None
    assert language.tokens == tokens
    assert language.kl == pytest.approx(np.mean(divergences), rel=1e-3)
    assert language.kl99 == pytest.approx(np.percentile(divergences, 99), rel=1e-3)
    pass_ms = (found.timings[0].in_float.p50_ms, found.timings[0].quantized.p50_ms)
    assert language.first_token_ms == (pass_ms if tokens > 1 else ())
    assert language.token_ms == pass_ms
    assert any("nats" in text for _, text in found.language_rows())
    assert requant.compare(model, quantized, feeds, measure=False).language is not None


def test_other_models_are_not_told_about_by_token() -> None:
    model = two_gemm()
    feeds = samples(model, 16)
    assert requant.compare(model, requant.quantize(model, feeds).data, feeds, measure=False).language is None
