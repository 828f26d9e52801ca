"""The result of quantizing: a verified model, and what led to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from requant.calibration.ranges import view_range
from requant.errors import ConfigError, closest
from requant.files import check_outputs
from requant.onnx.saving import save_model, self_contained

if TYPE_CHECKING:
    from pathlib import Path

    from requant.calibration.ranges import RangeView
    from requant.calibration.table import CalibrationTable
    from requant.planning.plan import QuantPlan
    from requant.report import Report, TensorQuality
    from requant.serialized import SerializedModel


@dataclass(frozen=True, repr=False)
class QuantizedModel:
    """A verified quantized model, its report, and what led to it: what ``requant.quantize`` gives.

    Attributes:
        model: the model itself; ``data`` gives its bytes, ``save`` writes it.
        report: what became of each node and tensor, and what it cost.
        plan: what was to become integer.
        table: the statistics of the activations; None where nothing was calibrated.
        sources: the files of the float model, which are not overwritten.
    """

    model: SerializedModel
    report: Report
    plan: QuantPlan
    table: CalibrationTable | None
    sources: tuple[Path, ...]

    @property
    def data(self) -> bytes:
        """The model as the bytes of one file.

        Raises:
            ModelError: It would pass 2 GiB.
        """
        return self_contained(self.model)

    def save(self, path: str | Path, *, external_data: bool = False) -> None:
        """Write the model; what is at ``path`` is replaced at once or not at all.

        Args:
            path: Where to.
            external_data: Put the tensors into a file beside it. Done anyway where one file would pass 2 GiB.

        Raises:
            OutputError: ``path`` is a file of the float model, or cannot be written.
        """
        check_outputs([path], self.sources)
        save_model(self.model, path, external_data=external_data)

    def view_range(self, name: str) -> RangeView:
        """Histogram of activation ``name``, the range that was chosen, and what narrower and wider ones would cost.

        Raises:
            ConfigError: it is no activation that was calibrated.
        """
        found = next((t for t in self.report.tensors if t.name == name and t.kind == "activation"), None)
        if found is None or self.table is None:
            known = [tensor.name for tensor in self.report.tensors if tensor.kind == "activation"]
            raise ConfigError(
                f"{name!r} is no activation that was calibrated{closest(name, known)}",
                hint="the report lists them (--report FILE)" if known else "dynamic quantization calibrates none",
            )
        return view_tensor(self.plan, self.table, found)

    def __repr__(self) -> str:
        size, ops = (text for _, text in self.report.summary()[:2])
        return f"QuantizedModel({self.report.model}: {size}; {ops})"

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def view_tensor(plan: QuantPlan, table: CalibrationTable, tensor: TensorQuality) -> RangeView:
    """The histogram of an activation of ``plan``, its range, and what other ranges would cost."""
    planned = plan.tensors[tensor.name]
    seen = table[tensor.name if tensor.name in table else planned.source or tensor.name]
    return view_range(tensor.name, seen, tensor.scale, tensor.zero_point, planned.scheme.dtype)
