"""Adding nodes to a graph, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from requant.onnx.names import free_name

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Writer:
    """Adds nodes to ``graph``: before one of its nodes, or at the end.

    Args:
        graph: the main graph or a body.
        before: the node that stays behind what is added; None adds at the end.
        taken: names that are taken; those of new tensors are added.
    """

    def __init__(self, graph: ir.Graph, before: ir.Node | None, taken: set[str]) -> None:
        self._graph, self._before, self._taken = graph, before, taken

    def add(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        output: ir.Value | None = None,
        name: str | None = None,
        **attributes: Any,
    ) -> ir.Value:
        """The output of a new node."""
        if output is None:
            output = ir.Value(name=free_name(op_type.lower(), self._taken))
        node = ir.node(op_type, inputs, attributes, outputs=[output], name=name)
        if self._before is None:
            self._graph.append(node)
        else:
            self._graph.insert_before(self._before, node)
        return output

    def constant(self, array: NDArray[Any]) -> ir.Value:
        """What gives ``array``."""
        return self.add("Constant", value=ir.tensor(array))
