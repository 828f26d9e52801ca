"""In which arithmetic the runtime multiplies by weights of a few bits: read off the graph that it really runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from requant.onnx.lowbit import UNPACKED, multiplications
from requant.runtime import optimized
from requant.wording import counted

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from requant.config import QuantConfig
    from requant.serialized import SerializedModel

#: Larger models are not written once more only to be looked at.
_LOOKED_AT = 1 << 29


def arithmetic_of(model: SerializedModel) -> Counter[tuple[int, str]] | None:
    """How often onnxruntime multiplies by weights of so many bits, and how; None where it was not looked at."""
    data = optimized(model) if model.size <= _LOOKED_AT else None
    return None if data is None else multiplications(data)


def describe_arithmetic(found: Counter[tuple[int, str]] | None, config: QuantConfig) -> Iterator[str]:
    """What the report says of it."""
    if found is None:
        asked = {"int8": "A8", "float": "A32", None: "A8 beside 8-bit weights, else A32,"}[config.activations]
        yield f"arithmetic: {asked} asked for; the model is too large, or no onnxruntime there, to see what runs"
        return
    runs = [
        f"W{bits}{kind} in {counted(count, 'product(s)')}"
        for (bits, kind), count in sorted(found.items())
        if kind != "reals"
    ]
    runs += [
        counted(count, f"weight(s) of {bits} bits made real at each run")
        for (bits, kind), count in sorted(found.items())
        if kind == "reals"
    ]
    yield f"onnxruntime runs {', '.join(runs) or 'no product with weights in blocks'}"
    if any(bits == UNPACKED and kind in ("A16", "A32") for bits, kind in found):
        yield (
            "weights of 8 bits beside float activations are unpacked at each run: for a single token such a product "
            "takes many times as long as in float; with --activations int8, or unset, it does not"
        )


__all__ = ["arithmetic_of", "describe_arithmetic"]
