"""Opening a model with what there is to run it: onnxruntime, or where it is not installed ``onnx.reference``."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from requant import ops
from requant.errors import ConfigError, ModelError
from requant.runtime import installation
from requant.runtime.session import OrtRunner, save_optimized
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """A model that can be run, from several threads at once."""

    name: str

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the model's order, for one batch of feeds."""

    def stop(self) -> None:
        """Make a ``run`` that is under way in another thread return early, with an error."""


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
    if installation.available():
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

    if not observed or not installation.available():
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


def _open_unordered(model: SerializedModel, change: Callable[[bytes], bytes], **options: Any) -> OrtRunner:
    """A runner of what ``change`` makes of ``model`` where its outputs are not put in order, if that is another."""
    from requant.onnx.reorders import without_reorders

    with tempfile.TemporaryDirectory(prefix="requant-", ignore_cleanup_errors=True) as folder:
        unordered = without_reorders(save_optimized(model, Path(folder), weights=True))
        if unordered is None:
            return OrtRunner(replace(model, proto=change(model.proto)), **options)
        path = Path(folder, "unordered.onnx")
        path.write_bytes(change(unordered))
        runner = OrtRunner(path, as_is=True, **options)  # weights are mapped by now, and need their name no more
    if path.parent.exists():  # as on Windows, which does not remove files that are mapped
        runner.at_close(partial(shutil.rmtree, folder, ignore_errors=True))
    return runner


@cache
def _warn_slow() -> None:
    logger.warning(
        "onnxruntime is not installed: running on onnx.reference, which is slow (pip install 'requant[ort]')"
    )
