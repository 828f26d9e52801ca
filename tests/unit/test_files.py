"""A file is written whole or not at all, whatever fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from requant.errors import OutputError
from requant.files import check_outputs, replacing, staged, write_atomically, write_together


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("data", [b"", b"x", b"new" * 100_000])
@pytest.mark.parametrize("old", [None, b"old"])
def test_the_file_holds_the_bytes_and_nothing_else_is_left(data: bytes, old: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    if old is not None:
        path.write_bytes(old)
    write_atomically(path, data)
    write_atomically(str(path), data)
    assert path.read_bytes() == data
    assert listing(tmp_path) == ["m.onnx"]


def test_a_relative_name_lies_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomically("m.onnx", b"x")
    assert (tmp_path / "m.onnx").read_bytes() == b"x"


def test_permissions_are_those_of_the_old_file_else_of_the_umask(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"")
    old.chmod(0o640)
    before = os.umask(0o027)
    try:
        write_atomically(old, b"x")
        write_atomically(new, b"x")
    finally:
        os.umask(before)
    assert old.stat().st_mode & 0o777 == 0o640
    assert new.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("step", ["open", "fdopen", "fsync", "replace"])
@pytest.mark.parametrize("old", [None, b"old"])
@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_what_was_there(
    step: str, old: bytes | None, problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    if old is not None:
        path.write_bytes(old)

    def fail(*args: object, **kwargs: object) -> None:
        raise problem

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OutputError if isinstance(problem, OSError) else KeyboardInterrupt) as caught:
            write_atomically(path, b"new")
    if isinstance(problem, OSError):
        assert "No space left on device" in str(caught.value)
        assert len(str(caught.value).splitlines()) <= 5
    assert listing(tmp_path) == ([] if old is None else ["m.onnx"])
    if old is not None:
        assert path.read_bytes() == old


def test_a_disk_that_is_full_in_earnest() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError):
        write_atomically("/dev/full/m.onnx", b"x")


@pytest.mark.parametrize(
    "act", [lambda p: write_atomically(p, b"x"), lambda p: check_outputs([p], [])], ids=["write", "check"]
)
def test_places_that_cannot_be_written_are_refused(act: object, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path, tmp_path / "nowhere" / "m.onnx", tmp_path / "file" / "m.onnx"):
        with pytest.raises(OutputError, match="cannot be written"):
            act(place)  # type: ignore[operator]
    assert listing(tmp_path) == ["file"]


def test_a_device_is_never_replaced(tmp_path: Path) -> None:
    """``-o /dev/null`` as root must not turn the device into a file; a pipe stands for it here."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_outputs([pipe], [])
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, b"x")
    assert os.read(reader, 2) == b"x"
    os.close(reader)
    assert pipe.is_fifo()


def test_what_needs_a_file_to_read_back_refuses_a_device(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="is a device or pipe"), replacing(pipe):
        pass
    assert pipe.is_fifo()


def test_a_link_stays_a_link_to_the_new_content(tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_the_longest_name_a_folder_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("m" * 250 + ".onnx")
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_checking_changes_nothing(tmp_path: Path) -> None:
    check_outputs([tmp_path / "m.onnx"], [])
    assert listing(tmp_path) == []


def test_files_written_together_hold_their_texts(tmp_path: Path) -> None:
    write_together([(tmp_path / "a", lambda: "ä"), (None, lambda: "not made"), (str(tmp_path / "b"), lambda: "")])
    assert (tmp_path / "a").read_text(encoding="utf-8") == "ä"
    assert (tmp_path / "b").read_bytes() == b""
    assert listing(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("step", ["open", "fdopen", "fsync"])
@pytest.mark.parametrize("failing", range(2))
def test_of_files_written_together_none_changes_where_one_fails(
    step: str, failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / name).write_text("old")
    right, calls = getattr(os, step), 0

    def fail(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls > failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OutputError, match="nothing was changed"):
            write_together([(tmp_path / name, lambda: "new") for name in "ab"])
    assert [(tmp_path / name).read_text() for name in listing(tmp_path)] == ["old", "old"]


@pytest.mark.parametrize("problem", [OutputError("no"), KeyboardInterrupt()])
def test_staged_files_go_where_the_body_fails(problem: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(problem)), staged([(tmp_path / "a", lambda: "new"), (tmp_path / "b", lambda: "new")]):
        raise problem
    assert (tmp_path / "a").read_text() == "old"
    assert listing(tmp_path) == ["a"]


def test_a_sample_in_a_folder_of_inputs_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("deep/x.JPG", "x.npy", "model.onnx"):
        (tmp_path / name).touch()
    for name in ("deep/x.JPG", "x.npy"):
        with pytest.raises(OutputError, match="would overwrite a sample"):
            check_outputs([tmp_path / name], [tmp_path])
    check_outputs([tmp_path / "model.onnx", tmp_path / "new.npy"], [tmp_path])
