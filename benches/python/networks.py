"""Convolutional networks with random weights, made as real ones are: their costs are real, their answers are not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path


class Network:
    """A graph in the making, from the input ``x [n, 3, size, size]``."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(0)

    def op(self, kind: str, *sources: str, **attributes: Any) -> str:
        """The output of another node."""
        name = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, sources, [name], name=name, **attributes))
        return name

    def conv(
        self, source: str, into: int, out: int, kernel: int, *, stride: int = 1, group: int = 1, relu: bool = True
    ) -> str:
        """A convolution that keeps the size but for its stride."""
        shape = (out, into // group, kernel, kernel)
        weights = self._rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
        names = [f"w_{len(self._nodes)}", f"b_{len(self._nodes)}"]
        for name, array in zip(names, (weights, np.zeros(out, np.float32)), strict=True):
            self._weights.append(numpy_helper.from_array(array, name))
        pads, strides = [kernel // 2] * 4, [stride] * 2
        y = self.op("Conv", source, *names, group=group, kernel_shape=[kernel] * 2, pads=pads, strides=strides)
        return self.op("Relu", y) if relu else y

    def save(self, source: str, path: Path) -> None:
        """Write it, with ``source`` averaged as its output."""
        graph = helper.make_graph(
            self._nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, self.size, self.size])],
            [helper.make_tensor_value_info(self.op("GlobalAveragePool", source), TensorProto.FLOAT, None)],
            self._weights,
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def plain(path: Path, channels: int, blocks: int, *, depthwise: bool) -> int:
    """Blocks of a 3 x 3 and a 1 x 1 convolution at one size; returns the size of an input."""
    net = Network(112)
    x = net.conv("x", 3, channels, 3, stride=2)
    for _ in range(blocks):
        y = net.conv(x, channels, channels, 3, group=channels if depthwise else 1)
        x = net.op("Add", x, net.conv(y, channels, channels, 1))
    net.save(x, path)
    return net.size


def residual(path: Path) -> int:
    """ResNet-18 without its classifier (He et al. 2015), batch normalization folded."""
    net = Network(224)
    x = net.conv("x", 3, 64, 7, stride=2)
    x, channels = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
    for out in (64, 128, 256, 512):
        for stride in (1 if out == 64 else 2, 1):
            y = net.conv(net.conv(x, channels, out, 3, stride=stride), out, out, 3, relu=False)
            if channels != out:
                x = net.conv(x, channels, out, 1, stride=stride, relu=False)
            x, channels = net.op("Relu", net.op("Add", x, y)), out
    net.save(x, path)
    return net.size


def inverted(path: Path) -> int:
    """MobileNetV2 1.4 without its classifier (Sandler et al. 2018), batch normalization folded, ReLU for ReLU6."""
    net = Network(224)
    x, channels = net.conv("x", 3, 48, 3, stride=2), 48
    stages = (
        (1, 24, 1, 1),
        (6, 32, 2, 2),
        (6, 48, 3, 2),
        (6, 88, 4, 2),
        (6, 136, 3, 1),
        (6, 224, 3, 2),
        (6, 448, 1, 1),
    )
    for expansion, out, repeats, first_stride in stages:
        for stride in (first_stride, *[1] * (repeats - 1)):
            inner = channels * expansion
            y = x if expansion == 1 else net.conv(x, channels, inner, 1)
            y = net.conv(net.conv(y, inner, inner, 3, stride=stride, group=inner), inner, out, 1, relu=False)
            x, channels = net.op("Add", x, y) if stride == 1 and channels == out else y, out
    net.save(net.conv(x, channels, 1792, 1), path)
    return net.size
