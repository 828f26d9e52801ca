"""A walk over numbers of bits for the weights of a model, to the smallest model that keeps enough.

1. The bits asked for. If that model keeps enough, nothing else is tried.
2. What each weight costs is found (``requant.weights.budget``). Weights get more bits, 4, then 8, then stay float, in
   the order in which the error of the model's outputs falls most for the bytes. Bisection finds how few steps do.
3. Of the weights that have more bits then, those with most bytes to save are tried with the bits asked for again.

Every model is rounded as a whole, so that its recipe gives the same bytes. Nothing depends on how fast something ran.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from requant.config.rules import Rule
from requant.search.walk import ModelWalk, fewest
from requant.weightonly import conclude_weights, looks_at_data, round_to_plan
from requant.weights import AUTO
from requant.weights.budget import FLOAT, find_costs
from requant.weights.plan import plan_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from requant.concluding import Given, Held
    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.planning.plan import QuantPlan
    from requant.quantized import QuantizedModel
    from requant.search.trials import Score, Trials
    from requant.stopwatch import Stopwatch
    from requant.types import Progress
    from requant.weightonly import LowBitModel
    from requant.weights.budget import Costs

    #: The bits of each weight; ``FLOAT`` where it stays so.
    Bits = Mapping[tuple[str, bool], int]

#: What weights may be raised to.
_MORE = (4, 8, FLOAT)
#: Weights at most that are tried with the bits asked for again.
_RETURNS = 8


class BitSearch(ModelWalk):
    """The walk; arguments as ``ModelWalk`` has them, and these.

    Args:
        given: the float model and its samples.
        config: the options that were asked for.
        batches: the samples that layers are rounded by.
    """

    def __init__(
        self,
        given: Given,
        config: QuantConfig,
        batches: Sequence[Batch],
        trials: Trials,
        share: Callable[[Score], tuple[float, float] | None],
        *,
        held: Held,
        target: float,
        progress: Progress | None = None,
    ) -> None:
        workers = config.cores
        super().__init__(given.graph, trials, share, held=held, target=target, workers=workers, progress=progress)
        self._given, self._config, self._batches = given, config, batches
        self._plan_asked = plan_weights(given.prepared, config)
        self._configs: list[QuantConfig] = []
        self._found: dict[int, LowBitModel] = {}  # the best one
        self._index: dict[frozenset[tuple[tuple[str, bool], int]], int | None] = {}

    def walk(self) -> None:
        """Try models until the smallest one that keeps enough is found."""
        asked = {node.key: node.scheme.bits for node in self._plan_asked.blocked}
        self._plan(1)
        if self._enough(asked):
            return
        steps = sorted({*asked.values(), *(bits for bits in _MORE if bits > min(asked.values()))})
        costs = find_costs(self._given.prepared, self._plan_asked, steps, self._batches, threads=self._config.cores)
        path = [bits for bits in costs.climb(asked) if any(each != FLOAT for each in bits.values())]
        self._plan(2 * len(path).bit_length() + _RETURNS)
        count = fewest(len(path), lambda count: self._enough(path[count - 1])) if path else None
        if count is not None:
            self._return(path[count - 1], asked, costs)

    def best(self) -> int:
        """Which step is the best one: of those that keep enough the smallest; if none does, the one that keeps most."""
        good = [i for i, step in enumerate(self.steps) if self.meets(step)]
        return min(good, key=lambda i: self.steps[i].bytes) if good else self._keeps_most()

    def conclude(self, watch: Stopwatch) -> tuple[QuantConfig, QuantizedModel]:
        """The options that make the best model, and that model, verified."""
        place = self.best()
        config, found = self._configs[place], self._found.get(place)
        if found is None:  # an interrupt came in between
            found = self._round(config, plan_weights(self._given.prepared, config))
        return config, conclude_weights(self._given, config, found, self._held, watch=watch)

    def _return(self, bits: Bits, asked: Bits, costs: Costs) -> None:
        """Try single weights with the bits asked for again, those with most bytes to save first."""
        saved = {key: costs.size({key: each}) - costs.size({key: asked[key]}) for key, each in bits.items()}
        for key in sorted((key for key in saved if saved[key] > 0), key=lambda key: -saved[key])[:_RETURNS]:
            fewer = {**bits, key: asked[key]}
            if self._enough(fewer):
                bits = fewer

    def _enough(self, bits: Bits) -> bool:
        """Whether the model with these bits, which is tried once, keeps enough."""
        key = frozenset(bits.items())
        if key not in self._index:
            self._index[key] = self._tried(bits)
        self._advance()
        step = self._index[key]
        return step is not None and self.meets(self.steps[step])

    def _tried(self, bits: Bits) -> int | None:
        """The step with these bits; None if all weights are float then."""
        config, left = self._config_of(bits)
        plan = plan_weights(self._given.prepared, config)
        if not plan.blocked:
            return None
        found = self._round(config, plan)
        self._configs.append(config)
        options = {"bits": round(found.mean_bits, 2)}
        step = self._enter(found.model, config.algorithm or AUTO, options, left, len(plan.blocked))
        if self.best() == step:
            self._found = {step: found}
        return step

    def _round(self, config: QuantConfig, plan: QuantPlan) -> LowBitModel:
        return round_to_plan(self._given, plan, config, self._batches if looks_at_data(plan) else ())

    def _config_of(self, bits: Bits) -> tuple[QuantConfig, tuple[str, ...]]:
        """The options asked for with rules that give single nodes these bits, and the nodes that stay float for it."""
        changed = [node for node in self._plan_asked.blocked if bits[node.key] != node.scheme.bits]
        left = tuple(sorted(node.name for node in changed if bits[node.key] == FLOAT))
        rules = [
            Rule(node.name, quantize=False) if node.name in left else Rule(node.name, bits=bits[node.key])
            for node in changed
        ]
        return replace(self._config, rules=(*self._config.rules, *rules)), left
