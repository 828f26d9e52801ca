"""How much memory a model takes: the peak of a process that loads it and runs one sample.

As a program (``python -m requant.evaluation.footprint MODEL FEEDS [FOLDER BYTES]``, as in ``SerializedModel``) it is
that process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.errors import ModelError
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


def peak_memory(model: SerializedModel | bytes, feeds: Mapping[str, NDArray[Any]]) -> int | None:
    """Peak resident bytes of a fresh process that runs ``model`` on ``feeds``, one thread; interpreter included.

    None where the system does not tell.

    Raises:
        ModelError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="requant-") as folder:
        paths = Path(folder, "model.onnx"), Path(folder, "feeds.npz")
        model = SerializedModel.of(model)
        paths[0].write_bytes(model.proto)
        outside = () if model.folder is None else (str(model.folder), str(model.external_bytes))
        arrays: dict[str, Any] = {f"{i}": array for i, array in enumerate(feeds.values())}
        np.savez(paths[1], names=np.array(list(feeds)), **arrays)
        child = subprocess.run(  # noqa: S603 - this interpreter and this file
            [sys.executable, "-P", "-m", "requant.evaluation.footprint", *map(str, paths), *outside],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
            check=False,
        )
    if child.returncode:
        last = (child.stderr.strip().splitlines() or [""])[-1]
        raise ModelError(f"a process that ran the model ended with status {child.returncode}: {last}")
    return int(child.stdout) or None


def _run(model: Path, feeds: Path, folder: Path | None = None, external_bytes: int = 0) -> int:
    """Peak resident bytes of this process after it has run the model; 0 where the system does not tell."""
    from requant.runtime import open_runner

    runner = open_runner(SerializedModel(model.read_bytes(), folder, external_bytes), threads=1)
    with np.load(feeds, allow_pickle=False) as arrays:
        runner.run({str(name): arrays[f"{i}"] for i, name in enumerate(arrays["names"])})
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of Linux counts the parent as it was before exec
        found = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), "0 0 kB")
        return int(found.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    model_path, feeds_path, *outside = sys.argv[1:]
    data = (Path(outside[0]), int(outside[1])) if outside else ()
    sys.stdout.write(str(_run(Path(model_path), Path(feeds_path), *data)))
