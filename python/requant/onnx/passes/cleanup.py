"""Constants, identities, dead nodes and names."""

from __future__ import annotations

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes import common


def simplify(model: ir.Model) -> int:
    """nodes simplified away."""
    before = _count(model)
    common.RemoveInitializersFromInputsPass()(model)
    onnxscript.optimizer.optimize(model)
    return before - _count(model)


def drop_unused(model: ir.Model) -> int:
    """unused nodes and constants dropped."""
    before = _count(model) + len(model.graph.initializers)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    return before - _count(model) - len(model.graph.initializers)


def name_everything(model: ir.Model) -> int:
    """nodes named."""
    nameless = 0
    taken = {node.name for node in model.graph.all_nodes() if node.name}
    for node in model.graph.all_nodes():
        if not node.name:
            nameless += 1
            output = next((v.name for v in node.outputs if v.name), "")
            base = name = f"{node.op_type}_{output}"
            serial = 1
            while name in taken:
                name, serial = f"{base}_{serial}", serial + 1
            taken.add(name)
            node.name = name
    common.NameFixPass()(model)
    return nameless


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
