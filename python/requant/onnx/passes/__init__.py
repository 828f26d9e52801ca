"""What is done to a float model before it is quantized; its function stays the same.

A pass is a function ``(ir.Model) -> int`` that edits the model it is given and returns how often it applied. A new pass
is a file and a line in ``PASSES``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.errors import InternalError
from requant.onnx.passes import affine, cleanup, shapes

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from requant.onnx.graph import Graph

logger = logging.getLogger(__name__)

PASSES: tuple[Callable[[ir.Model], int], ...] = (
    cleanup.simplify,
    shapes.infer,
    affine.fold_affine,
    cleanup.drop_unused,
    shapes.infer,
    cleanup.name_everything,
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """One thing that was done to the model: what, and how often."""

    what: str
    count: int


def prepare(graph: Graph) -> tuple[Graph, tuple[Preparation, ...]]:
    """Run every pass on a copy of ``graph``; inputs and outputs keep their names and order."""
    prepared = graph.copy()
    interface = ([i.name for i in graph.inputs], [o.name for o in graph.outputs])
    done = []
    for step in PASSES:
        count = step(prepared.model)
        logger.debug("%s applied %d times", step.__name__, count)
        if count:
            what = (step.__doc__ or step.__name__).splitlines()[0].rstrip(".")
            done.append(Preparation(what[0].lower() + what[1:], count))
        if ([i.name for i in prepared.inputs], [o.name for o in prepared.outputs]) != interface:
            message = f"pass {step.__name__} changed the model's inputs or outputs"
            raise InternalError(message)
    return prepared, tuple(done)
