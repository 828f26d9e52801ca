"""A walk over models, each a variant of the options and some nodes in float, to one that keeps enough and is fast.

1. The options asked for. If that model keeps enough and is no slower than the float model, nothing else is tried.
2. Where it does not keep enough: other methods, repairs and transforms (``requant.search.variants``), with weights
   rounded to nearest, each on top of what has clearly lowered the noise before; after the methods, and in the end, all
   that has, with weights rounded as asked for. The first that keeps enough ends this.
3. Where none does: the noise of every node (``requant.search.ablation``). The nodes with most of it go to float: 1, 2,
   4, ... of them, until enough is kept; bisection finds how few do. Of these, those with the largest weights are tried
   in integers again. What goes to float has its weights stored as integers all the same, and as float16 where that is
   too little.
4. Where the target's costs say that what was found is slower than the float model (``requant.planning.worth``): the
   nodes that are faster in float by these costs go there, too, and where the rest is slower still, all of them.
5. What was found is timed. Only where it is clearly slower than the float model all the same, in each of several races,
   the next of the models of part 4 is taken.

So how fast anything ran decides nothing, unless part 5 finds that the costs were clearly wrong, which is said. Only
where the lowest latency was asked for do measurements choose, in place of parts 4 and 5: the nodes that are slower in
integers on this machine go to float (``requant.planning.placement``), in the end all of them; those of these models
that keep enough then run in turn, all of them and the float model. Of models that are about as fast, less than
``WORTH`` apart, the one with most nodes in integers is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from requant.concluding import conclude
from requant.errors import ModelError
from requant.onnx.ops import OPS, Kind
from requant.planning.placement import WORTH, slower_sets
from requant.planning.plan import Form
from requant.planning.worth import is_presumably_slower, presumably_slower
from requant.runtime import available
from requant.search.ablation import try_elsewhere, try_without
from requant.search.trials import Trials
from requant.search.variants import CHANGES
from requant.search.walk import ModelWalk, fewest
from requant.stages import first_batches
from requant.targets import get_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from concurrent.futures import Executor

    from requant.concluding import Given, Held
    from requant.config import QuantConfig
    from requant.planning.plan import QuantPlan
    from requant.quantized import QuantizedModel
    from requant.search.trials import Score
    from requant.search.variants import Options, Variants
    from requant.stopwatch import Stopwatch
    from requant.types import Progress

    #: Nodes to leave in float, each with its reason.
    Left = Mapping[str, str]

#: What the noise must fall to for a change to stay.
_CLEARLY = 0.9
#: Groups of nodes at most whose noise is found, and samples that it is found on.
_GROUPS, _SAMPLES = 64, 8
#: Nodes at most that are tried in integers again.
_RETURNS = 8
#: Why nodes are left in float for the speed of the model: what holds of the last one tried with more in integers.
_JUDGED, _MEASURED, _WORSE = (
    "by the costs of the target the model is slower with it in integers",
    "the model is slower in integers on this machine",
    "with it in integers no model that is fast enough keeps enough",
)


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What a step was made of: options that differ, and nodes left in float."""

    options: Options
    left: Left


class Search(ModelWalk):
    """The walk; arguments as ``ModelWalk`` has them, and these.

    Args:
        given: the float model and its samples.
        variants: what it may become.
        latency: whether the fastest model is wanted, not only one that is no slower than the float model.
        executor: whose workers find the noise of nodes, if any.
    """

    def __init__(
        self,
        given: Given,
        variants: Variants,
        trials: Trials,
        share: Callable[[Score], tuple[float, float] | None],
        *,
        held: Held,
        target: float,
        latency: bool = False,
        progress: Progress | None = None,
        executor: Executor | None = None,
    ) -> None:
        workers = variants.config.cores
        super().__init__(given.graph, trials, share, held=held, target=target, workers=workers, progress=progress)
        self.recipes: list[Recipe] = []
        self._given, self._graph, self._variants, self._executor = given, given.graph, variants, executor
        self._latency = latency
        self._found: int | None = None
        self._index: dict[object, int | None] = {}
        self._models: dict[bytes, int] = {}

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
        if self._latency and available():
            self._place(self.recipes[self.best()])
            self.measured = True
        elif self._met:
            self._hasten(self.recipes[self.best()])

    def best(self) -> int:
        """Which step is the best one.

        Of those that keep enough the one with most nodes in integers, then the smallest, or what was found from there
        that is no slower than the float model; where latency was asked for, the fastest; if none keeps enough, the one
        that keeps most.
        """
        if self._found is not None:
            return self._found
        good = [i for i, step in enumerate(self.steps) if self.meets(step)]
        if not good:
            return self._keeps_most()
        order = sorted(good, key=lambda i: (-self.steps[i].integer_nodes, self.steps[i].bytes))
        best = order[0]
        if not self._latency:
            return best
        for i in order:
            if self.steps[i].speedup > self.steps[best].speedup * WORTH:
                best = i
        return best

    def conclude(self, watch: Stopwatch) -> tuple[QuantConfig, QuantizedModel]:
        """The options that make the best model, and that model, verified."""
        recipe, held = self.recipes[self.best()], self._held
        variant = self._variants.make(recipe.options)
        in_float = tuple(sorted({*self._variants.config.in_float, *recipe.left}))
        config = replace(variant.config, in_float=in_float)
        built = variant.build(recipe.left)
        return config, conclude(self._given, config, variant.observed, built, held, watch=watch)

    def _vary(self) -> Options:
        """The options with the least noise that were found; the first that keep enough end it.

        Changes are compared with weights rounded to nearest, which takes a moment; what helps is tried as asked for.
        """
        quick = {} if self._variants.config.rounding == "nearest" else {"rounding": "nearest"}
        self._plan(1 + sum(len(changes) + 1 for changes in CHANGES))
        best: Options = quick
        found = self._try(best, {})
        for changes in CHANGES:
            for change in changes:
                if found is None or self._met:
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

        count = fewest(len(order), lambda count: enough(order[:count]))
        if count is None:
            return False
        reasons = left(order[:count])
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

    def _hasten(self, recipe: Recipe) -> None:
        """Leave nodes in float, in the end all, until the model is no slower than the float model.

        The target's costs say how many that takes. Only where a model is clearly slower all the same, more are left.
        """
        variant, target = self._variants.make(recipe.options), get_target(self._variants.config.target)
        cpu = self._variants.config.cpu
        graph, whole = variant.observed.graph, variant.build(recipe.left)
        fed = {name: array.shape for name, array in self._held.feeds.items()}
        slower = presumably_slower(graph, whole.plan, target, cpu, fed, certain=False, products=True)
        every = _on_integers(whole.plan)
        ways = dict.fromkeys([(), slower, every])
        self._plan(len(ways))
        reason = _JUDGED
        for nodes in ways:
            left = {**recipe.left, **dict.fromkeys(nodes, reason)}
            built = variant.build(left) if nodes else whole
            if is_presumably_slower(graph, built.plan, target, cpu, fed):
                reason = _JUDGED
                continue
            step = self._try(recipe.options, left)
            if step is None or not self.meets(self.steps[step]):
                reason = _WORSE
                continue
            self._found = step
            if nodes == every or not self._is_slower(step, built.model):
                break
            self.measured, reason = True, _MEASURED

    def _place(self, recipe: Recipe) -> None:
        """Leave nodes in float that are slower in integers on this machine; in the end all of them."""
        variant = self._variants.make(recipe.options)
        whole = variant.build(recipe.left)
        sets = [*slower_sets(variant.observed.graph, whole, self._held.feeds)]
        sets.append(dict.fromkeys(_on_integers(whole.plan), _MEASURED))
        self._plan(len(sets) + 1)
        tried = [self.best(), *(self._try(recipe.options, {**recipe.left, **slower}) for slower in sets)]
        contenders = [i for i in dict.fromkeys(tried) if i is not None and self.meets(self.steps[i])]
        recipes = {i: self.recipes[i] for i in contenders}
        self._race_all({i: self._variants.make(each.options).build(each.left).model for i, each in recipes.items()})
        self._advance()

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
        digest = blake2b(candidate.model.proto).digest()
        if digest in self._models and candidate.model.folder is None:
            return self._models[digest]  # another way to the same bytes
        self._models[digest] = len(self.steps)
        others = {name: value for name, value in options.items() if name != "method"}
        integers = len(candidate.plan.op_types)
        self.recipes.append(Recipe(options, left))
        step = self._enter(candidate.model, variant.config.method, others, tuple(sorted(left)), integers)
        self._variants.make(self.recipes[self.best()].options)  # stays at hand
        return step

    def _weight_bytes(self, options: Options) -> dict[str, int]:
        """Size of the weight of each node that has one, in float."""
        observed = self._variants.make(options).observed
        constants = observed.graph.model.graph.initializers
        weights = {node.name: constants.get(node.weight or "") for node in observed.plan.nodes}
        return {
            name: w.const_value.nbytes for name, w in weights.items() if w is not None and w.const_value is not None
        }


def _on_integers(plan: QuantPlan) -> tuple[str, ...]:
    """The nodes that run on integers."""
    dynamic = (node.name for node in plan.dynamic if node.form is Form.INTEGER)
    return (*(node.name for node in plan.nodes), *dynamic)
