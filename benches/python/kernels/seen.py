"""Looking at arrays: extremes, histograms, and the search for ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from harness import Claim, Row
from onnxruntime.quantization.calibrate import HistogramCollector

import requant
from requant import QuantScheme, QuantType, ops

if TYPE_CHECKING:
    from collections.abc import Iterator

BINS = 2048


def rows(vnni: bool) -> Iterator[Row]:  # noqa: ARG001 - the asked ratios are those of every machine
    rng = np.random.default_rng(0)
    yield extremes(rng.normal(size=(1024, 1024)).astype(np.float32))
    normal = rng.normal(size=1 << 24).astype(np.float32)
    yield histogram("normal, 16 Mi", normal)
    yield histogram("after ReLU, 16 Mi", np.maximum(normal, 0))
    yield search(normal[: 1 << 20])


def extremes(x: np.ndarray) -> Row:
    whole, token = (QuantScheme(QuantType.UINT8, granularity=g) for g in (requant.PerTensor(), requant.PerToken()))
    runs = {
        "whole": lambda: requant.params_from_data(x, whole),
        "per token": lambda: requant.params_from_data(x, token),
        "NumPy min, max": lambda: (x.min(), x.max()),
        "NumPy min, max, axis=-1": lambda: (x.min(axis=-1), x.max(axis=-1)),
    }
    note = "requant's include scale and zero point"
    claims = (Claim("whole", "NumPy min, max", 1.5), Claim("per token", "NumPy min, max, axis=-1", 5))
    return Row("extremes", "1 Mi, tokens of 1,024", x.size, "value", runs, claims, note)


def histogram(name: str, x: np.ndarray) -> Row:
    seen = ops.TensorStatistics()
    runs = {
        "statistics": lambda: seen.observe(x),
        f"NumPy histogram, {BINS} bins": lambda: np.histogram(x, BINS),
        "NumPy max: reads only": x.max,
    }
    claims = (
        Claim("statistics", f"NumPy histogram, {BINS} bins", 10),
        Claim("statistics", "NumPy max: reads only", 1 / 3),
    )
    return Row("range, moments, 4,096 bins", name, x.size, "value", runs, claims)


def search(x: np.ndarray) -> Row:
    seen = ops.TensorStatistics()
    seen.observe(x)
    counts, edges = np.histogram(x, BINS)
    collector = HistogramCollector("entropy", False, BINS, 128, 99.99, "same")
    histogram = (counts, edges, float(x.min()), float(x.max()), float(np.abs(x).max()))
    runs = {
        "entropy, asymmetric": lambda: seen.range("entropy", "uint8", False, 99.99),
        "entropy, symmetric": lambda: seen.range("entropy", "uint8", True, 99.99),
        "all ten ranges": lambda: seen.ranges("uint8", 99.99),
        "onnxruntime get_entropy_threshold": lambda: collector.get_entropy_threshold(histogram, 128),
    }
    claims = tuple(Claim(own, "onnxruntime get_entropy_threshold", 100) for own in list(runs)[:2])
    note = "a search is one unit; ours has 4,096 bins and both ends, onnxruntime's 2,048 bins and one"
    return Row("search", "normal, one tensor", 1, "search", runs, claims, note)
