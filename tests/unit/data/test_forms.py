"""The same samples give the same batches, whatever form they come in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from requant.data import Batch, DataOptions, Dataset, InputSpec, open_data
from requant.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
ONE = (InputSpec("x", F32, ("batch", 3, 4)),)
TWO = (InputSpec("x", F32, ("batch", 3, 4)), InputSpec("length", I64, ("batch",)), InputSpec("rate", I64, ()))

rng = np.random.default_rng(7)
ARRAYS: dict[str, Any] = {
    "x": rng.normal(size=(37, 3, 4)).astype(np.float32),
    "length": rng.integers(0, 9, 37),
    "rate": np.array(16000),
}


def fingerprint(batches: Any) -> list[Any]:
    return [
        (b.first, b.count, {k: (x.shape, x.dtype.str, x.tobytes()) for k, x in b.feeds.items()}, b.labels)
        for b in batches
    ]


def check_native(batch: Batch) -> None:
    for x in batch.feeds.values():
        assert type(x) is np.ndarray
        assert x.flags.c_contiguous
        assert x.flags.aligned
        assert x.dtype.isnative


def reference(arrays: dict[str, Any], size: int) -> list[Any]:
    """Batches by slicing, the naive way."""
    batches = []
    for first in range(0, len(arrays["x"]), size):
        feeds = {k: np.array(x[first : first + size] if x.ndim else x) for k, x in arrays.items()}
        batches.append(Batch(feeds, tuple(range(first, first + len(feeds["x"])))))
    return fingerprint(batches)


def test_two_inputs(form: Any, tmp_path: Path) -> None:
    data = open_data(form(tmp_path, ARRAYS, TWO), TWO, DataOptions(batch_size=5))
    batches = list(data.batches())
    assert fingerprint(batches) == reference(ARRAYS, 5)
    for batch in batches:
        check_native(batch)


def test_one_input(single_form: Any, tmp_path: Path) -> None:
    arrays = {"x": ARRAYS["x"]}
    data = open_data(single_form(tmp_path, arrays, ONE), ONE, DataOptions(batch_size=4))
    assert fingerprint(data.batches()) == reference(arrays, 4)


@pytest.mark.parametrize("options", [DataOptions(), DataOptions(samples=19), DataOptions(samples=500, batch_size=3)])
def test_held_back(single_form: Any, tmp_path: Path, options: DataOptions) -> None:
    arrays = {"x": ARRAYS["x"]}

    def parts(source: object) -> tuple[list[Any], list[Any]]:
        data = open_data(source, ONE, options, hold_back=True)
        return fingerprint(data.batches()), fingerprint(data.held_back())

    used, held = parts(single_form(tmp_path, arrays, ONE))
    assert (used, held) == parts(dict(arrays))
    count = min(options.samples or 37, 37)
    assert sum(n for _, n, *_ in held) == count // 8
    assert sum(n for _, n, *_ in used + held) == count


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 20),
    batch=st.sampled_from([1, 2, 3, "n", None]),
    size=st.one_of(st.none(), st.integers(1, 6)),
    samples=st.one_of(st.none(), st.integers(1, 20)),
    cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_any_cut_of_rows(
    count: int, batch: int | str | None, size: int | None, samples: int | None, cuts: list[int]
) -> None:
    inputs = (InputSpec("x", F32, (batch, 2)), InputSpec("m", I64, (batch, 1)))
    arrays: dict[str, Any] = {
        "x": np.arange(count * 2, dtype=np.float32).reshape(count, 2),
        "m": np.arange(count).reshape(count, 1),
    }
    options = DataOptions(samples=samples, batch_size=size)
    items: list[Any] = []
    start = 0
    while start < count:
        stop = start + cuts[len(items) % len(cuts)]
        items.append({k: x[start:stop] for k, x in arrays.items()})
        start = stop

    def outcome(source: object) -> Any:
        dataset = open_data(source, inputs, options, hold_back=True)
        try:
            return fingerprint(dataset.batches()), fingerprint(dataset.held_back()), dataset.warnings
        except ValueError as error:
            return str(error)

    whole = outcome(arrays)
    assert outcome(items) == whole
    assert outcome(iter(items)) == whole
    assert outcome({k: x[:, np.newaxis] for k, x in arrays.items()}) == whole


@pytest.mark.parametrize(
    "make",
    [
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1][::-1],
        np.asfortranarray,
        lambda x: x.astype(">f4"),
        lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
        lambda x: x.astype(np.float64),
        lambda x: x.astype(ml_dtypes.bfloat16),  # 0 to 59 are exact in it
        lambda x: np.ma.masked_array(x, mask=False),
        lambda x: np.broadcast_to(x[np.newaxis], (1, *x.shape))[0],
    ],
    ids=[
        "strided",
        "reversed",
        "fortran",
        "byte-swapped",
        "misaligned",
        "float64",
        "bfloat16",
        "unmasked",
        "read-only",
    ],
)
def test_odd_memory(make: Any) -> None:
    x = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    odd = make(x)
    expected = fingerprint(open_data(x, ONE).batches())
    batches = list(open_data(odd, ONE).batches())
    assert fingerprint(batches) == expected
    for batch in [*batches, *open_data([odd[:1], odd[1:]], ONE, DataOptions(batch_size=1)).batches()]:
        check_native(batch)


def test_images_and_arrays_agree(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (11, 6, 5, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        image.fromarray(picture).save(tmp_path / f"{i}.png")
    inputs = (InputSpec("x", F32, ("n", 3, 6, 5)),)
    array = (pixels.astype(np.float32) * np.float32(1 / 255)).transpose(0, 3, 1, 2)
    assert fingerprint(open_data(tmp_path, inputs).batches()) == fingerprint(open_data(array, inputs).batches())


def labelled_sources(tmp_path: Path) -> dict[str, tuple[object, str | None]]:
    x, y = ARRAYS["x"], np.arange(37) % 10
    np.savez(tmp_path / "named.npz", x=x, labels=y)
    np.savez(tmp_path / "custom.npz", x=x, truth=y)
    return {
        "npz": (tmp_path / "named.npz", None),
        "custom name": (tmp_path / "custom.npz", "truth"),
        "dict": ({"x": x, "y": y}, None),
        "pairs": ([(x[:5], y[:5]), [x[5:], y[5:]]], None),
        "dict and label": ([({"x": x[:5]}, y[:5]), ({"x": x[5:]}, y[5:])], None),
        "one by one": (((x[i : i + 1], int(y[i])) for i in range(37)), None),
    }


@pytest.mark.parametrize("kind", ["npz", "custom name", "dict", "pairs", "dict and label", "one by one"])
def test_labels(kind: str, tmp_path: Path) -> None:
    source, name = labelled_sources(tmp_path)[kind]
    data = open_data(source, ONE, DataOptions(batch_size=10), labels=name)
    assert data.has_labels
    batches = list(data.batches())
    assert [b.count for b in batches] == [10, 10, 10, 7]
    for batch in batches:
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.labels, (np.arange(37) % 10)[batch.first :][: batch.count])


def test_a_label_name_may_be_an_input() -> None:
    inputs = (InputSpec("y", F32, ("n", 2)),)
    data = open_data({"y": np.eye(2, dtype=np.float32)}, inputs)
    assert not data.has_labels
    assert next(data.batches()).labels is None


def test_seed_draws_in_order_and_depends_on_nothing_else(tmp_path: Path) -> None:
    x = ARRAYS["x"]
    np.save(tmp_path / "x.npy", x)
    options = DataOptions(samples=6, seed=3, batch_size=1)
    firsts = [b.first for b in open_data(x, ONE, options).batches()]
    assert firsts == [4, 11, 15, 21, 26, 27]
    for source in (tmp_path / "x.npy", [x[:9], x[9:]]):
        drawn = list(open_data(source, ONE, options).batches())
        assert [b.first for b in drawn] == firsts
        np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in drawn]), x[firsts])
    other = [b.first for b in open_data(x, ONE, DataOptions(samples=6, seed=4, batch_size=1)).batches()]
    assert other != firsts


def passes(data: Dataset) -> tuple[list[Any], list[Any]]:
    return fingerprint(data.batches()), fingerprint(data.batches())


def test_a_second_pass_repeats_the_first(form: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    data = open_data(form(tmp_path, ARRAYS, TWO), TWO)
    if "generator" in request.node.name:
        list(data.batches())
        with pytest.raises(ValueError, match="the generator can be read only once"):
            next(data.batches())
    else:
        first, second = passes(data)
        assert first == second


def test_a_closed_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((4, 2), np.float32))
    with np.load(tmp_path / "x.npz") as archive:
        pass
    with pytest.raises(DataError, match="the NpzFile is closed"):
        open_data(archive, [InputSpec("x", np.dtype(np.float32), (None, 2))])


def test_a_reader_without_rewind_is_read_once() -> None:
    class Once:
        def __init__(self) -> None:
            self.left = 3

        def get_next(self) -> dict[str, Any] | None:
            self.left -= 1
            return {"x": np.full((1, 3, 4), self.left, np.float32)} if self.left >= 0 else None

    data = open_data(Once(), ONE)
    assert sum(b.count for b in data.batches()) == 3
    with pytest.raises(ValueError, match="the Once can be read only once\nhelp: give it a method rewind"):
        next(data.batches())


def test_nested_lists_of_numbers_are_an_array() -> None:
    x = ARRAYS["x"]
    expected = fingerprint(open_data(x, ONE).batches())
    halves = [x[:20].tolist(), x[20:].tolist()]
    stack = [[row] for row in x.tolist()]
    for data in (x.tolist(), stack, tuple(x.tolist()), halves, iter(halves), {"x": x.tolist()}, [(h,) for h in halves]):
        assert fingerprint(open_data(data, ONE).batches()) == expected


def test_lists_of_inputs_and_labels_stay_what_they_are() -> None:
    vector = (InputSpec("x", F32, ("batch", 2)),)
    labelled = open_data([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[5.0, 6.0]], [[7.0, 8.0]]]], vector)
    assert labelled.has_labels
    assert [batch.feeds["x"].tolist() for batch in labelled.batches()] == [[[1.0, 2.0], [5.0, 6.0]]]
    two = (InputSpec("a", F32, ("batch",)), InputSpec("b", F32, ("batch",)))
    assert [batch.feeds["b"].tolist() for batch in open_data([[[1.0], [2.0]]], two).batches()] == [[2.0]]
