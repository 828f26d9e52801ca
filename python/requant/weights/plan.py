"""Which weights get few bits, and why the others stay float: decided from the graph alone.

MatMul and Gemm with a constant matrix, and tables that Gather looks up rows of, in the main graph and in the bodies of
If, Loop and Scan. A weight that several of them read in one orientation is planned once for all; so are an embedding
table and a head that is its transpose.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.lowbit import BlockScheme
from requant.onnx.names import name_of
from requant.onnx.nodes import constant, int_attribute, is_transposed, may_touch_float
from requant.onnx.ops import row_of
from requant.onnx.ops.spec import Role
from requant.planning.plan import BlockedNode, QuantPlan, Skip
from requant.planning.selection import excluded, names_of
from requant.weights import AUTO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir as ir  # noqa: TID251 - for annotations only
    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.onnx.graph import Graph

#: Bits that tables have at least, and heads that share them, where no rule gives them others: what embeddings
#: lose no later layer can make up for.
TABLE_BITS = 8
BLOCK_SIZE = 32
_MULTIPLE = 4  # values of a table's row, of 2 bits and more, that fill whole bytes
_COST = 300  # bytes of names and headers of the new initializers, about


#: How a reason ends that holds for weight-only quantization alone.
NO_BLOCKS = "has no form with weights in blocks"


def plan_weights(graph: Graph, config: QuantConfig) -> QuantPlan:
    """The plan of weight-only quantization; pure, the graph is not changed.

    Raises:
        ConfigError: a rule matches nothing, or asks for what the format does not have.
    """
    return _Planner(graph, config).plan()


class _Planner:
    def __init__(self, graph: Graph, config: QuantConfig) -> None:
        self.config = config
        self.nodes = [node for node in graph.all_nodes() if may_touch_float(node)]
        self.left_out = excluded(graph, config)
        self.reasons: dict[ir.Node, str] = {}

    def plan(self) -> QuantPlan:
        found: dict[ir.Node, BlockedNode] = {}
        for node in self.nodes:
            reason = self.left_out.get(name_of(node)) or _refuse(node)
            if reason:
                self.reasons[node] = reason
            else:
                found[node] = self._planned(node)
        for node in [node for node in found if self._read_elsewhere(node, found)]:
            self.reasons[node] = "another op reads its weight"
            del found[node]
        self._tie(found)
        # Nodes that share integers have the scheme of the first of them, of a table if there is one.
        schemes: dict[tuple[str, bool], BlockScheme] = {}
        for planned in sorted(found.values(), key=lambda planned: planned.op_type != "Gather"):
            schemes.setdefault(planned.key, planned.scheme)
        for node, planned in list(found.items()):
            scheme = schemes[planned.key]
            found[node] = replace(planned, scheme=scheme)
            rows, terms = _rows_of(node, found[node])
            if not _saves(rows, terms, scheme):
                self.reasons[node] = f"its {rows} x {terms} weights are too few: blocks would take more bytes"
                del found[node]
        skipped = tuple(
            Skip(name_of(node), node.op_type, self.reasons[node]) for node in self.nodes if node in self.reasons
        )
        return QuantPlan((), {}, skipped, blocked=tuple(found.values()))

    def _planned(self, node: ir.Node) -> BlockedNode:
        index = _weight_index(node)
        value = node.inputs[index]
        assert value is not None  # a planned node has a weight
        bits, size, algorithm = self.config.bits, self.config.block_size, self.config.algorithm or AUTO
        if node.op_type == "Gather":
            bits = max(bits, TABLE_BITS)
        for rule in self.config.ordered_rules:
            if rule.matches(*names_of(node)):
                bits = rule.bits or bits
                size = size if rule.block_size is None else rule.block_size
                algorithm = rule.algorithm or algorithm
        symmetric = bool(self.config.symmetric)
        scheme = BlockScheme(bits, BLOCK_SIZE if size is None else size, symmetric)
        return BlockedNode(name_of(node), node.op_type, index, name_of(value), in_columns(node), scheme, algorithm)

    def _read_elsewhere(self, node: ir.Node, found: Mapping[ir.Node, BlockedNode]) -> bool:
        """Whether the weight must stay float for a reader that is not planned, or for the caller."""
        value = node.inputs[found[node].index]
        assert value is not None
        uses = value.uses()
        return value.is_graph_output() or any(use.node not in found or found[use.node].index != use.idx for use in uses)

    def _tie(self, found: dict[ir.Node, BlockedNode]) -> None:
        """Let products whose weight is the transpose of a table share its integers."""
        tables = [(node, planned) for node, planned in found.items() if node.op_type == "Gather"]
        for node, planned in list(found.items()):
            for table, own in tables if planned.transposed else ():
                if _is_transpose(_array(node, planned), _array(table, own)):
                    found[node] = replace(planned, weight=own.weight, transposed=False)
                    break


def _is_transpose(weight: NDArray[Any], table: NDArray[Any]) -> bool:
    """Whether ``weight`` is the transpose of ``table``, looked at row by row."""
    if weight.shape != table.shape[::-1] or not np.array_equal(weight[:, 0], table[0]):
        return False
    return all(np.array_equal(weight[:, i : i + 256].T, table[i : i + 256]) for i in range(0, len(table), 256))


def in_columns(node: ir.Node) -> bool:
    """Whether a node has its weight as ``[K, N]``, an output channel to a column."""
    return node.op_type != "Gather" and not is_transposed(node)


def _weight_index(node: ir.Node) -> int:
    return 0 if node.op_type == "Gather" else 1


def _array(node: ir.Node, planned: BlockedNode) -> NDArray[Any]:
    array = constant(node.inputs[planned.index])
    assert array is not None  # it was looked at
    return array


def _rows_of(node: ir.Node, planned: BlockedNode) -> tuple[int, int]:
    """Rows and terms ``(N, K)`` of a weight."""
    shape = _array(node, planned).shape
    return (shape[1], shape[0]) if in_columns(node) else (shape[0], shape[1])


def _saves(rows: int, terms: int, scheme: BlockScheme) -> bool:
    return stored_bytes(rows, terms, scheme) + _COST < 4 * rows * terms


def stored_bytes(rows: int, terms: int, scheme: BlockScheme) -> int:
    """Bytes of the integers, scales and zero points of a matrix."""
    blocks = scheme.blocks(terms)
    values = blocks * (scheme.block_size or terms)
    zeros = 0 if scheme.symmetric else -(-blocks * scheme.stored_bits // 8)
    return rows * (values * scheme.stored_bits // 8 + 4 * blocks + zeros)


def _refuse(node: ir.Node) -> str:
    """Why a node's weights stay float; empty where they need not."""
    row = row_of(node)
    if row is None or not (row.lookup or Role.WEIGHT in row.inputs.values()):
        return "it has no weights"
    if row.lookup and constant(node.inputs[0]) is None:
        return "it has no weights"
    if node.op_type not in ("Gather", "Gemm", "MatMul") or node.domain != "":
        return f"{node.op_type} {NO_BLOCKS}"
    if len(node.inputs) <= _weight_index(node):
        return "it has no weights"
    array = constant(node.inputs[_weight_index(node)])
    if array is None:
        return "its weight is computed at run time"
    x = node.inputs[1 - _weight_index(node)]
    checks = (
        (array.dtype != np.float32 or array.size == 0, "its weight is empty or not float32"),
        (array.ndim != 2, "its weight is no matrix"),
        (x is None or (not row.lookup and constant(x) is not None), "its input is a constant"),
        (row.lookup and int_attribute(node, "axis", 0) not in (0, -2), "it looks up columns"),
        (row.lookup and array.shape[-1] % _MULTIPLE != 0, "its rows do not fill whole bytes"),
        (int_attribute(node, "transA", 0) != 0, f"Gemm with transA {NO_BLOCKS}"),
    )
    return next((reason for holds, reason in checks if holds), "")


def weights_of(graph: Graph, plan: QuantPlan) -> Iterator[tuple[BlockedNode, ir.Node, NDArray[Any]]]:
    """Each planned node, with its node of ``graph`` and the rows ``[N, K]`` of its weight."""
    nodes = {node.name: node for node in graph.all_nodes()}
    for planned in plan.blocked:
        node = nodes[planned.name]
        array = _array(node, planned)
        yield planned, node, array.T if in_columns(node) else array
