"""What this machine has."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from requant import ops, runtime
from requant.documents import document_of
from requant.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMA = 1

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxscript", "rich", "rich-argparse", "pillow", "gguf")
_ENVIRONMENT = ("REQUANT_ISA", runtime.CUSTOM_OPS, "ORT_DISABLE_TELEMETRY")


@dataclass(frozen=True, slots=True)
class Cpu:
    """What ``requant.cpu_info`` gives.

    Attributes:
        arch: its architecture.
        features: the instruction sets that were detected.
        kernels: the kernels in use.
        available: the kernels that it can run.
        cores: how many of its cores this process may use.
    """

    arch: str
    features: tuple[str, ...]
    kernels: str
    available: tuple[str, ...]
    cores: int


@dataclass(frozen=True, slots=True)
class Machine:
    """What ``requant doctor`` finds.

    Attributes:
        requant: version of requant.
        python: version and implementation of Python.
        platform: the operating system.
        cpu: the processor, and what requant makes of it.
        packages: versions of the packages that requant uses; None where one is missing.
        runtimes: versions of the packages of onnxruntime.
        environment: the variables that are set of those that requant heeds.
        notes: what one should know.
    """

    requant: str
    python: str
    platform: str
    cpu: Cpu
    packages: Mapping[str, str | None]
    runtimes: Mapping[str, str]
    environment: Mapping[str, str]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON types; ``schema`` is its version."""
        return document_of(self, SCHEMA)


def examine() -> Machine:
    """Versions, CPU features, kernels and runtimes, and what one should know of them."""
    runtimes = runtime.installed()
    return Machine(
        requant=__version__,
        python=f"{platform.python_version()} ({sys.implementation.name})",
        platform=platform.platform(),
        cpu=Cpu(**ops.cpu_info()),
        packages={name: _version(name) for name in _PACKAGES},
        runtimes=runtimes,
        environment={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        notes=tuple(_notes(runtimes)),
    )


def _notes(runtimes: Mapping[str, str]) -> list[str]:
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
