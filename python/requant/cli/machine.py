"""What this machine has."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from typing import Any

from requant import ops, runtime
from requant.version import __version__

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "rich", "pillow")


def examine() -> dict[str, Any]:
    """Versions, CPU features, kernels and runtimes, and what one should know of them."""
    cpu = ops.cpu_info()
    runtimes = runtime.installed()
    return {
        "requant": __version__,
        "python": f"{platform.python_version()} ({sys.implementation.name})",
        "platform": platform.platform(),
        "cpu": cpu,
        "packages": {name: _version(name) for name in _PACKAGES},
        "runtimes": runtimes,
        "environment": {
            name: os.environ[name] for name in ("REQUANT_ISA", "ORT_DISABLE_TELEMETRY") if name in os.environ
        },
        "notes": _notes(runtimes),
    }


def _notes(runtimes: dict[str, str]) -> list[str]:
    notes = []
    if not runtimes:
        notes.append("onnxruntime is missing: models run on onnx.reference, slowly (pip install 'requant[ort]')")
    if len(runtimes) > 1:
        notes.append(f"{' and '.join(runtimes)} overwrite each other; keep one of them")
    if runtime.saturates():
        notes.append(
            "this CPU has no VNNI: onnxruntime adds uint8 x int8 products in saturating 16 bits here, so models need "
            "--saturation safe (the default) or --weights uint8"
        )
    return notes


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
