"""requant: a float ONNX model in, a verified quantized model out.

    result = requant.quantize("model.onnx", "calib.npz")
    result.save("model.int8.onnx")
    print(result.report)

Names load when they are first used: importing requant loads no onnx, no onnxruntime and no rich.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from requant.version import __version__ as __version__

if TYPE_CHECKING:
    from requant.api import (
        Inspection as Inspection,
        calibrate as calibrate,
        inspect as inspect,
        quantize as quantize,
    )
    from requant.arrays.affine import (
        compute_params as compute_params,
        dequantize_array as dequantize_array,
        dequantize_packed as dequantize_packed,
        fake_quantize_array as fake_quantize_array,
        fake_quantize_with_mask as fake_quantize_with_mask,
        params_from_data as params_from_data,
        quantize_array as quantize_array,
        quantize_packed as quantize_packed,
    )
    from requant.arrays.conv import PackedConv as PackedConv, qconv2d as qconv2d
    from requant.arrays.epilogue import Requantizer as Requantizer
    from requant.arrays.layers import (
        LookupTable as LookupTable,
        qadd as qadd,
        qaverage_pool as qaverage_pool,
        qglobal_average_pool as qglobal_average_pool,
        qmax_pool as qmax_pool,
    )
    from requant.arrays.lowbit import (
        BlockScheme as BlockScheme,
        BlockWeights as BlockWeights,
        gptq as gptq,
        quantize_blocks as quantize_blocks,
    )
    from requant.arrays.matmul import (
        PackedBlocks as PackedBlocks,
        PackedWeights as PackedWeights,
        qmatmul as qmatmul,
    )
    from requant.arrays.packing import (
        pack_int2 as pack_int2,
        pack_int4 as pack_int4,
        unpack_int2 as unpack_int2,
        unpack_int4 as unpack_int4,
    )
    from requant.calibration.ranges import RangeCost as RangeCost, RangeView as RangeView
    from requant.calibration.table import CalibrationTable as CalibrationTable
    from requant.checkpoint.quantize import (
        CheckpointReport as CheckpointReport,
        quantize_checkpoint as quantize_checkpoint,
    )
    from requant.config import QuantConfig as QuantConfig
    from requant.config.rules import Rule as Rule
    from requant.data import DataOptions as DataOptions, ImageOptions as ImageOptions
    from requant.drift.monitor import DriftMonitor as DriftMonitor, measure_drift as measure_drift
    from requant.drift.verdict import Drift as Drift, TensorDrift as TensorDrift, Verdict as Verdict
    from requant.editing import EditedModel as EditedModel, ModelEditor as ModelEditor
    from requant.errors import (
        CalibrationError as CalibrationError,
        ConfigError as ConfigError,
        DataError as DataError,
        ExecutorError as ExecutorError,
        InternalError as InternalError,
        MissingDependencyError as MissingDependencyError,
        MissingFileError as MissingFileError,
        ModelError as ModelError,
        OutputError as OutputError,
        RequantError as RequantError,
        VerificationError as VerificationError,
    )
    from requant.evaluation.compare import Comparison as Comparison, compare as compare
    from requant.evaluation.evaluate import Evaluation as Evaluation, evaluate as evaluate
    from requant.gguf.blocks import (
        dequantize_gguf as dequantize_gguf,
        quantize_gguf as quantize_gguf,
    )
    from requant.gguf.export import export_gguf as export_gguf
    from requant.gguf.reading import GgufFile as GgufFile, read_gguf as read_gguf
    from requant.gguf.report import GgufReport as GgufReport
    from requant.gguf.unpack import unpack_gguf as unpack_gguf
    from requant.observers import Observer as Observer, ObserverSet as ObserverSet
    from requant.onnx.boundary import Boundary as Boundary
    from requant.ops import cpu_info as cpu_info
    from requant.quantized import QuantizedModel as QuantizedModel
    from requant.report import Report as Report
    from requant.runtime import register_custom_ops as register_custom_ops
    from requant.search.ablation import Sensitivity as Sensitivity, sensitivity as sensitivity
    from requant.search.keeping import Kept as Kept, quantize_to_keep as quantize_to_keep
    from requant.types import (
        Granularity as Granularity,
        PerBlock as PerBlock,
        PerChannel as PerChannel,
        PerTensor as PerTensor,
        PerToken as PerToken,
        QuantizedTensor as QuantizedTensor,
        QuantParams as QuantParams,
        QuantScheme as QuantScheme,
        QuantType as QuantType,
        Range as Range,
        Rounding as Rounding,
    )


_HOMES = {
    "api": ("Inspection", "calibrate", "inspect", "quantize"),
    "arrays.affine": (
        "compute_params",
        "dequantize_array",
        "dequantize_packed",
        "fake_quantize_array",
        "fake_quantize_with_mask",
        "params_from_data",
        "quantize_array",
        "quantize_packed",
    ),
    "arrays.conv": ("PackedConv", "qconv2d"),
    "arrays.epilogue": ("Requantizer",),
    "arrays.layers": ("LookupTable", "qadd", "qaverage_pool", "qglobal_average_pool", "qmax_pool"),
    "arrays.lowbit": ("BlockScheme", "BlockWeights", "gptq", "quantize_blocks"),
    "arrays.matmul": ("PackedBlocks", "PackedWeights", "qmatmul"),
    "arrays.packing": ("pack_int2", "pack_int4", "unpack_int2", "unpack_int4"),
    "calibration.ranges": ("RangeCost", "RangeView"),
    "calibration.table": ("CalibrationTable",),
    "checkpoint.quantize": ("CheckpointReport", "quantize_checkpoint"),
    "config": ("QuantConfig",),
    "config.rules": ("Rule",),
    "data": ("DataOptions", "ImageOptions"),
    "drift.monitor": ("DriftMonitor", "measure_drift"),
    "drift.verdict": ("Drift", "TensorDrift", "Verdict"),
    "editing": ("EditedModel", "ModelEditor"),
    "errors": (
        "CalibrationError",
        "ConfigError",
        "DataError",
        "ExecutorError",
        "InternalError",
        "MissingDependencyError",
        "MissingFileError",
        "ModelError",
        "OutputError",
        "RequantError",
        "VerificationError",
    ),
    "evaluation.compare": ("Comparison", "compare"),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "gguf.blocks": ("dequantize_gguf", "quantize_gguf"),
    "gguf.export": ("export_gguf",),
    "gguf.reading": ("GgufFile", "read_gguf"),
    "gguf.report": ("GgufReport",),
    "gguf.unpack": ("unpack_gguf",),
    "observers": ("Observer", "ObserverSet"),
    "onnx.boundary": ("Boundary",),
    "ops": ("cpu_info",),
    "quantized": ("QuantizedModel",),
    "report": ("Report",),
    "runtime": ("register_custom_ops",),
    "search.ablation": ("Sensitivity", "sensitivity"),
    "search.keeping": ("Kept", "quantize_to_keep"),
    "types": (
        "Granularity",
        "PerBlock",
        "PerChannel",
        "PerTensor",
        "PerToken",
        "QuantParams",
        "QuantScheme",
        "QuantType",
        "QuantizedTensor",
        "Range",
        "Rounding",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: PLE0604 - the strings of the table above
    "__version__",
    *_HOME_OF,
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'requant' has no attribute {name!r}")
    value = getattr(import_module(f"requant.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
