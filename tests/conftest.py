"""Profiles of hypothesis: ``fast`` by default, ``--hypothesis-profile=slow`` before a release."""

from __future__ import annotations

import os
import signal

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before anything imports onnxruntime

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests.models import MODELS

from requant.evaluation import timing, verify
from requant.planning import placement
from requant.search import floats, walk

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

# Examples are drawn from a fixed seed, so a run is the same everywhere; slow looks at new ones each time.
settings.register_profile("fast", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("slow", max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fast")

# Shells start background jobs deaf to interrupts, which their children inherit: those of the tests shall hear them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=MODELS)
def any_model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    """Each of the models in ``tests/models.py``."""
    build: Callable[[], onnx.ModelProto] = MODELS[request.param]
    return build()


@pytest.fixture
def digits() -> Path:
    """The folder of the shipped model and its data."""
    return ROOT / "examples" / "digits"


@pytest.fixture
def quick_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time the models once: for tests that do not look at latency."""
    monkeypatch.setattr(verify, "_LATENCY_SECONDS", 0.0)
    monkeypatch.setattr(verify, "_LATENCY_PAIRS", (1, 1))
    monkeypatch.setattr(timing, "_SECONDS", 0.0)
    monkeypatch.setattr(timing, "_BLOCKS", (1, 1))
    monkeypatch.setattr(placement, "_SECONDS", 0.0)
    monkeypatch.setattr(placement, "_ROUNDS", (1, 1))


@pytest.fixture
def fast_integers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let integers be twice as fast in every search, and be presumed so: for tests that do not look at speed."""
    monkeypatch.setattr(floats, "is_presumably_slower", lambda *_: False)
    monkeypatch.setattr(walk, "run_races", lambda models, feeds, **_: [placement.Race(1.0, 2.0)] * (len(models) - 1))
