"""Which ranges of method ``auto`` prove themselves: the outputs of the whole quantized model must clearly err less.

What a range costs at the outputs of the layers that read a tensor (``requant.calibration.choosing``) is not yet what it
costs the model. Behind them, rounding errors of many values average out, in a pooling or a sum, where clipping, which
has one sign, does not; and errors of several layers add up or cancel. So each range that is not that of ``mse`` is put
to the test: all at once, and where the outputs do not clearly err less then, one after another, in the model that has
those before it which have passed. Weights are rounded to nearest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from requant.building.build import calibrated_part
from requant.building.noise import Noise, clearly_more
from requant.building.resolve import resolve
from requant.calibration.choosing import EVEN
from requant.config import AUTO
from requant.onnx.export import insert_qdq

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from requant.calibration.choosing import Choice
    from requant.calibration.table import CalibrationTable
    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan

#: Ranges at most that are tried, those that promise most.
_TRIALS = 8


def unproven(
    graph: Graph, plan: QuantPlan, table: CalibrationTable, config: QuantConfig, batches: Sequence[Batch]
) -> frozenset[str]:
    """The tensors for which the gains of ``table`` choose what does not prove itself, or was not tried.

    Args:
        graph: the float model that is planned for.
        plan: its plan.
        table: statistics and gains.
        config: how to quantize, whatever its method.
        batches: the samples to measure on.
    """
    config = replace(config, method=AUTO)
    usual = table.with_gains(dict.fromkeys(table.gains, EVEN)).choices(plan, config)
    asked = table.choices(plan, config)
    promises = {name: _promise(table, plan, name, usual, asked) for name in asked if asked[name] != usual[name]}
    if not promises or graph.scratch is not None:
        return frozenset(promises)
    noise = Noise(graph, batches, threads=config.cores)

    def measured(choices: Mapping[str, Choice]) -> NDArray[np.float64]:
        part, known, _ = calibrated_part(graph, plan, choices, config)
        return noise.of(insert_qdq(graph, part, resolve(graph, part, known, config)))

    chosen, least = usual, measured(usual)
    if clearly_more(least, measured(asked)):
        return frozenset()
    failed = set(promises)
    for name in sorted(promises, key=lambda name: promises[name])[:_TRIALS]:
        tried = {**chosen, name: asked[name]}
        found = measured(tried)
        if clearly_more(least, found):
            chosen, least = tried, found
            failed.remove(name)
    return frozenset(failed)


def _promise(
    table: CalibrationTable, plan: QuantPlan, name: str, usual: Mapping[str, Choice], asked: Mapping[str, Choice]
) -> float:
    """The cost of the range that is asked for over that of the usual one, at the outputs of layers."""
    tensor = plan.tensors[name]
    seen, gain = table.joined(tensor), table.gains.get(name, EVEN)
    costs = [gain.error(seen, each[name].range, tensor.scheme) for each in (asked, usual)]
    return costs[0] / costs[1] if costs[1] > 0 else 1.0
