"""What onnxruntime's kernels do on this CPU."""

from __future__ import annotations

from requant import ops

_VNNI = frozenset({"avx512vnni", "avxvnni", "amx-int8"})


def saturates() -> bool:
    """Whether onnxruntime adds pairs of uint8 x int8 products in 16 bits here: on x86 CPUs before VNNI."""
    cpu = ops.cpu_info()
    return bool(cpu["arch"] == "x86_64" and not _VNNI & set(cpu["features"]))


def cpu_kind() -> str | None:
    """The kind of CPU that this is (``targets.CPUS``); None where costs of its kernels are not known."""
    if ops.cpu_info()["arch"] != "x86_64":
        return None
    return "avx2" if saturates() else "vnni"
