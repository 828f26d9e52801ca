"""Libraries of onnxruntime's custom ops: who has been told of which."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from requant.errors import ConfigError, MissingFileError, ModelError, first_line
from requant.runtime import installation

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Libraries of custom ops that every session takes; in the environment, so that processes started here have them too.
CUSTOM_OPS = "REQUANT_CUSTOM_OPS"

#: What to do about an op that onnxruntime does not know.
REMEDY = "give the library that has it (--custom-ops LIBRARY, requant.register_custom_ops)"


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
    take_ops(installation.load().SessionOptions(), str(path))
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
            f"{origin} cannot be run here: onnxruntime does not know {', '.join(missing)}", hint=f"{REMEDY}; {hint}"
        )


def take_ops(options: Any, library: str) -> None:
    """Give the sessions of ``options`` the ops of a library.

    Raises:
        ConfigError: onnxruntime cannot take ops from it.
    """
    try:
        options.register_custom_ops_library(library)
    except Exception as problem:
        raise ConfigError(
            f"onnxruntime cannot take custom ops from {library}: {first_line(problem)}",
            hint="give a shared library with RegisterCustomOps, built for this onnxruntime",
        ) from problem
