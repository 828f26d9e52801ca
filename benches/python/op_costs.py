"""What onnxruntime takes for ops on floats and on integers, from which the costs of target ort-cpu are made.

    .venv/bin/python benches/python/op_costs.py

A line for each op and shape: microseconds in onnxruntime's profile on one thread, float and integer, between ops of
the same side; of an activation that a float convolution takes along (Sigmoid, LeakyRelu), with that convolution. After
the convolutions of images, dense, grouped and depthwise, the costs fitted to their lines, and the relative error that
is left: microseconds of a call, then nanoseconds for each element of the output, tap, row and group at a tap, element
of a window, and product; of depthwise ones element of the output, tap, element of a window, and such an element in
channels beyond whole lanes (see ``Cost``). A profile takes one to two microseconds of each call itself.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.models import Net

import requant
from requant.runtime import profile
from requant.serialized import SerializedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RUNS = 25
SIZES = (14, 28, 56)
PRODUCTS = ((1, 512, 512), (64, 256, 256), (128, 128, 512), (128, 512, 128), (128, 512, 512), (196, 192, 768))
GROUPED = ((32, 64, 4), (64, 64, 8), (64, 128, 16), (96, 96, 24), (64, 64, 32), (64, 128, 64))
CHANNELS = (
    *((1, 16), (3, 16), (3, 32), (8, 8), (8, 32), (16, 4), (16, 64), (32, 1), (32, 32), (64, 16), (64, 64)),
    *((40, 160), (192, 96), (128, 256)),
)
ALONG = (
    (1, 258, 256, 640),
    (16, 64, 3, 400),
    (32, 32, 7, 1000),
    (80, 384, 3, 800),
    (192, 96, 1, 400),
    (128, 128, 3, 4),
)
OPS: dict[str, Callable[[Net, str, int], str]] = {
    "Add": lambda net, x, c: net.op("Add", x, net.conv(x, c, c, 1), name="it"),
    "Mul": lambda net, x, c: net.op("Mul", x, net.conv(x, c, c, 1), name="it"),
    "Concat": lambda net, x, c: net.op("Concat", x, net.conv(x, c, c, 1), axis=1, name="it"),
    "Sigmoid": lambda net, x, _: net.op("Sigmoid", x, name="it"),
    "LeakyRelu": lambda net, x, _: net.op("LeakyRelu", x, name="it"),
    "Softmax": lambda net, x, _: net.op("Softmax", x, axis=-1, name="it"),
    "Softmax across": lambda net, x, _: net.op("Softmax", x, axis=1, name="it"),
    "AveragePool": lambda net, x, _: net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, name="it"),
    "GlobalAveragePool": lambda net, x, _: net.op("GlobalAveragePool", x, name="it"),
    "Resize": lambda net, x, _: net.op(
        "Resize",
        x,
        "",
        net.const([1.0, 1.0, 2.0, 2.0]),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
        name="it",
    ),
}


def microseconds(model: bytes, feeds: dict[str, Any]) -> float:
    """What the node ``it`` takes: fused nodes are named by what they give, quantized ones by a number in addition."""
    events = profile(SerializedModel(model), feeds, RUNS)
    return sum(event.microseconds for event in events if event.name.split("_")[0] == "it")


def both(op: Callable[[Net, str, int], str], channels: int, size: int) -> tuple[float, float]:
    """Microseconds on floats and on integers; 0 where the runtime fuses the op into another."""
    net = Net()
    x = net.input("x", [1, channels, size, size])
    op(net, net.conv(x, channels, channels, 1) if channels > 3 else x, channels)
    net.nodes[-1].output[0] = "it"
    out = 2 * channels if net.nodes[-1].op_type == "Concat" else channels
    if net.nodes[-1].op_type == "Conv":
        out = next(w.dims[0] for w in net.initializers if w.name == net.nodes[-1].input[1])
    model = net.model(net.conv("it", out, 8, 1))
    data = net.rng.standard_normal((2, channels, size, size)).astype(np.float32)
    whole = requant.quantize(model, data, rounding="nearest", balance=False, include=(".*",))
    return microseconds(model.SerializeToString(), {"x": data[:1]}), microseconds(whole.data, {"x": data[:1]})


def fitted(rows: list[tuple[list[float], float]]) -> str:
    """Coefficients that fit, none of them negative, and the relative error that is left, root mean square."""
    sizes = np.array([row for row, _ in rows]) / np.array([time for _, time in rows])[:, None]
    kept = [i for i in range(sizes.shape[1]) if sizes[:, i].any()]
    while True:
        found = np.linalg.lstsq(sizes[:, kept], np.ones(len(rows)), rcond=None)[0]
        if found.min() >= 0:
            break
        del kept[int(found.argmin())]
    error = float(np.sqrt(np.mean((sizes[:, kept] @ found - 1) ** 2)))
    coefficients = dict(zip(kept, found, strict=True))
    return f"{' '.join(f'{coefficients.get(i, 0.0):.4f}' for i in range(sizes.shape[1]))}, error {error:.2f}"


def convolutions(shapes: Sequence[tuple[int, int, int]], kernels: Sequence[int]) -> None:
    """Convolutions of ``shapes``: input channels, output channels and groups of each."""
    rows: dict[tuple[int, int], list[Any]] = {(side, lanes): [] for side in (0, 1) for lanes in (8, 16)}
    for shape in shapes:
        c, n, group = shape
        for k in kernels:
            for size in SIZES:
                times = both(lambda net, x, _: net.conv(x, c, n, k, group=group, name="it"), c, size)  # noqa: B023
                what = f"Conv {c:4} -> {n:4}, {k} x {k}, group {group:3}, {size} x {size}"
                print(f"{what}: {times[0]:.0f} {times[1]:.0f}")
                for (side, lanes), each in rows.items():
                    if times[side]:
                        each.append((terms(shape, k, size, lanes), times[side]))
    for (side, lanes), each in rows.items():
        print(("float", "integer")[side], f"with {lanes} lanes:", fitted(each), flush=True)


def terms(shape: tuple[int, int, int], k: int, size: int, lanes: int) -> list[float]:
    """What the time of a convolution is linear in."""
    c, n, group = shape
    places, taps = size**2 / 1e3, size**2 * k**2 / 1e3
    if c == n == group:
        return [1, places * n, taps, taps * c, taps * (c % lanes)]
    several = group > 1
    products = taps * (c // group) * -(-n // group // lanes) * lanes * group
    return [1, places * n, taps, several * taps / size * c, several * taps * group, taps * c, products]


def along(shapes: Sequence[tuple[int, int, int, int]]) -> None:
    """Convolutions of ``shapes`` along one axis: input channels, output channels, kernel and positions of each."""
    for c, n, k, size in shapes:
        net = Net()
        x, w = net.input("x", [1, c, size]), net.normal(n, c, k, scale=(c * k) ** -0.5)
        net.op("Conv", x, w, pads=[k // 2, (k - 1) // 2], name="it", output="it")
        model = net.model(net.op("Conv", "it", net.normal(8, n, 1, scale=n**-0.5)))
        data = net.rng.standard_normal((2, c, size)).astype(np.float32)
        whole = requant.quantize(model, data, rounding="nearest", balance=False, include=(".*",))
        times = [microseconds(each, {"x": data[:1]}) for each in (model.SerializeToString(), whole.data)]
        each = [1e3 * time / (c * n * k * size) for time in times]
        print(
            f"Conv {c:4} -> {n:4}, {k} along {size}: {times[0]:.0f} {times[1]:.0f};"
            f" ns for each product {each[0]:.4f} {each[1]:.4f}",
            flush=True,
        )


def products(shapes: Sequence[tuple[int, int, int]]) -> None:
    """MatMuls of ``shapes``: rows, terms and columns of each."""
    for rows, terms, columns in shapes:
        net = Net()
        x = net.input("x", [rows, terms])
        model = net.model(net.op("MatMul", x, net.const(net.rng.standard_normal((terms, columns))), name="it"))
        data = net.rng.standard_normal((2 * rows, terms)).astype(np.float32)
        feeds = [{"x": half} for half in np.split(data, 2)]
        whole = requant.quantize(model, feeds, rounding="nearest", threads=1)
        times = [microseconds(each, feeds[0]) for each in (model.SerializeToString(), whole.data)]
        each = [1e3 * time / (rows * terms * columns) for time in times]
        print(
            f"MatMul {rows} x {terms} x {columns}: {times[0]:.0f} {times[1]:.0f};"
            f" ns for each product {each[0]:.4f} {each[1]:.4f}",
            flush=True,
        )


def main() -> None:
    products(PRODUCTS)
    along(ALONG)
    convolutions([(c, n, 1) for c, n in CHANNELS], (1, 3, 5))
    convolutions(GROUPED, (1, 3, 5))
    convolutions([(c, c, c) for c in (16, 24, 64, 72, 128)], (3, 5, 7))
    for name, op in OPS.items():
        for channels, size in ((16, 14), (16, 56), (64, 28), (64, 56)):
            times = both(op, channels, size)
            each = [1e3 * time / (channels * size**2) for time in times]
            print(
                f"{name} of {channels} x {size} x {size}: {times[0]:.0f} {times[1]:.0f};"
                f" ns for each input element {each[0]:.2f} {each[1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
