"""High-bias absorption (Nagel et al. 2019, arXiv:1906.04721, section 4.1.3), by what was seen.

Where channel i of a layer with ReLU behind it is above some ``c_i > 0`` for every sample, integers that all channels
share are spent on ``[0, c_i]``, where nothing lies. ``c_i`` leaves the layer's bias and enters those of the next layers
(``requant.onnx.shift``), which changes nothing for these samples. The paper takes ``c_i = beta - 3 gamma`` from the
preceding normalization, without data; here it is the least value that was seen. Of that as much is moved as narrows the
range of the tensor: with M_i the largest value of a channel and ``R = max(M_i - c_i)``, it is ``max(M_i - R, 0)``.

Beyond the samples ``relu(x - c) + c`` is not ``relu(x)`` where ``x < c``: it is ``c``, wrong by at most ``c``.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.calibration.observing import watch
from requant.errors import ModelError
from requant.onnx.shift import find_shifts
from requant.transforms.change import Change, has_own_range
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan

    Array = NDArray[Any]

logger = logging.getLogger(__name__)

#: What the range of a tensor must fall to for constants to move.
_NARROWER = 0.99


def absorb(graph: Graph, plan: QuantPlan, config: QuantConfig, batches: Iterable[Batch]) -> Change:
    """What is to be moved from each channel.

    Args:
        graph: the float model.
        plan: its plan.
        config: whose ``absorb`` asks for it.
        batches: the calibration samples, all that can be had.
    """
    if not config.absorb:
        return Change()
    found, reasons = find_shifts(graph)
    sites = [site for site in found if site.path & plan.tensors.keys() and not has_own_range(site, plan)]
    left = Counter(reasons.values())
    note = ", ".join(f"{count} since {reason}" for reason, count in left.most_common())
    notes = (f"no bias absorbed behind a layer: {note}",) if left else ()
    if not sites:
        return Change(notes=notes)
    try:
        ends, samples = _observe(graph, [site.tensor for site in sites], batches, threads=config.cores)
    except ModelError as problem:
        logger.info("nothing was absorbed: %s", problem.message)  # calibration will tell which sample it is
        return Change(notes=notes)
    shifts = {site.tensor: choose(*each) for site, each in zip(sites, ends, strict=True)}
    shifts = {name: each for name, each in shifts.items() if each.any()}
    if not shifts:
        return Change(notes=notes)
    channels = sum(int(np.count_nonzero(each)) for each in shifts.values())
    done = (
        f"{counted(channels, 'channel(s)')} of {counted(len(shifts), 'layer(s)')} absorbed into the next biases, "
        f"by {counted(samples, 'sample(s)')}"
    )
    return Change(shifts=shifts, done=(done,), notes=notes)


def choose(least: Array, largest: Array) -> NDArray[np.float32]:
    """What to move from channels that lie from ``least`` to ``largest``: zeros, where the range gains nothing."""
    room = np.maximum(least, 0.0)
    before, after = float(largest.max(initial=0.0)), float((largest - room).max(initial=0.0))
    if not (np.isfinite(before) and after <= before * _NARROWER):
        return np.zeros(len(least), np.float32)
    return np.minimum(np.maximum(largest - after, 0.0), room).astype(np.float32)


def _observe(
    graph: Graph, names: Sequence[str], batches: Iterable[Batch], *, threads: int
) -> tuple[list[tuple[Array, Array]], int]:
    """The least and largest value of each channel of each named tensor, channels on axis 1; and how many samples."""
    ends: list[tuple[Array, Array]] = []
    samples = 0
    for batch, held in watch(graph, names, batches, threads=threads):
        samples += batch.count
        arrays = [array.reshape(*array.shape[:2], -1) for name in names for array in held[name]]
        new = [(array.min(axis=(0, 2)), array.max(axis=(0, 2))) for array in arrays]
        ends = [(np.minimum(a[0], b[0]), np.maximum(a[1], b[1])) for a, b in zip(ends or new, new, strict=True)]
    return ends, samples
