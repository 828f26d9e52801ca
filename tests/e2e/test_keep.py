"""Quantizing to a target: what is found meets it, can be made again, and owes nothing to evaluation data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto
from tests.models import MODELS, Array, Net, run, samples, two_gemm

import requant
from requant.config import METHODS
from requant.errors import ConfigError, DataError, RequantError

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

pytestmark = pytest.mark.usefixtures("quick_latency")


def files(digits: Path) -> tuple[Path, Path]:
    return digits / "digits.onnx", digits / "calib.npz"


def fidelity(result: requant.QuantizedModel) -> float:
    """1 - noise of the worst output, from the report of plain quantization."""
    decibels = [np.inf if out.sqnr_db is None else out.sqnr_db for out in result.report.outputs]
    return float(1 - 10 ** (-min(decibels) / 10))


def test_an_easy_target_takes_one_step(digits: Path) -> None:
    kept = requant.quantize_to_keep(*files(digits), 0.99, threads=1)
    plain = requant.quantize(*files(digits), threads=1)
    assert kept.met
    assert kept.kept == "1 - output noise"
    assert [(step.method, step.in_float) for step in kept.steps] == [("mse", ())]
    assert kept.model.data == plain.data
    assert kept.share == pytest.approx(fidelity(plain))


@pytest.fixture(scope="module")
def searched() -> tuple[requant.Kept, Any, Any]:
    """A model whose target takes some nodes in float, and no more."""
    model, data = MODELS["residual"](), samples(MODELS["residual"](), 64)
    whole = requant.sensitivity(model, data, threads=1)
    target = 1 - 0.6 * whole.quantized.noise
    return requant.quantize_to_keep(model, data, target, threads=1), model, data


def test_a_hard_target_leaves_nodes_in_float(searched: tuple[requant.Kept, Any, Any]) -> None:
    kept, _, _ = searched
    step = kept.steps[kept.chosen]
    assert kept.met
    assert kept.share >= kept.target
    assert step.in_float
    assert step.integer_nodes == len(kept.model.plan.nodes) > 0
    assert not {node.name for node in kept.model.plan.nodes} & set(step.in_float)
    assert kept.share == step.share == pytest.approx(fidelity(kept.model))
    assert step.bytes == len(kept.model.data)
    whole = [s for s in kept.steps if not s.in_float]
    assert {s.method for s in whole} == set(METHODS)
    assert step.method == min(whole, key=lambda s: s.score.noise).method
    more = [s for s in kept.steps if s.method == step.method and s.integer_nodes > step.integer_nodes]
    assert more
    assert all(s.share is not None and s.share < kept.target for s in more)


def test_the_options_make_the_same_model_without_a_search(searched: tuple[requant.Kept, Any, Any]) -> None:
    kept, model, data = searched
    assert requant.quantize(model, data, kept.config).data == kept.model.data


def test_threads_change_nothing(searched: tuple[requant.Kept, Any, Any]) -> None:
    kept, model, data = searched
    again = requant.quantize_to_keep(model, data, kept.target, threads=2)
    assert again.model.data == kept.model.data
    assert [(s.method, s.in_float, s.score) for s in again.steps] == [
        (s.method, s.in_float, s.score) for s in kept.steps
    ]


def test_every_step_is_told(searched: tuple[requant.Kept, Any, Any]) -> None:
    kept, _, _ = searched
    document = json.loads(json.dumps(kept.to_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert len(document["steps"]) == len(kept.steps)
    assert document["steps"][document["chosen"]]["share"] == kept.share
    assert len({(s.method, s.in_float) for s in kept.steps}) == len(kept.steps)
    assert all(s.latency_ms > 0 and s.speedup > 0 for s in kept.steps)


@pytest.mark.parametrize("name", ["pool_chain", "nhwc", "silu", "mlp"])
def test_ranges_that_were_tied_are_known_when_the_tie_is_cut(name: str) -> None:
    model, data = MODELS[name](), samples(MODELS[name](), 32)
    kept = requant.quantize_to_keep(model, data, 1.0, threads=1)
    assert not kept.met
    assert kept.share < 1
    assert kept.share == max(s.share or 0.0 for s in kept.steps if s.method == kept.config.method)
    assert requant.quantize(model, data, kept.config).data == kept.model.data


def agreement(outputs: dict[str, Array], labels: Array | None) -> float:
    assert labels is not None
    return float(np.mean(outputs["y"].argmax(axis=1) == labels))


def test_a_metric_is_kept() -> None:
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    judged = samples(two_gemm(), 400, seed=9)["x"]
    labels = run(model, {"x": judged})[0].argmax(axis=1)
    data = {"x": judged, "labels": labels}
    kept = requant.quantize_to_keep(model, x, 0.9, evaluation=data, metric=agreement, threads=1)
    assert kept.met
    assert kept.kept == "agreement"
    assert kept.model.report.accuracy is not None
    assert kept.share == kept.model.report.accuracy.quantized_value >= 0.9


def test_evaluation_data_has_no_say_in_ranges() -> None:
    """A metric that prefers the worst method does not get it."""
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    plain = requant.quantize_to_keep(model, x, 1.0, threads=1)
    noises = {s.method: s.score.noise for s in plain.steps if not s.in_float}
    worst = run(requant.quantize(model, x, method=max(noises, key=lambda m: noises[m]), threads=1).data, {"x": x})[0]
    original = run(model, {"x": x})[0]

    def perverse(outputs: dict[str, Array], labels: Array | None) -> float:
        return float(np.array_equal(outputs["y"], worst) or np.array_equal(outputs["y"], original))

    options: dict[str, Any] = {"data_options": requant.DataOptions(batch_size=64)}
    kept = requant.quantize_to_keep(model, x, 1.0, evaluation=x, metric=perverse, threads=1, **options)
    assert kept.config.method == min(noises, key=lambda m: noises[m])


def bigrams(sharpness: float) -> onnx.ModelProto:
    """Logits that are high for the token after each, with noise behind."""
    net = Net()
    ids = net.input("ids", ["n", "t"], TensorProto.INT64)
    table = np.eye(16)[(np.arange(16) + 1) % 16] * sharpness
    hidden = net.op("Gather", net.const(table + net.rng.standard_normal((16, 16)) * 0.3), ids)
    hidden = net.op("MatMul", hidden, net.const(np.eye(16) + net.rng.standard_normal((16, 16)) * 0.02), name="first")
    return net.model(net.op("MatMul", hidden, net.const(np.eye(16)), name="second", output="logits"))


def test_a_language_model_is_judged_by_its_own_tokens() -> None:
    ids = (np.arange(64)[:, np.newaxis] + np.arange(8)) % 16
    kept = requant.quantize_to_keep(bigrams(3.0), {"ids": ids}, 0.9, threads=1)
    assert kept.met
    assert kept.kept == "perplexity of held-back samples"
    held = ids[7::8]
    figures = [
        requant.evaluate(model, {"ids": held}, metric="perplexity", threads=1).value
        for model in (bigrams(3.0), kept.model.data)
    ]
    assert kept.share == pytest.approx(figures[0] / figures[1], rel=1e-6)


def test_what_guesses_tokens_no_better_than_chance_is_no_language_model() -> None:
    ids = (np.arange(64)[:, np.newaxis] + np.arange(8)) % 16
    kept = requant.quantize_to_keep(bigrams(-9.0), {"ids": ids}, 0.9, threads=1)
    assert kept.kept == "1 - output noise"


def refuses(kind: type[RequantError], match: str, share: float, **options: Any) -> None:
    x = samples(two_gemm(), 16)["x"]
    with pytest.raises(kind, match=match) as caught:
        requant.quantize_to_keep(two_gemm(), x, share, threads=1, **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_what_cannot_be_kept_is_refused() -> None:
    x = samples(two_gemm(), 16)["x"]
    for share in (0.0, -1.0, 1.01, float("nan")):
        refuses(ConfigError, "expected a share above 0 and at most 1", share)
    refuses(ConfigError, "does not optimize latency", 0.9, optimize="latency")
    refuses(DataError, "mse of the float model is 0: there is no share", 0.9, evaluation=x, metric="mse")
    refuses(DataError, "is not finite: there is no share", 0.9, evaluation=x, metric=lambda *_: np.inf)
    refuses(DataError, "no labels", 0.9, evaluation=x)
    refuses(DataError, "evaluation samples are read .* generator can be read only once", 0.9, evaluation=(r for r in x))
    with pytest.raises(DataError, match="samples are read for every trial, and a generator"):
        requant.quantize_to_keep(two_gemm(), (row[np.newaxis] for row in x), 0.9)


def test_progress_tells_of_both_stages() -> None:
    calibrated: list[int] = []
    tried: list[int] = []
    kept = requant.quantize_to_keep(
        two_gemm(),
        samples(two_gemm(), 32),
        1.0,
        threads=1,
        progress=lambda done, total: calibrated.append(done),
        search_progress=lambda done, total: tried.append(done),
    )
    assert calibrated[-1] == 32
    assert tried == list(range(1, len(tried) + 1))
    assert len(tried) > len(kept.steps)
