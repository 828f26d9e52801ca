"""Every trial is what quantizing with that node alone in integers, or in float, gives."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import MODELS, Net, run, samples, two_gemm

import requant
from requant.building import repair
from requant.errors import ConfigError, DataError, ModelError, RequantError
from requant.search.ablation import block_name

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


def sqnr(model: Any, data: Any, **options: Any) -> list[float | None]:
    return [out.sqnr_db for out in requant.quantize(model, data, threads=1, **options).report.outputs]


@pytest.mark.parametrize("name", ["residual", "silu", "mlp", "two_gemm", "concat"])
def test_trials_are_what_include_and_exclude_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "clearly_more", lambda *_: False)  # it is asked of each model, but once for all trials
    model, data = MODELS[name](), samples(MODELS[name](), 64)
    found = requant.sensitivity(model, data, threads=2)
    assert [found.quantized.sqnr_db] == pytest.approx(sqnr(model, data))
    for part in found.parts:
        try:
            expected = sqnr(model, data, exclude=part.nodes)
        except ModelError:  # nothing is left
            expected = [None]
        assert [part.in_float.sqnr_db] == pytest.approx(expected)
        if part.in_integers is None:
            with pytest.raises(ModelError, match="nothing in model can be quantized"):
                requant.quantize(model, data, include=part.nodes)
            continue
        assert [part.in_integers.sqnr_db] == pytest.approx(sqnr(model, data, include=part.nodes))
        assert part.noise == pytest.approx(10 ** (-(part.in_integers.sqnr_db or np.inf) / 10))


def outlier() -> Any:
    """Two equal layers; the second reads one huge value beside many small ones."""
    net = Net()
    x = net.input("x", ["n", 8])
    h = net.gemm(x, 8, 16, name="good/gemm")
    h = net.op("Mul", h, net.const(np.where(np.arange(16) == 0, 1000.0, 1.0)), name="scale")
    w = net.const(np.where(np.arange(16)[:, None] == 0, 1e-3, 1.0) * net.rng.standard_normal((16, 4)))
    return net.model(net.op("MatMul", h, w, name="bad/matmul", output="y"))


def test_the_layer_that_hurts_comes_first() -> None:
    found = requant.sensitivity(outlier(), samples(outlier(), 64), threads=1, smooth="none")
    assert found.parts[0].name == "bad/matmul"
    assert found.parts[0].noise > 20 * found.parts[1].noise
    assert found.parts[0].in_float.noise < 0.1 * found.quantized.noise
    noises = [part.noise for part in found.parts]
    assert noises == sorted(noises, reverse=True)


def test_blocks_go_together() -> None:
    model, data = outlier(), samples(outlier(), 64)
    found = requant.sensitivity(model, data, depth=1, threads=1)
    assert {part.name: set(part.nodes) for part in found.parts}["bad"] == {"bad/matmul"}
    assert {part.name for part in found.parts} >= {"good", "bad"}


@pytest.mark.parametrize(
    ("name", "depth", "block"),
    [
        ("/layer.3/proj/MatMul", 1, "layer"),
        ("/layer.3/proj/MatMul", 2, "layer.3"),
        ("/layer.3/proj/MatMul", 9, "layer.3/proj/MatMul"),
        ("Conv_0", 1, "Conv_0"),
        ("", 1, ""),
        ("//", 1, "//"),
    ],
)
def test_blocks_are_named_by_the_first_parts(name: str, depth: int, block: str) -> None:
    assert block_name(name, depth) == block


def test_a_metric_is_taken_of_every_trial(digits: Path) -> None:
    found = requant.sensitivity(
        digits / "digits.onnx", digits / "calib.npz", evaluation=digits / "eval.npz", depth=1, threads=2
    )
    assert found.metric == "top1"
    assert found.float_value == 0.99
    part = found.parts[0]
    options: dict[str, Any] = {"evaluation": digits / "eval.npz", "threads": 1, "exclude": part.nodes}
    report = requant.quantize(digits / "digits.onnx", digits / "calib.npz", **options).report
    assert report.accuracy is not None
    assert part.in_float.value == report.accuracy.quantized_value
    assert all(part.in_float.value is not None for part in found.parts)


def test_a_metric_against_the_float_model() -> None:
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    found = requant.sensitivity(model, x, evaluation=x, metric="cosine", threads=1)
    quantized = requant.quantize(model, x, threads=1).data
    wanted, got = (run(m, {"x": x})[0].astype(np.float64) for m in (model, quantized))
    cosine = np.sum(wanted * got) / np.linalg.norm(wanted) / np.linalg.norm(got)
    assert found.quantized.value == pytest.approx(cosine)
    assert found.float_value == pytest.approx(1)


def test_a_metric_that_is_not_finite_is_no_figure() -> None:
    model, x = two_gemm(), samples(two_gemm(), 16)["x"]
    found = requant.sensitivity(model, x, evaluation=x, metric=lambda *_: np.nan, threads=1)
    assert found.quantized.value is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_threads_and_tables_change_nothing(digits: Path) -> None:
    model, data = digits / "digits.onnx", digits / "calib.npz"
    table = requant.calibrate(model, data, threads=1)
    one, two, three = (
        requant.sensitivity(model, data, **options)
        for options in ({"threads": 1}, {"threads": 2}, {"threads": 2, "table": table})
    )
    assert one.parts == two.parts == three.parts


def test_the_picture_names_every_part() -> None:
    found = requant.sensitivity(outlier(), samples(outlier(), 64), threads=1)
    picture = found.to_svg()
    assert all(part.name in picture for part in found.parts)
    assert all(part.name in found._repr_html_() for part in found.parts)


def test_samples_may_come_from_a_generator() -> None:
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    found = requant.sensitivity(model, (row[np.newaxis] for row in x), threads=1)
    assert found.parts == requant.sensitivity(model, x, threads=1).parts
    assert found.samples == 8


def test_progress_counts_trials() -> None:
    seen: list[tuple[int, int | None]] = []
    model, data = two_gemm(), samples(two_gemm(), 16)
    found = requant.sensitivity(model, data, search_progress=lambda *step: seen.append(step), threads=1)
    total = 1 + 2 * len(found.parts)
    assert seen == [(done, total) for done in range(1, total + 1)]


def refuses(kind: type[RequantError], match: str, model: Any, data: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        requant.sensitivity(model, data, **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_bad_input_is_refused(digits: Path) -> None:
    model, x = two_gemm(), samples(two_gemm(), 16)["x"]
    refuses(ConfigError, "depth is 0", model, x, depth=0)
    refuses(ConfigError, "dynamic quantization calibrates none", model, x, dynamic=True)
    refuses(ConfigError, "optimize is latency, and trials say themselves", model, x, optimize="latency")
    refuses(ConfigError, "unknown metric 'top7'", model, x, evaluation=x, metric="top7")
    refuses(DataError, "has no labels, and top1 needs them", model, x, evaluation=x)
    refuses(DataError, "no samples", model, x[:0])
    refuses(ConfigError, "did you mean 'method'", model, x, methd="mse")


def test_an_interrupt_ends_every_trial(digits: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    before, start = threading.active_count(), time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        requant.sensitivity(digits / "digits.onnx", digits / "calib.npz", search_progress=interrupt)
    while threading.active_count() > before and time.perf_counter() - start < 10:
        time.sleep(0.01)
    assert threading.active_count() == before
