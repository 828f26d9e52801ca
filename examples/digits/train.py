"""Train the demo model: a small CNN on scikit-learn's digits, written as float ONNX.

The network is one table of nodes with two readers: `forward` runs it in jax, `export` writes it as ONNX. The file keeps
every BatchNormalization and its running statistics, as a training framework would leave it. Nothing is written unless
onnxruntime reproduces the jax logits.

Needs two extras: `pip install '.[ort,train]'`.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SPLIT_SEED = 2024  # the split never moves with --seed, so figures of different runs compare
N_CALIB, N_EVAL, N_CLASSES = 256, 500, 10
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY, LABEL_SMOOTHING = 64, 4e-3, 1e-2, 0.05
BN_EPSILON, BN_MOMENTUM = 1e-5, 0.9
OPSET, IR_VERSION = 17, 8

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Arrays = dict[str, jax.Array]


@dataclass(frozen=True)
class Node:
    """One ONNX node; its parameters are named `<node>/<parameter>` and its output `<node>/out`."""

    name: str
    op: str
    inputs: tuple[str, ...]
    params: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output(self) -> str:
        return "logits" if self.op == "Gemm" else f"{self.name}/out"


def network() -> list[Node]:
    """The architecture: stem, depthwise residual block, strided stage, inverted residual block, head."""
    nodes: list[Node] = []

    def add(name: str, op: str, *inputs: str, params: Mapping[str, tuple[int, ...]] | None = None, **attrs: Any) -> str:
        nodes.append(Node(name, op, inputs, params or {}, attrs))
        return nodes[-1].output

    def conv_bn(name: str, x: str, c_in: int, c_out: int, *, kernel: int = 3, stride: int = 1, group: int = 1) -> str:
        shape = (c_out, c_in // group, kernel, kernel)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        x = add(f"{name}/conv", "Conv", x, params={"weight": shape}, group=group, **window)
        params = dict.fromkeys(("scale", "bias", "mean", "var"), (c_out,))
        return add(f"{name}/bn", "BatchNormalization", x, params=params, epsilon=BN_EPSILON)

    def relu6(name: str, x: str) -> str:
        return add(f"{name}/relu6", "Clip", x, params={"min": (), "max": ()})

    def silu(name: str, x: str) -> str:
        return add(f"{name}/silu", "Mul", x, add(f"{name}/sigmoid", "Sigmoid", x))

    x = add("stem/relu", "Relu", conv_bn("stem", "image", 1, 24))

    y = relu6("block1/depthwise", conv_bn("block1/depthwise", x, 24, 24, group=24))
    y = conv_bn("block1/pointwise", y, 24, 24, kernel=1)
    x = add("block1/add", "Add", x, y)

    x = silu("down", conv_bn("down", x, 24, 48, stride=2))

    y = silu("block2/expand", conv_bn("block2/expand", x, 48, 96, kernel=1))
    y = relu6("block2/depthwise", conv_bn("block2/depthwise", y, 96, 96, group=96))
    y = conv_bn("block2/project", y, 96, 48, kernel=1)
    x = add("block2/add", "Add", x, y)

    x = add("head/flatten", "Flatten", add("head/pool", "GlobalAveragePool", x), axis=1)
    add("head/fc", "Gemm", x, params={"weight": (N_CLASSES, 48), "bias": (N_CLASSES,)}, transB=1)
    return nodes


CONSTANTS = {"min": 0.0, "max": 6.0}
STATISTICS = {"mean": 0.0, "var": 1.0}
ELEMENTWISE: dict[str, Callable[..., jax.Array]] = {
    "Add": jnp.add,
    "Clip": lambda x: jnp.clip(x, CONSTANTS["min"], CONSTANTS["max"]),
    "Mul": jnp.multiply,
    "Relu": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
}


def init(nodes: list[Node], rng: np.random.Generator) -> tuple[Arrays, Arrays]:
    """Trained weights (He normal; BatchNorm scale 1, biases 0) and BatchNorm running statistics."""
    weights: Arrays = {}
    stats: Arrays = {}
    for node in nodes:
        for param, shape in node.params.items():
            name = f"{node.name}/{param}"
            if param in STATISTICS:
                stats[name] = jnp.full(shape, STATISTICS[param])
            elif param == "weight":
                std = np.sqrt(2.0 / np.prod(shape[1:]))
                weights[name] = jnp.asarray(rng.normal(0.0, std, shape), jnp.float32)
            elif param not in CONSTANTS:
                weights[name] = jnp.full(shape, float(param == "scale"))
    return weights, stats


def forward(nodes: list[Node], weights: Arrays, stats: Arrays | None, image: jax.Array) -> tuple[jax.Array, Arrays]:
    """Logits [N, 10] of `image` [N, 1, 8, 8] and the BatchNorm statistics used: the batch's own if `stats` is None."""
    values: Arrays = {"image": image}
    used: Arrays = {}
    for node in nodes:
        x = values[node.inputs[0]]
        p = {param: weights[name] for param in node.params if (name := f"{node.name}/{param}") in weights}
        match node.op:
            case "Conv":
                a = node.attrs
                pads = [(a["pads"][0],) * 2] * 2
                y = jax.lax.conv_general_dilated(x, p["weight"], a["strides"], pads, feature_group_count=a["group"])
            case "BatchNormalization":
                names = f"{node.name}/mean", f"{node.name}/var"
                mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if stats is None else (stats[n] for n in names)
                used |= dict(zip(names, (mean, var), strict=True))
                gain = p["scale"] * jax.lax.rsqrt(var + BN_EPSILON)
                y = (x - mean[:, None, None]) * gain[:, None, None] + p["bias"][:, None, None]
            case "GlobalAveragePool":
                y = x.mean((2, 3), keepdims=True)
            case "Flatten":
                y = x.reshape(x.shape[0], -1)
            case "Gemm":
                y = x @ p["weight"].T + p["bias"]
            case op:
                y = ELEMENTWISE[op](*(values[name] for name in node.inputs))
        values[node.output] = y
    return values["logits"], used


def batches(image: F32, label: I64, rng: np.random.Generator) -> Iterator[tuple[F32, I64]]:
    """One shuffled epoch of full batches, each image shifted by -1, 0 or 1 pixel along both axes."""
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, image.shape[2:], axis=(2, 3))  # [N, 1, 3, 3, 8, 8]
    order = rng.permutation(len(image))
    for start in range(0, len(image) - BATCH_SIZE + 1, BATCH_SIZE):
        index = order[start : start + BATCH_SIZE]
        dy, dx = rng.integers(0, 3, (2, len(index)))
        yield windows[index, :, dy, dx], label[index]


def train(nodes: list[Node], image: F32, label: I64, epochs: int, seed: int) -> tuple[Arrays, Arrays]:
    """Weights and running statistics after `epochs` of AdamW with a one-cycle learning rate."""
    rng = np.random.default_rng(seed)
    weights, stats = init(nodes, rng)
    schedule = optax.cosine_onecycle_schedule(epochs * (len(image) // BATCH_SIZE), LEARNING_RATE)
    optimizer = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
    state = optimizer.init(weights)

    def loss(weights: Arrays, image: F32, label: I64) -> tuple[jax.Array, Arrays]:
        logits, used = forward(nodes, weights, None, jnp.asarray(image))
        target = optax.smooth_labels(jax.nn.one_hot(label, N_CLASSES), LABEL_SMOOTHING)
        return optax.softmax_cross_entropy(logits, target).mean(), used

    @jax.jit
    def step(weights: Arrays, stats: Arrays, state: Any, image: F32, label: I64) -> tuple[Arrays, Arrays, Any]:
        gradient, used = jax.grad(loss, has_aux=True)(weights, image, label)
        updates, state = optimizer.update(gradient, state, weights)
        weights = {name: w + updates[name] for name, w in weights.items()}
        stats = {name: BN_MOMENTUM * s + (1 - BN_MOMENTUM) * used[name] for name, s in stats.items()}
        return weights, stats, state

    for _ in range(epochs):
        for x, y in batches(image, label, rng):
            weights, stats, state = step(weights, stats, state, x, y)
    return weights, stats


def export(nodes: list[Node], arrays: Mapping[str, F32]) -> onnx.ModelProto:
    """The network as ONNX, one node for each row of the table, BatchNormalization not folded."""
    float32 = onnx.TensorProto.FLOAT
    image = helper.make_tensor_value_info("image", float32, ["N", 1, 8, 8], "8x8 grey digit, pixels in [0, 1]")
    logits = helper.make_tensor_value_info("logits", float32, ["N", N_CLASSES], "one score per digit")
    rows = [
        helper.make_node(n.op, [*n.inputs, *(f"{n.name}/{p}" for p in n.params)], [n.output], n.name, **n.attrs)
        for n in nodes
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    doc = "A small CNN trained on scikit-learn's digits; float, BatchNormalization not folded."
    graph = helper.make_graph(rows, "digits", [image], [logits], initializers, doc)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="requant-examples")
    onnx.checker.check_model(model, full_check=True)
    return model


def run_onnx(model: onnx.ModelProto, image: F32) -> F32:
    """Logits [N, 10] that onnxruntime computes."""
    import onnxruntime  # not before main() has switched its telemetry off

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": image})
    return np.asarray(logits, np.float32)


def load_split() -> tuple[F32, I64, F32, F32, I64]:
    """Stratified train images and labels, calibration images (part of train, unlabelled), eval images and labels."""
    digits = load_digits()
    image = (digits.images[:, None] / 16).astype(np.float32)
    label = digits.target.astype(np.int64)
    seed = SPLIT_SEED
    x_train, x_eval, y_train, y_eval = train_test_split(
        image, label, test_size=N_EVAL, stratify=label, random_state=seed
    )
    x_calib, _ = train_test_split(x_train, train_size=N_CALIB, stratify=y_train, random_state=seed)
    return x_train, y_train, x_calib, x_eval, y_eval


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits CNN; write digits.onnx, calib.npz and eval.npz.")
    parser.add_argument("--output-dir", type=Path, default=Path(__file__).parent, help="default: beside this script")
    parser.add_argument("--epochs", type=int, default=60, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="weights, order and shifts; default: %(default)s")
    args = parser.parse_args()

    # XLA splits its sums by the number of cores; one thread, set before the first jax operation, gives one order.
    os.environ["NPROC"] = "1"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

    x_train, y_train, x_calib, x_eval, y_eval = load_split()
    nodes = network()
    weights, stats = train(nodes, x_train, y_train, args.epochs, args.seed)

    values = weights | stats
    arrays = {
        f"{node.name}/{p}": np.asarray(CONSTANTS[p] if p in CONSTANTS else values[f"{node.name}/{p}"], np.float32)
        for node in nodes
        for p in node.params
    }
    model = export(nodes, arrays)
    logits = run_onnx(model, x_eval)
    expected, _ = forward(nodes, weights, stats, jnp.asarray(x_eval))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5, err_msg="onnxruntime and jax disagree")

    args.output_dir.mkdir(parents=True, exist_ok=True)
    onnx.save(model, args.output_dir / "digits.onnx")
    np.savez_compressed(args.output_dir / "calib.npz", image=x_calib)
    np.savez_compressed(args.output_dir / "eval.npz", image=x_eval, labels=y_eval)
    correct = int((logits.argmax(1) == y_eval).sum())
    print(f"float top-1 {correct / len(y_eval):.2%} ({correct} of {len(y_eval)} held-out digits, onnxruntime)")


if __name__ == "__main__":
    main()
