"""Cross-layer equalization (Nagel et al. 2019, arXiv:1906.04721, section 4.1).

Between two linear ops with ReLU or the like, ``s_i = sqrt(r1_i / r2_i)`` with r1 and r2 the largest weights of channel
i before and after: both weights then have the range ``sqrt(r1_i r2_i)`` there. Repeated over all pairs until it
settles. It matters where a weight has one scale for all channels (``per_channel=False``).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from requant.onnx.names import name_of
from requant.onnx.nodes import constant
from requant.onnx.passes.affine import along_channels
from requant.onnx.rescale import TOO_LARGE, input_peaks, output_peaks, powers_of_two, scale_inputs
from requant.onnx.sites import find_sites
from requant.transforms.change import Change, has_own_range
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.config import QuantConfig
    from requant.data import Batch
    from requant.onnx.graph import Graph
    from requant.planning.plan import QuantPlan

_ROUNDS = 50
_SETTLED = 1.01


def equalize(graph: Graph, plan: QuantPlan, config: QuantConfig, sample: Sequence[Batch]) -> Change:  # noqa: ARG001
    """Factors that give the weights on both sides of each channel one magnitude; no data is needed."""
    if not config.equalize:
        return Change()
    found, reasons = find_sites(graph)
    sites = [site for site in found if site.weight and not has_own_range(site, plan)]
    nodes = {name_of(node): node for node in graph.nodes}
    names = {name for site in sites for name in (site.source, *(sink.node for sink in site.sinks))}
    weights = {name: np.asarray(constant(nodes[name].inputs[1]), np.float64) for name in names}
    total = {site.tensor: np.ones(site.channels) for site in sites}
    for _ in range(_ROUNDS):
        largest = 1.0
        for site in sites:
            before = output_peaks(nodes[site.source], weights[site.source])
            after = [input_peaks(nodes[s.node], weights[s.node], s.span) for s in site.sinks]
            behind = np.max(after, axis=0)
            # Not of a channel that is dead on either side.
            live = (np.minimum(before, behind) > 0) & (np.maximum(before, behind) < TOO_LARGE)
            factors = np.sqrt(np.divide(before, behind, out=np.ones(site.channels), where=live))
            weights[site.source] = weights[site.source] / along_channels(
                nodes[site.source], weights[site.source], factors
            )
            for sink in site.sinks:
                spread = np.repeat(factors, sink.span)
                weights[sink.node] = scale_inputs(nodes[sink.node], weights[sink.node], spread)
            total[site.tensor] *= factors
            largest = max(largest, float(np.max(np.maximum(factors, 1 / factors))))
        if largest < _SETTLED:
            break
    chosen = {name: powers_of_two(factors) for name, factors in total.items()}
    chosen = {name: factors for name, factors in chosen.items() if np.any(factors != 1)}
    left = Counter(reasons.values())
    note = ", ".join(f"{count} since {reason}" for reason, count in left.most_common())
    return Change(
        factors=chosen,
        done=(counted(len(chosen), "pair(s) of linear layers equalized"),) if chosen else (),
        notes=(f"not equalized with a layer before: {note}",) if left else (),
    )
