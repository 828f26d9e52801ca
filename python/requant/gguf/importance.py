"""How much an error in each column of a weight matters: the mean square of what it is multiplied with."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np

from requant.config import QuantConfig
from requant.data import open_data
from requant.errors import DataError
from requant.evaluation.verify import run_each
from requant.runtime import open_runner

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from requant.data import DataOptions
    from requant.onnx.graph import Graph


def mean_squares(
    graph: Graph,
    names: Collection[str],
    data: object,
    options: DataOptions | None = None,
    *,
    threads: int = 0,
) -> tuple[dict[str, NDArray[np.float32]], str]:
    """The mean square of each column of activations ``[..., K]``, over all samples, batch by batch.

    Returns:
        ``[K]`` for each of ``names`` that the main graph computes or is fed, and what the samples were.

    Raises:
        DataError: the data do not fit the model, or an activation is not finite.
        ModelError: the model cannot run.
    """
    inputs = {spec.name for spec in graph.inputs}
    computed = {value.name for node in graph.nodes for value in node.outputs}
    fetched = [name for name in names if name in computed]
    fed = [name for name in names if name in inputs]
    dataset = open_data(data, graph.inputs, options)
    if not fetched and not fed:
        return {}, dataset.description
    runners = [open_runner(graph.serialize(fetched), threads=QuantConfig(threads=threads).cores)] if fetched else []
    sums: dict[str, NDArray[np.float64]] = {}
    counts = dict.fromkeys((*fetched, *fed), 0)
    with closing(run_each(runners, dataset.batches(), 1)) as ran:
        for batch, outputs in ran:
            arrays = dict(zip(fetched, *outputs, strict=True)) if fetched else {}
            for name, array in (arrays | {name: np.asarray(batch.feeds[name]) for name in fed}).items():
                rows = np.asarray(array, np.float64).reshape(-1, array.shape[-1])
                squares = np.einsum("ij,ij->j", rows, rows)
                if not np.isfinite(squares).all():
                    raise DataError(f"tensor {name!r} is not finite, first in samples from {batch.first} on")
                sums[name] = sums.get(name, 0.0) + squares
                counts[name] += len(rows)
    return {name: (total / counts[name]).astype(np.float32) for name, total in sums.items()}, dataset.description
