"""Ops that only move values, or pick some of them: scale and zero point pass through."""

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
            "Split",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "Resize",
            "GatherElements",
            "ReduceMax",
            "ReduceMin",
        ),
        Kind.MOVE,
        tie=Tie.SAME_AS_INPUT,
    ),
    OpSpec(("Gather", "GatherND", "Slice"), Kind.MOVE, tie=Tie.SAME_AS_INPUT, lookup=True),
)
