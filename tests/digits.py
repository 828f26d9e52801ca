"""The shipped model and its data, as paths on a command line."""

from __future__ import annotations

from pathlib import Path

DIGITS = Path(__file__).resolve().parents[1] / "examples" / "digits"
MODEL, CALIB, EVAL = (str(DIGITS / name) for name in ("digits.onnx", "calib.npz", "eval.npz"))
