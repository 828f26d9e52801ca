"""ONNX's own node tests, by op, and what passes them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from onnx.backend.test.case.test_case import TestCase


def collect(ops: Iterable[str]) -> dict[str, TestCase]:
    """The cases of ``ops`` by name."""
    node = importlib.import_module("onnx.backend.test.case.node")
    for op in ops:
        importlib.import_module(f"{node.__name__}.{op.lower()}")
    return {case.name: case for case in node._NodeTestCases if op_type(case) in ops}


def op_type(case: TestCase) -> str:
    """Of its only node."""
    assert case.model
    return str(case.model.graph.node[0].op_type)


def flat(zero_point: NDArray[Any]) -> NDArray[Any]:
    """ONNX writes a zero point for a whole tensor as ``[]`` or ``[1]``."""
    return zero_point.reshape(()) if zero_point.size == 1 else zero_point


def assert_same(got: NDArray[Any], expected: NDArray[Any]) -> None:
    """Of one dtype and shape, and equal to the bit."""
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    bits = f"u{got.itemsize}"
    np.testing.assert_array_equal(got.view(bits), expected.view(bits))
