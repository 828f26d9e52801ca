"""The compiled core: its stub, and what it says of the CPU."""

from __future__ import annotations

import subprocess
import sys

import pytest

from requant import cpu_info


def test_the_stub_tells_the_truth() -> None:
    """Every name, signature and property of the compiled module, by mypy's stubtest."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy.stubtest", "requant._requant"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_cpu_info_names_what_is_in_use() -> None:
    info = cpu_info()
    assert set(info) == {"arch", "features", "kernels", "available", "cores"}
    assert info["kernels"] in info["available"]
    assert info["cores"] >= 1
