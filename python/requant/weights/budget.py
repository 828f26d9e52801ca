"""Bits for each weight, by what they cost: the error that the model's outputs get, and bytes.

Every weight begins with the fewest bits, tables with the 8 that they have anyway. Then the step up that lowers the
error most for its bytes is taken, and so on. With data, the error of a weight is what it does to the outputs of the
model: the noise there with this weight alone in 4 bits, times the error of the layer's own outputs over that in 4 bits.
Without, it is the relative error of the weight. Errors of weights are added up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from requant.errors import ConfigError
from requant.onnx.blocks import finite
from requant.weights import get_algorithm
from requant.weights.moments import measure_error
from requant.weights.plan import TABLE_BITS, stored_bytes, weights_of
from requant.weights.resolve import moments_of
from requant.weights.sensitivity import output_noise

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from requant.arrays.lowbit import BlockScheme
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import BlockedNode, QuantPlan
    from requant.weights.spec import Moments

    Key = tuple[str, bool]

#: What ``assign_bits`` chooses from: 3 bits take the bytes of 4.
STEPS = (2, 4, 8)
#: The number of bits of a weight that stays float.
FLOAT = 32
_ALONE = 4  # bits in which weights are tried alone
_LOOKED_AT = 256  # rows of each weight by which its errors are judged


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What each weight costs at some numbers of bits.

    Attributes:
        steps: these, ascending; ``FLOAT`` may be the last.
        errors: the error at each of them.
        sizes: the bytes at each of them.
    """

    steps: tuple[int, ...]
    errors: Mapping[Key, Sequence[float]]
    sizes: Mapping[Key, Sequence[int]]

    def size(self, bits: Mapping[Key, int]) -> int:
        """Bytes of all weights."""
        return sum(self.sizes[key][self.steps.index(each)] for key, each in bits.items())

    def climb(self, bits: Mapping[Key, int], budget: float = math.inf) -> Iterator[dict[Key, int]]:
        """The bits of all weights after each step up from ``bits`` that fits a budget of bytes.

        Each is the one that lowers the error most for its bytes; weights that gain nothing stay.
        """
        at = {key: self.steps.index(each) for key, each in bits.items()}
        left = budget - self.size(bits)
        while True:
            best, gain = None, 0.0
            for key, step in at.items():
                errors, sizes = self.errors[key], self.sizes[key]
                for further in range(step + 1, len(self.steps)):
                    cost = sizes[further] - sizes[step]
                    worth = (errors[step] - errors[further]) / max(cost, 1)
                    if cost <= left and worth > gain:
                        best, gain = (key, further, cost), worth
            if best is None:
                return
            at[best[0]] = best[1]
            left -= best[2]
            yield {key: self.steps[step] for key, step in at.items()}


def find_costs(graph: Graph, plan: QuantPlan, steps: Sequence[int], batches: Sequence[Batch], *, threads: int) -> Costs:
    """What the weights of ``plan`` cost in so many bits, by ``batches``, if there are some."""
    layers: dict[Key, tuple[BlockedNode, NDArray[Any]]] = {}
    for planned, _, rows in weights_of(graph, plan):
        layers.setdefault(planned.key, (planned, rows))
    errors: dict[Key, list[float]] = {}
    for keys, moments in moments_of(graph, plan, batches, threads=threads):
        errors |= {key: _errors(*layers[key], steps, moments) for key in keys if key not in errors}
    errors |= {key: _errors(*layer, steps, None) for key, layer in layers.items() if key not in errors}
    alone = _ALONE if _ALONE in steps else steps[0]
    noise = output_noise(graph, _all_with(plan, alone), batches, threads=threads) if batches else {}
    sizes = {key: [_size(*layer, bits) for bits in steps] for key, layer in layers.items()}
    return Costs(tuple(steps), _weighed(errors, noise, steps.index(alone)), sizes)


def assign_bits(graph: Graph, plan: QuantPlan, target: float, batches: Sequence[Batch], *, threads: int) -> QuantPlan:
    """``plan`` with 2, 4 or 8 bits for each weight, at most ``target`` on average, scales and zero points included.

    Raises:
        ConfigError: even the fewest bits take more.
    """
    costs = find_costs(graph, plan, STEPS, batches, threads=threads)
    values = {planned.key: rows.size for planned, _, rows in weights_of(graph, plan)}
    budget = target / 8 * sum(values.values())
    tables = {planned.key for planned in plan.blocked if planned.op_type == "Gather"}
    bits = {key: TABLE_BITS if key in tables else STEPS[0] for key in values}
    if costs.size(bits) > budget:
        raise ConfigError(
            f"target_bits is {target:g}, and the fewest bits, scales included, are "
            f"{costs.size(bits) * target / budget:.2f}",
            hint="choose a larger target_bits or block_size",
        )
    for more in costs.climb(bits, budget):
        bits = more
    return replace(plan, blocked=tuple(replace(n, scheme=_with_bits(n.scheme, bits[n.key])) for n in plan.blocked))


def _all_with(plan: QuantPlan, bits: int) -> QuantPlan:
    return replace(plan, blocked=tuple(replace(n, scheme=_with_bits(n.scheme, bits)) for n in plan.blocked))


def _weighed(errors: Mapping[Key, list[float]], noise: Mapping[Key, float], alone: int) -> dict[Key, list[float]]:
    """Errors of layers as noise of the model's outputs: what it is at step ``alone`` says what any error makes.

    Layers whose noise is not known count as the others do on average.
    """
    factors = {key: each / errors[key][alone] for key, each in noise.items() if errors[key][alone] > 0}
    mean = sum(factors.values()) / len(factors) if factors else 1.0
    return {key: [error * factors.get(key, mean) for error in each] for key, each in errors.items()}


def _errors(planned: BlockedNode, rows: NDArray[Any], steps: Sequence[int], moments: Moments | None) -> list[float]:
    """The relative error of a layer at each number of bits, from some of its rows."""
    some = finite(rows, planned.weight)[:: max(1, len(rows) // _LOOKED_AT)]

    def error(bits: int) -> float:
        if bits == FLOAT:
            return 0.0
        return measure_error(
            some, get_algorithm("mse").quantize(some, _with_bits(planned.scheme, bits), moments), moments
        )

    return [error(bits) for bits in steps]


def _size(planned: BlockedNode, rows: NDArray[Any], bits: int) -> int:
    if bits == FLOAT:
        return rows.nbytes
    return stored_bytes(rows.shape[0], rows.shape[1], _with_bits(planned.scheme, bits))


def _with_bits(scheme: BlockScheme, bits: int) -> BlockScheme:
    return replace(scheme, bits=bits)
