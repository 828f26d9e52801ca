"""The compiled core, under the names that the package knows it by; its only importer.

Functions whose names end in ``_into`` write their result into an array that they are given. All of them take arrays of
the dtype and layout that the core has; ``requant.arrays`` and ``requant.observers`` make these of what callers have.
"""

from __future__ import annotations

from requant import _requant
from requant._requant import (
    CALIBRATION_METHODS,
    GGUF_TYPES,
    ROUNDINGS,
    WEIGHT_ALGORITHMS,
    BlockedMatrix,
    PackedFilters,
    PackedMatrix,
    Requantizer as CoreRequantizer,
    TensorStatistics,
    add as add_into,
    affine_params,
    average_pool as average_pool_into,
    conv2d as conv2d_into,
    cpu_info,
    dequantize as dequantize_into,
    dequantize_blocks as dequantize_blocks_into,
    fake_quantize as fake_quantize_into,
    gguf_dequantize as gguf_dequantize_into,
    gguf_quantize as gguf_quantize_into,
    global_average_pool as global_average_pool_into,
    gptq as gptq_blocks,
    largest_terms,
    look_up as look_up_into,
    matmul as matmul_into,
    matmul_blocked as matmul_blocked_into,
    max_pool as max_pool_into,
    observe_here,
    observe_many,
    observe_request,
    pack as pack_into,
    quantize as quantize_into,
    quantize_blocks as quantize_blocks_into,
    reconstruct,
    rounding_error,
    slice_ranges,
    unpack as unpack_into,
    unpack_blocks,
)

__all__ = [
    "CALIBRATION_METHODS",
    "GGUF_TYPES",
    "LIBRARY",
    "ROUNDINGS",
    "WEIGHT_ALGORITHMS",
    "BlockedMatrix",
    "CoreRequantizer",
    "PackedFilters",
    "PackedMatrix",
    "TensorStatistics",
    "add_into",
    "affine_params",
    "average_pool_into",
    "conv2d_into",
    "cpu_info",
    "dequantize_blocks_into",
    "dequantize_into",
    "fake_quantize_into",
    "gguf_dequantize_into",
    "gguf_quantize_into",
    "global_average_pool_into",
    "gptq_blocks",
    "largest_terms",
    "look_up_into",
    "matmul_blocked_into",
    "matmul_into",
    "max_pool_into",
    "observe_here",
    "observe_many",
    "observe_request",
    "pack_into",
    "quantize_blocks_into",
    "quantize_into",
    "reconstruct",
    "rounding_error",
    "slice_ranges",
    "unpack_blocks",
    "unpack_into",
]

#: Its path: it is a library of custom ops of onnxruntime, too.
LIBRARY: str = _requant.__file__

cpu_info()  # refuses a REQUANT_ISA that names no kernel set of this machine
