"""What the report says of the arithmetic that was seen to run."""

from __future__ import annotations

from collections import Counter

import pytest

from requant import QuantConfig
from requant.weights.arithmetic import describe_arithmetic


@pytest.mark.parametrize(
    ("bits", "kind", "slow"),
    [(8, "A32", True), (8, "A16", True), (8, "A8", False), (8, "reals", False), (4, "A32", False)],
)
def test_weights_that_are_unpacked_at_each_run_are_told(bits: int, kind: str, slow: bool) -> None:
    notes = list(describe_arithmetic(Counter({(bits, kind): 3}), QuantConfig(weight_only="int8")))
    assert any("unpacked at each run" in note for note in notes) is slow
    assert notes[0].startswith("onnxruntime runs ")
