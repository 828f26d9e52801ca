"""Pictures: layout, colour, size, normalisation, and what is refused."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from requant.data import DataOptions, ImageOptions, InputSpec, open_data
from requant.errors import ConfigError, DataError, MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

Image = pytest.importorskip("PIL.Image")

F32, U8 = np.dtype(np.float32), np.dtype(np.uint8)
PIXELS = np.random.default_rng(5).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def spec(*shape: int | str | None, dtype: Any = F32) -> InputSpec:
    return InputSpec("image", np.dtype(dtype), shape)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def load(source: object, model: InputSpec, **options: Any) -> np.ndarray[Any, Any]:
    data = open_data(source, [model], DataOptions(image=ImageOptions(**options)))
    x: np.ndarray[Any, Any] = next(data.batches()).feeds["image"]
    return x


UNIT = PIXELS.astype(np.float32) * np.float32(1 / 255)


@pytest.mark.parametrize(
    ("model", "options", "expected"),
    [
        (spec("n", 3, 8, 6), {}, UNIT.transpose(2, 0, 1)[None]),
        (spec(1, 3, 8, 6), {}, UNIT.transpose(2, 0, 1)[None]),
        (spec("n", 8, 6, 3), {}, UNIT[None]),
        (spec("n", 3, "h", "w"), {}, UNIT.transpose(2, 0, 1)[None]),
        (spec("n", None, None, 3), {}, UNIT[None]),
        (spec(3, 8, 6), {}, UNIT.transpose(2, 0, 1)),
        (spec(8, 6, 3), {}, UNIT),
        (spec("n", "c", "h", "w"), {"layout": "nhwc"}, UNIT[None]),
        (spec("n", 3, 8, 6), {"color": "bgr"}, UNIT[..., ::-1].transpose(2, 0, 1)[None]),
        (spec("n", 3, 8, 6), {"scale": 1.0}, PIXELS.astype(np.float32).transpose(2, 0, 1)[None]),
        (spec("n", 8, 6, 3, dtype=U8), {}, PIXELS[None]),
        (spec("n", 8, 6, 3, dtype=np.float64), {}, UNIT[None].astype(np.float64)),
        (
            spec("n", 8, 6, 3),
            {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)},
            (UNIT - np.array([0.5, 0.4, 0.3], np.float32))[None] / np.array([0.2, 0.3, 0.4], np.float32),
        ),
        (spec("n", 8, 6, 3), {"mean": 0.5, "std": 0.5}, (UNIT[None] - np.float32(0.5)) / np.float32(0.5)),
    ],
)
def test_tensor(picture: Path, model: InputSpec, options: dict[str, Any], expected: np.ndarray[Any, Any]) -> None:
    x = load(picture, model, **options)
    assert x.dtype == model.dtype
    np.testing.assert_array_equal(x, expected)


def test_gray(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "g.png")
    np.testing.assert_array_equal(load(tmp_path, spec("n", 1, 8, 6))[0, 0], UNIT[..., 0])
    x = load(tmp_path, spec("n", 8, 6, 3))[0]
    np.testing.assert_array_equal(x, np.repeat(UNIT[..., :1], 3, axis=2))


def test_transparent_colours_of_a_palette_are_taken_without_a_word(tmp_path: Path) -> None:
    colours = np.arange(12, dtype=np.uint8).reshape(4, 3)
    image = Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8), "P")
    image.putpalette(colours.tobytes())
    image.save(tmp_path / "x.png", transparency=b"\x00\x80\xff\xff")
    x = load(tmp_path / "x.png", spec("n", 2, 2, 3, dtype=U8))
    np.testing.assert_array_equal(x.reshape(4, 3), colours)


@pytest.mark.parametrize(
    ("resize", "expected"),
    [
        ("crop", [[1, 1], [1, 1]]),  # the white middle square
        ("stretch", [[0.5, 0.5], [0.5, 0.5]]),  # half of each side is black
        ("pad", [[0, 0], [0, 0]]),  # replaced below: black bars above and below
    ],
)
def test_resize_policies(tmp_path: Path, resize: str, expected: list[list[float]]) -> None:
    wide = np.zeros((16, 32), np.uint8)
    wide[:, 8:24] = 255
    Image.fromarray(wide).save(tmp_path / "w.png")
    x = load(tmp_path, spec("n", 1, 16, 16), resize=resize)[0, 0]
    assert x.shape == (16, 16)
    if resize == "pad":
        assert not x[:4].any()
        assert not x[12:].any()
        assert x[4:12].mean() == pytest.approx(0.5, abs=0.02)
    else:
        quarters = x.reshape(2, 8, 2, 8).mean(axis=(1, 3))
        np.testing.assert_allclose(quarters, expected, atol=0.02)


def test_pictures_keep_their_size_where_the_model_allows(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(4, 5), (4, 5), (6, 5)]):
        Image.fromarray(np.full((height, width, 3), i, np.uint8)).save(tmp_path / f"{i}.png")
    model = spec("n", 3, "h", "w")
    shapes = [b.feeds["image"].shape for b in open_data(tmp_path, [model]).batches()]
    assert shapes == [(2, 3, 4, 5), (1, 3, 6, 5)]
    assert load(tmp_path, model, size=(7, 9)).shape == (3, 3, 7, 9)


def test_folders_in_natural_order_without_hidden_files(tmp_path: Path) -> None:
    for i in (10, 2, 1):
        (tmp_path / f"class{i}").mkdir()
        Image.fromarray(np.full((2, 2, 3), i, np.uint8)).save(tmp_path / f"class{i}" / "a.JPG", "png")
    (tmp_path / "._junk.png").write_bytes(b"junk")
    (tmp_path / "labels.txt").write_text("ignored")
    data = open_data(tmp_path, [spec("n", 2, 2, 3, dtype=U8)])
    assert data.description == f"{tmp_path.name}, 3 samples"
    assert next(data.batches()).feeds["image"][:, 0, 0, 0].tolist() == [1, 2, 10]


@pytest.mark.parametrize(
    ("model", "options", "error", "message"),
    [
        (spec("n", 10), {}, DataError, "the model does not take pictures"),
        (spec("n", 4, 8, 6), {}, ConfigError, "the channels cannot be told from float32 [n, 4, 8, 6]"),
        (spec("n", "c", "h", "w"), {}, ConfigError, "the channels cannot be told from float32 [n, c, h, w]"),
        (spec("n", 4, 8, 6), {"layout": "nchw"}, DataError, "the colour of the pictures does not fit the model"),
        (spec("n", 3, 8, 6), {"color": "gray"}, DataError, "the colour of the pictures does not fit the model"),
        (spec("n", 3, 8, 6), {"size": (9, 9)}, ConfigError, "image size (9, 9) does not fit the model's float32"),
        (spec("n", 3, 8, "w"), {}, ConfigError, "one side of float32 [n, 3, 8, w] is dynamic"),
        (spec("n", 3, 8, 6), {"mean": (0.1, 0.2)}, ConfigError, "image mean has 2 values; rgb has 3 channels"),
        (spec("n", 3, 8, 6, dtype=U8), {"scale": 0.5}, ConfigError, "scale, mean and std are for float inputs"),
    ],
)
def test_refused(picture: Path, model: InputSpec, options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error) as caught:
        open_data(picture, [model], DataOptions(image=ImageOptions(**options)))
    assert str(caught.value).startswith(message)
    assert str(caught.value).count("\n") < 5


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + bytes(20)])
@pytest.mark.parametrize("shape", [("n", 3, 8, 6), ("n", 3, "h", "w")])
def test_damaged_picture(tmp_path: Path, content: bytes, shape: tuple[Any, ...]) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"picture bad.png cannot be read: .*\nhelp: the file is damaged"):
        list(open_data(tmp_path, [spec(*shape)]).batches())


def test_truncated_picture(picture: Path) -> None:
    picture.write_bytes(picture.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"picture a.png cannot be read: "):
        list(open_data(picture, [spec("n", 3, 8, 6)]).batches())


def test_sixteen_bit_and_too_big(tmp_path: Path, picture: Path) -> None:
    Image.fromarray(np.full((8, 6), 40_000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"picture deep.png has mode I;16, not 8 bits a channel"):
        list(open_data(tmp_path / "deep.png", [spec("n", 1, 8, 6)]).batches())
    with pytest.raises(DataError, match=r"picture a.png is too big\n  expected at most 100 bytes\n  got 6 x 8"):
        list(open_data(picture, [spec("n", 3, 8, 6)], DataOptions(max_bytes=100)).batches())


def test_without_pillow(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_data(picture, [spec("n", 3, 8, 6)])
    assert str(caught.value) == (
        "reading pictures needs pillow, which is not installed\nhelp: pip install 'requant[images]'"
    )
