"""Which threads and batches are timed, and what is said of the times."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tests.models import conv_relu, two_gemm

from requant.data import InputSpec
from requant.evaluation import timing
from requant.evaluation.footprint import peak_memory
from requant.evaluation.timing import fitting_batches, thread_counts, time_models

F32 = np.dtype("float32")


@pytest.mark.parametrize(("most", "counts"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_threads_double(most: int, counts: tuple[int, ...]) -> None:
    assert thread_counts(most) == counts


def test_only_batches_that_the_model_takes_are_timed() -> None:
    assert fitting_batches([InputSpec("x", F32, ("n", 3))], (1, 8)) == (1, 8)
    assert fitting_batches([InputSpec("x", F32, (4, 3))], (1, 8)) == (4,)
    assert fitting_batches([InputSpec("x", F32, ("seq_len", 3))], (1, 8)) == (1,)


def test_percentiles_and_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(np.cumsum([0.0, 1e-3, *[0.5, 1e-3] * 10, *[0.5, 2e-3] * 10]))
    monkeypatch.setattr(timing, "_BLOCKS", (1, 1))
    monkeypatch.setattr(timing, "_BLOCK", 10)
    monkeypatch.setattr("requant.evaluation.timing.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    found = time_models(
        (two_gemm().SerializeToString(), two_gemm().SerializeToString()), {"x": np.zeros((1, 8), np.float32)}, [1], [4]
    )
    assert len(found) == 1
    assert (found[0].threads, found[0].batch_size) == (1, 4)
    assert found[0].in_float.p50_ms == pytest.approx(1)
    assert found[0].in_float.p95_ms == pytest.approx(1)
    assert found[0].in_float.per_second == pytest.approx(4000)
    assert found[0].quantized.per_second == pytest.approx(2000)
    assert found[0].speedup == pytest.approx(0.5)


def test_a_batch_is_one_sample_many_times() -> None:
    sample = {"x": np.ones((1, 2)), "scalar": np.array(3.0), "table": np.zeros((5, 2))}
    batch = timing._repeated(sample, 3)
    assert batch["x"].shape == (3, 2)
    assert batch["scalar"].shape == ()
    assert batch["table"].shape == (5, 2)


def test_memory_is_that_of_a_process_of_its_own() -> None:
    model = conv_relu().SerializeToString()
    small, large = (peak_memory(model, {"x": np.zeros((n, 3, 8, 8), np.float32)}) for n in (1, 40_000))
    assert small is not None
    assert large is not None
    assert small > 10 << 20
    assert large - small > 40_000 * 3 * 8 * 8 * 4  # the feeds alone
