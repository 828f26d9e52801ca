"""What a report advises."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from requant.concluding import Verification, advice, advice_of_latency
from requant.config import QuantConfig
from requant.evaluation import verify
from requant.report import Accuracy, Latency, OutputQuality

if TYPE_CHECKING:
    import pytest


def told(speedup: float, sqnr_db: float | None, accuracy: Accuracy | None = None, **options: Any) -> list[str]:
    outputs = (OutputQuality("y", sqnr_db, 0.9, 0.1),)
    latency = Latency("onnxruntime", 1.0, 1.0 / speedup, speedup)
    verified = Verification(None, outputs, latency, (), accuracy)
    return [note.split(":")[0] for note in advice(QuantConfig(**options), verified)]


def test_what_is_slow_or_far_from_float_gets_advice() -> None:
    assert told(0.9, 30.0) == ["slower than float on this machine"]
    assert told(1.5, 7.0) == ["output 'y' is far from the float model's"]


def test_weights_of_few_bits_that_slow_a_model_down_are_told() -> None:
    def slow(speedup: float, **options: Any) -> str:
        config = QuantConfig(weight_only="int8", **options)
        return " ".join(advice_of_latency(config, Latency("onnxruntime", 1.0, 1.0 / speedup, speedup)))

    assert slow(1.0) == ""
    assert "slower than float on this machine: weights of few bits save memory" in slow(0.5)
    assert "--activations int8 and --dynamic compute with integers" in slow(0.5)
    assert "; --dynamic computes with integers" in slow(0.5, activations="int8")
    assert list(advice_of_latency(QuantConfig(weight_only="int8"), None)) == []


def test_what_a_reference_takes_is_no_reason_for_advice() -> None:
    latency = Latency("onnx.reference", 1.0, 2.0, 0.5)
    assert list(advice_of_latency(QuantConfig(), latency)) == [
        "onnx.reference is not made for speed: latency there says nothing of the runtimes that models are for"
    ]


def test_times_and_their_ratio_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    runner: Any = SimpleNamespace(name="onnxruntime")
    times = iter([1.0, 1.0, 1.0, 1.0, *(5.0, 1.0), *(1.0, 4.0), *(2.0, 4.0), *(8.0, 9.0), *(3.0, 9.0)])
    monkeypatch.setattr(verify, "run_seconds", lambda *_: next(times) / 1e3)
    monkeypatch.setattr(verify, "_LATENCY_PAIRS", (5, 5))
    latency = verify.measure_latency((runner, runner), {})
    assert (latency.float_ms, latency.speedup) == (3.0, 0.5)
    assert latency.quantized_ms == latency.float_ms / latency.speedup


def test_other_load_slows_neither_model_down() -> None:
    def runner(waits: float) -> Any:
        def run(_: object) -> None:
            sum(range(20_000))
            time.sleep(waits)

        return SimpleNamespace(name="onnxruntime", run=run)

    assert 0.5 < verify.measure_latency((runner(0.0), runner(0.01)), {}).speedup < 2


def test_what_is_neither_gets_none() -> None:
    assert told(1.2, 30.0) == told(0.98, None) == []
    assert told(0.5, 20.0, optimize="latency") == []
    assert told(1.5, 7.0, Accuracy("top1", 10, 0.9, 0.9)) == []
