"""Running a model on ONNX's reference implementation, for machines without onnxruntime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx.reference import ReferenceEvaluator

from requant.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray


class ReferenceRunner:
    """The reference evaluator behind the same interface as onnxruntime."""

    name = "onnx.reference"

    def __init__(self, model: bytes) -> None:
        try:
            self._evaluator = ReferenceEvaluator(onnx.load_model_from_string(model))
        except Exception as problem:
            raise ModelError(f"onnx.reference cannot load the model: {problem}") from problem

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """The outputs, in the model's order, for one batch of feeds.

        Raises:
            ModelError: an op is missing or fails.
        """
        try:
            outputs = self._evaluator.run(None, dict(feeds))
        except Exception as problem:
            raise ModelError(f"onnx.reference failed: {type(problem).__name__}: {problem}") from problem
        return list(outputs)

    def stop(self) -> None:
        """Nothing to do: it runs Python code, which an interrupt reaches."""
