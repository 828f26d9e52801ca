"""Say matrix products where Einsum means them.

The letters of two operands and their result fall into batch (in all three), rows (first operand and result), columns
(second operand and result) and terms (both operands). If there are terms, and nothing else, it is a product

    result[batch, rows, columns] = first[batch, rows, terms] @ second[batch, terms, columns]

of operands that are transposed where their letters stand in another order. Several letters of terms, or of columns of
known sizes, are taken for one; further rows and columns count as batch, which the other operand does not have.
Diagonals (a letter twice), sums over letters of one operand, and other numbers of operands stay Einsum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from requant.onnx.mapped import changed
from requant.onnx.names import free_name, taken_names
from requant.onnx.nodes import add_initializer, constant, rank
from requant.onnx.passes.shapes import infer, is_size
from requant.onnx.writing import Writer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_ELLIPSIS = "..."
#: Stand for the axes of an ellipsis; equations have none.
_DIGITS = "0123456789"
_OPERANDS = 2


def spell_products(model: ir.Model) -> int:
    """Turn each Einsum that is a matrix product into MatMul; returns how many."""
    taken = taken_names(model.graph)
    spelling = _Spelling(model.graph, taken)
    einsums = [node for node in model.graph.all_nodes() if node.op_type == "Einsum" and node.domain == ""]
    count = sum(spelling.spell(node) for node in einsums)
    if count:
        infer(model)
    return count


def letters(equation: str, ranks: Sequence[int | None]) -> tuple[list[str], str] | None:
    """The letters of each operand's axes and of the result's, digits for those of an ellipsis; None if unknown."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    if len(operands) != len(ranks):
        return None
    longest = 0
    hidden = []
    for operand, dims in zip(operands, ranks, strict=True):
        count = len(operand.replace(_ELLIPSIS, ""))
        if _ELLIPSIS in operand and dims is None:
            return None
        hidden.append((dims or 0) - count if _ELLIPSIS in operand else 0)
        longest = max(longest, hidden[-1])
    if min(hidden) < 0 or longest > len(_DIGITS):
        return None
    axes = _DIGITS[:longest]
    if not arrow:
        once = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        result = (_ELLIPSIS if _ELLIPSIS in left else "") + "".join(once)
    spelled = [o.replace(_ELLIPSIS, axes[longest - n :]) for o, n in zip(operands, hidden, strict=True)]
    return spelled, result.replace(_ELLIPSIS, axes)


@dataclass(frozen=True, slots=True)
class _Operand:
    value: ir.Value
    axes: str

    def sizes(self) -> dict[str, int]:
        """The sizes of those of its axes that are known."""
        shape = self.value.shape
        if shape is None or len(shape) != len(self.axes):
            return {}
        return {letter: dim for letter, dim in zip(self.axes, shape, strict=True) if is_size(dim)}


class _Spelling:
    def __init__(self, main: ir.Graph, taken: set[str]) -> None:
        self._main, self._taken = main, taken
        self._arrangements: dict[tuple[ir.Value, str, tuple[str, ...]], ir.Value] = {}

    def spell(self, einsum: ir.Node) -> bool:
        """Put a MatMul in the place of ``einsum``, if it is one."""
        found = _operands(einsum)
        if found is None or not isinstance(einsum.graph, ir.Graph):
            return False
        first, second, result = found
        sizes = first.sizes() | second.sizes()
        columns = [a for a in result if a not in first.axes]
        row = "".join([a for a in result if a not in second.axes][-1:])
        column = "".join(columns if all(a in sizes for a in columns) else columns[-1:])
        terms = "".join(a for a in first.axes if a not in result)
        lead = [a for a in result if a not in row + column]
        left, right = (*_lead(first, lead), row, terms), (*_lead(second, lead), terms, column)
        turned = _reshaped(right, sizes) is None  # a column of unknown size has to stay where its place is
        if turned:
            right = (*right[:-2], column, terms)
        writer = Writer(einsum.graph, einsum, self._taken)
        a, b = self._arranged(writer, first, left, sizes), self._arranged(writer, second, right, sizes)
        if turned:
            b = _transposed(writer, b, [*range(len(right) - 2), len(right) - 1, len(right) - 2])
        value = writer.add("MatMul", a, b, name=einsum.name)
        gone = [len(lead) + place for place, letter in enumerate((row, column)) if not letter]
        if gone:
            value = writer.add("Squeeze", value, self._numbers(gone))
        if len(column) > 1:
            shape = [0] * len([*lead, *row]) + [sizes[a] for a in column]
            value = writer.add("Reshape", value, self._numbers(shape))
        value = _transposed(writer, value, [[*lead, *row, *column].index(a) for a in result])
        ours, theirs = first.sizes(), second.sizes()
        is_told = not any(_may_repeat(ours.get(a), theirs.get(a)) for a in lead)  # else ONNX infers a 1 where it is not
        _replace(einsum, value, einsum.outputs[0].shape if is_told else None)
        return True

    def _arranged(
        self, writer: Writer, operand: _Operand, groups: tuple[str, ...], sizes: Mapping[str, int]
    ) -> ir.Value:
        """``operand`` with an axis for each of ``groups``: one of its own, several taken for one, or one of size 1."""
        order = [operand.axes.index(letter) for group in groups for letter in group]
        value, shape = operand.value, _reshaped(groups, sizes)
        ones = [place for place, group in enumerate(groups) if not group]
        if order == sorted(order) and not shape and not ones:
            return value
        if constant(value) is not None:
            key, own = (value, operand.axes, groups), operand.sizes()
            if key not in self._arrangements:
                self._arrangements[key] = self._constant(value, order, [math.prod(own[a] for a in g) for g in groups])
            return self._arrangements[key]
        value = _transposed(writer, value, order)
        if shape:
            value = writer.add("Reshape", value, self._numbers(shape))
        return writer.add("Unsqueeze", value, self._numbers(ones)) if ones else value

    def _constant(self, value: ir.Value, order: Sequence[int], shape: Sequence[int]) -> ir.Value:
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None  # as it is a constant

        def arrange(array: NDArray[Any]) -> NDArray[Any]:
            return np.ascontiguousarray(array.transpose(order)).reshape(shape)

        arranged = changed(tensor, arrange, tensor.dtype, shape=ir.Shape(shape))
        return self._initializer(f"{value.name}_arranged", arranged)

    def _numbers(self, numbers: Sequence[int]) -> ir.Value:
        return self._initializer("numbers", ir.tensor(np.array(numbers, np.int64)))

    def _initializer(self, name: str, tensor: ir.TensorProtocol) -> ir.Value:
        return add_initializer(self._main, free_name(name, self._taken), tensor)


def _operands(einsum: ir.Node) -> tuple[_Operand, _Operand, str] | None:
    """The operands of a product, the constant one second, and the letters of its result; None if it is none."""
    values = [value for value in einsum.inputs if value is not None]
    spelled = letters(einsum.attributes.get_string("equation", "") or "", [rank(value) for value in values])
    if spelled is None or len(values) != _OPERANDS or not _is_float(values[0]):
        return None
    first, second = (_Operand(value, axes) for value, axes in zip(values, spelled[0], strict=True))
    result = spelled[1]
    if any(len(set(axes)) < len(axes) for axes in (first.axes, second.axes, result)):
        return None  # a diagonal
    if any(rank(each.value) not in (None, len(each.axes)) for each in (first, second)):
        return None
    both, terms = {*first.axes, *second.axes}, {*first.axes, *second.axes} - {*result}
    if not {*result} <= both or not terms or not terms <= {*first.axes} & {*second.axes} - {*_DIGITS}:
        return None
    ours, theirs = first.sizes(), second.sizes()
    if any(_may_repeat(ours.get(a), theirs.get(a)) for a in terms):
        return None
    constants = [constant(value) is not None for value in values]
    if all(constants):
        return None
    is_swapped = constants[0] if any(constants) else result[-1:] not in second.axes
    return (second, first, result) if is_swapped else (first, second, result)


def _may_repeat(size: int | None, other: int | None) -> bool:
    """Whether an axis of one of these sizes, None if unknown, may be 1 and repeated to be multiplied with the other."""
    return size != other and (1 in (size, other) or None not in (size, other))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _lead(operand: _Operand, lead: Sequence[str]) -> tuple[str, ...]:
    """``lead`` as far as ``operand`` has it, with gaps for what it lacks, but not at the beginning."""
    own = [letter if letter in operand.axes else "" for letter in lead]
    return tuple(own[next((i for i, letter in enumerate(own) if letter), len(own)) :])


def _reshaped(groups: Sequence[str], sizes: Mapping[str, int]) -> list[int] | None:
    """What Reshape makes an axis of each group with, empty where each is one; None where that cannot be said."""
    groups = [group for group in groups if group]
    if all(len(group) == 1 for group in groups):
        return []
    shape = []
    for place, group in enumerate(groups):
        if all(len(each) == 1 for each in groups[: place + 1]):
            shape.append(0)  # the size that it has, which is that of the same axis before
        elif all(letter in sizes for letter in group):
            shape.append(math.prod(sizes[letter] for letter in group))
        elif -1 not in shape:
            shape.append(-1)
        else:
            return None
    return shape


def _transposed(writer: Writer, value: ir.Value, order: Sequence[int]) -> ir.Value:
    return value if [*order] == sorted(order) else writer.add("Transpose", value, perm=[*order])


def _replace(einsum: ir.Node, value: ir.Value, shape: ir.Shape | None) -> None:
    """Let ``value`` be what ``einsum`` gave, under its name."""
    out = einsum.outputs[0]
    value.type, value.shape, name = out.type, shape, out.name
    ir.convenience.replace_all_uses_with(out, value, replace_graph_outputs=True)
    assert isinstance(einsum.graph, ir.Graph)
    einsum.graph.remove(einsum, safe=True)
    value.name = name
