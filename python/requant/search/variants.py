"""Ways to quantize all of a model, made once each: what a search chooses from, and takes parts of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.building.dynamic import plan_whole
from requant.calibration.choosing import USUAL
from requant.calibration.run import calibrate_graph
from requant.config import AUTO, METHODS
from requant.stages import Observed, observe
from requant.transforms import transform

if TYPE_CHECKING:
    from collections.abc import Mapping
    from concurrent.futures import Executor

    from requant.concluding import Given
    from requant.config import QuantConfig
    from requant.onnx.rescale import Factors
    from requant.onnx.shift import Shifts
    from requant.planning.placement import Build
    from requant.planning.plan import QuantPlan
    from requant.transforms import Transformed
    from requant.types import Progress

    #: Options that differ from those that were asked for.
    Options = Mapping[str, Any]

#: What is tried to lower the noise, one after another, each on top of what has helped: methods, which take a moment;
#: then what looks at the data anew: the method for each tensor, transforms, repairs.
CHANGES: tuple[tuple[dict[str, Any], ...], ...] = (
    tuple({"method": method} for method in METHODS),
    (
        {"method": AUTO},
        {"equalize": True},
        {"absorb": True},
        {"smooth": 0.5},
        {"smooth": "none"},
        {"bias_correction": True},
    ),
)
_KEPT = 3  # variants whose integers are held at a time


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """A way to quantize all of a model: its options, what the data told, and what makes models of it or parts of it."""

    config: QuantConfig
    observed: Observed
    build: Build


class Variants:
    """Variants of a model by their options. It is calibrated once for each rescaling that transforms come to.

    Args:
        given: the model and its samples.
        config: the options that were asked for.
        progress: told of the first calibration.
        executor: whose workers calibrate, if any.
    """

    def __init__(
        self, given: Given, config: QuantConfig, progress: Progress | None = None, executor: Executor | None = None
    ) -> None:
        self.config = config
        self._given, self._executor = given, executor
        first = observe(given.prepared, self._plan(config), given.dataset, config, progress, executor=executor)
        self._observed = {_transforms(config): first}
        self._made: dict[QuantConfig, Variant] = {}

    def config_of(self, options: Options) -> QuantConfig:
        """The options asked for, with some changed."""
        return self.config.with_options(**options) if options else self.config

    def make(self, options: Options) -> Variant:
        """The variant with these options changed."""
        config = self.config_of(options)
        if config not in self._made:
            while len(self._made) >= _KEPT:
                del self._made[next(iter(self._made))]
            observed = self._weighed(config) if config.weighs_outputs else self._observe(config)
            self._made[config] = Variant(config, observed, observed.builder(self._given.graph, config))
        self._made[config] = self._made.pop(config)  # the last one that was asked for goes last
        return self._made[config]

    def is_vain(self, options: Options) -> bool:
        """Whether its transforms, or its ranges, come to nothing but what others came to."""
        config = self.config_of(options)
        if _transforms(config) not in self._observed:
            known = [observed.table for observed in self._observed.values()]
            return any(self._observe(config).table is table for table in known)
        if config.method != AUTO:
            return False
        observed = self._weighed(config)
        if observed.table is None:
            return True
        ranges = [observed.table.ranges(observed.plan, replace(config, method=method)) for method in (AUTO, USUAL)]
        return ranges[0] == ranges[1]

    def _weighed(self, config: QuantConfig) -> Observed:
        """What the data told, with what ``auto`` chooses by."""
        observed = self._observe(config).weighed(config)
        self._observed[_transforms(config)] = observed
        return observed

    def _observe(self, config: QuantConfig) -> Observed:
        key = _transforms(config)
        if key not in self._observed:
            self._observed[key] = self._observed_anew(config)
        observed = self._observed[key]
        # Other options, such as what becomes of weights that stay float, change the plan and nothing else.
        plan = plan_whole(observed.graph, config)
        return replace(observed, transformed=replace(observed.transformed, plan=plan))

    def _observed_anew(self, config: QuantConfig) -> Observed:
        first = next(iter(self._observed.values()))
        if first.table is None:
            return first
        dataset = self._given.dataset
        assert dataset is not None  # of a plan that is calibrated
        everything = dataset.batches() if dataset.stable else first.sample
        transformed = transform(self._given.prepared, self._plan(config), config, first.sample, everything)
        for known in self._observed.values():
            if all(_equal(*each) for each in zip(_moved(known.transformed), _moved(transformed), strict=True)):
                return Observed(transformed, known.table, first.sample, first.held)
        table = calibrate_graph(transformed.graph, transformed.plan, dataset, config, executor=self._executor)
        return Observed(transformed, table.with_factors(*_moved(transformed)), first.sample, first.held)

    def _plan(self, config: QuantConfig) -> QuantPlan:
        return plan_whole(self._given.prepared, config)


def _transforms(config: QuantConfig) -> tuple[Any, ...]:
    """What decides on transforms, among the options that a search changes."""
    return config.equalize, config.absorb, config.smooth


def _moved(transformed: Transformed) -> tuple[Factors, Shifts]:
    return transformed.factors, transformed.shifts


def _equal(a: Factors | Shifts, b: Factors | Shifts) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
