"""Calibration and sensitivity through executors give the bytes and figures of the serial run, workers killed or not."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.models import Net, samples, two_gemm

import requant
from requant.errors import CalibrationError, ConfigError, ExecutorError
from requant.search import ablation, floats as search

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("quick_latency"),
    pytest.mark.filterwarnings("ignore"),  # distributed warns of ports, of what it deprecates, and of slow shutdowns
]


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    options: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as local, distributed.Client(local) as client:
        yield client


def same(a: requant.CalibrationTable, b: requant.CalibrationTable) -> bool:
    return (list(a), a.samples, a.digest) == (list(b), b.samples, b.digest) and all(
        a[name].to_bytes() == b[name].to_bytes() for name in a
    )


def kill_one(client: Any) -> None:
    """One of the workers of a cluster, at once; its nanny starts another."""
    pids = list(client.run(os.getpid).values())
    with suppress(ProcessLookupError):
        os.kill(pids[0], signal.SIGKILL)


def test_processes_calibrate_to_the_same_bytes(pool: ProcessPoolExecutor, digits: Path) -> None:
    model, data = digits / "digits.onnx", digits / "calib.npz"
    assert same(requant.calibrate(model, data, executor=pool), requant.calibrate(model, data, threads=1))
    there = requant.quantize(model, data, executor=pool).data
    assert there == requant.quantize(model, data, threads=1).data


@pytest.mark.usefixtures("fast_integers")
def test_processes_search_as_threads_do(pool: ProcessPoolExecutor) -> None:
    model, data = two_gemm(), samples(two_gemm(), 64)
    there = requant.quantize_to_keep(model, data, 1.0, threads=1, executor=pool)
    here = requant.quantize_to_keep(model, data, 1.0, threads=1)
    assert len(here.steps) > 5
    assert there.steps == here.steps
    assert there.model.data == here.model.data


def test_processes_judge_trials_as_threads_do(pool: ProcessPoolExecutor) -> None:
    model, data = two_gemm(), samples(two_gemm(), 64)
    labels = np.random.default_rng(0).integers(0, 4, 64)
    options: dict[str, Any] = {"evaluation": {**data, "labels": labels}}
    steps: list[tuple[int, int | None]] = []
    found = requant.sensitivity(model, data, executor=pool, search_progress=lambda *step: steps.append(step), **options)
    assert found.parts == requant.sensitivity(model, data, threads=1, **options).parts
    assert all(part.in_float.value is not None for part in found.parts)
    assert steps[-1][0] == steps[-1][1] == 1 + 2 * len(found.parts)


def test_a_cluster_gives_the_same(cluster: Any, digits: Path) -> None:
    model, data = digits / "digits.onnx", digits / "calib.npz"
    executor = cluster.get_executor()
    assert same(requant.calibrate(model, data, executor=executor), requant.calibrate(model, data, threads=1))
    small, x = two_gemm(), samples(two_gemm(), 64)
    assert requant.sensitivity(small, x, executor=executor).parts == requant.sensitivity(small, x, threads=1).parts


@pytest.mark.usefixtures("fast_integers")
@pytest.mark.parametrize("killing", [False, True])
def test_a_cluster_searches_as_threads_do(cluster: Any, killing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are lost while the model is calibrated, and while they find the noise of nodes."""
    model, data = two_gemm(), samples(two_gemm(), 256)
    options: dict[str, Any] = {"batch_size": 4, "threads": 1}
    here = requant.quantize_to_keep(model, data, 1.0, **options)
    killed: list[str] = []

    def lose(stage: str) -> None:
        if killing and stage not in killed:
            killed.append(stage)
            kill_one(cluster)

    def try_elsewhere(executor: Any, context: Any, build: Any, left_out: Any, advance: Any) -> Any:
        def advanced(*done: Any) -> None:
            lose("noise")
            advance(*done)

        return ablation.try_elsewhere(executor, context, build, left_out, advanced)

    monkeypatch.setattr(search, "try_elsewhere", try_elsewhere)
    executor = cluster.get_executor(retries=3)
    there = requant.quantize_to_keep(
        model, data, 1.0, executor=executor, progress=lambda *_: lose("calibration"), **options
    )
    assert killed == (["calibration", "noise"] if killing else [])
    assert len(here.steps) > 5
    assert there.steps == here.steps
    assert there.config == here.config
    assert there.model.data == here.model.data


def test_killed_workers_of_a_cluster_change_nothing(cluster: Any, digits: Path) -> None:
    model, images = digits / "digits.onnx", np.tile(np.load(digits / "calib.npz")["image"], (3, 1, 1, 1))
    killed: list[int] = []

    def progress(done: int, total: int | None) -> None:
        if not killed:
            killed.append(done)
            kill_one(cluster)

    executor = cluster.get_executor(retries=3)
    there = requant.calibrate(model, images, executor=executor, progress=progress)
    assert killed
    assert same(there, requant.calibrate(model, images, threads=1))


def test_a_killed_process_is_a_clear_error(digits: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:

        def progress(done: int, total: int | None) -> None:
            for process in executor._processes.values():
                process.kill()

        with pytest.raises(ExecutorError, match="the executor lost work"):
            requant.calibrate(digits / "digits.onnx", digits / "calib.npz", executor=executor, progress=progress)


def test_bad_samples_are_told_as_ever(pool: ProcessPoolExecutor) -> None:
    net = Net()
    x = net.input("x", ["n", 8])
    hidden = net.op("Relu", net.gemm(net.op("Mul", x, net.const(1e38)), 8, 16))
    model = net.model(net.gemm(hidden, 16, 4, output="y"))
    data = samples(model, 64)["x"] * 100
    with pytest.raises(CalibrationError, match="infinite values") as here:
        requant.calibrate(model, data, threads=1)
    with pytest.raises(CalibrationError) as there:
        requant.calibrate(model, data, executor=pool)
    assert str(there.value) == str(here.value)


def test_an_interrupt_cancels_and_leaves_the_executor(pool: ProcessPoolExecutor, digits: Path) -> None:
    def interrupt(done: int, total: int | None) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        requant.sensitivity(digits / "digits.onnx", digits / "calib.npz", executor=pool, search_progress=interrupt)
    assert pool.submit(sum, [1, 2]).result(timeout=30) == 3


def test_a_metric_that_does_not_pickle_is_refused(pool: ProcessPoolExecutor) -> None:
    model, x = two_gemm(), samples(two_gemm(), 64)["x"]
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        requant.sensitivity(model, x, evaluation=x, metric=lambda *_: 1.0, executor=pool)
