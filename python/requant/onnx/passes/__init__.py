"""What is done to a float model before it is quantized; its function stays the same.

A pass is a function ``(ir.Model) -> int`` that edits the model it is given and returns how often it applied; the first
line of its docstring is how the report puts it, behind that number. A new pass is a file and a line in ``PASSES``.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.errors import InternalError
from requant.onnx.passes import affine, cleanup, shapes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
    """What one pass did: how often it applied, and how many nodes of each op type came or went."""

    what: str
    count: int
    nodes: Mapping[str, int]

    def __str__(self) -> str:
        gone = ", ".join(f"{op_type} {-n}" for op_type, n in self.nodes.items() if n < 0)
        come = ", ".join(f"{op_type} {n}" for op_type, n in self.nodes.items() if n > 0)
        parts = [f"{self.count} {self.what}", gone and f"without {gone}", come and f"with {come}"]
        return ", ".join(part for part in parts if part)


def prepare(graph: Graph) -> tuple[Graph, tuple[Preparation, ...]]:
    """Run every pass on a copy of ``graph``; inputs and outputs keep their names and order."""
    prepared = graph.copy()
    interface = ([i.name for i in graph.inputs], [o.name for o in graph.outputs])
    done = []
    for step in PASSES:
        before = Counter(node.op_type for node in prepared.all_nodes())
        count = step(prepared.model)
        after = Counter(node.op_type for node in prepared.all_nodes())
        nodes = {op_type: after[op_type] - before[op_type] for op_type in sorted(before | after)}
        logger.debug("%s applied %d times", step.__name__, count)
        if count:
            what = (step.__doc__ or step.__name__).splitlines()[0].rstrip(".")
            done.append(Preparation(what, count, {op_type: n for op_type, n in nodes.items() if n}))
        if ([i.name for i in prepared.inputs], [o.name for o in prepared.outputs]) != interface:
            raise InternalError(f"pass {step.__name__} changed the model's inputs or outputs")
    return prepared, tuple(done)
