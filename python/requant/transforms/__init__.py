"""What makes a float model easier to quantize and leaves its function as it is: magnitude moves between its constants.

A transform is a function ``(graph, plan, config, sample) -> Change`` that chooses a factor for each channel of some
sites (see ``requant.onnx.sites``); the graph is rescaled here. A new transform is a file and a line in ``TRANSFORMS``.
Behind all of them, where it is asked for, constants move from bias to bias (``absorb``), by all samples: its ``Change``
has shifts.
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
from requant.transforms.change import Change
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.onnx.rescale import Factors
    from requant.onnx.shift import Shifts
    from requant.planning.plan import QuantPlan

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
        result = _apply(result, choose(result.graph, result.plan, config, sample), config)
    return _apply(result, absorb(result.graph, result.plan, config, everything), config)


def repeat(graph: Graph, plan: QuantPlan, config: QuantConfig, factors: Factors, shifts: Shifts) -> Transformed:
    """Do again what gave ``factors`` and ``shifts``.

    Raises:
        CalibrationError: they do not fit the graph.
    """
    try:
        result = _apply(Transformed(graph, plan), Change(factors, shifts), config)
    except (KeyError, ValueError) as problem:
        raise CalibrationError(
            f"the calibration table rescales what the model does not have ({problem})",
            hint="run `requant calibrate` on this model with this version",
        ) from None
    rescaled = (counted(len(factors), "tensor(s) rescaled as the table says"),) if factors else ()
    absorbed = (f"biases of {counted(len(shifts), 'layer(s)')} absorbed as the table says",) if shifts else ()
    return replace(result, done=(*rescaled, *absorbed))


def _apply(before: Transformed, change: Change, config: QuantConfig) -> Transformed:
    graph = rescale(before.graph, change.factors) if change.factors else before.graph
    graph = shift(graph, change.shifts) if change.shifts else graph
    factors = {name: before.factors.get(name, 1) * each for name, each in change.factors.items()}
    return Transformed(
        graph=graph,
        plan=before.plan if graph is before.graph else plan_whole(graph, config),
        factors={**before.factors, **factors},
        shifts={**before.shifts, **change.shifts},
        done=(*before.done, *change.done),
        notes=(*before.notes, *change.notes),
    )
