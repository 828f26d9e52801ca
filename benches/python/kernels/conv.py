"""Integer convolution, channels last."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import peers
from harness import PEAK, Claim, Row

import requant

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Side, channels, filters, kernel, groups.
DENSE = ((56, 64, 64, 3, 1), (14, 256, 256, 3, 1), (28, 128, 256, 1, 1))
DEPTHWISE = ((112, 32, 32, 3, 32), (14, 256, 256, 3, 256), (28, 128, 128, 5, 128))
WEIGHT_ZERO_POINT = {"u8": 121, "s8": 0}


def rows(vnni: bool) -> Iterator[Row]:
    """The peer takes images with channels last too, so nothing is counted but its convolution."""
    exact = f"onnxruntime QLinearConv u8{'s8' if vnni else 'u8'}"  # without VNNI its dense u8s8 kernel saturates
    for layer in DENSE:
        claims = [Claim("u8s8 to u8", exact, 1.1 if vnni else 1), Claim("u8s8 to u8", PEAK, 0.7 if vnni else 0.65)]
        yield row(layer, claims)
    peer = "onnxruntime QLinearConv u8s8"  # its depthwise kernel adds in 32 bits
    for layer, at_least in zip(DEPTHWISE, (3.0, 2.5, 2.5), strict=True):
        yield row(layer, [Claim("u8s8 to u8", peer, at_least), Claim("u8s8 to u8", "onnxruntime Conv float32", 1.3)])


def row(layer: tuple[int, int, int, int, int], claims: list[Claim]) -> Row:
    side, channels, filters, kernel, groups = layer
    rng = np.random.default_rng(0)
    shape = (filters, channels // groups, kernel, kernel)
    x = rng.integers(0, 256, (1, side, side, channels), np.uint8)
    first = np.ascontiguousarray(np.moveaxis(x, -1, 1)).astype(np.float32)
    weights = {"u8": rng.integers(0, 256, shape, np.uint8), "s8": rng.integers(-128, 128, shape, np.int8)}
    pads = [kernel // 2] * 4
    w_scale = (rng.random(filters) * 0.01 + 0.01).astype(np.float32)
    requantizer = requant.Requantizer(0.02, w_scale, 3.0, y_zero_point=128)
    out = np.empty((1, side, side, filters), np.uint8)
    runs = {}
    for name, w in weights.items():
        packed = requant.PackedConv(w, zero_point=WEIGHT_ZERO_POINT[name], pads=pads, groups=groups)
        runs[f"u8{name} to u8"] = lambda packed=packed: requant.qconv2d(
            x, packed, x_zero_point=128, requantizer=requantizer, threads=1, out=out
        )
        w_zero_point = np.full(filters, WEIGHT_ZERO_POINT[name], w.dtype)
        zero_point = np.asarray(128, np.uint8)
        constants = {
            "x_scale": np.asarray(0.02, np.float32),
            "x_zero_point": zero_point,
            "w": w,
            "w_scale": w_scale,
            "w_zero_point": w_zero_point,
            "y_scale": np.asarray(3, np.float32),
            "y_zero_point": zero_point,
        }
        attributes = {"domain": "com.microsoft", "channels_last": 1, "pads": pads, "group": groups}
        runs[f"onnxruntime QLinearConv u8{name}"] = peers.one_node(
            "QLinearConv", x, constants, output=np.uint8, **attributes
        )
    runs["onnxruntime Conv float32"] = peers.one_node(
        "Conv", first, {"w": weights["s8"].astype(np.float32)}, output=np.float32, pads=pads, group=groups
    )
    wrong = np.mean(runs["u8s8 to u8"]() != runs["onnxruntime QLinearConv u8s8"]()[0])
    note = f"{wrong:.0%} of the results of onnxruntime's u8s8 are wrong: it saturates" if wrong else ""
    kind = "depthwise" if groups > 1 else "pointwise" if kernel == 1 else "dense"
    title = f"{kind} {kernel}x{kernel}, {side}x{side}x{channels} to {filters}"
    operations = 2 * side * side * filters * (channels // groups) * kernel**2
    return Row("convolution", title, operations, "op", runs, tuple(claims), note)
