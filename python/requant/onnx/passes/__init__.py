"""What is done to a float model before it is quantized; its function stays the same.

A pass is a function ``(ir.Model) -> int`` that edits the model it is given and returns how often it applied. A new pass
is a file and a line in ``PASSES``. One that fails on a model is left out with a warning: it only would have helped.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.errors import InternalError
from requant.onnx.nodes import check_order
from requant.onnx.passes import (
    activations,
    affine,
    clamps,
    cleanup,
    constants,
    einsum,
    fused,
    layout,
    norms,
    pooling,
    shapes,
    widen,
)
from requant.uncollected import uncollected
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    import onnx_ir as ir

    from requant.onnx.graph import Graph

logger = logging.getLogger(__name__)

#: What each pass does, as the report says it behind a number (``counted``), and the pass.
PASSES: tuple[tuple[str, Callable[[ir.Model], int]], ...] = (
    ("claimed shape(s) forgotten, one of which cannot be", shapes.doubt),
    ("shape(s) inferred", shapes.infer),
    ("half float(s) widened to float32", widen.widen_half),
    ("double(s) rounded to float32", widen.narrow_double),
    ("node(s) simplified away", cleanup.simplify),
    ("shape(s) inferred", shapes.infer),
    ("fused op(s) of onnxruntime taken apart", fused.take_apart),
    ("einsum(s) said as matrix product(s)", einsum.spell_products),
    ("transpose(s) moved together and dropped", layout.sink_transposes),
    ("tensor(s) freed of subnormal numbers", constants.flush_subnormals),
    ("Gemm factor(s) multiplied into weights", constants.fold_factors),
    ("affine op(s) folded into the linear op before", affine.fold_affine),
    ("outstanding gain(s) of normalizations moved into the products behind", norms.even_out_norms),
    ("hard sigmoid(s) and hard swish(es) said in standard ops", activations.name_hard_activations),
    ("mean(s) recognised as pooling", pooling.recognise_pooling),
    ("pad(s) folded into the MaxPool behind", pooling.fold_pads),
    ("clamp(s) moved to the op that computes", clamps.hoist_clamps),
    ("unused node(s) and constant(s) dropped", cleanup.count_unused),
    ("node(s) freed of the exporter's notes", cleanup.drop_notes),
    ("shape(s) inferred", shapes.infer),
    ("node(s) named", cleanup.name_everything),
)


@dataclass(frozen=True, slots=True)
class Preparation:
    """What one pass did: how often it applied, and how many nodes of each op type came or went."""

    what: str
    count: int
    nodes: Mapping[str, int]

    def __str__(self) -> str:
        changes = ", ".join(f"{n:+} {op_type}" for op_type, n in self.nodes.items() if op_type != "Constant")
        return counted(self.count, self.what) + (f" ({changes})" if changes else "")


class _FailedError(Exception):
    """The pass of this number failed."""


@uncollected()
def prepare(graph: Graph) -> tuple[Graph, tuple[Preparation, ...]]:
    """Run every pass on a copy of ``graph``; inputs and outputs keep their names and order."""
    left_out: set[int] = set()
    while True:
        prepared = graph.copy()
        try:
            return prepared, tuple(_run(prepared, left_out))
        except _FailedError as failed:  # it may have left the copy half done
            number, problem = failed.args[0], failed.__cause__
            name = PASSES[number][1].__name__
            logger.warning("%s: %s was left out: %s: %s", graph.origin, name, type(problem).__name__, problem)
            left_out.add(number)


def _run(graph: Graph, left_out: Collection[int]) -> Iterator[Preparation]:
    """Run the passes on ``graph`` itself; yields what each of them did."""
    interface = ([i.name for i in graph.inputs], [o.name for o in graph.outputs])
    before = Counter(node.op_type for node in graph.all_nodes())
    for number, (what, step) in enumerate(PASSES):
        if number in left_out:
            continue
        try:
            count = step(graph.model)
            check_order(graph.model)
        except Exception as problem:
            raise _FailedError(number) from problem
        if ([i.name for i in graph.inputs], [o.name for o in graph.outputs]) != interface:
            raise InternalError(f"pass {step.__name__} changed the model's inputs or outputs")
        graph.spill()
        after = Counter(node.op_type for node in graph.all_nodes())
        changes = {op_type: after[op_type] - before[op_type] for op_type in sorted(before | after)}
        if count and step is not shapes.infer:
            yield Preparation(what, count, {op_type: n for op_type, n in changes.items() if n})
        before = after
