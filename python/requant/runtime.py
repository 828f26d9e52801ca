"""Running models; the only importer of onnxruntime.

Where onnxruntime is not installed, ``onnx.reference`` runs the model: correct, and slow.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from requant import ops
from requant.errors import ConfigError, MissingDependencyError, MissingFileError, ModelError, first_line
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_VNNI = frozenset({"avx512vnni", "avxvnni", "amx-int8"})

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_SAVED_WEIGHTS = "session.optimized_model_external_initializers_file_name"
#: Weights in files are mapped; with more of them than this they are multiplied where they lie, instead of from a copy
#: in the kernels' order.
_PACKED_AT_MOST = 1 << 28

#: Libraries of custom ops that every session takes; in the environment, so that processes started here have them too.
CUSTOM_OPS = "REQUANT_CUSTOM_OPS"

_REMEDY = "give the library that has it (--custom-ops LIBRARY, requant.register_custom_ops)"

#: The distributions that provide the module ``onnxruntime``.
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")


class Runner(Protocol):
    """A model that can be run, from several threads at once."""

    name: str

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the model's order, for one batch of feeds."""

    def stop(self) -> None:
        """Make a ``run`` that is under way in another thread return early, with an error."""


def installed() -> dict[str, str]:
    """Name and version of every onnxruntime distribution that is installed."""
    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def available() -> bool:
    """Whether onnxruntime is there, from whatever distribution."""
    return importlib.util.find_spec("onnxruntime") is not None


def register_custom_ops(library: str | Path) -> None:
    """Let models be run whose ops are in a library: onnxruntime's custom ops, for this process and those it starts.

    Also done for the libraries that the environment variable ``REQUANT_CUSTOM_OPS`` names when onnxruntime is first
    used, separated as in ``PATH``.

    Args:
        library: a shared library (.so, .dll, .dylib).

    Raises:
        MissingFileError: there is no such file.
        ConfigError: onnxruntime cannot take ops from it.
        MissingDependencyError: onnxruntime is not installed.

    Example:
        >>> requant.register_custom_ops("libmyops.so")  # doctest: +SKIP
    """
    path = Path(library).expanduser().resolve()
    if not path.is_file():
        raise MissingFileError(f"there is no library of custom ops {library}", hint="give the path of its file")
    _take_ops(_onnxruntime().SessionOptions(), str(path))
    if str(path) not in custom_op_libraries():
        os.environ[CUSTOM_OPS] = os.pathsep.join([*custom_op_libraries(), str(path)])


def custom_op_libraries() -> tuple[str, ...]:
    """The libraries of custom ops that sessions take."""
    return tuple(filter(None, os.environ.get(CUSTOM_OPS, "").split(os.pathsep)))


def unknown(ops: Sequence[str]) -> Sequence[str]:
    """Those of some custom ops for which there is no library: all or none, as only loading tells what one holds."""
    return () if custom_op_libraries() else ops


def refuse_unknown(ops: Sequence[str], origin: str, hint: str) -> None:
    """Refuse to run a model with custom ``ops`` where no library is registered.

    Raises:
        ModelError: it has some.
    """
    if missing := unknown(ops):
        raise ModelError(
            f"{origin} cannot be run here: onnxruntime does not know {', '.join(missing)}", hint=f"{_REMEDY}; {hint}"
        )


def saturates() -> bool:
    """Whether onnxruntime adds pairs of uint8 x int8 products in 16 bits here: on x86 CPUs before VNNI."""
    cpu = ops.cpu_info()
    return bool(cpu["arch"] == "x86_64" and not _VNNI & set(cpu["features"]))


def cpu_kind() -> str | None:
    """The kind of CPU that this is (``targets.CPUS``); None where costs of its kernels are not known."""
    if ops.cpu_info()["arch"] != "x86_64":
        return None
    return "avx2" if saturates() else "vnni"


def open_runner(
    model: SerializedModel | bytes, *, threads: int = 0, shared: bool = False, ordered: bool = True
) -> Runner:
    """A runner for ``model``: onnxruntime's, else the reference implementation's.

    ``shared`` says that other work wants the cores between its runs: its threads then sleep instead of spinning. Unless
    ``ordered``, each sample's values of an output may come in another order, which is faster but takes longer to open.

    Raises:
        ModelError: the runtime refuses the model.
    """
    model = SerializedModel.of(model)
    if available():
        if not ordered:
            try:
                return _open_unordered(model, lambda proto: proto, threads=threads, shared=shared)
            except (ModelError, OSError) as problem:
                logger.debug("outputs are put in order: %s", problem)
        return OrtRunner(model, threads=threads, shared=shared)
    from requant.onnx.reference import ReferenceRunner

    _warn_slow()
    return ReferenceRunner(model)


def open_observing(
    model: SerializedModel, observed: Collection[int], *, threads: int, ordered: bool
) -> OrtRunner | None:
    """A runner like ``open_runner``'s that counts outputs, those at positions ``observed``, and gives the others.

    It counts in statistics at the same positions of those that a thread has named (``ops.observe_here``). None where
    that does not work, or there is nothing to count.
    """
    from requant.onnx.observers import with_observers

    if not observed or not available():
        return None

    def watched(proto: bytes) -> bytes:
        return with_observers(proto, observed)

    try:
        if ordered:
            model = replace(model, proto=watched(model.proto))
            return OrtRunner(model, threads=threads, shared=True, libraries=(ops.LIBRARY,))
        return _open_unordered(model, watched, threads=threads, shared=True, libraries=(ops.LIBRARY,))
    except (ModelError, ConfigError, OSError) as problem:
        logger.debug("tensors are given out to be counted: %s", problem)
        return None


def run_seconds(runner: Runner, feeds: Mapping[str, NDArray[Any]], repeats: int) -> float:
    """Processor time of one run, the mean of ``repeats``; of this thread, the only one that works.

    By the clock, other load makes one of two models that are timed in turn several times slower than it is: the
    scheduler's turns fall in with theirs.
    """
    start = time.thread_time()
    for _ in range(repeats):
        runner.run(feeds)
    return max((time.thread_time() - start) / repeats, 1e-9)


def _open_unordered(model: SerializedModel, change: Callable[[bytes], bytes], **options: Any) -> OrtRunner:
    """A runner of what ``change`` makes of ``model`` where its outputs are not put in order, if that is another."""
    from requant.onnx.reorders import without_reorders

    # Windows does not remove a file that is mapped.
    with tempfile.TemporaryDirectory(prefix="requant-", ignore_cleanup_errors=True) as name:
        unordered = without_reorders(_optimized(model, Path(name), weights=True))
        if unordered is None:
            return OrtRunner(replace(model, proto=change(model.proto)), **options)
        path = Path(name, "unordered.onnx")
        path.write_bytes(change(unordered))
        return OrtRunner(path, as_is=True, **options)  # weights are mapped by then, and need their name no more


@cache
def _warn_slow() -> None:
    logger.warning(
        "onnxruntime is not installed: running on onnx.reference, which is slow (pip install 'requant[ort]')"
    )


def profile(model: SerializedModel, feeds: Mapping[str, NDArray[Any]], runs: int) -> list[Event]:
    """What onnxruntime really ran for ``model`` on one thread, node by node, with the median time of each.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        ModelError: it cannot load or run the model.
    """
    if not available():
        raise MissingDependencyError("timing nodes needs onnxruntime", hint="pip install 'requant[ort]'")
    durations: dict[str, list[float]] = {}
    events: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="requant-") as folder:
        runner = OrtRunner(model, threads=1, profile=folder)
        for _ in range(runs):
            runner.run(feeds)
        for event in json.loads(Path(runner.end_profile()).read_text("utf-8")):
            name = event["name"].removesuffix("_kernel_time")
            if event.get("cat") == "Node" and name != event["name"]:
                durations.setdefault(name, []).append(float(event["dur"]))
                events[name] = event["args"]
    return [
        Event(name, statistics.median(durations[name]), int(args.get("output_size", 0)))
        for name, args in events.items()
    ]


def optimized(model: SerializedModel) -> bytes | None:
    """What onnxruntime makes of ``model`` before it runs it, as a model; None where it is not installed.

    Raises:
        ModelError: it cannot load the model.
    """
    if not available():
        return None
    with tempfile.TemporaryDirectory(prefix="requant-") as folder:
        return _optimized(model, Path(folder))


def _optimized(model: SerializedModel, folder: Path, *, weights: bool = False) -> bytes:
    """What ``optimized`` gives, saved in ``folder``; with ``weights`` these in a file of their own there."""
    path = folder / "optimized.onnx"
    OrtRunner(model, threads=1, save_to=path, save_weights=weights)
    return path.read_bytes()


@dataclass(frozen=True, slots=True)
class Event:
    """A node that onnxruntime ran: its own name for it, microseconds, bytes of its outputs."""

    name: str
    microseconds: float
    output_bytes: int


def _onnxruntime() -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when onnxruntime is imported
    try:
        import onnxruntime
    except ImportError as problem:
        if not available():
            raise MissingDependencyError(
                "this needs onnxruntime, which is not installed", hint="pip install 'requant[ort]'"
            ) from problem
        raise MissingDependencyError(
            f"onnxruntime is installed but cannot be imported: {first_line(problem)}", hint="install it again"
        ) from problem
    return onnxruntime


def _take_ops(options: Any, library: str) -> None:
    try:
        options.register_custom_ops_library(library)
    except Exception as problem:
        raise ConfigError(
            f"onnxruntime cannot take custom ops from {library}: {first_line(problem)}",
            hint="give a shared library with RegisterCustomOps, built for this onnxruntime",
        ) from problem


def as_array(output: object) -> NDArray[Any]:
    """What a runtime gives for an output; sequences and absent optionals as an array of one Python object.

    Maps from the same keys to reals, which classifiers give, one for each sample, are a row of their values each.
    """
    if isinstance(output, np.ndarray):
        return output
    if isinstance(output, list) and output and all(isinstance(each, dict) for each in output):
        first, *rest = output
        reals = all(isinstance(value, float) for each in output for value in each.values())
        if reals and all(each.keys() == first.keys() for each in rest):
            return np.array([[each[key] for key in first] for each in output], np.float32)
    boxed = np.empty((), object)
    boxed[()] = output
    return boxed


def unboxed(output: NDArray[Any]) -> Any:
    """What a runtime takes again as an input: an array, or the sequence in it."""
    boxed: Any = output[()] if output.dtype == object and output.ndim == 0 else None
    return boxed if isinstance(boxed, list) else output


def held(output: NDArray[Any]) -> list[NDArray[Any]]:
    """The arrays in an output: itself, or those of a sequence that hold anything, stacked where all have one shape.

    Other Python objects have none.
    """
    if output.dtype != object:
        return [output]
    boxed: Any = output[()]
    items = boxed if isinstance(boxed, list) else ()
    arrays = [item for item in items if isinstance(item, np.ndarray) and item.size]
    return [np.stack(arrays)] if len({array.shape for array in arrays}) == 1 else arrays


def joined(output: NDArray[Any]) -> NDArray[Any]:
    """All values in an output, of a sequence as one row ``[1, values]``."""
    if output.dtype != object:
        return output
    return np.concatenate([np.zeros(0, np.float32), *(array.ravel() for array in held(output))])[None]


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
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        for library in (*custom_op_libraries(), *libraries):
            _take_ops(options, library)
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
            self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as problem:
            raise ModelError(
                f"onnxruntime cannot load the model: {first_line(problem)}",
                hint=_REMEDY if "is not a registered function/op" in str(problem) else None,
            ) from problem
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = 4

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the model's order, for one batch of feeds.

        Raises:
            ModelError: onnxruntime fails on them.
        """
        try:
            outputs = self._session.run(None, dict(feeds), self._run_options)
        except Exception as problem:
            shapes = ", ".join(f"{name} {array.dtype}{list(array.shape)}" for name, array in feeds.items())
            raise ModelError(
                f"onnxruntime failed on {shapes}: {first_line(problem)}",
                hint="check these samples; a model that fixes its batch inside needs batch_size=1 (--batch-size 1)",
            ) from problem
        return [as_array(output) for output in outputs]

    def outputs(self) -> dict[str, tuple[str, list[int | str | None]]]:
        """Of each output the type as onnxruntime calls it, such as ``tensor(float)``, and the shape; [] if unknown."""
        return {output.name: (output.type, list(output.shape)) for output in self._session.get_outputs()}

    def stop(self) -> None:
        """Make a ``run`` under way in another thread return at the next node."""
        self._run_options.terminate = True

    def end_profile(self) -> str:
        """Ends a profile that was asked for; returns the file that holds it."""
        path: str = self._session.end_profiling()
        return path
