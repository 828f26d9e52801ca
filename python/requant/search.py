"""A walk over models, each a variant of the options and some nodes in float, to one that keeps enough and is fast.

1. The options asked for. If that model keeps enough and is no slower than the float model, nothing else is tried.
2. Where it does not keep enough: other methods, repairs and transforms (``requant.variants``), with weights rounded to
   nearest, each on top of what has clearly lowered the noise before; then all that has, with weights rounded as asked
   for. The first that keeps enough ends this.
3. Where none does: the noise of every node (``requant.ablation``). The nodes with most of it go to float: 1, 2, 4, ...
   of them, until enough is kept; bisection finds how few do. Of these, those with the largest weights are tried in
   integers again. What goes to float has its weights stored as integers all the same, and as float16 where that is too
   little.
4. Where what was found is slower than the float model, or the lowest latency was asked for: the nodes that are slower
   in integers on this machine go to float, too (``requant.placement``), in the end all of them.

Only the last part depends on how fast something ran; all else is the same on every machine.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant.ablation import try_elsewhere, try_without
from requant.errors import ModelError
from requant.onnx.ops import OPS, Kind
from requant.placement import WORTH, Race, run_races, slower_sets
from requant.plan import Form
from requant.runtime import available
from requant.stages import first_batches
from requant.trials import Trials
from requant.variants import CHANGES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from requant.calibration import Progress
    from requant.concluding import Held
    from requant.onnx.graph import Graph
    from requant.serialized import SerializedModel
    from requant.trials import Score
    from requant.variants import Options, Variants

    #: Nodes to leave in float, each with its reason.
    Left = Mapping[str, str]

logger = logging.getLogger(__name__)

#: How near to the float model's speed a model is looked at longer.
_CLOSE = 0.1
#: What the noise must fall to for a change to stay.
_CLEARLY = 0.9
#: Groups of nodes at most whose noise is found, and samples that it is found on.
_GROUPS, _SAMPLES = 64, 8
#: Nodes at most that are tried in integers again.
_RETURNS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """A model that was tried.

    Attributes:
        method: the calibration method.
        options: what else differs from the options that were asked for.
        in_float: the nodes that the search left in float.
        integer_nodes: how many nodes run on integers.
        share: what it keeps; None where its metric is no number, or the float model's is 0.
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
    score: Score
    bytes: int
    latency_ms: float
    speedup: float

    @property
    def described(self) -> str:
        """The method and whatever else differs, for people."""
        others = (name if value is True else f"{name} {value}" for name, value in self.options.items())
        return ", ".join([self.method, *others])


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What a step was made of: options that differ, and nodes left in float."""

    options: Options
    left: Left


class Search:
    """The walk; ``walk`` may be interrupted at any time, and what was found until then is there.

    Args:
        graph: the float model.
        variants: what it may become.
        trials: how good models are.
        share: from a score to what of the float model's quality that is.
        held: samples that calibration has not seen.
        target: the share to be kept.
        latency: whether the fastest model is wanted, not only one that is no slower than the float model.
        progress: called after each trial with the trials done and how many there will be, as far as is known.
        executor: whose workers find the noise of nodes, if any.
    """

    def __init__(
        self,
        graph: Graph,
        variants: Variants,
        trials: Trials,
        share: Callable[[Score], float | None],
        *,
        held: Held,
        target: float,
        latency: bool = False,
        progress: Progress | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.steps: list[Step] = []
        self.recipes: list[Recipe] = []
        self._graph, self._variants, self._trials, self._share = graph, variants, trials, share
        self._held, self._target, self._executor = held, target, executor
        self._reference = graph.serialize()
        self._cores = variants.config.cores
        self._latency = latency
        self._index: dict[object, int | None] = {}
        self._progress, self._done, self._planned = progress, 0, 0

    def walk(self) -> None:
        """Try models until one will do.

        Raises:
            ModelError: with the options asked for nothing is quantized.
        """
        self._plan(1)
        if self._try({}, {}) is None:
            raise ModelError(
                f"the samples reach nothing in {self._graph.origin} that can be quantized",
                hint="give samples that take the branches of its If nodes",
            )
        options = {} if self._met else self._vary()
        if not self._met and not self._leave_out(options) and self._variants.config.rest == "int8":
            self._leave_out({**options, "rest": "float16"})
        if (self._latency or self.steps[self.best()].speedup < 1) and available():
            self._latency = True
            self._place(self.recipes[self.best()])

    def meets(self, step: Step) -> bool:
        """Whether the step keeps enough."""
        return step.share is not None and step.share >= self._target

    def best(self) -> int:
        """Which step is the best one.

        Of those that keep enough and are no slower than the float model the one with most nodes in integers, then the
        smallest; where latency was looked at, and where none is as fast, the fastest; if none keeps enough, the one
        that keeps most.
        """
        good = [i for i, step in enumerate(self.steps) if self.meets(step)]
        if not good:
            return max(range(len(self.steps)), key=lambda i: self.steps[i].share or 0.0)
        order = sorted(good, key=lambda i: (-self.steps[i].integer_nodes, self.steps[i].bytes))
        fast = [i for i in order if self.steps[i].speedup >= 1]
        if fast and not self._latency:
            return fast[0]
        best = order[0]
        for i in order:
            if self.steps[i].speedup > self.steps[best].speedup * WORTH:
                best = i
        return best

    @property
    def _met(self) -> bool:
        return any(map(self.meets, self.steps))

    def _vary(self) -> Options:
        """The options with the least noise that were found; the first that keep enough end it.

        Changes are compared with weights rounded to nearest, which takes a moment; what helps is tried as asked for.
        """
        quick = {} if self._variants.config.rounding == "nearest" else {"rounding": "nearest"}
        self._plan(len(CHANGES) + 2)
        best: Options = quick
        found = self._try(best, {})
        for change in CHANGES:
            if found is None or self.meets(self.steps[found]):
                break
            options = {**best, **change}
            known = self._variants.config_of(options) == self._variants.config_of(best)
            tried = None if known or self._variants.is_vain(options) else self._try(options, {})
            if tried is None:
                self._planned -= 1
            elif self.meets(self.steps[tried]) or self._noise(tried) <= self._noise(found) * _CLEARLY:
                best, found = options, tried
        if quick and not self._met:
            self._try({name: value for name, value in best.items() if name != "rounding"}, {})
        chosen = self.best() if self._met else min(range(len(self.steps)), key=self._noise)
        return self.recipes[chosen].options

    def _noise(self, step: int) -> float:
        return self.steps[step].score.noise

    def _leave_out(self, options: Options) -> bool:
        """Leave the noisiest nodes in float, as few as will do; whether any number does."""
        noisy, rest = self._by_noise(options)
        order = [*noisy, rest]
        self._plan(2 * len(order).bit_length() + _RETURNS)

        def left(groups: Iterable[Left]) -> dict[str, str]:
            return {name: reason for group in groups for name, reason in group.items()}

        def enough(groups: Iterable[Left]) -> bool:
            tried = self._try(options, left(groups))
            return tried is not None and self.meets(self.steps[tried])

        low, high = 0, 1
        while not enough(order[:high]):
            if high >= len(order):
                return False
            low, high = high, min(high * 2, len(order))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if enough(order[:middle]) else (middle, high)
        kept = order[:high]
        reasons = left(kept)
        weights = self._weight_bytes(options)
        for name in sorted(reasons, key=lambda name: -weights.get(name, 0))[:_RETURNS]:
            fewer = {other: reason for other, reason in reasons.items() if other != name}
            if fewer and enough([fewer]):
                reasons = fewer
        return True

    def _by_noise(self, options: Options) -> tuple[list[Left], Left]:
        """Groups of nodes that add noise, those with most first, and whatever else runs on integers."""
        variant = self._variants.make(options)
        plan = variant.build({}).plan
        kinds = {node.name: OPS[node.op_type].kind for node in plan.nodes if OPS[node.op_type].kind is not Kind.MOVE}
        kinds |= {node.name: Kind.RECURRENT for node in plan.dynamic if node.form is Form.INTEGER}
        everything = frozenset(kinds) | {node.name for node in plan.nodes}
        names = list(kinds)
        size = max(1, -(-len(names) // _GROUPS))
        groups = [frozenset(names[i : i + size]) for i in range(0, len(names), size)]
        # What computes is tried alone in integers, what follows alone in float.
        alone = [any(kinds[name] is Kind.COMPUTE for name in group) for group in groups]
        tried = [everything - group if single else group for group, single in zip(groups, alone, strict=True)]
        self._plan(len(tried) + 2)
        (_, whole), (_, floor), *found = self._scores(variant.build, [frozenset(), everything, *tried])
        noises: list[float] = []
        for group, single, (integer, score) in zip(groups, alone, found, strict=True):
            exact = single and integer & group
            noises.append(score.noise - floor.noise if exact else 0.0 if single else whole.noise - score.noise)
        total = sum(noise for noise in noises if noise > 0)
        ranked = sorted(range(len(groups)), key=lambda i: -noises[i])
        noisy: list[Left] = [
            dict.fromkeys(sorted(groups[i]), f"it adds {noises[i] / total:.1%} of the output noise")
            for i in ranked
            if noises[i] > 0
        ]
        others = everything - {name for group in noisy for name in group}
        return noisy, dict.fromkeys(sorted(others), f"with it in integers no model keeps {self._target:g}")

    def _scores(self, build: Any, left_out: Sequence[frozenset[str]]) -> list[tuple[frozenset[str], Score]]:
        """The scores of models without some nodes in integers, by noise alone, on a few samples."""
        trials = Trials(self._graph, tuple(first_batches(self._held.batches, _SAMPLES)), None)
        if self._executor is None:
            return list(try_without(trials, build, left_out, self._cores, self._advance))
        return list(try_elsewhere(self._executor, trials.context(self._graph), build, left_out, self._advance))

    def _place(self, recipe: Recipe) -> None:
        """Leave nodes in float that are slower in integers on this machine; in the end all of them."""
        variant = self._variants.make(recipe.options)
        whole = variant.build(recipe.left)
        sets = [*slower_sets(variant.observed.graph, whole, self._held.feeds)]
        every = [node.name for node in whole.plan.nodes]
        every += [node.name for node in whole.plan.dynamic if node.form is Form.INTEGER]
        sets.append(dict.fromkeys(every, "the model is slower in integers on this machine"))
        self._plan(len(sets))
        for slower in sets:
            self._try(recipe.options, {**recipe.left, **slower})

    def _try(self, options: Options, left: Left) -> int | None:
        """The step with these options and nodes in float, tried once; None if nothing is quantized then."""
        key = (self._variants.config_of(options), frozenset(left))
        if key not in self._index:
            self._index[key] = self._tried(options, left)
        self._advance()
        return self._index[key]

    def _tried(self, options: Options, left: Left) -> int | None:
        variant = self._variants.make(options)
        candidate = variant.build(left)
        if not candidate.is_quantized:
            return None
        score = self._trials.score(candidate.model, self._cores)
        share, config = self._share(score), variant.config
        race = self._race(candidate.model, decides=share is not None and share >= self._target)
        others = {name: value for name, value in options.items() if name != "method"}
        step = Step(
            method=config.method,
            options=others,
            in_float=tuple(sorted(left)),
            integer_nodes=len(candidate.plan.op_types),
            share=share,
            score=score,
            bytes=candidate.model.size,
            latency_ms=race.ms,
            speedup=race.speedup,
        )
        self.steps.append(step)
        self.recipes.append(Recipe(options, left))
        self._variants.make(self.recipes[self.best()].options)  # stays at hand
        logger.info("%s with %d nodes in float keeps %s", step.described, len(left), share)
        return len(self.steps) - 1

    def _race(self, model: SerializedModel, *, decides: bool) -> Race:
        """How fast a model is against the float model: looked at longer where that is close, and decides."""
        (race,) = run_races([self._reference, model], self._held.feeds, shorter=3)
        if decides and abs(race.speedup - 1) < _CLOSE:
            (race,) = run_races([self._reference, model], self._held.feeds)
        return race

    def _weight_bytes(self, options: Options) -> dict[str, int]:
        """Size of the weight of each node that has one, in float."""
        observed = self._variants.make(options).observed
        constants = observed.graph.model.graph.initializers
        weights = {node.name: constants.get(node.weight or "") for node in observed.plan.nodes}
        return {
            name: w.const_value.nbytes for name, w in weights.items() if w is not None and w.const_value is not None
        }

    def _plan(self, trials: int) -> None:
        """So many more trials are to come, at most."""
        self._planned = self._done + trials

    def _advance(self, *_: object) -> None:
        """Another trial is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, max(self._planned, self._done))
