"""What the inputs of an op are to it, and what they must be for it to run on integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from requant.onnx.nodes import constant, int_attribute, is_float
from requant.onnx.ops import OpSpec, Role
from requant.onnx.sites import multiplies_back

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

#: Why a weight stays float that would have to be in the file once more, for the caller.
GIVEN_OUT = "its weight is an output of the model"
_MASK = 1e4  # a magnitude that is meant as infinite


def refuse_activation(value: ir.Value) -> str | None:
    """Why an input of a product or convolution cannot be quantized as its activation."""
    if constant(value) is not None:
        return "its activation input is a constant"
    if not is_float(value):
        return f"its input is {value.dtype.name.lower() if value.dtype else 'of unknown type'}, not float32"
    return None


def refuse_constant(role: Role, value: ir.Value, known: NDArray[Any] | None) -> str | None:
    """Why an input ``value``, of which that is ``known``, cannot be quantized as the weight or the bias."""
    if known is None:
        return f"its {role.value} is computed at run time"
    if role is Role.WEIGHT and (known.size == 0 or known.dtype != np.float32):
        return "its weight is empty or not float32"
    if role is Role.WEIGHT and value.is_graph_output():
        return GIVEN_OUT
    if role is Role.BIAS and any(size != 1 for size in known.shape[:-1]):
        return "its bias differs between rows"
    return None


def refuse_factors(gemm: ir.Node) -> str | None:
    """Why a Gemm is none that an integer kernel computes."""
    factors = (gemm.attributes.get_float("alpha", 1.0), gemm.attributes.get_float("beta", 1.0))
    if factors != (1.0, 1.0) or int_attribute(gemm, "transA", 0):
        return "Gemm with alpha, beta or transA has no integer kernel"
    return None


def activations(node: ir.Node, row: OpSpec) -> Iterator[tuple[int, ir.Value]]:
    """The inputs that become integer activations, with their indices."""
    inputs = node.inputs[:1] if multiplies_back(node) else node.inputs
    for index, value in enumerate(inputs):
        if value is not None and (row.variadic or row.inputs.get(index) is Role.ACTIVATION):
            yield index, value


def is_masked(value: ir.Value, depth: int = 3) -> bool:
    """Whether an Add, Mul or Where puts constants of large magnitude into ``value``, as masks of attention do."""
    node = value.producer()
    if node is None or depth == 0 or node.domain or node.op_type not in ("Add", "Sub", "Mul", "Where"):
        return False
    for other in node.inputs:
        array = constant(other)
        if array is None:
            if other is not None and is_masked(other, depth - 1):
                return True
        elif array.dtype == np.float32 and array.size and np.max(np.abs(array)) >= _MASK:
            return True
    return False
