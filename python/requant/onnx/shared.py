"""Large constants that a model holds twice, also one lying across the other, stored once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name, name_of, taken_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.onnx.graph import Graph

#: Bytes from which on a constant is worth it.
_LEAST = 1 << 12
_LOOKS_UP = frozenset({"Gather", "Cast"})


def share_constants(graph: Graph) -> Graph:
    """``graph`` with each large matrix of the main graph stored once: a copy, if one is there twice.

    One that lies across another becomes its Transpose, which runtimes compute once, when they load the model. That is
    the table rather than the weight: not every runtime takes a weight for one that stands behind a Transpose.
    """
    pairs = _pairs(graph.model.graph)
    if not pairs:
        return graph
    copy = graph.copy()
    main = copy.model.graph
    taken = taken_names(main)
    for name, kept in pairs.items():
        value, source = main.initializers[name], main.initializers[kept]
        if not _same(value, source):
            output = ir.Value(name=free_name(f"{name}_across", taken), shape=value.shape, type=value.type)
            across = ir.node("Transpose", [source], {"perm": [1, 0]}, outputs=[output], name=output.name)
            main.insert_before(main[0], across)
            source = output
        ir.convenience.replace_all_uses_with(value, source)
        del main.initializers[name]
    return copy


def _pairs(graph: ir.Graph) -> dict[str, str]:
    """Names of constants that are there already, and of what holds their values."""
    found: dict[str, str] = {}
    kept: dict[tuple[object, ...], list[ir.Value]] = {}
    values = [value for value in graph.initializers.values() if _is_large_matrix(value)]
    for value in sorted(values, key=lambda value: any(node.op_type in _LOOKS_UP for node in value.consumers())):
        others = kept.setdefault((value.dtype, *sorted(_array(value).shape)), [])
        twin = next((other for other in others if _same(value, other) or _lies_across(value, other)), None)
        if twin is None:
            others.append(value)
        else:
            found[name_of(value)] = name_of(twin)
    return found


def _is_large_matrix(value: ir.Value) -> bool:
    tensor = value.const_value
    if tensor is None or len(tensor.shape) != 2 or tensor.nbytes < _LEAST:
        return False
    return not (value.is_graph_input() or value.is_graph_output())


def _same(value: ir.Value, other: ir.Value) -> bool:
    return _equal(_array(value), _array(other))


def _lies_across(value: ir.Value, other: ir.Value) -> bool:
    return _equal(_array(value), _array(other).T)


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two matrices are equal; most that are not differ in the first row."""
    return a.shape == b.shape and np.array_equal(a[:1], b[:1]) and np.array_equal(a, b)


def _array(value: ir.Value) -> NDArray[Any]:
    assert value.const_value is not None  # it is a constant
    return value.const_value.numpy()
