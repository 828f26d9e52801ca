"""Models and checkpoints as GGUF files.

result = requant.export_gguf("model.onnx", "model.gguf", "q4_k")
print(result.bits_per_weight)
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.arrays.intake import thread_count
from requant.checkpoint.safetensors import Checkpoint
from requant.errors import ConfigError, DataError, ModelError
from requant.files import check_outputs, is_checkpoint
from requant.gguf.choice import Rules
from requant.gguf.metadata import file_metadata
from requant.gguf.report import GgufReport
from requant.gguf.writing import Content, package, write
from requant.stopwatch import Stopwatch
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from requant.data import DataOptions
    from requant.gguf.metadata import Value
    from requant.onnx.graph import Graph
    from requant.onnx.reading import Model
    from requant.stored import StoredWeight
    from requant.types import Progress

_OTHERS = (".npz", ".safetensors", ".onnx")  # what a GGUF file should not be called
_LONGEST_NAME = 63  # bytes that llama.cpp has room for


def export_gguf(
    source: Model | Path,
    output: str | Path,
    dtype: str = "q4_k",
    *,
    data: object = None,
    data_options: DataOptions | None = None,
    metadata: Mapping[str, Value] | None = None,
    tensor_types: Mapping[str, str] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> GgufReport:
    """Write the weights of a model as a GGUF file.

    Matrices lie in it with rows along the axis that products sum over, whatever the model has. Vectors, small tensors
    and what no product reads stay float32; rows that the blocks do not divide get a type of smaller blocks, as with
    llama.cpp; the report says which and why.

    Args:
        source: an ONNX model (path, bytes, ModelProto or onnx_ir.Model), or the path of a ``.safetensors`` file or of
            its index.
        output: the file to write.
        dtype: the type of matrices, such as ``q4_k``; see ``requant.gguf.blocks.BLOCK_TYPES``.
        data: samples of an ONNX model, in any form that ``requant.quantize`` takes: the error is then weighed by the
            mean square of the activations that each column meets.
        data_options: which samples, and how they are cut.
        metadata: keys to add to those that the model carries, such as ``general.architecture``.
        tensor_types: another type for single tensors, by name or regular expression of the name.
        threads: CPU threads; 0 uses all cores.
        progress: called after each tensor with those done and their number.

    Raises:
        ConfigError: an unknown type or key, a rule that fits no tensor, data for a checkpoint, or an output with the
            suffix of another format.
        DataError: a weight that is not finite, or data that do not fit the model.
        MissingDependencyError: the ``gguf`` package is not installed.
        ModelError: the source cannot be read, is quantized already, or has no weights.
        OutputError: the file cannot be written.
        VerificationError: what was written does not read back as it should.

    Example:
        >>> requant.export_gguf("model.onnx", "model.gguf", "q4_k").bits_per_weight  # doctest: +SKIP
    """
    watch = Stopwatch()
    threads = thread_count(threads)
    rules = Rules(dtype, tensor_types)
    package()
    check_outputs([output], [source])
    if Path(output).suffix.lower() in _OTHERS:
        raise ConfigError(
            f"{output} names another format, and what is written is GGUF",
            hint="let the name of the output end in .gguf",
        )
    origin, weights, carried, graph = _open(source)
    rules.check(weights)
    _check_names(weights, origin)
    architecture = "onnx" if graph is not None else "safetensors"
    pairs = file_metadata(Path(origin).stem, architecture, carried, metadata or {}, rules.wanted.name)
    chosen = [rules.choose(weight, _largest(weight)) for weight in weights]
    importance: dict[str, NDArray[np.float32]] = {}
    described = None
    if data is not None:
        if graph is None:
            raise ConfigError(
                "a checkpoint has no graph to run data through", hint="leave --data out, or give the ONNX model"
            )
        from requant.gguf.importance import mean_squares
        from requant.onnx.passes.widen import runnable

        wanted = {w.activation for w, c in zip(weights, chosen, strict=True) if w.activation and not c.kind.is_float}
        runs = runnable(graph)
        importance, described = mean_squares(runs, sorted(wanted), data, data_options, threads=threads)
    content = Content(weights, chosen, importance, pairs)
    tensors, size = write(output, content, threads=threads, progress=progress)
    return GgufReport(
        source=origin,
        output=str(output),
        dtype=rules.wanted.name,
        tensors=tensors,
        bytes=size,
        data=described,
        notes=_notes(weights, pairs, architecture),
        seconds=watch.elapsed,
    )


def _open(source: Any) -> tuple[str, tuple[StoredWeight, ...], Mapping[str, str], Graph | None]:
    """What to call the source, its weights, what it says of itself, and its graph, if it has one."""
    if isinstance(source, str | Path) and str(source).endswith(".gguf"):
        raise ConfigError(f"{source} is a GGUF file already", hint="give an ONNX model or a checkpoint")
    if isinstance(source, str | Path) and is_checkpoint(source):
        checkpoint = Checkpoint(source)
        weights, carried, graph = checkpoint.weights(), _architecture(Path(source)) | checkpoint.metadata, None
        origin = str(source)
    else:
        from requant.onnx.graph import Graph
        from requant.onnx.weights import stored_weights

        graph = Graph.load(source)
        if ops := graph.quantized_ops():
            raise ModelError(
                f"{graph.origin} is quantized already: {', '.join(ops)}", hint="export the float model it was made from"
            )
        weights, origin = stored_weights(graph), graph.origin
        carried = {str(key): str(value) for key, value in graph.model.metadata_props.items()}
    if not weights:
        raise ModelError(f"{origin} holds no weights of reals")
    return origin, weights, carried, graph


def _architecture(path: Path) -> dict[str, str]:
    """The model type that a ``config.json`` beside a checkpoint names."""
    try:
        found = json.loads((path.parent / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return {"general.architecture": found} if isinstance(found, str) and found else {}


def _check_names(weights: Sequence[StoredWeight], origin: str) -> None:
    seen: set[str] = set()
    for weight in weights:
        if not weight.name or weight.name in seen:
            raise ModelError(f"{origin} has two tensors called {weight.name!r}, or one without a name")
        seen.add(weight.name)


def _largest(weight: StoredWeight) -> float:
    """The largest magnitude of a weight.

    Raises:
        DataError: it has a NaN or an infinity.
    """
    array = weight.read()
    largest = float(max(array.max(initial=0.0), -array.min(initial=0.0)))
    if not math.isfinite(largest):
        index = tuple(map(int, np.argwhere(~np.isfinite(array))[0]))
        raise DataError(
            f"tensor {weight.name!r} holds {array[index]} at index {index}", hint="remove NaN and infinite weights"
        )
    return largest


def _notes(weights: Sequence[StoredWeight], pairs: Mapping[str, Value], source: str) -> tuple[str, ...]:
    notes = []
    if pairs["general.architecture"] == source:
        notes.append(
            "no architecture is known, so that this file holds tensors that no loader can run as they are; "
            "name one with --metadata general.architecture=NAME, and the keys it needs"
        )
    if long := [weight.name for weight in weights if len(weight.name.encode()) > _LONGEST_NAME]:
        notes.append(
            f"{counted(len(long), 'name(s)')} longer than the {_LONGEST_NAME} bytes that llama.cpp reads: {long[0]}"
        )
    return tuple(notes)
