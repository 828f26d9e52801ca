"""Pictures as samples, decoded one at a time; the only importer of pillow.

Pixels are taken as stored: EXIF orientation is not applied and alpha is dropped, as training pipelines do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from requant.data.options import ImageOptions, as_tuple
from requant.data.spec import InputSpec, fixed_size, mismatch
from requant.errors import ConfigError, DataError, MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import ModuleType

    from PIL.Image import Image

    from requant.data.convert import Array
    from requant.data.options import Color, DataOptions, Layout, Resize

_CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
_OPTIONS = "ImageOptions(color=..., layout=...) (--image-color, --image-layout)"
_EIGHT_BIT = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything needed to turn a picture into a sample: ``ImageOptions`` with nothing left open but a dynamic size.

    Attributes:
        size: ``(height, width)``, or None for each picture's own.
        scale: Factor, or None to keep the 8-bit integers.
        mean: One float32 value, or one for each channel.
        std: Likewise.
    """

    size: tuple[int, int] | None
    layout: Layout
    color: Color
    resize: Resize
    scale: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_bytes: int


class Picture:
    """One picture as an array ``[1, C, H, W]`` or ``[1, H, W, C]``, decoded when its row is asked for."""

    def __init__(self, path: Path, where: str, frame: Frame) -> None:
        self._path, self._where, self._frame = path, where, frame
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if frame.scale is None else np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        """Read from the header where pictures keep their size."""
        if self._frame.size is None:
            with self._open() as image:
                width, height = image.size
        else:
            height, width = self._frame.size
        channels = _CHANNELS[self._frame.color]
        return (1, channels, height, width) if self._frame.layout == "nchw" else (1, height, width, channels)

    def __getitem__(self, index: int) -> Array:
        """The picture as a sample, ``[C, H, W]`` or ``[H, W, C]``."""
        frame = self._frame
        try:
            with self._open() as image:
                pixels = np.asarray(_resized(_eight_bit(image, frame.color, self._where), frame))
        except (OSError, SyntaxError, ValueError) as error:
            raise _unreadable(self._where, error) from error
        x = np.atleast_3d(pixels)
        if frame.color == "bgr":
            x = x[..., ::-1]
        if frame.scale is not None:
            x = x.astype(np.float32) * np.float32(frame.scale)
            x = (x - np.array(frame.mean, np.float32)) / np.array(frame.std, np.float32)
        return np.ascontiguousarray(x.transpose(2, 0, 1) if frame.layout == "nchw" else x)

    def _open(self) -> Image:
        pil = _pillow()
        try:
            image: Image = pil.open(self._path)
        except (OSError, SyntaxError, ValueError, pil.DecompressionBombError) as error:
            raise _unreadable(self._where, error) from error
        width, height = image.size
        if width * height * 4 > self._frame.max_bytes:
            image.close()
            raise mismatch(
                f"picture {self._where} is too big", f"at most {self._frame.max_bytes:,} bytes", f"{width} x {height}"
            )
        return image


def frame_of(inputs: Sequence[InputSpec], options: DataOptions) -> Frame:
    """What the options leave open, decided by the shape and dtype of the model's input.

    Raises:
        DataError: the model does not take one picture.
        ConfigError: the options contradict the model, or leave open what its shape does not tell.
    """
    _pillow()
    image = options.image
    if len(inputs) != 1 or len(inputs[0].shape) not in (3, 4):
        shapes = "; ".join(f"{s.name!r}: {s}" for s in inputs[:3])
        raise mismatch(
            "the model does not take pictures",
            "one input [batch, channels, height, width] or [batch, height, width, channels]",
            shapes,
            "prepare the inputs and give an .npz keyed by input name",
        )
    spec = inputs[0]
    dims = [fixed_size(d) for d in spec.shape[-3:]]
    layout = image.layout or _layout(dims, spec)
    channels = dims[0] if layout == "nchw" else dims[2]
    color: Color = image.color or ("gray" if channels == 1 else "rgb")
    if channels not in (None, _CHANNELS[color]):
        raise mismatch(
            "the colour of the pictures does not fit the model",
            f"{channels} channels for {spec}, {layout}",
            f"{_CHANNELS[color]} ({color})",
            f"set {_OPTIONS}; other than 1 or 3 channels need an .npz",
        )
    for name, values in (("mean", as_tuple(image.mean)), ("std", as_tuple(image.std))):
        if len(values) not in (1, _CHANNELS[color]):
            raise ConfigError(f"image {name} has {len(values)} values; {color} has {_CHANNELS[color]} channels")
    return Frame(
        _size(dims[1:] if layout == "nchw" else dims[:2], spec, image),
        layout,
        color,
        image.resize,
        _scale(spec, image),
        as_tuple(image.mean),
        as_tuple(image.std),
        options.max_bytes,
    )


def _layout(dims: list[int | None], spec: InputSpec) -> Layout:
    if dims[0] in (1, 3):
        return "nchw"
    if dims[2] in (1, 3):
        return "nhwc"
    raise ConfigError(
        f"the channels cannot be told from {spec}", hint=f"set {_OPTIONS}; other than 1 or 3 channels need an .npz"
    )


def _size(dims: list[int | None], spec: InputSpec, image: ImageOptions) -> tuple[int, int] | None:
    height, width = dims
    if image.size is not None:
        if height not in (None, image.size[0]) or width not in (None, image.size[1]):
            raise ConfigError(
                f"image size {image.size} does not fit the model's {spec}", hint="leave size out (--image-size)"
            )
        return image.size
    if height is not None and width is not None:
        return height, width
    if height is None and width is None:
        return None
    raise ConfigError(
        f"one side of {spec} is dynamic", hint="set ImageOptions(size=(height, width)) (--image-size HxW)"
    )


def _scale(spec: InputSpec, image: ImageOptions) -> float | None:
    if spec.dtype.kind == "f":
        return 1 / 255 if image.scale is None else image.scale
    if image.scale is not None or any(as_tuple(image.mean)) or set(as_tuple(image.std)) != {1.0}:
        raise ConfigError(f"scale, mean and std are for float inputs; the model takes {spec}", hint="leave them out")
    return None


def _eight_bit(image: Image, color: str, where: str) -> Image:
    if image.mode not in _EIGHT_BIT:
        raise DataError(f"picture {where} has mode {image.mode}, not 8 bits a channel", hint="convert it to 8-bit")
    if "transparency" in image.info:  # of a palette: pillow warns where it is dropped at once
        image = image.convert("RGBA")
    return image.convert("L" if color == "gray" else "RGB")


def _resized(image: Image, frame: Frame) -> Image:
    if frame.size is None or image.size == (size := frame.size[::-1]):
        return image
    from PIL import ImageOps
    from PIL.Image import Resampling

    if frame.resize == "stretch":
        return image.resize(size, Resampling.BILINEAR)
    if frame.resize == "pad":
        return ImageOps.pad(image, size, Resampling.BILINEAR)
    return ImageOps.fit(image, size, Resampling.BILINEAR)


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "reading pictures needs pillow, which is not installed", hint="pip install 'requant[images]'"
        ) from error
    return Image


def _unreadable(where: str, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    reason = str(error).partition("\n")[0]
    return DataError(f"picture {where} cannot be read: {reason}", hint="the file is damaged or of another kind")
