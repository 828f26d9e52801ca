"""What searches have in common: models are tried one after another, each judged and timed, and the best is taken."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from requant.planning.placement import run_races
from requant.runtime import available

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from requant.concluding import Held
    from requant.config import QuantConfig
    from requant.onnx.graph import Graph
    from requant.quantized import QuantizedModel
    from requant.search.trials import Score, Trials
    from requant.serialized import SerializedModel
    from requant.stopwatch import Stopwatch
    from requant.types import Progress

logger = logging.getLogger(__name__)

#: Below which speed a model is clearly slower than the float model, if each of so many races says so.
_SLOWER, _RACES = 0.97, 5


@dataclass(frozen=True, slots=True)
class Step:
    """A model that was tried.

    Attributes:
        method: the calibration method; where only weights are quantized, the algorithm.
        options: what else differs from the options that were asked for; where only weights are quantized, the ``bits``
            that one of them takes on average, scales and zero points included.
        in_float: the nodes that the search left in float.
        integer_nodes: how many nodes run on integers, or have weights that are integers.
        share: what it keeps; None where its metric is no number, or the float model's is 0.
        surely: that less a standard error, where outputs are judged: what the target is held against.
        score: how good it is.
        bytes: its size.
        latency_ms: median processor time of one sample on one thread.
        speedup: against the float model, the two in turn.
    """

    method: str
    options: Mapping[str, Any]
    in_float: tuple[str, ...]
    integer_nodes: int
    share: float | None
    surely: float | None
    score: Score
    bytes: int
    latency_ms: float
    speedup: float

    @property
    def described(self) -> str:
        """The method and whatever else differs, for people."""
        others = (name if value is True else f"{name} {value}" for name, value in self.options.items())
        return ", ".join([self.method, *others])


class ModelWalk(ABC):
    """A walk over models; ``walk`` may be interrupted at any time, and what was found until then is there.

    Args:
        graph: the float model.
        trials: how good models are.
        share: from a score to what of the float model's quality that is, and how much of it is sure.
        held: samples that calibration has not seen.
        target: the share to be kept.
        workers: threads that judge.
        progress: called after each trial with the trials done and how many there will be, as far as is known.
    """

    def __init__(
        self,
        graph: Graph,
        trials: Trials,
        share: Callable[[Score], tuple[float, float] | None],
        *,
        held: Held,
        target: float,
        workers: int,
        progress: Progress | None = None,
    ) -> None:
        self.steps: list[Step] = []
        self.measured = False  # whether how fast models ran has chosen among them
        self._trials, self._share, self._held, self._target, self._cores = trials, share, held, target, workers
        self._reference = graph.serialize()
        self._progress, self._done, self._planned = progress, 0, 0

    @abstractmethod
    def walk(self) -> None:
        """Try models until one will do."""

    @abstractmethod
    def best(self) -> int:
        """Which step is the best one."""

    @abstractmethod
    def conclude(self, watch: Stopwatch) -> tuple[QuantConfig, QuantizedModel]:
        """The options that make the best model, and that model, verified."""

    def meets(self, step: Step) -> bool:
        """Whether the step keeps enough."""
        return step.surely is not None and step.surely >= self._target

    @property
    def _met(self) -> bool:
        return any(map(self.meets, self.steps))

    def _keeps_most(self) -> int:
        return max(range(len(self.steps)), key=lambda i: self.steps[i].share or 0.0)

    def _enter(
        self, model: SerializedModel, method: str, options: Mapping[str, Any], left: tuple[str, ...], integers: int
    ) -> int:
        """Judge and time a model; the place of its step."""
        score = self._trials.score(model, self._cores)
        share, surely = self._share(score) or (None, None)
        (race,) = run_races([self._reference, model], self._held.feeds, shorter=3)
        step = Step(method, options, left, integers, share, surely, score, model.size, race.ms, race.speedup)
        self.steps.append(step)
        logger.info("%s with %d nodes in float keeps %s", step.described, len(left), share)
        return len(self.steps) - 1

    def _is_slower(self, step: int, model: SerializedModel) -> bool:
        """Whether the model of a step is clearly slower than the float model: in all of several races.

        Each has sessions of its own: what the memory looks like that they are loaded into moves their speed, too.
        """
        if not available():
            return False
        speeds = [self.steps[step].speedup]
        while speeds[-1] < _SLOWER and len(speeds) < _RACES:
            (race,) = run_races([self._reference, model], self._held.feeds)
            speeds.append(race.speedup)
            self.steps[step] = replace(self.steps[step], latency_ms=race.ms, speedup=race.speedup)
        return speeds[-1] < _SLOWER

    def _race_all(self, models: Mapping[int, SerializedModel]) -> None:
        """Let the models of these steps run in turn, so that they have the same conditions, and take their speeds."""
        if len(models) > 1:
            races = run_races([self._reference, *models.values()], self._held.feeds)
            for i, race in zip(models, races, strict=True):
                self.steps[i] = replace(self.steps[i], latency_ms=race.ms, speedup=race.speedup)

    def _plan(self, trials: int) -> None:
        """So many more trials are to come, at most."""
        self._planned = self._done + trials

    def _advance(self, *_: object) -> None:
        """Another trial is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._planned, self._done))


def fewest(most: int, enough: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to ``most`` that is ``enough``, if all above it are; None where ``most`` is not.

    1, 2, 4, ... are tried, then bisection.
    """
    low, high = 0, min(1, most)
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(high * 2, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
