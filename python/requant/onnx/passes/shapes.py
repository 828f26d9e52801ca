"""Shapes and types of every tensor, as far as ONNX can tell."""

from __future__ import annotations

import logging

import onnx_ir as ir
from onnx_ir.passes import common

logger = logging.getLogger(__name__)


def infer(model: ir.Model) -> int:
    """shapes inferred."""
    before = _known(model)
    try:
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)
    except Exception as problem:  # unknown shapes only make the plan more careful
        logger.info("shape inference stopped: %s", problem)
    return max(_known(model) - before, 0)


def _known(model: ir.Model) -> int:
    return sum(v.shape is not None and v.dtype is not None for node in model.graph for v in node.outputs)
