"""The optimizer's own passes, with each of its rules tried only where it can match.

It tries fifty rules on every node, one of them against all other nodes, which takes a minute for four thousand nodes.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onnx_ir.passes import common
from onnxscript import optimizer, rewriter

from requant.onnx.names import free_name, name_of, taken_names
from requant.onnx.nodes import constant, int_attribute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx_ir as ir

_ROUNDS = 2
_ANY_SIZE = sys.maxsize  # ``should_fold`` decides


def optimize(model: ir.Model, should_fold: Callable[[ir.Node], bool | None]) -> None:
    """Inline functions, fold constants and apply rules, as ``onnxscript.optimizer.optimize_ir`` does."""
    common.InlinePass()(model)
    for _ in range(_ROUNDS):
        folded = optimizer.fold_constants_ir(
            model, onnx_shape_inference=True, output_size_limit=_ANY_SIZE, should_fold=should_fold
        ).modified
        rules = _rules(model)
        rewritten = bool(rules) and rewriter.RewritePass(rules)(model).modified
        _register_constants(model)
        common.RemoveUnusedNodesPass()(model)
        if not folded and not rewritten:
            break
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    with _without_remarks(common.DeduplicateInitializersPass):
        common.DeduplicateInitializersPass()(model)
    common.CommonSubexpressionEliminationPass()(model)
    _fix_outputs(model)
    common.NameFixPass()(model)


@contextmanager
def _without_remarks(of: type) -> Iterator[None]:
    """Let a pass not warn of what is as it should be, such as constants that are outputs, and are not shared."""
    log = logging.getLogger(of.__module__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _fix_outputs(model: ir.Model) -> None:
    """Put an Identity before each output that is none of a node's, but leave the model's inputs among its outputs.

    The pass gives such an input another name; runtimes take it as it is.
    """
    outputs = model.graph.outputs
    through = [(index, value, value.name) for index, value in enumerate(outputs) if value.is_graph_input()]
    common.OutputFixPass()(model)
    for index, value, name in through:
        identity = outputs[index].producer()
        outputs[index] = value
        if identity is not None:
            model.graph.remove(identity, safe=True)
        value.name = name


def _register_constants(model: ir.Model) -> None:
    """Give the model the constants of rules that it lacks: the second of one name, as of two Flattens of a tensor."""
    lost = {
        value
        for node in model.graph.all_nodes()
        for value in node.inputs
        if value is not None and value.const_value is not None and value.producer() is None
        if not value.is_initializer() and not value.is_graph_input()
    }
    taken = taken_names(model.graph) if lost else set()
    for value in sorted(lost, key=name_of):
        value.name = free_name(value.name or "constant", taken)
        model.graph.register_initializer(value)


#: The constant with which an op does nothing. The optimizer takes 1e-9 for 0; a logarithm behind it would not.
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}


class _Rule:
    """A rule of the optimizer that is tried only on nodes of the op that its pattern begins with."""

    def __init__(self, rule: Any, op_type: str, *, alone: bool) -> None:
        self._rule, self._op_type = rule, op_type
        self._neutral = _NEUTRAL.get(op_type) if alone else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rule, name)

    def try_rewrite(self, model: ir.Model, graph: ir.Graph, node: ir.Node, **options: Any) -> Any:
        """What takes the place of what matches at ``node``; None if nothing does."""
        if node.op_type != self._op_type or int_attribute(node, "training_mode", 0):  # no rule looks at the latter
            return None
        if self._neutral is not None and not any(_is(value, self._neutral) for value in node.inputs):
            return None
        return self._rule.try_rewrite(model, graph, node, **options)


def _is(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and array.size == 1 and bool(array.flat[0] == number)


def _rules(model: ir.Model) -> Sequence[Any]:
    """The optimizer's rules, without those that need an op which the model does not have."""
    present = {node.op_type for node in model.graph.all_nodes()}
    patterns = [(rule, rule._target_pattern) for rule in rewriter._DEFAULT_REWRITE_RULES]  # noqa: SLF001
    return [
        _Rule(rule, pattern.output_nodes[0].op_type, alone=len(list(pattern)) == 1)
        for rule, pattern in patterns
        if {node.op_type for node in pattern} <= present
    ]
