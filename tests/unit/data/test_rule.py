"""What is a sample, what is a batch, and where the cuts fall."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from requant.data import DataOptions, InputSpec, open_data
from requant.data.grouping import DEFAULT_BATCHES
from requant.data.spec import Batching, batching_of
from requant.errors import DataError

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)


def spec(*shape: int | str | None, name: str = "x", dtype: Any = F32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), shape)


def shapes(data: Any, name: str = "x") -> list[tuple[int, ...]]:
    return [batch.feeds[name].shape for batch in data.batches()]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([spec("batch", 3, 8, 8)], Batching(rows=True)),
        ([spec(None, 3)], Batching(rows=True)),
        ([spec(-1, 3)], Batching(rows=True)),
        ([spec(0, 3)], Batching(rows=True)),
        ([spec(1, 3)], Batching(rows=True, fixed=1)),
        ([spec(4, 3)], Batching(rows=True, fixed=4)),
        ([spec("unk__1", 3), spec("unk__2", 5, name="y")], Batching(rows=True)),
        ([spec("n", "t"), spec("n", name="length")], Batching(rows=True)),
        ([spec("batch", "t"), spec(name="rate")], Batching(rows=True)),
        ([spec("batch", "t"), spec(1, "t", name="position")], Batching(rows=True, fixed=1)),
        ([spec("batch_sequence", 3)], Batching(rows=True)),
        ([spec("n", "n")], Batching(rows=False)),
        ([spec("n", 7), spec("n", "n", name="adjacency")], Batching(rows=False)),
        ([spec("batch", 5), spec(2, "batch", 9, name="state")], Batching(rows=False)),
        ([spec(2, 5), spec(3, 5, name="y")], Batching(rows=False)),
        ([spec("t", 1, 8), spec(1, name="length")], Batching(rows=False)),
        ([spec("n", 7), spec(1, "n", name="mask")], Batching(rows=False)),
        ([spec("sequence_length", 80)], Batching(rows=False)),
        ([spec("num_frames", 80)], Batching(rows=False)),
        ([spec("T", 80)], Batching(rows=False)),
        ([spec("samples")], Batching(rows=False)),
        ([spec(16000)], Batching(rows=False)),
        ([spec()], Batching(rows=False)),
    ],
    ids=lambda value: "; ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_batching(inputs: list[InputSpec], expected: Batching) -> None:
    assert batching_of(inputs) == expected


@pytest.mark.parametrize(
    ("model", "shape", "size", "expected"),
    [
        # dynamic batch: rows are cut, stacks of one row are rows, other stacks stay whole
        (spec("n", 3), (7, 3), 3, [(3, 3), (3, 3), (1, 3)]),
        (spec("n", 3), (7, 1, 3), 3, [(3, 3), (3, 3), (1, 3)]),
        (spec("n", 3), (3, 5, 3), 2, [(5, 3)] * 3),
        # fixed batch
        (spec(1, 3), (3, 3), None, [(1, 3)] * 3),
        (spec(1, 3), (3, 1, 3), None, [(1, 3)] * 3),
        (spec(2, 3), (6, 3), None, [(2, 3)] * 3),
        (spec(2, 3), (6, 1, 3), None, [(2, 3)] * 3),
        (spec(2, 3), (3, 2, 3), None, [(2, 3)] * 3),
        # no batch
        (spec("sequence", 3), (7, 3), None, [(7, 3)]),
        (spec("sequence", 3), (2, 7, 3), None, [(7, 3)] * 2),
        (spec("length"), (100,), None, [(100,)]),
        (spec(100), (4, 100), None, [(100,)] * 4),
        (spec(), (), None, [()]),
        (spec(), (3,), None, [()] * 3),
    ],
)
def test_cuts(model: InputSpec, shape: tuple[int, ...], size: int | None, expected: list[Any]) -> None:
    x = np.arange(np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    batches = list(open_data(x, [model], DataOptions(batch_size=size)).batches())
    assert [b.feeds["x"].shape for b in batches] == expected
    np.testing.assert_array_equal(np.concatenate([b.feeds["x"].ravel() for b in batches]), x.ravel())


def test_default_batch_is_bounded_in_rows_and_bytes() -> None:
    (many, few_bytes), (some, most_bytes) = DEFAULT_BATCHES
    for values, rows in [
        (4, many),
        (few_bytes // 4 // many, many),
        (few_bytes // 4 // (some + 1), some + 1),
        (few_bytes // 4 // some, some),
        (most_bytes // 4 // some, some),
        (most_bytes // 4 // some + 1, some - 1),
        (most_bytes // 4, 1),
        (most_bytes, 1),
    ]:
        data = np.ones((2 * rows + 1, values), np.float32)
        assert shapes(open_data(data, [spec("n", "m")])) == [(rows, values), (rows, values), (1, values)]


def test_a_change_of_shape_ends_the_batch() -> None:
    items = [np.full((1, size), i, np.float32) for i, size in enumerate([5, 5, 7, 7, 7, 5])]
    data = open_data(items, [spec("n", "t")], DataOptions(batch_size=2))
    assert shapes(data) == [(2, 5), (2, 7), (1, 7), (1, 5)]
    assert [b.first for b in data.batches()] == [0, 2, 4, 5]


def test_shared_and_changing_scalars() -> None:
    inputs = [spec("n", 2), spec(name="rate", dtype=I64)]
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    shared = open_data({"x": x, "rate": np.array(8)}, inputs, DataOptions(batch_size=4))
    assert [(b.count, int(b.feeds["rate"])) for b in shared.batches()] == [(4, 8), (2, 8)]
    assert all(b.feeds["rate"].shape == () for b in shared.batches())
    changing = open_data({"x": x, "rate": np.array([8, 8, 8, 9, 9, 8])}, inputs, DataOptions(batch_size=4))
    assert [(b.count, int(b.feeds["rate"])) for b in changing.batches()] == [(3, 8), (2, 9), (1, 8)]


def test_streaming_model_with_state_and_scalar() -> None:
    inputs = [spec("batch", "t"), spec(2, "batch", 4, name="state"), spec(name="sr", dtype=I64)]
    stacks = {
        "x": np.arange(30, dtype=np.float32).reshape(3, 1, 10),
        "state": np.arange(24, dtype=np.float32).reshape(3, 2, 1, 4),
        "sr": np.array([16000] * 3),
    }
    batches = list(open_data(stacks, inputs).batches())
    assert [{k: x.shape for k, x in b.feeds.items()} for b in batches] == [
        {"x": (1, 10), "state": (2, 1, 4), "sr": ()}
    ] * 3
    shared = {"x": stacks["x"], "state": stacks["state"][0], "sr": np.array(16000)}
    for batch in open_data(shared, inputs).batches():
        np.testing.assert_array_equal(batch.feeds["state"], stacks["state"][0])


def test_fixed_batch_drops_what_does_not_fill_it(caplog: pytest.LogCaptureFixture) -> None:
    data = open_data(np.eye(11, 3, dtype=np.float32), [spec(4, 3)])
    with caplog.at_level(logging.WARNING, "requant"):
        assert [(b.first, b.count) for b in data.batches()] == [(0, 4), (4, 4)]
    message = "3 samples not used: too few to fill the model's fixed batch of 4"
    assert data.warnings == (message,)
    assert caplog.messages == [f"ndarray: {message}"]


@pytest.mark.parametrize(
    ("fixed", "count", "held"), [(1, 7, 0), (1, 8, 1), (1, 300, 32), (4, 31, 0), (4, 32, 4), (4, 1200, 128)]
)
def test_held_back_of_a_fixed_batch(fixed: int, count: int, held: int) -> None:
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    for source in (x, iter([x])):
        data = open_data(source, [spec(fixed, 3)], hold_back=True)
        used = list(data.batches())
        kept = list(data.held_back())
        assert sum(b.count for b in kept) == held
        assert [b.first for b in kept] == [fixed * (8 * i + 7) for i in range(held // fixed)]
        seen = np.concatenate([b.feeds["x"] for b in used + kept])
        np.testing.assert_array_equal(np.sort(seen[:, 0]), x[: count // fixed * fixed, 0])


def test_nothing_is_held_back_unless_asked() -> None:
    data = open_data(np.eye(40, dtype=np.float32), [spec("n", 40)])
    assert sum(b.count for b in data.batches()) == 40
    assert list(data.held_back()) == []


@pytest.mark.parametrize(
    ("source", "options", "expected"),
    [
        (
            np.ones((5, 3), np.float32),
            DataOptions(),
            "all 5 samples are identical: ranges will fit this one sample only",
        ),
        (np.eye(3, dtype=np.float32), DataOptions(samples=9), "9 samples were asked for and 3 are there; all are used"),
        (
            iter([np.eye(3, dtype=np.float32)]),
            DataOptions(samples=9),
            "9 samples were asked for and 3 are there; all are used",
        ),
    ],
)
def test_warnings(source: Any, options: DataOptions, expected: str) -> None:
    data = open_data(source, [spec("n", 3)], options)
    list(data.batches())
    assert data.warnings == (expected,)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (spec(2, 3), "batch_size 4 is not used: the model takes 2 at a time"),
        (spec("frames", 3), "batch_size 4 is not used: the model has no batch axis"),
    ],
)
def test_batch_size_that_the_model_does_not_take(model: InputSpec, expected: str) -> None:
    data = open_data(np.eye(4, 3, dtype=np.float32), [model], DataOptions(batch_size=4))
    assert data.warnings == (expected,)


def test_a_single_sample_is_not_called_constant() -> None:
    data = open_data(np.ones((1, 3), np.float32), [spec("n", 3)])
    list(data.batches())
    assert data.warnings == ()


@pytest.mark.parametrize(
    ("source", "samples", "expected"),
    [
        ({"x": np.eye(3, dtype=np.float32)}, None, "dict, 3 samples"),
        ([np.eye(3, dtype=np.float32)] * 2, 1, "list, 1 sample"),
        (iter([np.eye(3, dtype=np.float32)]), None, "list_iterator"),
    ],
)
def test_description(source: Any, samples: int | None, expected: str) -> None:
    data = open_data(source, [spec("n", 3)], DataOptions(samples=samples))
    assert data.description == expected


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.array([[1.5, -2.25]], np.float64), F32),
        (np.array([[1.5, -2.25]], np.float16), F32),
        (np.array([[1.5, -2.25]], np.float32), np.dtype(np.float16)),
        (np.array([[1.5, -2.25]], np.float32), np.dtype(np.float64)),
        (np.array([[1, 255]], np.uint8), I64),
        (np.array([[1, 2**31 - 1]], np.uint64), np.dtype(np.int32)),
        (np.array([[-128, 127]], np.int64), np.dtype(np.int8)),
        (np.array([[True, False]]), I64),
        (np.array([[0, 1]], np.int64), np.dtype(bool)),
        (np.array([[True, False]]), np.dtype(bool)),
    ],
)
def test_casts_that_keep_values(given: Any, wanted: np.dtype[Any]) -> None:
    x = next(open_data(given, [spec("n", 2, dtype=wanted)]).batches()).feeds["x"]
    assert x.dtype == wanted
    np.testing.assert_array_equal(x, given)


@pytest.mark.parametrize("size", [0, 2])
def test_one_input_may_be_empty_where_no_other_says_otherwise(size: int) -> None:
    inputs = [spec("n", 2), spec("n", "past", 3, name="cache"), spec("n", "past", name="mask")]
    arrays = {"x": np.ones((4, 2)), "cache": np.ones((4, 0, 3)), "mask": np.ones((4, size))}
    arrays = {name: x.astype(np.float32) for name, x in arrays.items()}
    if size:
        with pytest.raises(DataError, match="'cache' holds no values"):
            open_data(arrays, inputs)
    else:
        assert shapes(open_data(arrays, inputs), "cache") == [(4, 0, 3)]


def test_large_finite_values_whose_sum_overflows_are_fine() -> None:
    x = np.full((2, 4), 3e38, np.float32)
    x[1] = -3e38
    assert sum(b.count for b in open_data(x, [spec("n", 4)]).batches()) == 2


def test_breaking_off_a_pass_leaves_the_next_one_whole() -> None:
    data = open_data([np.eye(4, dtype=np.float32)] * 3, [spec("n", 4)], DataOptions(batch_size=2))
    next(data.batches())
    assert sum(b.count for b in data.batches()) == 12
