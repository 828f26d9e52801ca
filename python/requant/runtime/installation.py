"""Whether onnxruntime is there; its only importer."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from typing import Any

from requant.errors import MissingDependencyError, first_line

#: The distributions that provide the module ``onnxruntime``.
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


def installed() -> dict[str, str]:
    """Name and version of every onnxruntime distribution that is installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def available() -> bool:
    """Whether onnxruntime is there, from whatever distribution."""
    return importlib.util.find_spec("onnxruntime") is not None


def load() -> Any:
    """The module ``onnxruntime``.

    Raises:
        MissingDependencyError: it is not installed, or cannot be imported.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when onnxruntime is imported
    try:
        import onnxruntime
    except ImportError as problem:
        if not available():
            raise MissingDependencyError(
                "this needs onnxruntime, which is not installed", hint="pip install 'requant[ort]'"
            ) from problem
        raise MissingDependencyError(
            f"onnxruntime is installed but cannot be imported: {first_line(problem)}", hint="install it again"
        ) from problem
    return onnxruntime
