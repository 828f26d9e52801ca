"""Names of tensors and nodes: those that a graph has, and new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def name_of(thing: ir.Value | ir.Node) -> str:
    """The name of a tensor or node, empty where it has none."""
    return thing.name or ""


def taken_names(graph: ir.Graph) -> set[str]:
    """The names of all tensors and nodes in ``graph`` and in its bodies."""
    scopes = (graph, *graph.subgraphs())
    nodes = list(graph.all_nodes())
    names = {node.name for node in nodes} | {value.name for node in nodes for value in node.outputs}
    names |= {value.name for scope in scopes for value in (*scope.inputs, *scope.initializers.values())}
    return {name for name in names if name}


def free_name(name: str, taken: set[str]) -> str:
    """``name``, or with a number behind it where that is taken; it is taken then."""
    free, serial = name, 1
    while free in taken:
        free, serial = f"{name}_{serial}", serial + 1
    taken.add(free)
    return free
