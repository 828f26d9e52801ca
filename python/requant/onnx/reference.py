"""Running a model on ONNX's reference implementation, for machines without onnxruntime.

It has no QuantizeLinear and DequantizeLinear of opsets 13 to 18: the newest ones, which do the same with the attributes
that these have, are lent to it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_dequantize_linear, op_quantize_linear

from requant.errors import ModelError
from requant.onnx.saving import self_contained
from requant.runtime.outputs import as_array

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    from numpy.typing import NDArray

    from requant.serialized import SerializedModel


_LENT_BEFORE = 19


def _newest(module: ModuleType, op_type: str) -> type:
    """The newest implementation in ``module``, under the name by which the evaluator finds it."""
    versions = [int(name.rsplit("_", 1)[1]) for name in dir(module) if name.startswith(f"{op_type}_")]
    return type(op_type, (getattr(module, f"{op_type}_{max(versions)}"),), {})


_LENT = [_newest(op_quantize_linear, "QuantizeLinear"), _newest(op_dequantize_linear, "DequantizeLinear")]


class ReferenceRunner:
    """The reference evaluator behind the same interface as onnxruntime."""

    name = "onnx.reference"

    def __init__(self, model: SerializedModel) -> None:
        self._lock = threading.Lock()  # nothing says that the evaluator may be entered twice
        try:
            proto = onnx.load_model_from_string(self_contained(model))
            old = any(o.domain == "" and o.version < _LENT_BEFORE for o in proto.opset_import)
            self._evaluator = ReferenceEvaluator(proto, new_ops=_LENT if old else None)
        except Exception as problem:
            raise ModelError(f"onnx.reference cannot load the model: {problem}") from problem

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the model's order, for one batch of feeds.

        Raises:
            ModelError: an op is missing or fails.
        """
        try:
            with self._lock:
                outputs = self._evaluator.run(None, dict(feeds))
        except Exception as problem:
            raise ModelError(f"onnx.reference failed: {type(problem).__name__}: {problem}") from problem
        return [as_array(output) for output in outputs]

    def stop(self) -> None:
        """Nothing to do: it runs Python code, which an interrupt reaches."""
