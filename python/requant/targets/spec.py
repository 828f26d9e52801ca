"""What a target says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from requant.types import FixedParams

#: Kinds of CPUs whose kernels cost differently: x86 before VNNI, and with it.
CPUS = ("avx2", "vnni")


@dataclass(frozen=True, slots=True)
class Cost:
    """Nanoseconds that a kernel takes: linear in its sizes.

    Attributes:
        call: however small they are.
        output: for each element of the output.
        tap: for each position of the window at each output position of a convolution.
        group: for each group there in addition, of a convolution that has several.
        row: for each row of the output of a convolution and each element that a window holds, of all channels.
        window: for each element that a window holds there: a tap has one to each input channel.
        rest: for those in addition, of a depthwise convolution, that belong to channels beyond whole ``lanes``.
        product: for each product.
        lanes: output channels that are computed together: products are those of the next multiple.
        places: output positions of one sample, likewise.
    """

    output: float = 0.0
    call: float = 0.0
    tap: float = 0.0
    group: float = 0.0
    row: float = 0.0
    window: float = 0.0
    rest: float = 0.0
    product: float = 0.0
    lanes: int = 1
    places: int = 1


@dataclass(frozen=True, slots=True)
class Costs:
    """What the kernels of one kind of CPU cost.

    Attributes:
        ops: of op types that may be faster in float, what they cost on floats and on integers. ``depthwise Conv``,
            ``grouped Conv``, ``narrow Conv`` (of less than four input channels) and ``signal Conv`` (one group, one
            axis of places) are some too, and ``Softmax across`` one along another axis than the last.
        conversion: of a tensor that is quantized or dequantized, with what that does to its layout: ``call``, and
            ``output`` for each element.
        bare: of one that only products read, which has no layout; None where that is not known.
    """

    ops: Mapping[str, tuple[Cost, Cost]]
    conversion: Cost
    bare: Cost | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Which ops a runtime executes on integers, and on what terms.

    Attributes:
        name: as the user types it.
        fused: op types that run in integer kernels when their inputs and outputs are quantized.
        moves: op types through which Q/DQ vanish when input and output have the same parameters.
        float_output: those of ``fused`` that may also give float directly, without a quantized output.
        saturating_adds: op types that run as an integer addition whose saturation does the rest: HardSigmoid.
        activations: integer types of activations that its kernels take, the default first.
        float_activations: those that it takes as well, and computes in float between Q and DQ.
        symmetric: whether zero points of activations must be 0, and ranges ``[-a, a]``.
        weights: integer types of weights that its kernels take.
        per_channel: op types whose weight, and so bias, may have a scale for each output channel; None: all.
        quantizes_bias: whether biases become int32; otherwise they stay float.
        one_scale: op types whose inputs and outputs must share scale and zero point, besides those of ``moves``
            without a clamp behind; moves named here too share them through clamps, and pass fixed outputs on.
        fixed_outputs: scale and zero point that the outputs of an op type must have.
        everything: whether ops become integer even where no neighbour is, because what is float leaves the device.
        operators: whether it runs quantized operators (``--format qoperator``), which are onnxruntime's.
        pair_products: whether the target multiplies neighbouring uint8 x int8 pairs with 16-bit saturation on some of
            its machines, so that int8 weights must keep ``255 * (w[2i] + w[2i+1])`` inside int16.
        requantizes: op types that its optimizer quantizes itself, weights with one scale, where they stand in float
            behind a DequantizeLinear with one scale: what shall stay float needs one for each channel there.
        one_gelu: whether it runs GELU as one op of onnxruntime's own (see ``passes.activations``).
        joins_biases: whether its optimizer makes a float Gemm of an integer product that gives float and the vector
            that is added to it (see ``onnx.biases``).
        skips_clamps: whether its optimizer makes a float op of an integer product that gives float and has a clamp
            behind (see ``onnx.bounds``).
        folds_constants: whether it computes constants from constants once, before it looks for ops to fuse
            (see ``onnx.terse``).
        dynamic: op types with an integer kernel for activations that are quantized at run time, each with the number
            of weight values from which it is faster than float.
        costs: what its kernels cost, by the kind of CPU (``CPUS``).
        behind_convolutions: op types whose integer kernel is fast only in the layout that integer convolutions give,
            each with the number of elements from which they stay float elsewhere, between DequantizeLinear and
            QuantizeLinear with one scale for each channel.
        keeps_layout: op types through which that layout passes.
    """

    name: str
    fused: frozenset[str]
    moves: frozenset[str]
    float_output: frozenset[str] = frozenset()
    saturating_adds: frozenset[str] = frozenset()
    activations: tuple[str, ...] = ("uint8", "int8", "uint16", "int16")
    float_activations: tuple[str, ...] = ()
    symmetric: bool = False
    weights: tuple[str, ...] = ("int8", "uint8")
    per_channel: frozenset[str] | None = None
    quantizes_bias: bool = True
    one_scale: frozenset[str] = frozenset()
    fixed_outputs: Mapping[str, FixedParams] = field(default_factory=dict)
    everything: bool = False
    operators: bool = False
    pair_products: bool = False
    requantizes: frozenset[str] = frozenset()
    one_gelu: bool = False
    joins_biases: bool = False
    skips_clamps: bool = False
    folds_constants: bool = False
    dynamic: Mapping[str, int] = field(default_factory=dict)
    costs: Mapping[str, Costs] = field(default_factory=dict)
    behind_convolutions: Mapping[str, int] = field(default_factory=dict)
    keeps_layout: frozenset[str] = frozenset()
