"""Quantizing to a target: what is found meets it, can be made again, and owes nothing to evaluation data."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto
from tests.models import MODELS, Array, Net, run, samples, two_gemm

import requant
from requant.config import AUTO, METHODS
from requant.errors import ConfigError, DataError, RequantError
from requant.evaluation.distance import Distance, pooled
from requant.runtime import cpu_kind
from requant.search import walk

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

pytestmark = pytest.mark.usefixtures("quick_latency", "fast_integers")


def files(digits: Path) -> tuple[Path, Path]:
    return digits / "digits.onnx", digits / "calib.npz"


def fidelity(result: requant.QuantizedModel) -> float:
    """1 - noise of the worst output, from the report of plain quantization."""
    decibels = [np.inf if out.sqnr_db is None else out.sqnr_db for out in result.report.outputs]
    return float(1 - 10 ** (-min(decibels) / 10))


def test_the_default_model_is_tried_first_and_is_all_where_it_will_do(digits: Path) -> None:
    kept = requant.quantize_to_keep(*files(digits), 0.99, threads=1)
    plain = requant.quantize(*files(digits), threads=1)
    assert kept.met
    assert kept.kept == "output fidelity"
    assert [(step.method, step.options, step.in_float) for step in kept.steps] == [("mse", {}, ())]
    assert kept.model.data == plain.data
    assert kept.config == requant.QuantConfig(cpu=cpu_kind(), threads=1)
    assert kept.share == pytest.approx(fidelity(plain))


@pytest.fixture(scope="module")
def residual() -> tuple[Any, Any, float]:
    """A model, its data, and a target that takes some nodes in float."""
    model, data = MODELS["residual"](), samples(MODELS["residual"](), 64)
    whole = requant.sensitivity(model, data, threads=1)
    return model, data, float(np.sqrt(1 - 0.5 * whole.quantized.noise))


@pytest.fixture
def searched(residual: tuple[Any, Any, float]) -> requant.Kept:
    model, data, target = residual
    return requant.quantize_to_keep(model, data, target, threads=1)


def test_a_hard_target_leaves_nodes_in_float(searched: requant.Kept) -> None:
    kept = searched
    step = kept.steps[kept.chosen]
    assert kept.met
    assert kept.share >= kept.target
    assert step.in_float == kept.config.in_float
    assert step.in_float
    assert step.integer_nodes == len(kept.model.plan.nodes) > 0
    assert not {node.name for node in kept.model.plan.nodes} & set(step.in_float)
    assert kept.kept == "cosine of the outputs"
    assert kept.share == step.share == pytest.approx(np.sqrt(fidelity(kept.model)))
    assert step.bytes == len(kept.model.data)
    tried = {s.method for s in kept.steps if not s.in_float}
    assert {*METHODS} - {"sqnr"} <= tried <= {*METHODS, AUTO}  # sqnr is mse; auto, where it comes to another range
    assert len({(s.score, s.bytes, s.share) for s in kept.steps}) == len(kept.steps)
    more = [s for s in kept.steps if s.integer_nodes > step.integer_nodes]
    assert more
    assert all(s.surely is not None and s.surely < kept.target for s in more)
    assert all(s.share is not None and s.surely < s.share for s in kept.steps if s.surely is not None)


def test_each_node_in_float_has_its_reason(searched: requant.Kept) -> None:
    reasons = {skip.node: skip.reason for skip in searched.model.plan.skipped}
    assert all("% of the output noise" in reasons[name] for name in searched.config.in_float)


def test_the_options_make_the_same_model_without_a_search(
    searched: requant.Kept, residual: tuple[Any, Any, float], tmp_path: Path
) -> None:
    model, data, _ = residual
    assert requant.quantize(model, data, searched.config).data == searched.model.data
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(searched.config.to_toml())
    again = requant.QuantConfig.from_recipe(recipe)
    assert again == searched.config
    assert requant.quantize(model, data, again).data == searched.model.data


def test_the_document_holds_the_options_that_make_the_model(
    searched: requant.Kept, residual: tuple[Any, Any, float]
) -> None:
    model, data, _ = residual
    options = json.loads(json.dumps(searched.to_dict()))["config"]
    assert requant.quantize(model, data, options).data == searched.model.data


def test_threads_change_nothing(searched: requant.Kept, residual: tuple[Any, Any, float]) -> None:
    model, data, target = residual
    again = requant.quantize_to_keep(model, data, target, threads=2)
    assert again.model.data == searched.model.data
    assert again.steps == searched.steps


def test_every_step_is_told(searched: requant.Kept) -> None:
    document = json.loads(json.dumps(searched.to_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert len(document["steps"]) == len(searched.steps)
    assert document["steps"][document["chosen"]]["share"] == searched.share
    assert len({(s.described, s.in_float) for s in searched.steps}) == len(searched.steps)
    page = searched.to_html()
    assert "Frontier" in page
    assert "bias_correction" in page


@pytest.mark.parametrize("name", ["pool_chain", "nhwc", "silu", "mlp"])
def test_what_cannot_be_kept_gives_the_model_that_keeps_most(name: str) -> None:
    model, data = MODELS[name](), samples(MODELS[name](), 32)
    kept = requant.quantize_to_keep(model, data, 1.0, threads=1)
    assert not kept.met
    assert kept.share < 1
    assert kept.share == max(s.share or 0.0 for s in kept.steps)
    assert requant.quantize(model, data, kept.config).data == kept.model.data


def test_an_interrupt_leaves_the_best_model_until_then(residual: tuple[Any, Any, float]) -> None:
    model, data, target = residual

    def interrupt(done: int, total: int | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    kept = requant.quantize_to_keep(model, data, target, threads=1, search_progress=interrupt)
    assert kept.interrupted
    assert not kept.met
    assert len(kept.steps) == 3
    assert kept.share == max(s.share or 0.0 for s in kept.steps)
    assert requant.quantize(model, data, kept.config).data == kept.model.data


def test_an_interrupt_before_there_is_a_model_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(walk, "run_races", interrupt)
    with pytest.raises(KeyboardInterrupt):
        requant.quantize_to_keep(two_gemm(), samples(two_gemm(), 16), 0.9, threads=1)


def agreement(outputs: dict[str, Array], labels: Array | None) -> float:
    assert labels is not None
    return float(np.mean(outputs["y"].argmax(axis=1) == labels))


def labelled(count: int, seed: int = 0) -> dict[str, Array]:
    x = samples(two_gemm(), count, seed=seed)["x"]
    return {"x": x, "labels": run(two_gemm(), {"x": x})[0].argmax(axis=1)}


@pytest.mark.parametrize(("metric", "name"), [(None, "top1"), ("top1", "top1"), (agreement, "agreement")])
def test_labels_that_are_held_back_judge(metric: Any, name: str) -> None:
    data = labelled(256)
    kept = requant.quantize_to_keep(two_gemm(), data, 0.9, metric=metric, threads=1)
    assert kept.met
    assert kept.kept == name
    held = {key: array[7::8] for key, array in data.items()}
    found = requant.evaluate(kept.model.data, held, metric="top1", threads=1)
    assert kept.share == found.value >= 0.9  # the float model's is 1
    assert kept.steps[kept.chosen].surely == kept.share
    assert requant.quantize(two_gemm(), data, kept.config).data == kept.model.data


def test_targets_of_another_kind_do_not_fit_the_default_metric() -> None:
    data = labelled(64)
    data["labels"] = np.linspace(0, 1, 64, dtype=np.float32)
    assert requant.quantize_to_keep(two_gemm(), data, 0.9, threads=1).kept == "output fidelity"


def test_a_metric_without_labels_compares_with_the_float_model() -> None:
    x = samples(two_gemm(), 64)["x"]
    kept = requant.quantize_to_keep(two_gemm(), x, 0.9, metric="cosine", threads=1)
    assert kept.kept == "cosine"
    assert kept.share == pytest.approx(kept.model.report.outputs[0].cosine, rel=1e-6)


def test_evaluation_data_chooses_nothing_and_is_told_of() -> None:
    """Labels that are all wrong make no difference but to ``met``."""
    x = samples(two_gemm(), 64)["x"]
    good = labelled(400, seed=9)
    bad = {"x": good["x"], "labels": (good["labels"] + 1) % good["labels"].max()}
    plain = requant.quantize_to_keep(two_gemm(), x, 0.97, threads=1)
    judged = requant.quantize_to_keep(two_gemm(), x, 0.97, evaluation=good, metric="top1", threads=1)
    report = judged.model.report
    assert report.accuracy is not None
    assert judged.evaluated == report.accuracy.quantized_value / report.accuracy.float_value
    assert judged.met == (judged.evaluated >= 0.97)
    assert plain.model.data == judged.model.data
    assert plain.steps == judged.steps

    def perverse(outputs: dict[str, Array], labels: Array | None) -> float:
        return 1.0 if np.array_equal(outputs["y"], run(two_gemm(), {"x": bad["x"]})[0]) else 0.5

    options: dict[str, Any] = {"data_options": requant.DataOptions(batch_size=400), "threads": 1}
    spoilt = requant.quantize_to_keep(two_gemm(), labelled(64), 0.9, evaluation=bad, metric=perverse, **options)
    assert spoilt.evaluated == 0.5
    assert not spoilt.met


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
    assert kept.kept == "cosine of the outputs"


def refuses(kind: type[RequantError], match: str, share: Any, **options: Any) -> None:
    x = samples(two_gemm(), 16)["x"]
    with pytest.raises(kind, match=match) as caught:
        requant.quantize_to_keep(two_gemm(), x, share, threads=1, **options)
    assert len(str(caught.value).splitlines()) <= 5


def test_what_cannot_be_kept_is_refused() -> None:
    x = samples(two_gemm(), 16)["x"]
    for share in (0.0, -1.0, 1.01, float("nan"), "0.9"):
        refuses(ConfigError, "expected a share above 0 and at most 1", share)
    refuses(DataError, "mse of the float model is 0: there is no share", 0.9, metric="mse")
    refuses(DataError, "is not finite: there is no share", 0.9, metric=lambda *_: np.inf)
    refuses(DataError, "no labels", 0.9, metric="top1")
    refuses(DataError, "no labels", 0.9, evaluation=x)
    refuses(DataError, "evaluation samples are read .* generator can be read only once", 0.9, evaluation=(r for r in x))
    with pytest.raises(DataError, match="samples are read for every trial, and a generator"):
        requant.quantize_to_keep(two_gemm(), (row[np.newaxis] for row in x), 0.9)


def test_a_node_in_float_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"in_float names no node 'frist'; did you mean 'first'"):
        requant.quantize(two_gemm(), samples(two_gemm(), 16), in_float=["frist"])


def test_progress_tells_of_both_stages() -> None:
    calibrated: list[int] = []
    tried: list[tuple[int, int | None]] = []
    kept = requant.quantize_to_keep(
        two_gemm(),
        samples(two_gemm(), 32),
        1.0,
        threads=1,
        progress=lambda done, total: calibrated.append(done),
        search_progress=lambda *told: tried.append(told),
    )
    assert calibrated[-1] == 32
    assert [done for done, _ in tried] == list(range(1, len(tried) + 1))
    assert all(total is not None and total >= done for done, total in tried)
    assert len(tried) > len(kept.steps)


def test_classes_that_a_model_gives_are_compared_one_by_one() -> None:
    net = Net()
    scores = net.gemm(net.op("Relu", net.gemm(net.input("x", ["n", 8]), 8, 16)), 16, 4)
    model = net.model(net.op("ArgMax", scores, axis=1, output="y"))
    x = samples(model, 512)["x"]
    kept = requant.quantize_to_keep(model, x, 0.2, threads=1, method="percentile", percentile=60.0)
    equal = run(model, {"x": x[7::8][:32]})[0] == run(kept.model.data, {"x": x[7::8][:32]})[0]
    assert kept.share == np.mean(equal) < 1


def test_what_samples_do_not_agree_on_is_not_sure(digits: Path) -> None:
    """The share of the default model is a target that it keeps, but not surely: the search goes on."""
    plain = requant.quantize_to_keep(*files(digits), 0.9, threads=1)
    step = plain.steps[0]
    assert step.share is not None
    assert step.surely is not None
    assert step.share - step.surely == pytest.approx(step.score.noise_error)
    target = (step.share + step.surely) / 2
    kept = requant.quantize_to_keep(*files(digits), target, threads=1)
    assert len(kept.steps) > 1
    assert kept.met
    found = kept.steps[kept.chosen].surely
    assert found is not None
    assert found >= target


@pytest.mark.parametrize("samples_", [2, 3, 40])
def test_the_error_of_pooled_noise_is_what_leaving_samples_out_shows(samples_: int) -> None:
    """Against the jackknife, which knows nothing of the formula, where samples are many and alike."""
    rng = np.random.default_rng(3)
    distances = []
    for _ in range(samples_):
        x = rng.standard_normal(50)
        distances.append(Distance())
        distances[-1].add(x, x + rng.standard_normal(50) * 0.1)
    noise, error = pooled(distances)
    assert noise == pytest.approx(sum(d.noise for d in distances) / sum(d.signal for d in distances))
    without = np.array([pooled([d for d in distances if d is not left])[0] for left in distances])
    jackknife = np.sqrt((samples_ - 1) / samples_ * np.sum((without - without.mean()) ** 2))
    assert error == pytest.approx(jackknife, rel=0.3 if samples_ < 10 else 0.03)


def test_of_one_sample_or_of_none_that_errs_the_error_is_0() -> None:
    one, equal = Distance(), Distance()
    one.add(np.ones(4), np.full(4, 1.1))
    equal.add(np.ones(4), np.ones(4))
    assert pooled([one]) == pytest.approx((0.01, 0.0))
    assert pooled([equal, equal]) == (0.0, 0.0)


def test_an_output_of_another_shape_is_nothing_but_error() -> None:
    distance = Distance()
    distance.add(np.full((3, 2), 2.0), np.full((2, 2), 2.0))
    assert distance.relative == 1.0
