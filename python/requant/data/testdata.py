"""ONNX test data: ``test_data_set_*`` folders of ``input_0.pb``, ``input_1.pb``, ... in the order of the inputs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from requant.data.spec import listed, mismatch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from requant.data.convert import Array
    from requant.data.spec import InputSpec

_SET = re.compile(r"test_data_set_([0-9]+)")


def find_sets(folder: Path) -> list[Path]:
    """The folders of test data: ``folder`` itself, or those in it, in the order of their numbers."""
    if (folder / "input_0.pb").is_file():
        return [folder]
    numbered = ((_SET.fullmatch(p.name), p) for p in folder.iterdir() if p.is_dir())
    return [path for _, path in sorted((int(match[1]), path) for match, path in numbered if match)]


def load_set(folder: Path, inputs: Sequence[InputSpec], max_bytes: int) -> dict[str, Array]:
    """The arrays of one folder by input name.

    Raises:
        DataError: the folder holds more or fewer inputs than the model has, or a damaged or too big one.
    """
    from requant.onnx.tensors import load_tensor_proto

    files = [folder / f"input_{i}.pb" for i in range(len(inputs))]
    found = len(list(folder.glob("input_*.pb")))
    if found != len(inputs):
        raise mismatch(
            f"{folder.name} does not match the model's inputs",
            f"{len(inputs)} files, input_0.pb and on, in the order {listed(s.name for s in inputs)}",
            f"{found} files input_*.pb",
            "keep one file for each input of the model",
        )
    for file in files:
        if file.is_file() and (size := file.stat().st_size) > max_bytes:
            raise mismatch(f"{file.name} is too big to read", f"at most {max_bytes:,} bytes", f"{size:,} bytes")
    return {spec.name: load_tensor_proto(file) for spec, file in zip(inputs, files, strict=True)}
