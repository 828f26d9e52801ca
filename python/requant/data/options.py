"""What a user may say about data: how many samples, in which batches, and how pictures become tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from requant.errors import ConfigError

Layout = Literal["nchw", "nhwc"]
Color = Literal["rgb", "bgr", "gray"]
Resize = Literal["crop", "stretch", "pad"]
PerChannelValue = float | tuple[float, ...]

MAX_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class ImageOptions:
    """How a picture becomes a tensor: ``(pixel * scale - mean) / std``, channel by channel, in float32.

    Attributes:
        size: ``(height, width)``; None takes the model's, and where that is dynamic too, each picture's own.
        scale: Factor for the 8-bit pixels; None is 1/255 for a float input and no scaling for an integer one.
        mean: Subtracted after scaling; one value, or one for each channel.
        std: Divisor after the mean; one value, or one for each channel.
        layout: ``"nchw"`` or ``"nhwc"``; None finds the channels in the model's shape.
        color: ``"rgb"``, ``"bgr"`` or ``"gray"``; None is gray for one channel and rgb for three.
        resize: ``"crop"`` fills the size and cuts the centre out, ``"stretch"`` ignores the aspect ratio, ``"pad"``
            fits the whole picture and fills with black. Bilinear, antialiased.
    """

    size: tuple[int, int] | None = None
    scale: float | None = None
    mean: PerChannelValue = 0.0
    std: PerChannelValue = 1.0
    layout: Layout | None = None
    color: Color | None = None
    resize: Resize = "crop"

    def __post_init__(self) -> None:
        _choice("layout", self.layout, (None, *get_args(Layout)))
        _choice("color", self.color, (None, *get_args(Color)))
        _choice("resize", self.resize, get_args(Resize))
        height, width = self.size or (1, 1)
        if min(height, width) < 1:
            raise ConfigError(f"image size must be (height, width), both at least 1; got {self.size}")
        numbers = {"scale": (self.scale or 0.0,), "mean": as_tuple(self.mean), "std": as_tuple(self.std)}
        for name, values in numbers.items():
            if not values or not all(map(math.isfinite, values)):
                raise ConfigError(f"image {name} must be finite numbers; got {getattr(self, name)}")
        if self.scale == 0 or 0 in as_tuple(self.std):
            raise ConfigError("image scale and std must not be 0")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which samples are used, and how they are cut into batches.

    Attributes:
        samples: Use the first ``samples``; None uses all.
        batch_size: Rows in a batch where the model's batch is dynamic; None lets the size of a row decide
            (``requant.data.grouping``). A model with a fixed batch is always fed exactly that.
        seed: With ``samples``, draw them at random instead of taking the first; their order is kept.
        image: How pictures become tensors.
        max_bytes: Largest single array, sample or picture held in memory; bigger ones are refused.
    """

    samples: int | None = None
    batch_size: int | None = None
    seed: int | None = None
    image: ImageOptions = field(default_factory=ImageOptions)
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("batch_size", 1), ("seed", 0), ("max_bytes", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} must be at least {least}; got {value}")


def as_tuple(value: PerChannelValue) -> tuple[float, ...]:
    """A value for each channel, or the one for all."""
    return tuple(map(float, value)) if isinstance(value, tuple | list) else (float(value),)


def _choice(name: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        choices = ", ".join(str(k) for k in known if k is not None)
        raise ConfigError(f"unknown image {name} {value!r}", hint=f"choose one of {choices}")
