"""Watching the traffic of a service that runs a quantized model: some requests, in constant memory, from any thread."""

from __future__ import annotations

import math
import sys
import threading
from dataclasses import replace
from operator import length_hint
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import as_float32, thread_count
from requant.data import DataOptions, open_data
from requant.drift.verdict import Drift, TensorMonitor, Unwatched, Verdict, by_badness
from requant.errors import ConfigError, DataError, ModelError, closest
from requant.evaluation.evaluate import load
from requant.runtime import joined, open_runner
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from requant.calibration.table import CalibrationTable
    from requant.onnx.frozen import FrozenRange
    from requant.onnx.reading import Model
    from requant.runtime import Runner
    from requant.types import Progress

#: One request in so many is looked at, and fewer where that takes a larger share of the time, by the fastest of either:
#: half of 2 %, since what is not done at each request finds the caches cold.
EVERY, SHARE = 50, 0.01
#: Tensors that a result shows the histograms of.
_VIEWS = 12


def measure_drift(
    model: Model,
    data: object,
    *,
    tensors: Iterable[str] | None = "all",
    table: CalibrationTable | None = None,
    data_options: DataOptions | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Drift:
    """Hold recorded traffic against a quantized model's frozen ranges; each batch is one request.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of a model with constant scales, of whatever quantizer.
        data: samples of the traffic, in any form that ``requant.quantize`` takes.
        tensors: as for ``DriftMonitor``; all by default.
        table: as for ``DriftMonitor.drift``.
        data_options: which samples, and how they are cut and images scaled; a sample to a batch by default.
        threads: CPU threads; 0 uses all cores.
        progress: called after each batch with the samples done and their number (None if unknown).

    Raises:
        RequantError: as ``DriftMonitor``; or a subclass says what is wrong with the data.

    Example:
        >>> requant.measure_drift("model.int8.onnx", "live/").verdict  # doctest: +SKIP
    """
    options = data_options or DataOptions()
    if options.batch_size is None:
        options = replace(options, batch_size=1)
    monitor = DriftMonitor(model, tensors=tensors, every=1, threads=threads)
    dataset = open_data(data, monitor.inputs, options)
    samples = 0
    for batch in dataset.batches():
        monitor.run(batch.feeds)
        samples += batch.count
        if progress is not None:
            progress(samples, dataset.length)
    return monitor.drift(table)


class DriftMonitor:
    """Watches a quantized model's live inputs, and its inner tensors on request; safe to share between threads.

    Memory is constant: about 32 KB for each tensor. Workers watch on their own and ``merge`` their monitors.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of a model with constant scales (QuantizeLinear), of whatever
            quantizer.
        tensors: names of the tensors to watch, or ``all``; the model's inputs by default. Tensors in bodies of Loop and
            Scan are those of all iterations of a request.
        every: look at one request in so many; 1 looks at all. By default at one in fifty, and where ``run`` reads inner
            tensors at so many fewer as keep what looking adds at 2 % of the time of all requests.
        threads: CPU threads for ``run``; 0 uses all cores.

    Raises:
        ConfigError: a tensor that the model does not quantize, ``every`` below 1, or ``threads`` below 0.
        ModelError: the model has no frozen ranges.

    Example:
        >>> monitor = requant.DriftMonitor("model.int8.onnx")  # doctest: +SKIP
        >>> monitor.observe({"image": image})  # doctest: +SKIP
        >>> monitor.drift().verdict  # doctest: +SKIP
    """

    def __init__(
        self, model: Model, *, tensors: Iterable[str] | None = None, every: int | None = None, threads: int = 0
    ) -> None:
        from requant.onnx.frozen import frozen_ranges

        if every is not None and every < 1:
            raise ConfigError(f"every is {every}, expected at least 1")
        threads = thread_count(threads)
        graph = load(model)
        frozen, hidden = frozen_ranges(graph)
        self.inputs = graph.inputs
        inputs = [spec.name for spec in graph.inputs]
        names = _chosen(graph.origin, frozen, hidden, inputs, tensors)
        self.model, self.digest = graph.origin, graph.digest
        self.every, self._settles = every or EVERY, every is None
        self.outputs = tuple(output.name for output in graph.outputs)
        self._turns = iter(range(sys.maxsize))  # to take the next is one step of the interpreter: it needs no lock
        self.sampled = self._next = self._merged = 0
        self._bare = self._looking = math.inf  # seconds of a request without and with looking at it, at least
        self._watched = {name: TensorMonitor(frozen[name]) for name in names}
        self._hidden = hidden if tensors == "all" else {}
        self._inner = [name for name in names if name not in inputs]
        self._graph, self._threads = graph, threads
        self._runners: dict[bool, Runner] = {}
        self._lock, self._opening = threading.Lock(), threading.Lock()

    def __repr__(self) -> str:
        seen = f"{counted(self.requests, 'request(s)')}, {self.sampled} looked at"
        return f"DriftMonitor({self.model}: {counted(len(self.tensors), 'tensor(s)')}, {seen})"

    @property
    def requests(self) -> int:
        """How many requests there were."""
        return self._merged + sys.maxsize - length_hint(self._turns)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names that are watched."""
        return tuple(self._watched)

    def observe(self, arrays: Mapping[str, ArrayLike]) -> bool:
        """Count a request, and look at it if its turn has come; returns whether it had.

        Args:
            arrays: what the model was fed, or whatever else of it is at hand, by name; names that are not watched are
                passed over. One call is one request: its range is that of all its values.

        Raises:
            TypeError: a watched array does not hold real numbers.
        """
        due = self._is_due()
        if due:
            self._look(arrays)
        return due

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs of the model, watching it: where a request's turn has come, inner tensors are read as well.

        Reading them keeps the runtime from fusing, so that such a run is slower and its last bits may differ.

        Raises:
            ModelError: the model fails on ``feeds``.
        """
        due = self._is_due()
        if due and self._inner:
            return self._run_inner(feeds)
        runner = self._runners.get(False) or self._open(inner=False)
        start = perf_counter()
        results = runner.run(feeds)
        self._bare = min(self._bare, perf_counter() - start)
        if due:
            self._look(feeds)
        return results

    def _run_inner(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        runner = self._runners.get(True) or self._open(inner=True)
        start = perf_counter()
        results = runner.run(feeds)
        outputs, inner = results[: len(self.outputs)], map(joined, results[len(self.outputs) :])
        self._look({**feeds, **dict(zip(self._inner, inner, strict=True))})
        self._looking = min(self._looking, perf_counter() - start)
        if self._settles and math.isfinite(self._bare):
            self.every = max(EVERY, math.ceil((self._looking / self._bare - 1) / SHARE))
        return outputs

    def merge(self, other: DriftMonitor) -> None:
        """Take in all that ``other``, a monitor of the same model, has seen.

        Raises:
            ConfigError: it watches another model.
        """
        if other.digest != self.digest:
            raise ConfigError(
                f"a monitor of {other.model} cannot be merged into one of {self.model}", hint="watch one model in all"
            )
        with other._lock:
            requests, sampled = other.requests, other.sampled
            parts = {name: watched.copy() for name, watched in other._watched.items()}
        with self._lock:
            self._merged += requests
            self.sampled += sampled
            for name, part in parts.items():
                self._watched.setdefault(name, TensorMonitor(part.frozen)).merge(part)

    def drift(self, table: CalibrationTable | None = None) -> Drift:
        """What was seen so far.

        Args:
            table: statistics of the calibration samples (``requant calibrate``). Ranges that clip on purpose (methods
                entropy and percentile), or keep everything in spite of heavy tails (minmax), then count as matching
                where they cost no more than they cost there.

        Raises:
            DataError: nothing was seen yet.
        """
        requests, sampled, parts = self._seen()
        if not parts:
            raise DataError(f"none of {', '.join(self.tensors)} was seen yet", hint="observe requests first")
        tensors = tuple(part.judged(None if table is None else table.get(name)) for name, part in parts.items())
        worst = by_badness(tensors)
        views = tuple(parts[tensor.name].view() for tensor in worst[:_VIEWS])
        return Drift(self.model, requests, sampled, tensors, worst[0].verdict, views, tuple(self._unwatched(parts)))

    def _unwatched(self, seen: Mapping[str, TensorMonitor]) -> Iterator[Unwatched]:
        """What is missing among those that were to be watched, the inner ones where ``run`` has looked at some."""
        yield from (Unwatched(name, reason) for name, reason in self._hidden.items())
        if any(name in seen for name in self._inner):
            yield from (Unwatched(name, "no request took its branch") for name in self._inner if name not in seen)

    def counters(self) -> dict[str, float]:
        """What was seen, as Prometheus names it: metrics with labels, and their values."""
        requests, sampled, parts = self._seen()
        counters: dict[str, float] = {"requant_drift_requests_total": requests, "requant_drift_sampled_total": sampled}
        for tensor in (part.judged(None) for part in parts.values()):
            label = _label(tensor.name)
            counters[f'requant_drift_values_total{{tensor="{label}"}}'] = tensor.values
            counters[f'requant_drift_not_finite_total{{tensor="{label}"}}'] = tensor.not_finite
            counters[f'requant_drift_clipped_share{{tensor="{label}"}}'] = tensor.clipped
            for name, value in (("error_ratio", tensor.ratio), ("gain", tensor.gain)):
                counters[f'requant_drift_{name}{{tensor="{label}"}}'] = np.inf if value is None else value
            for verdict in Verdict:
                key = f'requant_drift_verdict{{tensor="{label}",verdict="{verdict}"}}'
                counters[key] = float(verdict is tensor.verdict)
        return counters

    def __getstate__(self) -> dict[str, Any]:
        hidden = {"_lock", "_opening", "_runners", "_graph", "_turns"}
        with self._lock:
            state = {key: value for key, value in self.__dict__.items() if key not in hidden}
            state.update(_merged=self.requests, _next=self._next - self.requests + self._merged)
            state["_watched"] = {name: watched.copy() for name, watched in self._watched.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _graph=None, _runners={}, _lock=threading.Lock(), _opening=threading.Lock())
        self._turns = iter(range(sys.maxsize))

    def _seen(self) -> tuple[int, int, dict[str, TensorMonitor]]:
        """Requests, those looked at, and a copy of what was seen of each tensor that was."""
        with self._lock:
            parts = {name: watched.copy() for name, watched in self._watched.items() if watched.statistics.count}
            return self.requests, self.sampled, parts

    def _is_due(self) -> bool:
        turn = next(self._turns)
        if turn < self._next:
            return False
        with self._lock:
            if turn < self._next:  # another thread has looked meanwhile
                return False
            self._next += self.every
            self.sampled += 1
        return True

    def _look(self, arrays: Mapping[str, ArrayLike]) -> None:
        for name, watched in self._watched.items():
            if name in arrays:
                x = as_float32(arrays[name])
                with self._lock:
                    watched.observe(x)

    def _open(self, *, inner: bool) -> Runner:
        with self._opening:
            if inner not in self._runners:
                if self._graph is None:
                    raise ModelError("a monitor that was pickled cannot run its model", hint="make one with the model")
                fetch = (*self.outputs, *self._inner) if inner else self.outputs
                self._runners[inner] = open_runner(self._graph.serialize(fetch), threads=self._threads)
            return self._runners[inner]


def _chosen(
    origin: str,
    frozen: Mapping[str, FrozenRange],
    hidden: Mapping[str, str],
    inputs: Sequence[str],
    tensors: Iterable[str] | None,
) -> tuple[str, ...]:
    if not frozen and hidden:
        name, reason = next(iter(hidden.items()))
        raise ModelError(
            f"none of the {len(hidden)} frozen ranges of {origin} can be watched: {name!r}: {reason}",
            hint="a monitor sees the main graph and bodies of If, Loop and Scan",
        )
    if not frozen:
        raise ModelError(
            f"{origin} has no frozen ranges: no QuantizeLinear of it has a constant scale",
            hint="give a model that was quantized statically",
        )
    if tensors == "all":
        return tuple(frozen)
    if tensors is None:
        own = tuple(name for name in inputs if name in frozen)
        if not own:
            raise ModelError(
                f"no input of {origin} is quantized with a constant scale",
                hint=f"name inner tensors, such as {next(iter(frozen))!r}, or all; `run` reads them",
            )
        return own
    names = tuple(dict.fromkeys([tensors] if isinstance(tensors, str) else tensors))
    for name in names:
        if name in hidden:
            raise ConfigError(f"{name!r} of {origin} cannot be watched: {hidden[name]}", hint="leave it out")
        if name not in frozen:
            raise ConfigError(
                f"{origin} has no frozen range for {name!r}{closest(name, frozen)}",
                hint="`requant drift --json` without --tensor lists those that have one",
            )
    return names


def _label(name: str) -> str:
    """A label's value, escaped as Prometheus wants it."""
    return name.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
