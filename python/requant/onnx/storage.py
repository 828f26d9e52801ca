"""Constants that stay float, stored in two bytes each.

    constant (float16 or bfloat16) -> Cast -> readers (float32)

Runtimes cast once, when they load the model, and compute in float32 as before: only the file is smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.names import free_name, name_of, taken_names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from requant.onnx.graph import Graph

#: Smaller constants save less than the Cast costs.
_LEAST = 256
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_PARAMETERS = frozenset({"DequantizeLinear", "GatherBlockQuantized", "MatMulNBits", "QuantizeLinear"})


@dataclass(frozen=True, slots=True)
class Stored:
    """Names of the constants that are now stored in half precision, and of those whose values do not allow it."""

    half: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def store_half(graph: Graph, *, exactly: bool, dtype: str = "float16") -> tuple[Graph, Stored]:
    """A copy of ``graph`` with its float32 constants in half precision.

    ``exactly`` converts those that lose nothing, to float16 or bfloat16. Otherwise they are rounded to ``dtype``: to
    float16 each whose largest value is a normal number there, by at most 2^-11 of that largest value; to bfloat16 all
    that are finite there, each value by at most 2^-8 of itself.
    """
    copy = graph.copy()
    main = copy.model.graph
    taken = taken_names(main)
    half, kept = [], []
    for value in list(main.initializers.values()):
        array = _weights(value)
        if array is None:
            continue
        name = name_of(value)
        narrow = _exact(array) if exactly else _ROUNDED[dtype](array)
        if narrow is None:
            kept.append(name)
        else:
            _replace(main, value, narrow, taken)
            half.append(name)
    return copy, Stored(tuple(half), () if exactly else tuple(kept))


def _weights(value: ir.Value) -> NDArray[Any] | None:
    """The array of a float32 constant that is worth it; scales belong to their QuantizeLinear."""
    if value.dtype is not ir.DataType.FLOAT or value.is_graph_input() or value.is_graph_output():
        return None
    if value.const_value is None or value.const_value.size < _LEAST:
        return None
    return None if any(node.op_type in _PARAMETERS for node in value.consumers()) else value.const_value.numpy()


def _exact(array: NDArray[Any]) -> ir.TensorProtocol | None:
    for dtype in _HALF:
        with np.errstate(over="ignore"):
            narrow = array.astype(dtype.numpy())
        if np.array_equal(narrow.astype(np.float32), array, equal_nan=True):
            return ir.Tensor(narrow, dtype)
    return None


def _float16(array: NDArray[Any]) -> ir.TensorProtocol | None:
    largest = np.max(np.abs(array), where=np.isfinite(array), initial=0.0)
    limits = np.finfo(np.float16)
    return ir.Tensor(array.astype(np.float16)) if limits.tiny <= largest <= limits.max or largest == 0 else None


def _bfloat16(array: NDArray[Any]) -> ir.TensorProtocol | None:
    with np.errstate(over="ignore"):
        narrow = array.astype(ir.DataType.BFLOAT16.numpy())
    overflowed = np.isinf(narrow.astype(np.float32)) & np.isfinite(array)
    return None if overflowed.any() else ir.Tensor(narrow, ir.DataType.BFLOAT16)


_ROUNDED = {"float16": _float16, "bfloat16": _bfloat16}


def _replace(graph: ir.Graph, value: ir.Value, tensor: ir.TensorProtocol, taken: set[str]) -> None:
    """Store ``tensor`` under the name of constant ``value``, whose readers get it in float32."""
    name = name_of(value)
    result = free_name(f"{name}_float", taken)
    tensor.name = name
    stored = ir.Value(name=name, const_value=tensor, shape=value.shape, type=ir.TensorType(tensor.dtype))
    output = ir.Value(name=result, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    cast = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT}, outputs=[output], name=result)
    ir.convenience.replace_all_uses_with(value, output)
    del graph.initializers[name]
    graph.register_initializer(stored)
    graph.insert_before(graph[0], cast)
