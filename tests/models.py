"""Tiny ONNX models, built in code: nothing binary lies in the repository.

    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    model = net.model(net.op("Relu", net.conv(x, 3, 4)))

Weights are drawn from a generator with a fixed seed, so a model is the same bytes each time it is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

Array = NDArray[Any]
Dim = int | str


class Net:
    """A graph under construction: each method adds to it and returns the name of the tensor it gives."""

    def __init__(self, opset: int = 17, *, seed: int = 0, ir_version: int = 8) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset, self.ir_version = opset, ir_version
        self.opsets: list[onnx.OperatorSetIdProto] = []  # of other domains
        self.inputs: list[onnx.ValueInfoProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, name: str, shape: Sequence[Dim], dtype: int = TensorProto.FLOAT) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def const(self, value: Any, name: str | None = None) -> str:
        """An initializer; floats become float32."""
        array = np.asarray(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def normal(self, *shape: int, scale: float = 1.0, name: str | None = None) -> str:
        """A constant of normally distributed values."""
        return self.const(self.rng.standard_normal(shape) * scale, name)

    def op(self, op_type: str, *inputs: str, output: str | None = None, name: str | None = None, **attrs: Any) -> str:
        """A node with one output."""
        return self.ops(op_type, *inputs, outputs=[output or f"t{len(self.nodes)}"], name=name, **attrs)[0]

    def ops(self, op_type: str, *inputs: str, outputs: list[str], name: str | None = None, **attrs: Any) -> list[str]:
        """A node with several outputs; it is named ``n`` and its position unless ``name`` says otherwise."""
        name = f"n{len(self.nodes)}" if name is None else name
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=name, **attrs))
        return outputs

    def conv(self, x: str, channels: int, out: int, kernel: int = 3, *, bias: bool = True, **attrs: Any) -> str:
        """A convolution that keeps the size; ``attrs`` may hold ``group`` and ``name``."""
        fan_in = channels // attrs.get("group", 1)
        w = self.normal(out, fan_in, kernel, kernel, scale=(fan_in * kernel**2) ** -0.5)
        rest = [self.normal(out, scale=0.1)] if bias else []
        return self.op("Conv", x, w, *rest, pads=[kernel // 2] * 4, **attrs)

    def gemm(self, x: str, features: int, out: int, *, bias: bool = True, trans_b: int = 0, **attrs: Any) -> str:
        w = self.normal(*((out, features) if trans_b else (features, out)), scale=features**-0.5)
        rest = [self.normal(out, scale=0.1)] if bias else []
        return self.op("Gemm", x, w, *rest, transB=trans_b, **attrs)

    def batch_norm(self, x: str, channels: int, **attrs: Any) -> str:
        gamma, beta, mean = (self.normal(channels) for _ in range(3))
        var = self.const(self.rng.uniform(0.2, 3.0, channels))
        return self.op("BatchNormalization", x, gamma, beta, mean, var, **attrs)

    def model(self, *outputs: str) -> onnx.ModelProto:
        """The whole model; types and shapes of its outputs are inferred, those of inner tensors left out."""
        graph = helper.make_graph(
            self.nodes, "g", self.inputs, [onnx.ValueInfoProto(name=name) for name in outputs], self.initializers
        )
        opsets = [helper.make_opsetid("", self.opset), *self.opsets]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        del model.graph.output[:]
        model.graph.output.extend(inferred.graph.output)
        return model


def conv_relu() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    return net.model(net.op("Relu", net.conv(x, 3, 4), output="y"))


def two_gemm() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 8])
    hidden = net.op("Relu", net.gemm(x, 8, 16, name="first"))
    return net.model(net.gemm(hidden, 16, 4, name="second", output="y"))


def residual() -> onnx.ModelProto:
    """conv -> relu -> conv -> add -> relu -> conv: the add joins two chains."""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    stem = net.op("Relu", net.conv(x, 3, 4, name="stem"), output="stem_out")
    branch = net.conv(stem, 4, 4, name="branch")
    joined = net.op("Relu", net.op("Add", branch, stem, name="join"), output="joined")
    return net.model(net.conv(joined, 4, 2, name="last", output="y"))


def concat() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    left, right = net.conv(x, 3, 4, name="left"), net.conv(x, 3, 2, 1, name="right")
    both = net.op("Concat", left, right, axis=1, name="both")
    return net.model(net.conv(both, 6, 2, name="last", output="y"))


def pool_chain() -> onnx.ModelProto:
    """conv -> relu -> maxpool -> conv -> globalaveragepool -> flatten -> gemm."""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.op("Relu", net.conv(x, 3, 4))
    b = net.op("MaxPool", a, kernel_shape=[2, 2], strides=[2, 2], name="pool")
    c = net.op("GlobalAveragePool", net.conv(b, 4, 8), name="gap")
    return net.model(net.gemm(net.op("Flatten", c, name="flat"), 8, 5, output="y"))


def silu() -> onnx.ModelProto:
    """conv -> x * sigmoid(x) -> conv."""
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    a = net.conv(x, 3, 4)
    b = net.op("Mul", a, net.op("Sigmoid", a, name="gate"), name="scale")
    return net.model(net.conv(b, 4, 2, output="y"))


def hard_swish() -> onnx.ModelProto:
    """conv -> x * clip(x + 3, 0, 6) / 6 -> conv, as exporters spell it."""
    net = Net()
    a = net.conv(net.input("x", ["n", 3, 8, 8]), 3, 4)
    gate = net.op("Clip", net.op("Add", a, net.const(3.0)), net.const(0.0), net.const(6.0))
    b = net.op("Div", net.op("Mul", a, gate), net.const(6.0))
    return net.model(net.conv(b, 4, 2, output="y"))


def depthwise() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 4, 8, 8])
    a = net.op("Clip", net.conv(x, 4, 4, group=4, name="depthwise"), net.const(0.0), net.const(6.0))
    return net.model(net.conv(a, 4, 6, 1, name="pointwise", output="y"))


def mlp() -> onnx.ModelProto:
    """Rank-3 MatMul with bias, as transformers have it."""
    net = Net()
    x = net.input("x", ["n", 5, 8])
    a = net.op("Relu", net.op("Add", net.op("MatMul", x, net.normal(8, 16, scale=0.3)), net.normal(16)))
    return net.model(net.op("MatMul", a, net.normal(16, 4, scale=0.3), output="y"))


def nhwc() -> onnx.ModelProto:
    """As converted from TensorFlow: the input is transposed before the first convolution."""
    net = Net()
    x = net.input("x", ["n", 8, 8, 3])
    a = net.conv(net.op("Transpose", x, perm=[0, 3, 1, 2], name="in"), 3, 4)
    return net.model(net.op("Transpose", a, perm=[0, 2, 3, 1], name="out", output="y"))


def split() -> onnx.ModelProto:
    net = Net()
    x = net.input("x", ["n", 3, 8, 8])
    halves = net.ops("Split", net.conv(x, 3, 4), outputs=["s0", "s1"], axis=1, name="split")
    parts = [net.conv(h, 2, 2, output=f"y{i}") for i, h in enumerate(halves)]
    return net.model(*parts)


#: Every model above: tests that hold for any model run over this list.
MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    build.__name__: build
    for build in (conv_relu, two_gemm, residual, concat, pool_chain, silu, hard_swish, depthwise, mlp, nhwc, split)
}


def samples(model: onnx.ModelProto, count: int = 8, *, seed: int = 1) -> dict[str, Array]:
    """Normally distributed feeds, coins for bool inputs, for ``model``; symbolic dimensions are ``count``."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for info in model.graph.input:
        dims = [d.dim_value if d.HasField("dim_value") else count for d in info.type.tensor_type.shape.dim]
        drawn = rng.standard_normal(dims)
        feeds[info.name] = (
            drawn > 0 if info.type.tensor_type.elem_type == TensorProto.BOOL else drawn.astype(np.float32)
        )
    return feeds


def run(model: onnx.ModelProto | bytes, feeds: dict[str, Array], *, optimize: bool = True) -> list[Array]:
    """The outputs that onnxruntime gives, with or without its graph optimizations."""
    return [np.asarray(out) for out in session(model, optimize=optimize).run(None, feeds)]


def session(model: onnx.ModelProto | bytes, *, optimize: bool = True, save_to: str | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = save_to
    data = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def save(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def info(name: str, shape: list[int] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape or [2, 2])


def language_model(opset: int = 17, *, tied: bool = False, layers: int = 2, scale: float = 1.0) -> onnx.ModelProto:
    """Token ids -> logits: an embedding, blocks of norm, gated products and a residual, and a head.

    ``tied`` makes the head the transpose of the embedding; ``scale`` sets one channel of each norm apart.
    """
    vocabulary, width, inner = 64, 32, 48
    net = Net(opset)
    ids = net.input("input_ids", ["n", "t"], TensorProto.INT64)
    table = net.rng.standard_normal((vocabulary, width))
    x = net.op("Gather", net.const(table, "table"), ids, name="embed")
    for i in range(layers):
        gain = 1 + 0.1 * net.rng.standard_normal(width)
        gain[3] *= scale
        normed = net.op("LayerNormalization", x, net.const(gain), net.normal(width, scale=0.1), name=f"norm{i}")
        gate, up = (
            net.op("MatMul", normed, net.normal(width, inner, scale=0.2, name=f"{part}{i}.w"), name=f"{part}{i}")
            for part in ("gate", "up")
        )
        hidden = net.op("Mul", net.op("Sigmoid", gate), up)
        down = net.op("MatMul", hidden, net.normal(inner, width, scale=0.2, name=f"down{i}.w"), name=f"down{i}")
        x = net.op("Add", x, down)
    x = net.op("LayerNormalization", x, net.const(np.ones(width)), net.const(np.zeros(width)), name="norm")
    head = net.const(table.T if tied else net.rng.standard_normal((width, vocabulary)), "head.w")
    return net.model(net.op("MatMul", x, head, name="head", output="logits"))


def tokens(count: int = 16, length: int = 12, vocabulary: int = 64, *, seed: int = 1) -> dict[str, Array]:
    """Token ids for ``language_model``, some of them far more frequent than others."""
    rng = np.random.default_rng(seed)
    return {"input_ids": np.minimum(rng.geometric(0.08, (count, length)), vocabulary) - 1}
