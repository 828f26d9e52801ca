"""What errors of an activation cost at the outputs of the layers that read it, measured on some calibration samples.

Of the vectors ``x`` that a layer with weight ``W`` reads, a small share of the values is clipped, and what that leaves
is rounded. With the error ``e`` of either

    gain = mean(|W e|^2 / (|W x|^2 + mean |W x|^2)) / mean(e^2)

so errors count relative to the output of the vector they are in: a few loud vectors, which a normalization behind takes
back, do not outweigh all others. What several layers read has the sum of their gains. All but convolutions and products
with a matrix is taken to pass errors on as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.calibration.choosing import SHARES, OutputGain
from requant.calibration.moments import Layer
from requant.calibration.observing import watch
from requant.onnx.names import name_of
from requant.onnx.nodes import constant
from requant.onnx.ops import OPS, Tie
from requant.onnx.rows import as_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan

    Array = NDArray[Any]

#: Vectors that are taken of each tensor for each of its readers, from all samples together.
ROWS = 512
_VALUES = 16  # that stand for a vector, where values are not read as vectors
_LEVELS = 255
_DIGITS = 4  # more would only tell in which order products were summed


def output_gains(graph: Graph, plan: QuantPlan, batches: Sequence[Batch], *, threads: int) -> dict[str, OutputGain]:
    """The gain of each tensor that ``plan`` calibrates and that holds something in ``batches``.

    Args:
        graph: the float model that is planned for.
        plan: its plan.
        batches: the samples to measure on.
        threads: for the runtime.
    """
    readers = list(_readers(graph, plan))
    names = dict.fromkeys(reader.reads for reader in readers)
    samples = sum(batch.count for batch in batches)
    for batch, arrays in watch(graph, names, batches, threads=threads):
        for reader in readers:
            held = [x for x in arrays[reader.reads] if x.size]
            for x in held:
                reader.add(np.asarray(x, np.float32), -(-ROWS * batch.count // (samples * len(held))))
    sums: dict[str, Array] = {}
    for reader in readers:
        if (gains := reader.gains()) is not None:
            sums[reader.head] = sums.get(reader.head, 0.0) + gains
    return {name: OutputGain(rounding, tuple(clipping)) for name, (rounding, *clipping) in _rounded(sums)}


def _readers(graph: Graph, plan: QuantPlan) -> Iterator[_Reader]:
    """What reads the tensors that are calibrated, but for what only moves values on to others of the same range."""
    nodes = {node.name: node for node in graph.all_nodes()}
    head = {name: tensor.source or name for name, tensor in plan.tensors.items()}
    for node in plan.nodes:
        op = nodes[node.name]
        given = {head.get(name_of(out)) for out in op.outputs} if OPS[node.op_type].tie is Tie.SAME_AS_INPUT else set()
        layer = Layer(op, node) if node.weight is not None else None
        weight = constant(op.inputs[1]) if layer is not None and layer.k else None
        for _, name in node.activations:
            if plan.tensors[head[name]].is_calibrated and given != {head[name]}:
                yield _Reader(head[name], name, None if weight is None else layer, weight)


@dataclass(slots=True)
class _Reader:
    """An op that ``reads`` a tensor of the group ``head``, a ``layer`` with a ``weight`` where it multiplies."""

    head: str
    reads: str
    layer: Layer | None
    weight: Array | None
    #: Of rounding and of each share that is clipped: power of the outputs' errors, and mean square of the inputs'.
    outputs: Array = field(default_factory=lambda: np.zeros(1 + len(SHARES)))
    inputs: Array = field(default_factory=lambda: np.zeros(1 + len(SHARES)))

    def add(self, x: Array, rows: int) -> None:
        """Take in about ``rows`` of the vectors in ``x``."""
        vectors, product = self._vectors(x, rows)
        ends = _ends(vectors)
        with np.errstate(over="ignore", invalid="ignore"):
            power = np.square(product(vectors), dtype=np.float64).sum(-1)
            usual = power.mean()
            if not (usual > 0 and np.isfinite(usual)):
                return
            clipped = np.clip(vectors, *ends[0])
            scale = max(np.ptp(clipped) / _LEVELS, np.finfo(np.float32).tiny)
            errors = [np.rint(clipped / scale) * scale - clipped, *(np.clip(vectors, *end) - vectors for end in ends)]
            for kind, error in enumerate(errors):
                own = np.square(error, dtype=np.float64).mean()
                if own > 0:
                    at_outputs = np.square(product(error), dtype=np.float64).sum(-1) / (power + usual)
                    self.outputs[kind] += at_outputs.sum()
                    self.inputs[kind] += own * power.size

    def gains(self) -> Array | None:
        """What was found, ``[1 + shares]``; of a kind of error that did not come up, that of the kind before."""
        live = self.inputs > 0
        if not live.any():
            return None
        gains = self.outputs[live] / self.inputs[live]
        found: Array = gains[np.maximum(np.cumsum(live) - 1, 0)]
        return found

    def _vectors(self, x: Array, rows: int) -> tuple[Array, Callable[[Array], Array]]:
        """Vectors ``[..., n, k]``, and what the op makes of such: ``[..., n, outputs]``."""
        if self.layer is None or self.weight is None:
            flat = x.reshape(1, -1)  # as one vector
            return flat[:, :: max(1, flat.size // (_VALUES * rows))], lambda vectors: vectors
        columns = np.swapaxes(as_rows(self.weight, self.layer.node).reshape(self.layer.groups, -1, self.layer.k), 1, 2)
        return np.moveaxis(self.layer.vectors(x, rows), 0, 1), lambda vectors: vectors @ columns


def _ends(x: Array) -> list[tuple[float, float]]:
    """Ranges that clip each of the shares of ``x`` at both ends, but at least one value."""
    places = [max(round((x.size - 1) * share), min(1, x.size - 1)) for share in SHARES]
    ordered = np.partition(x, [*places, *(-1 - place for place in places)], axis=None)
    return [(min(float(ordered[place]), 0.0), max(float(ordered[-1 - place]), 0.0)) for place in places]


def _rounded(sums: Mapping[str, Array]) -> Iterator[tuple[str, list[float]]]:
    for name, gains in sums.items():
        yield name, [float(f"{gain:.{_DIGITS - 1}e}") for gain in gains]
