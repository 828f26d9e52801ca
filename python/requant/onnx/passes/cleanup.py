"""Constants, identities, dead nodes and names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from requant.onnx.names import free_name, name_of
from requant.onnx.nodes import constant, int_attribute
from requant.onnx.passes.rewriting import optimize

if TYPE_CHECKING:
    from collections.abc import Iterable


#: Constants larger than this many elements are not computed ahead: they would be stored in the file instead.
_FOLD_AT_MOST = 1 << 18
#: Ops whose output may be far larger than their inputs.
_GROWING = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Resize", "Tile"})
#: A ConstantOfShape of at most so many elements is computed, which the optimizer never does on its own: exporters make
#: the sizes of a Pad with it, without which no shape behind is known.
_SMALL = 256
#: Ops that only rearrange: behind them stand weights, whatever their size.
_REARRANGING = frozenset({"Concat", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
#: Ops by which weights are scaled, normalized, standardized or computed by a small network before a layer reads them.
_SCALING = frozenset(
    {
        "Abs",
        "Add",
        "BatchNormalization",
        "Cast",
        "Clip",
        "Cos",
        "Div",
        "Erf",
        "Exp",
        "Gather",
        "InstanceNormalization",
        "LayerNormalization",
        "MatMul",
        "Max",
        "Mul",
        "Neg",
        "Pow",
        "Reciprocal",
        "ReduceL2",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
        "ReduceSumSquare",
        "Relu",
        "Sigmoid",
        "Sin",
        "Sqrt",
        "Sub",
        "Tanh",
    }
)
_CHANNELS = 2  # axes before those that a normalization runs over: samples and channels
#: Under which keys exporters note where in the source, or in the modules, a node comes from.
_NOTES = ("pkg.torch.", "pkg.onnxscript.", "namespace")
#: Of a constant with more readers not every one gets an arrangement of its own.
_READERS = 8


def simplify(model: ir.Model) -> int:
    """Fold constants, drop identities and duplicates, inline functions; returns how many nodes went."""
    before = _count(model)
    common.RemoveInitializersFromInputsPass()(model)
    _name_instance_norms(model)
    optimize(model, _should_fold)
    _drop_allowzero(model)
    return before - _count(model)


def _name_instance_norms(model: ir.Model) -> None:
    """Let a BatchNormalization in training of one sample, by its own statistics, be the InstanceNormalization it is.

    Exporters standardize weights with it, and the optimizer computes only what has one output.
    """
    for node in model.graph.all_nodes():
        if node.op_type != "BatchNormalization" or not int_attribute(node, "training_mode", 0):
            continue
        x, shape = node.inputs[0], node.inputs[0].shape if node.inputs[0] is not None else None
        alone = shape is not None and len(shape) > _CHANNELS and shape[0] == 1
        if (
            alone
            and node.graph is not None
            and not any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
        ):
            epsilon = [a for a in node.attributes.values() if a.name == "epsilon"]
            output = ir.Value(name=node.outputs[0].name, shape=shape, type=node.outputs[0].type)
            norm = ir.Node(
                "", "InstanceNormalization", [x, *node.inputs[1:3]], epsilon, outputs=[output], name=node.name
            )
            ir.convenience.replace_nodes_and_values(node.graph, node, [node], [norm], [node.outputs[0]], [output])


def _drop_allowzero(model: ir.Model) -> None:
    """Take ``allowzero`` from each Reshape without a 0: the optimizer sets it, and opset 13 does not know it."""
    for node in model.graph.all_nodes():
        if node.op_type == "Reshape" and "allowzero" in node.attributes:
            shape = constant(node.inputs[1])
            if shape is not None and np.all(shape != 0):
                del node.attributes["allowzero"]


def _should_fold(node: ir.Node) -> bool | None:
    """True where a weight is rearranged or scaled, False where it could fill the memory; else the optimizer decides."""
    if node.domain == "" and not _multiplies(node):
        if node.op_type in _REARRANGING or (node.op_type == "ConstantOfShape" and _size(node.outputs) <= _SMALL):
            return True
        given = any(value.is_graph_output() for value in node.outputs)
        if (
            node.op_type in _SCALING
            and not given
            and _size(node.outputs) <= max(_size([value]) for value in node.inputs)
        ):
            return True
    for value in node.outputs:
        if value.shape is None or not all(isinstance(d, int) for d in value.shape):
            if node.op_type in _GROWING:
                return False
        elif math.prod(value.shape.numpy()) > _FOLD_AT_MOST:
            return False
    return None


def _size(values: Iterable[ir.Value | None]) -> float:
    """Elements of some tensors; infinite where a size is not known."""
    total = 0.0
    for value in values:
        if value is not None:
            known = value.shape is not None and value.shape.is_static()
            total += math.prod(value.shape.numpy()) if known else math.inf  # type: ignore[union-attr]
    return total


def _multiplies(node: ir.Node) -> bool:
    """Whether the file might grow by any factor: a tensor is joined with itself, or a large one has many readers."""
    size = sum(0 if value is None or value.const_value is None else value.const_value.size for value in node.inputs)
    shared = any(value is not None and len(value.uses()) > _READERS for value in node.inputs)
    return (size > _FOLD_AT_MOST and shared) or (node.op_type == "Concat" and len(set(node.inputs)) < len(node.inputs))


def drop_unused(model: ir.Model) -> None:
    """Drop nodes, functions and initializers that nothing uses."""
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    for body in model.graph.subgraphs():  # whose constants the pass leaves there
        for name, value in list(body.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del body.initializers[name]


def count_unused(model: ir.Model) -> int:
    """Drop what nothing uses; returns how many nodes and initializers that were."""
    before = _count(model) + len(model.graph.initializers)
    drop_unused(model)
    return before - _count(model) - len(model.graph.initializers)


def drop_notes(model: ir.Model) -> int:
    """Drop what exporters noted of the origin of nodes; returns of how many.

    Stack traces may weigh a tenth of a model of integers. What is said of the model, its inputs and outputs stays.
    """
    dropped = 0
    for node in model.graph.all_nodes():
        noted = [key for key in node.metadata_props if key.startswith(_NOTES)]
        for key in noted:
            del node.metadata_props[key]
        dropped += bool(noted or node.doc_string)
        node.doc_string = None
    return dropped


def name_everything(model: ir.Model) -> int:
    """Give every node, of bodies too, a name of its own; returns how many had none."""
    nameless = 0
    taken = {node.name for node in model.graph.all_nodes() if node.name}
    seen: set[str] = set()
    for node in model.graph.all_nodes():
        if not node.name or node.name in seen:
            nameless += 1
            output = next((v.name for v in node.outputs if v.name), "")
            node.name = free_name(f"{node.op_type}_{output}", taken)
        seen.add(node.name)
    common.NameFixPass()(model)
    _tell_apart(model)
    return nameless


def _tell_apart(model: ir.Model) -> None:
    """Give tensors of bodies that stand side by side, such as the branches of an If, different names."""
    known: set[str] = set()
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in (*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)):
            if graph is not model.graph and value.name in known:
                value.name = free_name(name_of(value), known)
            known.add(name_of(value))


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())
