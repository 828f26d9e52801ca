"""Integer inputs and outputs: what a service on an edge feeds and reads without any float in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.affine import quantize_array
from requant.documents import finite
from requant.errors import ConfigError, ModelError, VerificationError
from requant.evaluation.verify import zero_feeds
from requant.files import check_outputs, write_atomically
from requant.onnx.boundary import Wanted, as_dtype
from requant.onnx.editing import integer_input, integer_output
from requant.onnx.graph import Graph
from requant.runtime import open_runner
from requant.types import Range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from requant.onnx.boundary import Boundary
    from requant.onnx.reading import Model

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class EditedModel:
    """A model with integer inputs or outputs that was checked, loaded and run.

    Attributes:
        data: The model as a file's bytes.
        model: What it was made from.
        boundaries: What has become integer, in the order it was asked for.
        differences: For each output the largest difference to the model as it was, on random inputs: in steps of an
            integer output, as a share of the largest value of a float one. None where that model does not run.
        sources: The files it was read from.
    """

    data: bytes
    model: str
    boundaries: tuple[Boundary, ...]
    differences: Mapping[str, float] | None
    sources: tuple[Path, ...]

    def save(self, path: str | Path) -> None:
        """Write the model; the file at ``path`` is replaced at once or not at all.

        Raises:
            OutputError: ``path`` is a file of the model it was made from, or cannot be written.
        """
        check_outputs([path], self.sources)
        write_atomically(path, self.data)

    def findings(self) -> list[str]:
        """How the outputs compare with those of the model as it was, a line each."""
        if self.differences is None:
            return ["the outputs were not compared: the model does not run on a guessed shape"]
        integer = {boundary.name for boundary in self.boundaries if boundary.kind == "output"}
        return [
            f"output {name}: {_in_words(difference, steps=name in integer)} on random inputs"
            for name, difference in self.differences.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the bytes, as JSON types; ``schema`` is its version."""
        found = {
            "schema": SCHEMA,
            "model": self.model,
            "bytes": len(self.data),
            "boundaries": [boundary.to_dict() for boundary in self.boundaries],
            "differences": None if self.differences is None else dict(self.differences),
        }
        return finite(found)


def _in_words(difference: float, *, steps: bool) -> str:
    if difference == 0:
        return "equal to the model as it was"
    return f"at most {difference:.0f} steps off" if steps else f"at most {difference:.2%} of its largest value off"


class ModelEditor:
    """Gives a quantized model integer inputs and outputs.

    Each conversion is checked against the model as it is then, and changes nothing when it is refused.

    Args:
        model: path, bytes, ModelProto or onnx_ir.Model of a quantized model.

    Raises:
        ModelError: it cannot be read, or is not quantized.

    Example:
        >>> editor = ModelEditor("model.int8.onnx")  # doctest: +SKIP
        >>> editor.convert_input_type("image", "uint8")  # doctest: +SKIP
        >>> editor.convert_output_type("scores", "int8", range=(-8, 8))  # doctest: +SKIP
        >>> editor.save("model.io8.onnx")  # doctest: +SKIP
    """

    def __init__(self, model: Model) -> None:
        self._original = self._graph = Graph.load(model)
        self._boundaries: dict[tuple[str, str], Boundary] = {}
        if not self._graph.quantized_ops():
            raise ModelError(
                f"{self._graph.origin} is not quantized: only quantized models take and give integers",
                hint="quantize it first (requant quantize)",
            )

    def __repr__(self) -> str:
        integer = ", ".join(f"{boundary.kind} {boundary.name}: {boundary.dtype}" for boundary in self.boundaries)
        return f"ModelEditor({self._graph.origin}{'; ' if integer else ''}{integer})"

    @property
    def boundaries(self) -> tuple[Boundary, ...]:
        """What has become integer so far, and what the integers stand for."""
        return tuple(self._boundaries.values())

    def convert_input_type(
        self,
        name: str,
        dtype: object,
        *,
        scale: float | None = None,
        zero_point: int | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> Boundary:
        """Let float32 input ``name`` take integers ``q``, for ``((q - zero_point) * scale - mean) / std``.

        Without further arguments the integers are those to which the model quantizes the input anyway (for the
        type of other signedness, shifted by half its range), and its QuantizeLinear goes.

        Args:
            name: An input of the model.
            dtype: ``uint8``, ``int8``, ``uint16`` or ``int16``.
            scale: Step of the integers; of uint8 pixels with a mean or std 1/255.
            zero_point: The integer that stands for zero; 0 unless given.
            mean: Subtracted after scaling: one value, or one for each channel (axis 1, or the last).
            std: Divisor after the mean, likewise.

        Returns:
            What the integers now stand for.

        Raises:
            ConfigError: There is no such input, it is not float32, or what the integers stand for is not said, or
                said in contradicting ways.
        """
        wanted = Wanted(as_dtype(dtype), scale, zero_point, _numbers(mean), _numbers(std))
        return self._take(integer_input(self._graph, name, wanted))

    def convert_output_type(
        self,
        name: str,
        dtype: object,
        range: tuple[float, float] | None = None,  # noqa: A002 - the word users know
        *,
        scale: float | None = None,
        zero_point: int | None = None,
    ) -> Boundary:
        """Let float32 output ``name`` give integers ``q``, for ``(q - zero_point) * scale``.

        Without further arguments they are those that the model dequantizes for the output, and its DequantizeLinear
        goes; the range of Softmax, Sigmoid and Tanh is known too. Any other output needs a range, or a scale.

        Args:
            name: An output of the model.
            dtype: ``uint8``, ``int8``, ``uint16`` or ``int16``.
            range: Reals to spread the integers over, smallest and largest; widened to contain zero.
            scale: Step of the integers, in place of a range.
            zero_point: The integer that stands for zero; 0 unless given.

        Returns:
            What the integers now stand for.

        Raises:
            ConfigError: As for inputs.
        """
        span = None if range is None else Range(*map(float, range))
        return self._take(integer_output(self._graph, name, Wanted(as_dtype(dtype), scale, zero_point, range=span)))

    def _take(self, edited: tuple[Graph, Boundary]) -> Boundary:
        self._graph, boundary = edited
        self._boundaries[boundary.kind, boundary.name] = boundary
        return boundary

    def finish(self) -> EditedModel:
        """The edited model: valid, loaded, and compared with the model as it was.

        Raises:
            ConfigError: Nothing was converted.
            VerificationError: The model does not load or run, or gives other results where it should give the same.
        """
        if not self._boundaries:
            raise ConfigError("nothing was converted", hint="name at least one input or output")
        data = self._graph.to_bytes()
        differences = _compare(self._original, data, self._boundaries)
        return EditedModel(data, self._original.origin, self.boundaries, differences, self._original.file.files)

    def save(self, path: str | Path) -> EditedModel:
        """``finish`` and write the model; the file at ``path`` is replaced at once or not at all.

        Raises:
            OutputError: ``path`` is a file of the model as it was, or cannot be written.
        """
        check_outputs([path], self._original.file.files)
        edited = self.finish()
        edited.save(path)
        return edited


def _numbers(values: float | Sequence[float] | None) -> tuple[float, ...]:
    return () if values is None else tuple(map(float, np.atleast_1d(np.asarray(values, np.float64))))


def _compare(original: Graph, edited: bytes, boundaries: Mapping[tuple[str, str], Boundary]) -> dict[str, float] | None:
    """The largest difference of each output on random inputs; see ``EditedModel.differences``."""
    rng = np.random.default_rng(0)
    feeds = zero_feeds(original.inputs)
    integers = dict(feeds)
    for name, zeros in feeds.items():
        boundary = boundaries.get(("input", name))
        if boundary is not None:
            dtype = boundary.dtype
            integers[name] = rng.integers(dtype.min, dtype.max, zeros.shape, dtype.numpy, endpoint=True)
            feeds[name] = boundary.dequantize(integers[name])
        elif zeros.dtype.kind == "f":
            feeds[name] = integers[name] = rng.standard_normal(zeros.shape).astype(zeros.dtype)
    before = open_runner(original.to_bytes(), threads=1)
    try:
        expected = before.run(feeds)
    except ModelError:  # zeros of a guessed shape may not fit
        expected = None
    try:
        Graph.load(edited)
        after = open_runner(edited, threads=1)
        outputs = [] if expected is None else after.run(integers)
    except ModelError as problem:
        raise VerificationError(
            f"the edited model failed its check: {problem.message}",
            hint="nothing was written; please report this model",
        ) from problem
    if expected is None:
        return None
    differences = {
        spec.name: _difference(np.asarray(wanted), np.asarray(got), boundaries.get(("output", spec.name)))
        for spec, wanted, got in zip(original.outputs, expected, outputs, strict=True)
    }
    exact = all(boundary.exact for boundary in boundaries.values())
    for name, difference in differences.items():
        if difference > 0 and (exact or not math.isfinite(difference)):
            raise VerificationError(
                f"output {name!r} of the edited model is not what the model as it was gives; nothing was written",
                hint="please report this model",
            )
    return differences


def _difference(before: NDArray[Any], after: NDArray[Any], boundary: Boundary | None) -> float:
    if boundary is not None:
        wanted = quantize_array(before, boundary.params).data
        return float(np.max(np.abs(after.astype(np.int64) - wanted), initial=0))
    if np.array_equal(before, after, equal_nan=before.dtype.kind == "f"):
        return 0.0
    if before.dtype.kind != "f":
        return float(np.mean(before != after))
    gap = np.max(np.abs(after.astype(np.float64) - before), initial=0.0)
    return float(gap / max(np.max(np.abs(before)), np.finfo(np.float32).tiny)) if np.isfinite(gap) else math.inf
