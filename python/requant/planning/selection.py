"""Which nodes a user's rules speak of, and what they say of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.config.rules import matches
from requant.errors import ConfigError, closest
from requant.onnx.names import name_of
from requant.planning.logarithms import before_logarithms
from requant.planning.phases import before_sines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx_ir as ir  # noqa: TID251 - for annotations only

    from requant.config import QuantConfig
    from requant.config.rules import Rule
    from requant.onnx.graph import Graph


def names_of(node: ir.Node) -> tuple[str, ...]:
    """All that a rule may call a node."""
    return (name_of(node), node.op_type, *(name_of(output) for output in node.outputs))


def insisted(nodes: Iterable[ir.Node], rules: Sequence[Rule]) -> frozenset[str]:
    """Names of the nodes that the last rule about them quantizes."""
    said = [rule for rule in reversed(rules) if rule.quantize is not None]
    if not any(rule.quantize for rule in said):
        return frozenset()
    last = {name_of(node): next((rule for rule in said if rule.matches(*names_of(node))), None) for node in nodes}
    return frozenset(name for name, rule in last.items() if rule is not None and rule.quantize)


def excluded(graph: Graph, config: QuantConfig) -> dict[str, str]:
    """The nodes, of bodies too, that rules of ``config``, logarithms or sines keep in float, each with its reason.

    Rules have the last word.

    Raises:
        ConfigError: a rule matches nothing.
    """
    left = {**before_sines(graph.all_nodes()), **before_logarithms(graph.all_nodes())}
    rules = config.ordered_rules
    if not rules:
        return left
    unused = dict.fromkeys(rules)
    for node in graph.all_nodes():
        names = names_of(node)
        for rule in rules:
            if not rule.matches(*names):
                continue
            unused.pop(rule, None)
            if rule.quantize is False:
                others = bool(config.include) and rule is rules[0]  # what include leaves out
                left[name_of(node)] = "it is not included" if others else f"excluded by {rule.match!r}"
            elif rule.quantize:
                left.pop(name_of(node), None)
    missed = [rule for rule in unused if not any(rule.matches(spec.name) for spec in graph.inputs)]
    if missed:
        match = missed[0].match
        raise ConfigError(
            f"{match!r} matches no node, op type or tensor of the model{_meant(match, graph)}",
            hint="`requant inspect --json` lists the nodes",
        )
    return left


def _meant(match: str, graph: Graph) -> str:
    """What ``match``, which matches nothing, was likely meant to name: a did-you-mean clause, or an empty string."""
    nodes = list(graph.all_nodes())
    reader = next((node for node in nodes if any(v is not None and v.name == match for v in node.inputs)), None)
    if reader is not None:
        return f"; did you mean {name_of(reader)!r}, the {reader.op_type} that reads it?"
    known = list(dict.fromkeys([*(name for node in nodes for name in names_of(node)), *(x.name for x in graph.inputs)]))
    part = f".*{match.strip('^$')}.*"
    example = next((name for name in known if matches(part, name)), None)
    if example is None or match.casefold() in map(str.casefold, known):
        return closest(match, known)
    return f"; did you mean {part!r}, as in {example!r}?"


def left_in_float(graph: Graph, config: QuantConfig) -> dict[str, str]:
    """The nodes that ``config`` leaves in float after all has been chosen as if it did not, each with its reason.

    Raises:
        ConfigError: the graph has no such node.
    """
    known = {name_of(node) for node in graph.all_nodes()} if config.in_float else set()
    for name in config.in_float:
        if name not in known:
            raise ConfigError(
                f"in_float names no node {name!r}{closest(name, known)}",
                hint="`requant inspect --json` lists the nodes",
            )
    return dict.fromkeys(config.in_float, "in_float names it")
