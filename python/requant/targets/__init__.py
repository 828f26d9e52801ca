"""Where the quantized model will run: a target is a file here and a line in ``TARGETS``."""

from __future__ import annotations

import importlib

from requant.errors import ConfigError, closest
from requant.targets.spec import CPUS, Cost, Costs, Target

#: Name of each target and the module that describes it.
TARGETS = {
    "ort-cpu": "ort_cpu",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "qnn": "qnn",
    "tflite": "tflite",
    "warboy": "warboy",
    "generic": "generic",
}


def get_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        ConfigError: there is none.
    """
    if name not in TARGETS:
        raise ConfigError(
            f"unknown target {name!r}{closest(name, TARGETS)}", hint=f"choose one of {', '.join(TARGETS)}"
        )
    target: Target = importlib.import_module(f"requant.targets.{TARGETS[name]}").TARGET
    return target


__all__ = ["CPUS", "TARGETS", "Cost", "Costs", "Target", "get_target"]
