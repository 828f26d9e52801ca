"""Each metric beside its definition, written out naively."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.digits import CALIB, MODEL

import requant
from requant.errors import ConfigError, DataError
from requant.metrics import METRICS, Against, Case, get_metric

if TYPE_CHECKING:
    from pathlib import Path

    from tests.models import Array

RNG = np.random.default_rng(3)


def case(output: Array, labels: Any = None, reference: Array | None = None, **feeds: Array) -> Case:
    return Case(
        feeds,
        {"y": output},
        len(output),
        None if labels is None else np.asarray(labels),
        None if reference is None else {"y": reference},
    )


def value(name: str, *cases: Case) -> float:
    metric = get_metric(name)
    return metric.value([metric.measure(each) for each in cases])


def refuses(name: str, match: str, one: Case) -> None:
    with pytest.raises(DataError, match=match) as caught:
        value(name, one)
    assert len(str(caught.value).splitlines()) <= 5


def softmax(x: Array) -> list[float]:
    top = max(map(float, x))
    weights = [math.exp(float(v) - top) for v in x]
    return [w / sum(weights) for w in weights]


# -- top-k -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "k"), [("top1", 1), ("top5", 5)])
def test_top_k_is_what_sorting_gives(name: str, k: int) -> None:
    scores = RNG.integers(0, 6, (200, 12)).astype(np.float32)  # many ties
    labels = RNG.integers(0, 12, 200)
    ranks = [sorted(range(12), key=lambda c: (-row[c], c)) for row in scores]
    right = [label in order[:k] for label, order in zip(labels, ranks, strict=True)]
    assert 0 < sum(right) < 200
    assert value(name, case(scores, labels)) == sum(right) / 200
    assert value(name, case(scores[:50], labels[:50]), case(scores[50:], labels[50:])) == sum(right) / 200


def test_of_several_positions_the_last_is_judged() -> None:
    scores = np.zeros((2, 3, 4), np.float32)
    scores[0, -1, 2] = scores[1, 0, 3] = 1
    assert value("top1", case(scores, [2, 3])) == 0.5


def test_a_row_of_nan_is_wrong_and_masked_scores_are_not() -> None:
    scores = np.array([[np.nan, 0.0], [-np.inf, 0.0]], np.float32)
    assert value("top1", case(scores, [0, 1])) == 0.5


@pytest.mark.parametrize("labels", [[0, 1, 10], [0, -1, 2], [0.5, 1, 2], [0, 1], np.eye(3, 10), ["a", "b", "c"]])
def test_what_is_no_class_index_is_refused(labels: Any) -> None:
    refuses("top1", "one label in 0..9 for each sample", case(np.zeros((3, 10), np.float32), labels))


def test_top5_of_five_classes_is_refused() -> None:
    refuses("top5", "more than 5 classes", case(np.zeros((1, 5), np.float32), [0]))


# -- distances -------------------------------------------------------------------------------------------------------

PAIRS = [(RNG.normal(size=(n, 3)).astype(np.float32), RNG.normal(size=(n, 3)).astype(np.float32)) for n in (4, 4, 1)]
EXPECTED = {
    "mae": lambda got, wanted: sum(abs(g - w) for g, w in zip(got, wanted, strict=True)) / len(got),
    "mse": lambda got, wanted: sum((g - w) ** 2 for g, w in zip(got, wanted, strict=True)) / len(got),
    "cosine": lambda got, wanted: (
        sum(g * w for g, w in zip(got, wanted, strict=True)) / math.hypot(*got) / math.hypot(*wanted)
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("labelled", [True, False])
def test_distances_over_batches_are_those_over_all(name: str, labelled: bool) -> None:
    got, wanted = ([float(v) for pair in PAIRS for v in pair[i].ravel()] for i in (0, 1))
    cases = [case(g, w if labelled else None, np.zeros_like(w) if labelled else w) for g, w in PAIRS]
    assert value(name, *cases) == pytest.approx(EXPECTED[name](got, wanted), rel=1e-12)


def test_every_float_output_of_the_reference_counts() -> None:
    one, ids = np.ones((2, 2), np.float32), np.arange(2)
    outputs: dict[str, Array]
    reference: dict[str, Array]
    outputs, reference = {"a": one, "b": one, "i": ids}, {"a": one, "b": one + 1, "i": ids + 5}
    metric = get_metric("mae")
    assert metric.value([metric.measure(Case({}, outputs, 2, None, reference))]) == 0.5


def test_targets_that_are_not_finite_are_passed_over() -> None:
    assert value("mae", case(np.array([[1.0, 2.0]]), None, np.array([[-np.inf, 5.0]]))) == 3
    assert math.isnan(value("mse", case(np.array([[np.nan]]), None, np.array([[1.0]]))))


def test_the_cosine_of_nothing() -> None:
    zeros, ones = np.zeros((1, 2)), np.ones((1, 2))
    assert value("cosine", case(zeros, None, zeros)) == 1
    assert value("cosine", case(zeros, None, ones)) == 0
    assert value("cosine", case(ones * 1e150, None, ones * 1e150)) == pytest.approx(1)


def test_targets_of_another_size_are_refused() -> None:
    refuses("mse", r"is \[2, 3\], got labels int64 \[2\]", case(np.zeros((2, 3), np.float32), [0, 1]))
    refuses("mae", "the model has none", case(np.zeros(2, np.int64), None, np.zeros(2, np.int64)))


# -- perplexity ------------------------------------------------------------------------------------------------------

LOGITS = RNG.normal(scale=4, size=(3, 5, 7)).astype(np.float32)
IDS = RNG.integers(0, 7, (3, 5))


def naive(pairs: list[tuple[int, int, int]]) -> float:
    """From places ``(row, position, token)``."""
    return math.exp(-sum(math.log(softmax(LOGITS[b, t])[token]) for b, t, token in pairs) / len(pairs))


def test_perplexity_without_labels_is_that_of_the_next_token() -> None:
    pairs = [(b, t, int(IDS[b, t + 1])) for b in range(3) for t in range(4)]
    assert value("perplexity", case(LOGITS, ids=IDS)) == pytest.approx(naive(pairs), rel=1e-9)
    parts = [case(LOGITS[i : i + 1], ids=IDS[i : i + 1]) for i in range(3)]
    assert value("perplexity", *parts) == pytest.approx(naive(pairs), rel=1e-9)


def test_the_mask_and_the_name_of_the_ids_are_heeded() -> None:
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    pairs = [(b, t, int(IDS[b, t + 1])) for b in range(3) for t in range(4) if mask[b, t + 1]]
    feeds = {"attention_mask": mask, "positions": np.zeros_like(IDS), "input_ids": IDS}
    assert value("perplexity", case(LOGITS, **feeds)) == pytest.approx(naive(pairs), rel=1e-9)


def test_labels_say_what_each_logit_predicts_and_negative_ones_nothing() -> None:
    labels = np.where(np.arange(5) < 2, IDS, -100)
    pairs = [(b, t, int(IDS[b, t])) for b in range(3) for t in range(2)]
    assert value("perplexity", case(LOGITS, labels, ids=IDS)) == pytest.approx(naive(pairs), rel=1e-9)


def test_perplexity_in_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = value("perplexity", case(LOGITS, ids=IDS))
    monkeypatch.setattr("requant.metrics.perplexity._BLOCK", 15)
    assert value("perplexity", case(LOGITS, ids=IDS)) == pytest.approx(whole, rel=1e-12)


def test_large_logits_do_not_overflow_and_a_hopeless_model_is_infinite() -> None:
    sure = np.full((1, 2, 2), -1e4, np.float32)
    sure[0, :, 1] = 1e4
    assert value("perplexity", case(sure, ids=np.array([[0, 1]]))) == 1
    assert value("perplexity", case(sure, ids=np.array([[1, 0]]))) == math.inf


def test_what_is_no_language_model_is_refused() -> None:
    refuses("perplexity", r"needs logits .* got float32 \[2, 3\]", case(np.zeros((2, 3), np.float32)))
    refuses("perplexity", "no input of token ids", case(LOGITS, x=np.zeros((3, 5), np.float32)))
    refuses("perplexity", r"needs integer labels \[3, 5\]", case(LOGITS, [0, 1, 2], ids=IDS))
    refuses("perplexity", "token 9 is outside of the 7 tokens", case(LOGITS, ids=np.full_like(IDS, 9)))
    refuses("perplexity", "no token to score", case(LOGITS[:, :1], ids=IDS[:, :1]))


# -- the user's own --------------------------------------------------------------------------------------------------


def spread(outputs: dict[str, Array], labels: Array | None) -> float:
    assert labels is not None
    return float(np.ptp(outputs["y"]) * len(labels))


def test_a_function_gets_everything_at_once() -> None:
    metric = get_metric(spread)
    parts = [metric.measure(case(np.full((2, 3), i), [i, i])) for i in range(4)]
    assert metric.name == "spread"
    assert metric.higher_is_better
    assert metric.value(parts) == 3 * 8


def test_a_function_by_name_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "requant_test_metric.py").write_text(
        "def error(outputs, labels):\n    return 7 if labels is None else 8\nerror.higher_is_better = False\n"
    )
    metric = get_metric("requant_test_metric:error")
    assert not metric.higher_is_better
    assert metric.value([metric.measure(case(np.zeros((1, 1))))]) == 7
    with pytest.raises(ConfigError, match="no function 'eror'; did you mean 'error'"):
        get_metric("requant_test_metric:eror")
    del sys.modules["requant_test_metric"]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("top2", "unknown metric 'top2'; did you mean 'top"),
        ("nowhere:f", "'nowhere' cannot be imported"),
        (":f", "cannot be imported"),
        (7, "expected a metric by name or a function, got int"),
    ],
)
def test_a_metric_that_does_not_exist_is_told(name: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        get_metric(name)


def test_what_a_function_cannot_do_is_told() -> None:
    metric = get_metric(lambda outputs, labels: labels[0])
    with pytest.raises(ConfigError, match=r"failed: TypeError"):
        metric.value([metric.measure(case(np.zeros((1, 1))))])
    with pytest.raises(DataError, match=r"y of shapes \[1, 2\] and \[1, 3\] cannot be joined"):
        metric.value([metric.measure(case(np.zeros((1, n)))) for n in (2, 3)])


# -- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "now", "before", "kept"),
    [("top1", 0.9, 1.0, 0.9), ("perplexity", 5.0, 4.0, 0.8), ("mae", 1.0, 0.0, None), ("mae", 0.0, 0.0, 1.0)],
)
def test_kept_is_less_than_one_where_it_is_worse(name: str, now: float, before: float, kept: float | None) -> None:
    assert get_metric(name).kept(now, before) == kept


@pytest.mark.parametrize("labelled", [False, True])
def test_a_divergence_needs_a_float_model_whatever_labels_there_are(labelled: bool) -> None:
    data = {"image": np.load(CALIB)["image"][:8]} | ({"labels": np.zeros(8, np.int64)} if labelled else {})
    with pytest.raises(DataError, match="kl compares with the float model, and none is given"):
        requant.evaluate(MODEL, data, metric="kl")
    found = requant.evaluate(MODEL, data, metric="kl", float_model=MODEL)
    assert (found.value, found.against, found.float_value) == (0.0, "float model", None)


def test_every_metric_says_what_it_needs() -> None:
    assert {name: get_metric(name).against for name in METRICS} == {
        "top1": Against.LABELS,
        "top5": Against.LABELS,
        "mae": Against.TARGETS,
        "mse": Against.TARGETS,
        "kl": Against.MODEL,
        "kl99": Against.MODEL,
        "cosine": Against.TARGETS,
        "perplexity": Against.TOKENS,
    }
