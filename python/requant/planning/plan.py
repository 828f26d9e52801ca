"""What a plan says: everything that will become integer, and every float node that will not, with the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING

from requant.onnx.ops import OPS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from requant.arrays.lowbit import BlockScheme
    from requant.planning.tensors import TensorPlan


@dataclass(frozen=True, slots=True)
class Skip:
    """A node that stays float, and why."""

    node: str
    op_type: str
    reason: str


class Saturation(Enum):
    """How a HardSigmoid becomes integer: it saturates where it is 0 and 1."""

    AS_ADD = "as add"  # it becomes an addition, the result of which saturates
    BEFORE = "before"  # what it reads has saturated: the same integers stand for its result


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node that runs on integers: the activations it reads by input index, its weight and bias by tensor name.

    ``saturates`` says where saturation does what the node does, if it does.
    """

    name: str
    op_type: str
    activations: tuple[tuple[int, str], ...]
    weight: str | None = None
    weight_axis: int | None = None
    bias: str | None = None
    saturates: Saturation | None = None


class Form(Enum):
    """What becomes of a node whose activations are not calibrated."""

    INTEGER = "integer"  # it runs on integers: its activation is quantized at run time
    STORED = "stored"  # it runs in float: its weights are integers in the file, and reals once that is loaded


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """A weight that becomes integer: input index, name, axes whose indices have a scale each, axis of the sums."""

    index: int
    name: str
    axes: tuple[int, ...]
    terms: int


@dataclass(frozen=True, slots=True)
class DynamicNode:
    """A node, of the main graph or of a body, with integer weights and an activation that is not calibrated."""

    name: str
    op_type: str
    form: Form
    weights: tuple[WeightPlan, ...]


@dataclass(frozen=True, slots=True)
class BlockedNode:
    """A node that multiplies, or looks up, weights of a few bits in blocks, and stays float otherwise.

    Attributes:
        name: the node.
        op_type: MatMul, Gemm or Gather.
        index: which of its inputs the weight is.
        weight: name of the weight. Nodes with the same ``weight`` and ``transposed`` share its integers.
        transposed: whether the weight is ``[K, N]``, so that the blocks run down its columns.
        scheme: bits, block size and symmetry.
        algorithm: how it is rounded.
    """

    name: str
    op_type: str
    index: int
    weight: str
    transposed: bool
    scheme: BlockScheme
    algorithm: str

    @property
    def key(self) -> tuple[str, bool]:
        """What nodes that share integers have in common."""
        return self.weight, self.transposed


@dataclass(frozen=True)
class QuantPlan:
    """Everything that will become integer, and every float node that will not.

    ``guarded`` names float nodes that the target would quantize on its own.
    """

    nodes: tuple[NodePlan, ...]
    tensors: Mapping[str, TensorPlan]
    skipped: tuple[Skip, ...]
    dynamic: tuple[DynamicNode, ...] = ()
    guarded: frozenset[str] = frozenset()
    blocked: tuple[BlockedNode, ...] = ()

    @property
    def op_types(self) -> tuple[str, ...]:
        """The op type of each node that runs on integers, or on weights of a few bits."""
        integer = tuple(node.op_type for node in self.dynamic if node.form is Form.INTEGER)
        blocked = tuple(node.op_type for node in self.blocked)
        return tuple(node.op_type for node in self.nodes) + integer + blocked

    @cached_property
    def calibrated(self) -> tuple[str, ...]:
        """The tensors that must be seen on data, in the graph's order."""
        heads = [tensor for tensor in self.tensors.values() if tensor.is_calibrated]
        seen = {name for tensor in heads for name in (tensor.name, *tensor.joined)}
        return tuple(name for name in self.tensors if name in seen)


def count_reasons(skipped: Iterable[Skip]) -> dict[tuple[str, str], int]:
    """Number of float nodes for each op type and reason: ops that compute first, then by number."""
    counts = Counter((skip.op_type, skip.reason) for skip in skipped)
    compute = {op_type for op_type, row in OPS.items() if row.kind in (Kind.COMPUTE, Kind.RECURRENT)}
    return dict(sorted(counts.items(), key=lambda item: (item[0][0] not in compute, -item[1])))
