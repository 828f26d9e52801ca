"""Ops that only move values: scale and zero point pass through."""

from __future__ import annotations

from requant.onnx.ops.spec import Kind, OpSpec, Tie

ROWS = (
    OpSpec(
        (
            "Reshape",
            "Flatten",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Slice",
            "Split",
            "Gather",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "Resize",
        ),
        Kind.MOVE,
        tie=Tie.SAME_AS_INPUT,
    ),
)
