"""requant: a float ONNX model in, a verified quantized model out.

    result = requant.quantize("model.onnx", "calib.npz")
    result.save("model.int8.onnx")
    print(result.report.summary())

Names load when they are first used: importing requant loads no onnx, no onnxruntime and no rich.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING

from requant.version import __version__ as __version__

if TYPE_CHECKING:
    from requant.ablation import Sensitivity as Sensitivity, sensitivity as sensitivity
    from requant.api import (
        Inspection as Inspection,
        calibrate as calibrate,
        inspect as inspect,
        quantize as quantize,
    )
    from requant.boundary import Boundary as Boundary
    from requant.calibration import CalibrationTable as CalibrationTable
    from requant.checkpoint import CheckpointReport as CheckpointReport, quantize_checkpoint as quantize_checkpoint
    from requant.comparison import Comparison as Comparison, compare as compare
    from requant.config import QuantConfig as QuantConfig
    from requant.conv import PackedConv as PackedConv, qconv2d as qconv2d
    from requant.data import DataOptions as DataOptions, ImageOptions as ImageOptions
    from requant.drift import Drift as Drift, TensorDrift as TensorDrift, Verdict as Verdict
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
    from requant.evaluation import Evaluation as Evaluation, evaluate as evaluate
    from requant.gguf.blocks import (
        dequantize_gguf as dequantize_gguf,
        quantize_gguf as quantize_gguf,
    )
    from requant.gguf.export import export_gguf as export_gguf
    from requant.gguf.reading import GgufFile as GgufFile, read_gguf as read_gguf
    from requant.gguf.report import GgufReport as GgufReport
    from requant.gguf.unpack import unpack_gguf as unpack_gguf
    from requant.keeping import Kept as Kept, quantize_to_keep as quantize_to_keep
    from requant.layers import (
        LookupTable as LookupTable,
        qadd as qadd,
        qaverage_pool as qaverage_pool,
        qglobal_average_pool as qglobal_average_pool,
        qmax_pool as qmax_pool,
    )
    from requant.lowbit import (
        BlockScheme as BlockScheme,
        BlockWeights as BlockWeights,
        gptq as gptq,
        quantize_blocks as quantize_blocks,
    )
    from requant.matmul import (
        PackedBlocks as PackedBlocks,
        PackedWeights as PackedWeights,
        Requantizer as Requantizer,
        qmatmul as qmatmul,
    )
    from requant.monitor import DriftMonitor as DriftMonitor, measure_drift as measure_drift
    from requant.observers import Observer as Observer, ObserverSet as ObserverSet
    from requant.ops import (
        compute_params as compute_params,
        cpu_info as cpu_info,
        dequantize_array as dequantize_array,
        dequantize_packed as dequantize_packed,
        fake_quantize_array as fake_quantize_array,
        fake_quantize_with_mask as fake_quantize_with_mask,
        params_from_data as params_from_data,
        quantize_array as quantize_array,
        quantize_packed as quantize_packed,
    )
    from requant.packing import (
        pack_int2 as pack_int2,
        pack_int4 as pack_int4,
        unpack_int2 as unpack_int2,
        unpack_int4 as unpack_int4,
    )
    from requant.quantized import QuantizedModel as QuantizedModel
    from requant.ranges import RangeCost as RangeCost, RangeView as RangeView
    from requant.report import Report as Report
    from requant.rules import Rule as Rule
    from requant.runtime import register_custom_ops as register_custom_ops
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
    "ablation": ("Sensitivity", "sensitivity"),
    "api": ("Inspection", "calibrate", "inspect", "quantize"),
    "boundary": ("Boundary",),
    "calibration": ("CalibrationTable",),
    "checkpoint": ("CheckpointReport", "quantize_checkpoint"),
    "comparison": ("Comparison", "compare"),
    "config": ("QuantConfig",),
    "conv": ("PackedConv", "qconv2d"),
    "data": ("DataOptions", "ImageOptions"),
    "drift": ("Drift", "TensorDrift", "Verdict"),
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
    "evaluation": ("Evaluation", "evaluate"),
    "gguf.blocks": ("dequantize_gguf", "quantize_gguf"),
    "gguf.export": ("export_gguf",),
    "gguf.reading": ("GgufFile", "read_gguf"),
    "gguf.report": ("GgufReport",),
    "gguf.unpack": ("unpack_gguf",),
    "keeping": ("Kept", "quantize_to_keep"),
    "layers": ("LookupTable", "qadd", "qaverage_pool", "qglobal_average_pool", "qmax_pool"),
    "lowbit": ("BlockScheme", "BlockWeights", "gptq", "quantize_blocks"),
    "matmul": ("PackedBlocks", "PackedWeights", "Requantizer", "qmatmul"),
    "monitor": ("DriftMonitor", "measure_drift"),
    "observers": ("Observer", "ObserverSet"),
    "ops": (
        "compute_params",
        "cpu_info",
        "dequantize_array",
        "dequantize_packed",
        "fake_quantize_array",
        "fake_quantize_with_mask",
        "params_from_data",
        "quantize_array",
        "quantize_packed",
    ),
    "packing": ("pack_int2", "pack_int4", "unpack_int2", "unpack_int4"),
    "quantized": ("QuantizedModel",),
    "ranges": ("RangeCost", "RangeView"),
    "report": ("Report",),
    "rules": ("Rule",),
    "runtime": ("register_custom_ops",),
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
