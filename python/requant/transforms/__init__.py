"""What makes a float model easier to quantize and leaves its function as it is: magnitude moves between its constants.

A transform is a function ``(graph, plan, config, sample) -> Change`` that chooses a factor for each channel of some
sites (see ``requant.onnx.sites``); the graph is rescaled here. A new transform is a file and a line in ``TRANSFORMS``.
Behind all of them, where it is asked for, constants move from bias to bias (``absorb``), by all samples.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from requant.building.dynamic import plan_whole
from requant.errors import CalibrationError
from requant.onnx.rescale import rescale
from requant.onnx.shift import shift
from requant.transforms import balance, equalize, smooth
from requant.transforms.absorb import absorb
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.onnx.rescale import Factors
    from requant.onnx.shift import Shifts
    from requant.planning.plan import QuantPlan
    from requant.transforms.change import Change

#: Each transform, in the order in which they are done; the last argument holds the first batches.
TRANSFORMS: tuple[Callable[[Graph, QuantPlan, QuantConfig, Sequence[Batch]], Change], ...] = (
    equalize.equalize,
    smooth.smooth,
    balance.balance,
)

#: Samples that transforms look at, at most about that many.
SAMPLES = 32


@dataclass(frozen=True)
class Transformed:
    """A graph, its plan, what its tensors were divided by and then lost, what was done, and what to know of it."""

    graph: Graph
    plan: QuantPlan
    factors: Factors = field(default_factory=dict)
    shifts: Shifts = field(default_factory=dict)
    done: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def transform(
    graph: Graph, plan: QuantPlan, config: QuantConfig, sample: Sequence[Batch], everything: Iterable[Batch]
) -> Transformed:
    """Let every transform that ``config`` asks for do what it can, by what it sees of samples.

    Args:
        graph: the prepared float model.
        plan: its plan.
        config: which transforms.
        sample: the first batches.
        everything: all batches that can be had; read only where a constant must hold for all of them.
    """
    result = Transformed(graph, plan)
    for choose in TRANSFORMS:
        change = choose(result.graph, result.plan, config, sample)
        result = _apply(result, change.factors, config)
        result = replace(result, done=(*result.done, *change.done), notes=(*result.notes, *change.notes))
    shifts, done, notes = absorb(result.graph, result.plan, config, everything)
    result = _shift(result, shifts, config)
    return replace(result, done=(*result.done, *done), notes=(*result.notes, *notes))


def repeat(graph: Graph, plan: QuantPlan, config: QuantConfig, factors: Factors, shifts: Shifts) -> Transformed:
    """Do again what gave ``factors`` and ``shifts``.

    Raises:
        CalibrationError: they do not fit the graph.
    """
    try:
        result = _shift(_apply(Transformed(graph, plan), factors, config), shifts, config)
    except (KeyError, ValueError) as problem:
        raise CalibrationError(
            f"the calibration table rescales what the model does not have ({problem})",
            hint="run `requant calibrate` on this model with this version",
        ) from None
    rescaled = (counted(len(factors), "tensor(s) rescaled as the table says"),) if factors else ()
    absorbed = (f"biases of {counted(len(shifts), 'layer(s)')} absorbed as the table says",) if shifts else ()
    return replace(result, done=(*rescaled, *absorbed))


def _apply(result: Transformed, factors: Factors, config: QuantConfig) -> Transformed:
    if not factors:
        return result
    graph = rescale(result.graph, factors)
    merged = dict(result.factors) | {name: result.factors.get(name, 1) * each for name, each in factors.items()}
    return replace(result, graph=graph, plan=plan_whole(graph, config), factors=merged)


def _shift(result: Transformed, shifts: Shifts, config: QuantConfig) -> Transformed:
    if not shifts:
        return result
    graph = shift(result.graph, shifts)
    return replace(result, graph=graph, plan=plan_whole(graph, config), shifts=shifts)
