"""Running models: by onnxruntime, or where it is not installed by ``onnx.reference``, which is correct, and slow."""

from requant.runtime.cpu import cpu_kind, saturates
from requant.runtime.custom_ops import CUSTOM_OPS, refuse_unknown, register_custom_ops, unknown
from requant.runtime.installation import available, installed
from requant.runtime.opening import Runner, open_observing, open_runner
from requant.runtime.outputs import held, joined, unboxed
from requant.runtime.profiling import Event, profile, run_seconds
from requant.runtime.session import OrtRunner, optimized

__all__ = [
    "CUSTOM_OPS",
    "Event",
    "OrtRunner",
    "Runner",
    "available",
    "cpu_kind",
    "held",
    "installed",
    "joined",
    "open_observing",
    "open_runner",
    "optimized",
    "profile",
    "refuse_unknown",
    "register_custom_ops",
    "run_seconds",
    "saturates",
    "unboxed",
    "unknown",
]
