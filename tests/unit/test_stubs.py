from __future__ import annotations

import subprocess
import sys

import pytest

from requant import _requant, ops


def test_the_stub_tells_the_truth() -> None:
    """Every name, signature and property of the compiled module, by mypy's stubtest."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy.stubtest", "requant._requant"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_ops_exports_what_it_says() -> None:
    assert all(hasattr(ops, name) for name in ops.__all__)
    assert ops.CALIBRATION_METHODS == _requant.CALIBRATION_METHODS
