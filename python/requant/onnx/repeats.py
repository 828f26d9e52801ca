"""Float constants that hold few values, or vectors of values, at many places, such as the position biases of attention.

A bias between positions depends on their distance, and is written out for each pair of them. A file need hold each
vector once, and say which stands where; a runtime that folds constants writes them out when it loads the model:

    vectors, places -> Gather
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name, name_of, taken_names
from requant.onnx.nodes import add_initializer

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: What may read such a constant: ops that compute element by element. Parameters of other kernels stay as they are.
_READERS = frozenset({"Add", "Div", "Max", "Min", "Mul", "Sub", "Where"})
#: Elements that are looked at for it: fewer are not worth a node, and more not the time.
_LEAST, _MOST = 1 << 10, 1 << 22
#: Vectors that are looked at first: where fewer of them repeat, as floats do by chance, the others are not sorted.
_SAMPLE, _REPEATED = 1 << 12, 16
#: What a Gather, its names and the headers of its constants take, about.
_NODE_BYTES = 200
#: The part of its bytes that a constant may still take, at most.
_WORTH = 0.75


def gather_repeats(model: ir.Model) -> None:
    """Let each such constant of ``model`` be gathered from the vectors in it."""
    taken = taken_names(model.graph)
    places: dict[tuple[ir.Graph, tuple[int, ...], bytes], ir.Value] = {}
    for scope in (model.graph, *model.graph.subgraphs()):
        for value in list(scope.initializers.values()):
            found = _repeats(value.const_value.numpy()) if _may_repeat(value) and value.const_value else None
            if found is None:
                continue
            vectors, index, axis = found
            name, key = name_of(value), (scope, index.shape, index.tobytes())
            if key not in places:
                places[key] = add_initializer(scope, free_name(f"{name}_places", taken), ir.tensor(index))
            output = ir.Value(name=free_name(f"{name}_at", taken), shape=value.shape, type=value.type)
            ir.convenience.replace_all_uses_with(value, output)
            del scope.initializers[name]
            stored = add_initializer(scope, name, ir.tensor(vectors))
            gather = ir.node("Gather", [stored, places[key]], {"axis": axis}, outputs=[output], name=output.name)
            scope.insert_before(scope[0], gather)


def _may_repeat(value: ir.Value) -> bool:
    tensor, readers = value.const_value, value.consumers()
    if tensor is None or tensor.dtype is not ir.DataType.FLOAT or not _LEAST <= tensor.size <= _MOST:
        return False
    fixed = not (value.is_graph_input() or value.is_graph_output())
    return fixed and bool(readers) and all(node.op_type in _READERS and node.domain == "" for node in readers)


def _repeats(array: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64], int] | None:
    """Vectors, and which stands where, so that ``np.take(vectors, places, axis)`` is ``array`` to the bit.

    Vectors run over the axes before ``axis``. None where that would not be clearly smaller.
    """
    best, least = None, _WORTH * array.nbytes
    for axis in range(array.ndim):
        if axis and array.shape[axis - 1] == 1:
            continue  # as with the axis before
        before, behind = array.shape[:axis], array.shape[axis:]
        rows = np.ascontiguousarray(array.reshape(-1, math.prod(behind)).T)
        bits = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
        picked = np.unique(np.random.default_rng(0).integers(len(bits), size=_SAMPLE))
        if len(bits) > _SAMPLE and len(picked) - len(np.unique(bits[picked])) < _REPEATED:
            continue
        _, first, index = np.unique(bits, return_index=True, return_inverse=True)
        width = 1 if len(first) <= 1 << 8 else 2 if len(first) <= 1 << 15 else 4  # the type that it is stored in
        size = 4 * rows.shape[1] * len(first) + width * len(rows) + _NODE_BYTES
        if size < least:
            order = np.argsort(first)  # by where they come first, so that alike patterns have the same places
            rank = np.argsort(order)
            vectors = np.ascontiguousarray(rows[first[order]].T).reshape(*before, len(first))
            best, least = (vectors, rank[index].reshape(behind).astype(np.int64), axis), size
    return best
