"""Writing files like a database: the old content or the new, never a part."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from requant.errors import MissingFileError, OutputError, closest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

#: Suffixes of pictures, and of all files in folders of samples.
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
SAMPLES = PICTURES | {".npz", ".npy", ".pb"}


def write_atomically(path: str | Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write ``data``, whole or in pieces, to a temporary file beside ``path``, flush it to disk, rename it.

    Raises:
        OutputError: the folder is missing or not writable, or the disk is full; ``path`` is as it was before.
    """
    target = Path(path).resolve()  # a link stays a link, and its target is replaced
    pieces = [data] if isinstance(data, bytes) else data
    with explained(path):
        if is_special(Path(path)):
            with Path(path).open("wb") as special:
                special.writelines(pieces)
            return
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        with temporary_file(target.parent) as (file, move):
            file.writelines(pieces)
            move(target)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write and read that takes the place of ``path`` when all went well.

    Raises:
        OutputError: the system said no, or ``path`` is a device or pipe; what was there before is untouched.
    """
    if is_special(Path(path)):
        raise OutputError(f"{path} is a device or pipe, expected a file", hint="give the path of a file")
    target = Path(path).resolve()
    with explained(path), temporary_file(target.parent) as (file, move):
        yield file
        move(target)


@contextlib.contextmanager
def staged(files: Iterable[tuple[str | Path | None, Callable[[], str]]]) -> Iterator[None]:
    """Text files that take their places after the body, and only if that went well: before it, all of them are on disk.

    Devices and pipes, which keep nothing, are written to before the body.

    Args:
        files: a path, or None for a file that is not asked for, and what makes the text, each.

    Raises:
        OutputError: a folder is missing or not writable, or the disk is full; no file was replaced.
    """
    texts = [(path, make().encode()) for path, make in files if path is not None]
    with contextlib.ExitStack() as temporary:
        moves = []
        for path, text in texts:
            if is_special(Path(path)):
                write_atomically(path, text)
                continue
            with explained(path):
                file, move = temporary.enter_context(temporary_file(Path(path).resolve().parent))
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            moves.append((path, move))
        yield
        for path, move in moves:
            with explained(path, hint="the other files were written; give another path"):
                move(Path(path).resolve())


def write_together(files: Iterable[tuple[str | Path | None, Callable[[], str]]]) -> None:
    """Write text files, all or none; ``files`` are those of ``staged``.

    Raises:
        OutputError: a folder is missing or not writable, or the disk is full; no file was replaced.
    """
    with staged(files):
        pass


@contextlib.contextmanager
def explained(path: str | Path, *, hint: str = "nothing was changed; give another path") -> Iterator[None]:
    """Errors of writing as errors of ``path``.

    Raises:
        OutputError: the system said no.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise OutputError(f"{path} cannot be written: {reason}", hint=hint) from problem


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[tuple[BinaryIO, Callable[[Path], None]]]:
    """A file in ``folder`` to write and read, and what flushes it to disk and renames it; it goes unless it is."""
    temporary: str | None = None

    def move(target: Path) -> None:
        nonlocal temporary
        assert temporary is not None  # it is moved once
        file.flush()
        os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)  # noqa: PTH105 - the atomic rename is the point
        temporary = None
        _sync_folder(folder)

    try:
        temporary = f"{folder}/.requant-{secrets.token_hex(6)}.tmp"
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(descriptor, "w+b") as file:
            yield file, move
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_outputs(outputs: Iterable[str | Path | None], inputs: Iterable[object]) -> None:
    """Refuse outputs that could not be written, or that would destroy an input or each other, before any work is done.

    Args:
        outputs: paths; None stands for an output that is not asked for.
        inputs: paths that must survive; what is no path is passed over.

    Raises:
        OutputError: a folder is missing or not writable, or two names lead to one file, or one leads
            to a sample in a folder of inputs.
    """
    kept = {Path(source).resolve(): str(source) for source in inputs if isinstance(source, str | Path)}
    folders = [path for path in kept if path.is_dir()]
    for path in outputs:
        if path is None:
            continue
        _check_writable(path)
        target = Path(path).resolve()
        if target in kept and not is_special(Path(path)):
            raise OutputError(
                f"output {path} would overwrite {kept[target]}", hint="give every output a name of its own"
            )
        if target.suffix.lower() in SAMPLES and target.exists() and any(map(target.is_relative_to, folders)):
            raise OutputError(f"output {path} would overwrite a sample", hint="give it another name")
        kept[target] = str(path)


def _check_writable(path: str | Path) -> None:
    target = Path(path).resolve()
    if is_special(Path(path)):
        return
    if target.is_dir():
        raise OutputError(f"{path} cannot be written: it is a directory", hint="give the path of a file in it")
    if not target.parent.is_dir():
        reason = f"the folder {target.parent} does not exist"
    elif not os.access(target.parent, os.W_OK):
        reason = f"the folder {target.parent} is not writable"
    else:
        return
    raise OutputError(f"{path} cannot be written: {reason}", hint="create the folder or give another path")


def missing_file(kind: str, path: str | Path) -> MissingFileError:
    """The error of a ``path`` that is not there, with the name in its folder that is most like it."""
    asked = Path(path)
    try:
        siblings = [each.name for each in asked.parent.iterdir()]
    except OSError:
        siblings = []
    # A name is not alike because its suffix is.
    alike = [name for name in siblings if difflib.get_close_matches(asked.stem, [Path(name).stem])]
    return MissingFileError(f"{kind} {path} does not exist{closest(asked.name, alike)}", hint="check the path")


def is_special(path: Path) -> bool:
    """Whether ``path`` is a device or pipe: something to write to, with nothing to keep."""
    return path.exists() and not path.is_file() and not path.is_dir()


def is_checkpoint(path: str | Path) -> bool:
    """Whether the name is that of a checkpoint without a graph: a safetensors file, or the index of several."""
    return str(path).endswith((".safetensors", ".safetensors.index.json"))
