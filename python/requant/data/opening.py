"""From what a user gives to a source: arrays, iterables, readers, files, folders."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.lib.npyio import NpzFile

from requant.data import images, testdata
from requant.data.convert import nested_numbers
from requant.data.npy import open_npy, open_npz
from requant.data.sources import Source, StableSource, StreamSource, iterable_passes, reader_passes
from requant.data.spec import mismatch
from requant.data.tables import Table, single, table_of, table_of_item
from requant.errors import DataError
from requant.files import PICTURES, missing_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from requant.data.options import DataOptions
    from requant.data.spec import InputSpec

FORMS = (
    "an .npz, .npy or image file, a folder of one of these or of test_data_set_* folders, an array, a dict of arrays, "
    "an iterable of these, or a CalibrationDataReader"
)
#: What to do with files that are something else to requant.
_NOT_DATA = {
    ".json": "statistics of `requant calibrate` are --table, in Python table=CalibrationTable.load(path)",
}


@dataclass(frozen=True, slots=True)
class Opener:
    """Opens data for the inputs of a model.

    Attributes:
        inputs: What the model takes.
        options: How pictures become tensors, and what is too big.
        labels: Name of the array of labels, or None for the usual ones.
    """

    inputs: Sequence[InputSpec]
    options: DataOptions
    labels: str | None = None

    def open(self, source: object) -> Source:
        """The source that fits what the user gave.

        Raises:
            MissingFileError: a path that is not there.
            DataError: none of ``FORMS``.
        """
        name = type(source).__name__
        if isinstance(source, NpzFile) and source.zip is None:
            raise DataError(
                "the NpzFile is closed", hint="use it inside of its with block, or give the path of its file"
            )
        if isinstance(source, str | os.PathLike):
            return self._path(_existing(Path(source)))
        if callable(getattr(source, "get_next", None)):
            return self._stream(name, reader_passes(source))
        if isinstance(source, Mapping) or hasattr(source, "__array__") or hasattr(source, "__dlpack__"):
            return self._in_memory([source], name, f"the {name}")
        if isinstance(source, list | tuple) and source and all(isinstance(x, str | os.PathLike) for x in source):
            return self._files([_existing(Path(x)) for x in source], name)
        if len(self.inputs) == 1:
            rank = len(self.inputs[0].shape)
            if (array := nested_numbers(source, (rank, rank + 1))) is not None:
                return self._in_memory([array], name, f"the {name}")
        if isinstance(source, list | tuple):
            return self._in_memory(source, name, f"item {{}} of the {name}")
        if hasattr(source, "__iter__") or hasattr(source, "__getitem__"):
            return self._stream(name, iterable_passes(source))
        raise DataError(f"data cannot be read from a {name}", hint=f"give {FORMS}")

    def _stream(self, name: str, start: Callable[[], Iterator[object]]) -> Source:
        return StreamSource(name, start, lambda item, i: self._item(item, f"item {i} of the {name}"))

    def _in_memory(self, items: Sequence[object], name: str, where: str) -> Source:
        def opener(i: int) -> nullcontext[Table]:
            return nullcontext(self._item(items[i], where.format(i)))

        return StableSource(name, [partial(opener, i) for i in range(len(items))])

    def _path(self, path: Path) -> Source:
        if not path.is_dir():
            return self._files([path], path.name)
        sets = testdata.find_sets(path)
        if sets:
            return StableSource(path.name, [partial(self._test_data, folder) for folder in sets])
        return self._files(_data_files(path), path.name, path)

    def _files(self, paths: Sequence[Path], name: str, root: Path | None = None) -> Source:
        """The source of files of one kind; a ``root`` shortens their names."""
        kinds = sorted({_kind(path) for path in paths})
        if kinds == ["npz"]:
            return StableSource(name, [partial(self._npz, path) for path in paths])
        if kinds == ["npy"]:
            return StableSource(name, [partial(self._npy, path) for path in paths])
        if kinds == ["images"]:
            frame = images.frame_of(self.inputs, self.options)
            names = [path.name if root is None else path.relative_to(root).as_posix() for path in paths]
            return StableSource(name, [partial(self._picture, *pair, frame) for pair in zip(paths, names, strict=True)])
        if root is None and len(paths) == 1:
            suffix = paths[0].suffix
            hint = _NOT_DATA.get(suffix.lower(), f"give {FORMS}")
            raise mismatch(f"{name!r} is no data file", "an .npz, .npy or image file", suffix or "no suffix", hint)
        found = " and ".join(f"{sum(_kind(path) == kind for path in paths)} {kind}" for kind in kinds)
        raise mismatch(
            f"{name!r} holds no data of one kind", ".npz files, .npy files or images", found or "none", f"give {FORMS}"
        )

    def _item(self, item: object, where: str) -> Table:
        return table_of_item(item, self.inputs, where, self.labels)

    @contextmanager
    def _npz(self, path: Path) -> Iterator[Table]:
        with open_npz(path, self.options.max_bytes) as arrays:
            yield table_of(arrays, self.inputs, path.name, self.labels)

    @contextmanager
    def _npy(self, path: Path) -> Iterator[Table]:
        with open_npy(path, self.options.max_bytes) as array:
            yield single(array, self.inputs, path.name)

    @contextmanager
    def _picture(self, path: Path, where: str, frame: images.Frame) -> Iterator[Table]:
        yield single(images.Picture(path, where, frame), self.inputs, where)

    @contextmanager
    def _test_data(self, folder: Path) -> Iterator[Table]:
        yield Table(testdata.load_set(folder, self.inputs, self.options.max_bytes), folder.name)


def holds_images(path: Path) -> bool:
    """Whether a file is an image, or a folder has any."""
    return any(_kind(each) == "images" for each in (_data_files(path) if path.is_dir() else [path]))


def _existing(path: Path) -> Path:
    if not path.exists():
        raise missing_file("data", path)
    return path


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder that hold data, in natural order; pictures may lie in folders of their own."""
    here = [p for p in folder.iterdir() if p.suffix.lower() in (".npz", ".npy")]
    pictures = [p for p in folder.rglob("*") if p.suffix.lower() in PICTURES]
    files = [p for p in here + pictures if not p.name.startswith(".") and p.is_file()]
    return sorted(files, key=lambda path: _natural(path.relative_to(folder).as_posix()))


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return "images" if suffix in PICTURES else suffix.removeprefix(".") if suffix in (".npz", ".npy") else "other"


def _natural(name: str) -> tuple[list[str | int], str]:
    """Orders ``img2`` before ``img10``."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+)", name.lower()))], name
