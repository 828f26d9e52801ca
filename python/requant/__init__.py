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
    from requant.api import (
        Inspection as Inspection,
    )
    from requant.api import (
        QuantizedModel as QuantizedModel,
    )
    from requant.api import (
        calibrate as calibrate,
    )
    from requant.api import (
        inspect as inspect,
    )
    from requant.api import (
        quantize as quantize,
    )
    from requant.calibration import CalibrationTable as CalibrationTable
    from requant.config import QuantConfig as QuantConfig
    from requant.data import DataOptions as DataOptions
    from requant.data import ImageOptions as ImageOptions
    from requant.errors import (
        CalibrationError as CalibrationError,
    )
    from requant.errors import (
        ConfigError as ConfigError,
    )
    from requant.errors import (
        DataError as DataError,
    )
    from requant.errors import (
        InternalError as InternalError,
    )
    from requant.errors import (
        MissingDependencyError as MissingDependencyError,
    )
    from requant.errors import (
        MissingFileError as MissingFileError,
    )
    from requant.errors import (
        ModelError as ModelError,
    )
    from requant.errors import (
        OutputError as OutputError,
    )
    from requant.errors import (
        RequantError as RequantError,
    )
    from requant.errors import (
        VerificationError as VerificationError,
    )
    from requant.observers import Observer as Observer
    from requant.observers import ObserverSet as ObserverSet
    from requant.ops import (
        compute_params as compute_params,
    )
    from requant.ops import (
        cpu_info as cpu_info,
    )
    from requant.ops import (
        dequantize_array as dequantize_array,
    )
    from requant.ops import (
        fake_quantize_array as fake_quantize_array,
    )
    from requant.ops import (
        pack_int4 as pack_int4,
    )
    from requant.ops import (
        params_from_data as params_from_data,
    )
    from requant.ops import (
        quantize_array as quantize_array,
    )
    from requant.ops import (
        unpack_int4 as unpack_int4,
    )
    from requant.report import Report as Report
    from requant.types import (
        Granularity as Granularity,
    )
    from requant.types import (
        PerBlock as PerBlock,
    )
    from requant.types import (
        PerChannel as PerChannel,
    )
    from requant.types import (
        PerTensor as PerTensor,
    )
    from requant.types import (
        PerToken as PerToken,
    )
    from requant.types import (
        QuantizedTensor as QuantizedTensor,
    )
    from requant.types import (
        QuantParams as QuantParams,
    )
    from requant.types import (
        QuantScheme as QuantScheme,
    )
    from requant.types import (
        QuantType as QuantType,
    )
    from requant.types import (
        Range as Range,
    )


_HOMES = {
    "api": ("Inspection", "QuantizedModel", "calibrate", "inspect", "quantize"),
    "calibration": ("CalibrationTable",),
    "config": ("QuantConfig",),
    "data": ("DataOptions", "ImageOptions"),
    "errors": (
        "CalibrationError",
        "ConfigError",
        "DataError",
        "InternalError",
        "MissingDependencyError",
        "MissingFileError",
        "ModelError",
        "OutputError",
        "RequantError",
        "VerificationError",
    ),
    "observers": ("Observer", "ObserverSet"),
    "ops": (
        "compute_params",
        "cpu_info",
        "dequantize_array",
        "fake_quantize_array",
        "pack_int4",
        "params_from_data",
        "quantize_array",
        "unpack_int4",
    ),
    "report": ("Report",),
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
