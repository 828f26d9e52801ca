"""Shapes and types of every tensor, as far as ONNX can tell."""

from __future__ import annotations

from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeGuard

import onnx_ir as ir
from onnx_ir.passes import common

from requant.onnx.names import name_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: What is assumed of an axis of free size; of one behind batch and channels in an input of rank 4.
_FREE, _PIXELS = 64, 256
_IMAGE = 4
_MAPS = "ZipMap"  # of ai.onnx.ml


def doubt(model: ir.Model) -> int:
    """Forget the shapes that a file claims of its tensors if one of them cannot be; returns how many were forgotten.

    Files in use claim what is wrong, such as the batch of one that a model had before its inputs were made free.
    Runtimes do not care, but an optimizer writes it into the graph.
    """
    claimed = {v: v.shape for node in model.graph.all_nodes() for v in node.outputs if v.shape is not None}
    for value in claimed:
        value.shape = None
    infer(model)
    free = {str(dim) for value in model.graph.inputs for dim in value.shape or () if not isinstance(dim, int)}
    if any(_contradicts(shape, value, free) for value, shape in claimed.items()):
        return len(claimed)
    for value, shape in claimed.items():
        value.shape = shape
    return 0


def _contradicts(claimed: ir.Shape, value: ir.Value, free: set[str]) -> bool:
    """Whether a claim is another than what follows from the inputs, which leave dimensions ``free`` of any size."""
    inferred, node = value.shape, value.producer()
    if inferred is None:
        sizes = node.inputs[1] if node is not None and node.op_type == "Reshape" else None
        return (
            sizes is not None and sizes.shape is not None and sizes.shape.is_static() and sizes.shape != [len(claimed)]
        )
    if len(claimed) != len(inferred):
        return True
    pairs = [(said, found) for said, found in zip(claimed, inferred, strict=True) if isinstance(said, int)]
    return any(said != found if isinstance(found, int) else str(found) in free for said, found in pairs)


def infer(model: ir.Model) -> int:
    """Infer shapes and types; returns how many tensors became known. What stays unknown makes the plan more careful."""
    before = _known(model)
    if all(_is_known(value) for node in model.graph.all_nodes() for value in node.outputs):
        return 0
    order = list(model.graph.initializers)
    # Without data propagation: it computes the contents of tensors, of any size that the model asks for.
    with _maps_unknown(model):
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for name in order:  # the pass takes large ones out for a while, and puts them back as the last
        model.graph.initializers[name] = model.graph.initializers.pop(name)
    return max(_known(model) - before, 0)


@contextmanager
def _maps_unknown(model: ir.Model) -> Iterator[None]:
    """For a while, ops that give maps as ops of another name: no value can have the type that would be inferred."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type == _MAPS]
    for node in nodes:
        node.op_type = f"{_MAPS}OfUnknownType"
    try:
        yield
    finally:
        for node in nodes:
            node.op_type = _MAPS


def _is_known(value: ir.Value) -> bool:
    """Whether there is nothing to find out about a tensor."""
    return (
        value.dtype is not None
        and value.shape is not None
        and not any(value.shape.is_unknown_dim(i) for i in range(len(value.shape)))
    )


def _known(model: ir.Model) -> int:
    return sum(v.shape is not None and v.dtype is not None for node in model.graph for v in node.outputs)


def assumed(model: ir.Model, fed: Mapping[str, tuple[int, ...]] = MappingProxyType({})) -> dict[str, tuple[int, ...]]:
    """Shapes of the main graph's tensors, by name, with a usual size in place of each that is free.

    Of an input that is not known to be ``fed`` in some shape, the batch is 1, an image has 256 x 256 pixels, and other
    axes count 64. The shapes of the other tensors are inferred from that, so that layers shrink as they do in use; what
    nobody can tell counts 64, too. Tensors of unknown rank are left out.
    """
    if fed or has_free_sizes(model):
        model = model.clone()
        for value in model.graph.inputs:
            if (known := fed.get(name_of(value))) is not None:
                value.shape = ir.Shape(known)
            elif value.shape is not None:
                value.shape = ir.Shape(_filled(value.shape, pixels=len(value.shape) == _IMAGE))
        for node in model.graph.all_nodes():
            for value in node.outputs:
                value.shape = None
        infer(model)
    values = [*model.graph.inputs, *model.graph.initializers.values(), *(v for n in model.graph for v in n.outputs)]
    return {name_of(value): _filled(value.shape) for value in values if value.shape is not None}


def has_free_sizes(model: ir.Model) -> bool:
    """Whether another axis of an input than the first, the batch, has no known size."""
    return any(not is_size(dim) for value in model.graph.inputs for dim in list(value.shape or ())[1:])


def _filled(shape: ir.Shape, *, pixels: bool = False) -> tuple[int, ...]:
    """``shape`` with something in place of each size that is not known; ``pixels``: it is that of an image."""
    instead = (1, _FREE, *[_PIXELS if pixels else _FREE] * len(shape))
    return tuple(size if is_size(size) else usual for size, usual in zip(shape, instead, strict=False))


def is_size(size: object) -> TypeGuard[int]:
    """Whether an axis has a known size; files in use say -1 where it is free."""
    return isinstance(size, int) and size >= 0
