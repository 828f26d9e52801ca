"""Bits for each layer, so that all weights together take a number of bits on average.

Every layer begins with the fewest bits, tables with the 8 that they have anyway. Then the step up that lowers the
error most for its bytes is taken, until none fits any more. With data, a layer's error is what it does to the outputs
of the model: the noise there with this weight alone in 4 bits, times the error of the layer's own outputs over that in
4 bits. Without, it is the relative error of its weights. Errors of layers are added up.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from requant.errors import ConfigError
from requant.resolve import finite
from requant.weights import get_algorithm
from requant.weights.plan import TABLE_BITS, stored_bytes, weights_of
from requant.weights.resolve import measure_error, moments_of
from requant.weights.sensitivity import output_noise

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.lowbit import BlockScheme
    from requant.onnx.graph import Graph
    from requant.plan import BlockedNode, QuantPlan
    from requant.weights.spec import Moments

    Key = tuple[str, bool]

#: What layers may get: 3 bits take the bytes of 4.
STEPS = (2, 4, 8)
_MIDDLE = 1  # of them, at which weights are tried alone
_BYTE = 8
_LOOKED_AT = 256  # rows of each weight by which its errors are judged


def assign_bits(graph: Graph, plan: QuantPlan, target: float, batches: Sequence[Batch], *, threads: int) -> QuantPlan:
    """``plan`` with 2, 4 or 8 bits for each weight, at most ``target`` on average, scales and zero points included.

    Raises:
        ConfigError: even the fewest bits take more.
    """
    layers: dict[Key, tuple[BlockedNode, NDArray[Any]]] = {}
    for planned, _, rows in weights_of(graph, plan):
        layers.setdefault(planned.key, (planned, rows))
    moments = moments_of(graph, plan, batches, threads=threads)
    errors: dict[Key, list[float]] = {}
    for seen in moments:
        errors |= {key: _errors(*layers[key], seen[1]) for key in seen[0] if key in layers and key not in errors}
    errors |= {key: _errors(*layer, None) for key, layer in layers.items() if key not in errors}
    errors = _weighed(errors, output_noise(graph, _at_middle(plan), batches, threads=threads) if batches else {})
    sizes = {key: _sizes(*layer) for key, layer in layers.items()}
    budget = target / _BYTE * sum(rows.shape[0] * rows.shape[1] for _, rows in layers.values())
    tables = {planned.key for planned in plan.blocked if planned.op_type == "Gather"}
    floor = {key: STEPS.index(TABLE_BITS) if key in tables else 0 for key in layers}
    chosen = _spend(errors, sizes, budget, floor)
    if sum(sizes[key][step] for key, step in chosen.items()) > budget:
        least = sum(sizes[key][step] for key, step in floor.items()) * target / budget
        raise ConfigError(
            f"target_bits is {target:g}, and the fewest bits, scales included, are {least:.2f}",
            hint="choose a larger target_bits or block_size",
        )
    return replace(
        plan,
        blocked=tuple(replace(node, scheme=_with_bits(node.scheme, STEPS[chosen[node.key]])) for node in plan.blocked),
    )


def _at_middle(plan: QuantPlan) -> QuantPlan:
    """``plan`` with the number of bits at which weights are tried alone."""
    return replace(plan, blocked=tuple(replace(n, scheme=_with_bits(n.scheme, STEPS[_MIDDLE])) for n in plan.blocked))


def _weighed(errors: Mapping[Key, list[float]], noise: Mapping[Key, float]) -> dict[Key, list[float]]:
    """Errors of layers as noise of the model's outputs: what it is at one number of bits says what any error makes.

    Layers whose noise is not known count as the others do on average.
    """
    factors = {key: each / errors[key][_MIDDLE] for key, each in noise.items() if errors[key][_MIDDLE] > 0}
    mean = sum(factors.values()) / len(factors) if factors else 1.0
    return {key: [error * factors.get(key, mean) for error in each] for key, each in errors.items()}


def _spend(
    errors: Mapping[Key, Sequence[float]],
    sizes: Mapping[Key, Sequence[int]],
    budget: float,
    floor: Mapping[Key, int],
) -> dict[Key, int]:
    """The step of each weight, at least that of ``floor``."""
    chosen = dict(floor)
    left = budget - sum(sizes[key][step] for key, step in floor.items())
    while True:
        best, gain = None, 0.0
        for key, step in chosen.items():
            for further in range(step + 1, len(STEPS)):
                cost = sizes[key][further] - sizes[key][step]
                worth = (errors[key][step] - errors[key][further]) / cost
                if cost <= left and worth > gain:
                    best, gain = (key, further, cost), worth
        if best is None:
            return chosen
        chosen[best[0]] = best[1]
        left -= best[2]


def _errors(planned: BlockedNode, rows: NDArray[Any], moments: Moments | None) -> list[float]:
    """The relative error of a layer at each number of bits, from some of its rows."""
    some = finite(rows, planned.weight)[:: max(1, len(rows) // _LOOKED_AT)]
    mse = get_algorithm("mse")
    return [
        measure_error(some, mse.quantize(some, _with_bits(planned.scheme, bits), moments), moments) for bits in STEPS
    ]


def _sizes(planned: BlockedNode, rows: NDArray[Any]) -> list[int]:
    return [stored_bytes(rows.shape[0], rows.shape[1], _with_bits(planned.scheme, bits)) for bits in STEPS]


def _with_bits(scheme: BlockScheme, bits: int) -> BlockScheme:
    return replace(scheme, bits=bits)
