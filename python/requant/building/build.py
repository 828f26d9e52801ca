"""From a plan and ranges to the quantized model: the part of the way that is walked once for each candidate."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from requant.building.dynamic import plan_whole, resolve_dynamic
from requant.building.repair import repair
from requant.building.resolve import resolve
from requant.building.tied import tie_tables
from requant.calibration.choosing import describe
from requant.onnx.biases import keep_apart
from requant.onnx.bounds import spell_clamps
from requant.onnx.dynamic import insert_dynamic
from requant.onnx.export import insert_qdq
from requant.onnx.operators import as_operators, left_between
from requant.onnx.passes.activations import fuse_gelus
from requant.onnx.shared import share_constants
from requant.onnx.storage import Stored, store_half
from requant.onnx.terse import drop_implied, name_briefly
from requant.planning.build import nodes_of
from requant.planning.placement import Candidate
from requant.planning.selection import left_in_float
from requant.targets import get_target
from requant.targets.ort_cpu import TARGET as ORT_CPU
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from requant.calibration.choosing import Choice
    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.placement import Build
    from requant.planning.plan import QuantPlan
    from requant.types import Range


_UNSEEN = "calibration has seen no value of its tensors"


def builder(
    given: Graph,
    graph: Graph,
    config: QuantConfig,
    plan: QuantPlan,
    choices: Mapping[str, Choice],
    *,
    sample: Sequence[Batch] = (),
    held: Sequence[Batch] = (),
) -> Build:
    """Makes the quantized model of ``plan``, or of a part of it, from the prepared ``graph`` of the one ``given``.

    Weights are repaired by what ``sample`` says, once, and proved on samples ``held`` back: a part has the integers of
    the whole. Nodes that ``config`` has ``in_float`` are part of the whole, and of no model.
    """
    plan, known, unseen = calibrated_part(graph, plan, choices, config)
    whole = repair(graph, plan, resolve(graph, plan, known, config), config, sample, held=held)
    done = (*describe(choices, plan.tensors.values(), config), *whole.done)
    always, target = left_in_float(graph, config), get_target(config.target)

    def build(left_out: Mapping[str, str]) -> Candidate:
        left_out = {**always, **left_out}
        part = plan_whole(graph, config, {**unseen, **left_out}) if left_out else plan
        resolved = whole.resolved.of(part)
        weights = tie_tables(graph, part, resolved, resolve_dynamic(graph, part, config))
        model, stored = insert_qdq(graph, part, resolved), Stored()
        notes: list[str] = []
        if config.format == "qoperator":
            model = as_operators(model, ORT_CPU.moves)
            notes += _format_notes(left_between(model, (node.name for node in part.nodes)))
        model = insert_dynamic(model, part, weights)
        if target.one_gelu:
            model = fuse_gelus(model)
        products = {node.name for node in part.nodes if node.op_type in target.float_output}
        if target.joins_biases:
            model = keep_apart(model, products)
        if target.skips_clamps:
            model = spell_clamps(model, products)
        if config.rest in ("float16", "bfloat16"):
            model, stored = store_half(model, exactly=False, dtype=config.rest)
        elif given.holds_half():
            model, stored = store_half(model, exactly=True)
        notes += storage_notes(stored)
        model = name_briefly(drop_implied(share_constants(model), folds=target.folds_constants), given)
        return Candidate(part, resolved, weights, model.serialize(), choices, done, tuple(notes), len(stored.half))

    return build


def calibrated_part(
    graph: Graph, plan: QuantPlan, choices: Mapping[str, Choice], config: QuantConfig
) -> tuple[QuantPlan, dict[str, Range], dict[str, str]]:
    """The part of ``plan`` for whose tensors there is a range, these ranges, and what is left out, with the reason."""
    ranges = {name: choice.range for name, choice in choices.items()}
    found = {name: tensor.known_range or ranges.get(tensor.source or name) for name, tensor in plan.tensors.items()}
    known = {name: chosen for name, chosen in found.items() if chosen is not None}
    unseen = dict.fromkeys(nodes_of(graph, plan, set(found) - set(known)), _UNSEEN)
    return (plan_whole(graph, config, unseen) if unseen else plan), known, unseen


def _format_notes(left: Sequence[str]) -> Iterator[str]:
    if left:
        counts = ", ".join(f"{op_type} {count}" for op_type, count in Counter(left).most_common())
        yield f"no operator for integers, so Q and DQ stay around them: {counts}"


def storage_notes(stored: Stored) -> Iterator[str]:
    """What there is to say of constants in half precision."""
    if stored.half:
        yield counted(len(stored.half), "float constant(s) stored in half precision")
    if stored.kept:
        yield f"stored in float32, being out of the range of half precision: {', '.join(stored.kept[:5])}"
