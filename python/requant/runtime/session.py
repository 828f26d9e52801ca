"""A model in onnxruntime."""

from __future__ import annotations

import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ModelError, first_line
from requant.runtime import custom_ops, installation
from requant.runtime.outputs import as_array
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_SAVED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
#: Weights in files are mapped; with more of them than this they are multiplied where they lie, instead of from a copy
#: in the kernels' order.
_PACKED_AT_MOST = 1 << 28


class OrtRunner:
    """A session on the CPU, of a model in memory or in a file."""

    name = "onnxruntime"

    def __init__(
        self,
        model: SerializedModel | Path,
        *,
        threads: int = 0,
        shared: bool = False,
        profile: str = "",
        save_to: Path | None = None,
        save_weights: bool = False,
        as_is: bool = False,
        libraries: tuple[str, ...] = (),
    ) -> None:
        onnxruntime = installation.load()
        options = onnxruntime.SessionOptions()
        for library in (*custom_ops.custom_op_libraries(), *libraries):
            custom_ops.take_ops(options, library)
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        if profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(profile, "profile"))
        if save_to is not None:
            options.optimized_model_filepath = str(save_to)
        if save_weights:
            options.add_session_config_entry(_SAVED_WEIGHTS, "weights")
        if as_is:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if shared:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        source = str(model) if isinstance(model, Path) else model.proto
        if isinstance(model, SerializedModel) and model.folder is not None:
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(model.folder))
        large = isinstance(model, SerializedModel) and model.external_bytes > _PACKED_AT_MOST
        if large or save_to is not None:
            options.add_session_config_entry("session.disable_prepacking", "1")
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as problem:
            raise ModelError(
                f"onnxruntime cannot load the model: {first_line(problem)}",
                hint=custom_ops.REMEDY if "is not a registered function/op" in str(problem) else None,
            ) from problem
        self._sessions = [session]  # a list that ``at_close`` can empty, as it must not hold the runner
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = 4

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the model's order, for one batch of feeds.

        Raises:
            ModelError: onnxruntime fails on them.
        """
        try:
            outputs = self._sessions[0].run(None, dict(feeds), self._run_options)
        except Exception as problem:
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            raise ModelError(
                f"onnxruntime failed on {shapes}: {first_line(problem)}",
                hint="check these samples; a model that fixes its batch inside needs batch_size=1 (--batch-size 1)",
            ) from problem
        return [as_array(output) for output in outputs]

    def outputs(self) -> dict[str, tuple[str, list[int | str | None]]]:
        """Of each output the type as onnxruntime calls it, such as ``tensor(float)``, and the shape; [] if unknown."""
        return {output.name: (output.type, list(output.shape)) for output in self._sessions[0].get_outputs()}

    def stop(self) -> None:
        """Make a ``run`` under way in another thread return at the next node."""
        self._run_options.terminate = True

    def at_close(self, call: Callable[[], object]) -> None:
        """Have ``call`` called once the session is closed: when the runner goes away, or the interpreter ends."""
        weakref.finalize(self, _close, self._sessions, call)

    def end_profile(self) -> str:
        """Ends a profile that was asked for; returns the file that holds it."""
        path: str = self._sessions[0].end_profiling()
        return path


def _close(sessions: list[Any], call: Callable[[], object]) -> None:
    sessions.clear()
    call()


def optimized(model: SerializedModel) -> bytes | None:
    """What onnxruntime makes of ``model`` before it runs it, as a model; None where it is not installed.

    Raises:
        ModelError: it cannot load the model.
    """
    if not installation.available():
        return None
    with tempfile.TemporaryDirectory(prefix="requant-") as folder:
        return save_optimized(model, Path(folder))


def save_optimized(model: SerializedModel, folder: Path, *, weights: bool = False) -> bytes:
    """What ``optimized`` gives, saved in ``folder``; with ``weights`` these in a file of their own there."""
    path = folder / "optimized.onnx"
    OrtRunner(model, threads=1, save_to=path, save_weights=weights)
    return path.read_bytes()
