"""Measuring models on data sets, beside figures computed by hand."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from tests.models import Array, Net, run, samples, two_gemm

import requant
from requant.errors import ConfigError, DataError, RequantError, VerificationError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("quick_latency")


def language_model() -> onnx.ModelProto:
    net = Net()
    ids = net.input("ids", ["n", "t"], TensorProto.INT64)
    hidden = net.op("Gather", net.normal(11, 8), ids)
    return net.model(net.op("MatMul", hidden, net.normal(8, 11), output="logits"))


def peak(outputs: dict[str, Array], labels: Array | None) -> float:
    return float(max(np.abs(x).max() for x in outputs.values()))


def test_accuracy_is_that_of_argmax(digits: Path) -> None:
    with np.load(digits / "eval.npz") as data:
        images, labels = data["image"], data["labels"]
    right = run(onnx.load(digits / "digits.onnx"), {"image": images})[0].argmax(axis=1) == labels
    seen: list[tuple[int, int | None]] = []
    found = requant.evaluate(
        digits / "digits.onnx", digits / "eval.npz", threads=1, progress=lambda *step: seen.append(step)
    )
    assert found.value == right.mean() == 0.99
    assert (found.metric, found.samples, found.against, found.float_value, found.kept) == (
        "top1",
        500,
        "labels",
        None,
        None,
    )
    assert seen[-1] == (500, 500)
    assert json.loads(json.dumps(found.to_dict()))["schema"] == 1


def test_a_quantized_model_is_told_beside_its_float_model() -> None:
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    quantized = requant.quantize(model, x, threads=1).data
    wanted, got = run(model, {"x": x})[0].astype(np.float64), run(quantized, {"x": x})[0].astype(np.float64)
    for metric, figure in (
        ("mae", np.mean(np.abs(got - wanted))),
        ("mse", np.mean((got - wanted) ** 2)),
        ("cosine", np.sum(got * wanted) / np.linalg.norm(got) / np.linalg.norm(wanted)),
    ):
        found = requant.evaluate(quantized, x, metric=metric, float_model=model, threads=1)
        assert found.value == pytest.approx(figure, rel=1e-6)
        assert (found.against, found.float_value) == ("float model", None)
    labels = np.arange(64) % 4
    found = requant.evaluate(quantized, {"x": x, "mine": labels}, labels="mine", float_model=model, threads=1)
    assert found.float_value == np.mean(wanted.argmax(axis=1) == labels)
    assert found.value == np.mean(got.argmax(axis=1) == labels)
    assert found.kept == found.value / np.mean(wanted.argmax(axis=1) == labels)


def test_threads_and_batches_do_not_change_a_figure(digits: Path) -> None:
    for metric in ("top1", peak):
        values = {
            requant.evaluate(
                digits / "digits.onnx",
                digits / "eval.npz",
                metric=metric,
                threads=threads,
                data_options=requant.DataOptions(batch_size=batch),
            ).value
            for threads, batch in ((1, 8), (2, 8), (0, 8))
        }
        assert len(values) == 1


def test_the_perplexity_of_a_language_model() -> None:
    model, ids = language_model(), np.random.default_rng(0).integers(0, 11, (9, 6))
    logits = run(model, {"ids": ids})[0].astype(np.float64)
    chance = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    surprise = [-np.log(chance[b, t, ids[b, t + 1]]) for b in range(9) for t in range(5)]
    found = requant.evaluate(model, {"ids": ids}, metric="perplexity", threads=1)
    assert found.value == pytest.approx(np.exp(np.mean(surprise)), rel=1e-5)
    assert found.against == "the tokens that were fed"
    assert not found.higher_is_better


def test_quantize_judges_by_any_metric() -> None:
    model, ids = language_model(), np.random.default_rng(0).integers(0, 11, (32, 6))
    report = requant.quantize(model, ids, evaluation=ids, metric="perplexity", threads=1).report
    assert report.accuracy is not None
    assert report.accuracy.float_value == requant.evaluate(model, ids, metric="perplexity", threads=1).value
    assert report.accuracy.quantized_value == pytest.approx(report.accuracy.float_value, rel=0.1)
    report = requant.quantize(model, ids, evaluation=ids, metric="cosine", threads=1).report
    assert report.accuracy is not None
    assert report.accuracy.float_value == pytest.approx(1)
    assert 0.99 < report.accuracy.quantized_value < 1
    assert ("cosine", "1.0000 float, 0.999") in [(label, text[:19]) for label, text in report.summary()]


def test_evaluation_samples_never_choose_ranges() -> None:
    model, x = two_gemm(), samples(two_gemm(), 16)["x"]
    one = requant.quantize(model, x, threads=1).data
    assert requant.quantize(model, x, evaluation=x * 100, metric=peak, threads=1).data == one


def refuses(kind: type[RequantError], match: str, model: Any, data: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        requant.evaluate(model, data, threads=1, **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_missing_labels_are_told(digits: Path) -> None:
    def refuse(done: int, total: int | None) -> None:
        raise AssertionError("it has begun to calibrate")

    x = samples(two_gemm(), 8)["x"]
    refuses(DataError, "has no labels, and top1 needs them\n.*choose cosine .* and give the float model", two_gemm(), x)
    refuses(DataError, r"has no labels, and mae needs them\n.*or give the float model", two_gemm(), x, metric="mae")
    mixed = [(row[np.newaxis], 1) if i < 8 else row[np.newaxis] for i, row in enumerate(np.tile(x, (2, 1)))]
    refuses(DataError, "label", two_gemm(), mixed)
    with pytest.raises(DataError, match="has no labels"):  # before any calibration
        requant.quantize(digits / "digits.onnx", digits / "calib.npz", evaluation=digits / "calib.npz", progress=refuse)


def test_a_figure_that_is_no_number_fails() -> None:
    x = samples(two_gemm(), 8)["x"]
    refuses(VerificationError, r"lambda. is nan", two_gemm(), x, metric=lambda *_: np.nan)


def test_another_model_is_no_float_model() -> None:
    x = samples(two_gemm(), 8)["x"]
    refuses(DataError, "has the inputs x, .* has ids", two_gemm(), x, metric="mae", float_model=language_model())


def test_options_are_checked_before_any_work() -> None:
    refuses(ConfigError, "unknown metric 'topp1'; did you mean 'top1'", "nowhere.onnx", None, metric="topp1")
    with pytest.raises(ConfigError, match="unknown metric"):
        requant.quantize("nowhere.onnx", None, metric="accuracy")


@pytest.mark.parametrize("options", [{"labels": "mine"}, {"metric": "mse"}, {"metric": peak}])
@pytest.mark.parametrize("weight_only", [None, "int4"])
def test_what_nothing_is_judged_by_is_refused(options: dict[str, Any], weight_only: str | None) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} says how models are judged"):
        requant.quantize("nowhere.onnx", None, weight_only=weight_only, **options)


def test_an_interrupt_leaves_no_thread() -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    before, start = threading.active_count(), time.perf_counter()
    data = {**samples(two_gemm(), 256), "y": np.zeros(256, np.int64)}
    with pytest.raises(KeyboardInterrupt):
        requant.evaluate(two_gemm(), data, progress=interrupt)
    while threading.active_count() > before and time.perf_counter() - start < 5:
        time.sleep(0.01)
    assert threading.active_count() == before
