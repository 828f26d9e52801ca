"""What is remembered of every planned activation: a statistic of constant size, from which any range follows."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from requant import ops
from requant.calibration.choosing import EVEN, SHARES, OutputGain, best_method, choose, range_of
from requant.config import AUTO
from requant.errors import CalibrationError
from requant.files import missing_file, write_atomically
from requant.parallel import in_order
from requant.types import Range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from requant.calibration.choosing import Choice
    from requant.config import QuantConfig
    from requant.onnx.graph import Graph
    from requant.onnx.rescale import Factors
    from requant.onnx.shift import Shifts
    from requant.planning.plan import QuantPlan
    from requant.planning.tensors import TensorPlan
    from requant.types import QuantScheme

FORMAT = "requant-calibration"
VERSION = 2


class CalibrationTable(Mapping[str, ops.TensorStatistics]):
    """Statistics by tensor name, for the model whose digest it carries, rescaled by ``factors``, less ``shifts``.

    ``gains`` say what errors of a tensor cost at the outputs of the layers that read it, where that was measured;
    ``unproven`` names those for which what they choose did not prove itself.
    """

    def __init__(
        self,
        statistics: Mapping[str, ops.TensorStatistics],
        *,
        digest: str,
        samples: int,
        factors: Factors = MappingProxyType({}),
        shifts: Shifts = MappingProxyType({}),
        gains: Mapping[str, OutputGain] = MappingProxyType({}),
        unproven: frozenset[str] = frozenset(),
    ) -> None:
        self._statistics = dict(statistics)
        self.digest = digest
        self.samples = samples
        self.factors = dict(factors)
        self.shifts = dict(shifts)
        self.gains = dict(gains)
        self.unproven = unproven

    def __getitem__(self, name: str) -> ops.TensorStatistics:
        return self._statistics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._statistics)

    def __len__(self) -> int:
        return len(self._statistics)

    def __repr__(self) -> str:
        return f"CalibrationTable({len(self)} tensors, {self.samples} samples)"

    def with_factors(self, factors: Factors, shifts: Shifts = MappingProxyType({})) -> CalibrationTable:
        """The same statistics, said to be of a model that was rescaled by ``factors``, then moved by ``shifts``."""
        return self._with(factors=factors, shifts=shifts)

    def with_gains(self, gains: Mapping[str, OutputGain], unproven: frozenset[str] = frozenset()) -> CalibrationTable:
        """The same statistics with what was measured of errors at the outputs of layers."""
        return self._with(gains=gains, unproven=unproven)

    def _with(self, **changes: Any) -> CalibrationTable:
        names = ("digest", "samples", "factors", "shifts", "gains", "unproven")
        return CalibrationTable(self._statistics, **{name: getattr(self, name) for name in names} | changes)

    def _gain(self, name: str) -> OutputGain:
        """What ranges are chosen by: of what was not measured, or did not prove itself, the error of the tensor."""
        return EVEN if name in self.unproven else self.gains.get(name, EVEN)

    def joined(self, tensor: TensorPlan) -> ops.TensorStatistics:
        """What was seen of all tensors whose values share the range of ``tensor``.

        Raises:
            CalibrationError: the table does not have one of them.
        """
        return self._joined(tensor.name, tensor.joined)

    def _joined(self, name: str, joined: tuple[str, ...]) -> ops.TensorStatistics:
        missing = [each for each in (name, *joined) if each not in self._statistics]
        if missing:
            raise CalibrationError(
                f"the calibration table has no statistics for tensor {missing[0]!r}",
                hint="calibrate again with the same options as quantize",
            )
        seen = self._statistics[name]
        if joined:
            seen = ops.TensorStatistics.from_bytes(seen.to_bytes())
            for each in joined:
                seen.merge(self._statistics[each])
        return seen

    def range(
        self, name: str, method: str, scheme: QuantScheme, percentile: float, joined: tuple[str, ...] = ()
    ) -> Range:
        """The range that ``method`` chooses for tensor ``name``, or for all that it and ``joined`` tensors hold.

        Raises:
            CalibrationError: the table has no such tensor, or it saw no finite value.
        """
        return range_of(name, self._joined(name, joined), method, scheme, percentile)

    def all_ranges(self, config: QuantConfig) -> dict[str, dict[str, Range]]:
        """For each tensor the range of each method: ``mse``, and for the symmetric scheme ``mse_symmetric``.

        ``auto`` stands among them where it is known what errors cost at the outputs of layers.
        """
        suffix = {False: "", True: "_symmetric"}

        def ranges(name: str) -> dict[str, Range]:
            seen, scheme = self._statistics[name], config.activation_scheme
            if not seen.count:
                return {}
            chosen = seen.ranges(scheme.dtype.value, config.percentile)
            found = {f"{method}{suffix[symmetric]}": Range(*ends) for method, symmetric, *ends in chosen}
            for symmetric in suffix if self.gains else ():
                best = best_method(
                    name, seen, self._gain(name), replace(scheme, symmetric=symmetric), config.percentile
                )
                found[f"{AUTO}{suffix[symmetric]}"] = found[f"{best}{suffix[symmetric]}"]
            return found

        # The search runs without the GIL, and ends before an interrupt has waited for long.
        found = map(ranges, self) if config.cores == 1 else in_order(ranges, self, config.cores)
        return dict(zip(self, found, strict=True))

    def choices(self, plan: QuantPlan, config: QuantConfig) -> dict[str, Choice]:
        """The range of every tensor that ``plan`` calibrates, but of those in branches that no sample took.

        Raises:
            CalibrationError: the table lacks a tensor, or what method ``auto`` chooses by.
        """

        def gain(tensor: TensorPlan) -> OutputGain | None:
            return self._gain(tensor.name) if self.gains else None

        tensors = [tensor for tensor in plan.tensors.values() if tensor.is_calibrated and self.has_seen(tensor)]
        return {tensor.name: choose(tensor, self.joined(tensor), gain(tensor), config) for tensor in tensors}

    def ranges(self, plan: QuantPlan, config: QuantConfig) -> dict[str, Range]:
        """The ranges of ``choices`` alone."""
        return {name: choice.range for name, choice in self.choices(plan, config).items()}

    def has_seen(self, tensor: TensorPlan) -> bool:
        """Whether a value is known of a tensor, or nothing at all: that is an error, but not here."""
        statistics = [self.get(name) for name in (tensor.name, *tensor.joined)]
        return any(seen is None or seen.count for seen in statistics)

    def check(self, graph: Graph) -> None:
        """Refuse a table of another model.

        Raises:
            CalibrationError: it was made from a different file.
        """
        if self.digest != graph.digest:
            raise CalibrationError(
                f"the calibration table belongs to another model (digest {self.digest[:12]}, "
                f"{graph.origin} has {graph.digest[:12]})",
                hint="run `requant calibrate` on this model",
            )

    def save(self, path: str | Path, ranges: Mapping[str, Mapping[str, Range]] | None = None) -> None:
        """Write the table as JSON; the ranges of ``all_ranges``, if given, beside the statistics for people to read."""
        tensors = {}
        for name, seen in self._statistics.items():
            tensors[name] = {
                "count": seen.count,
                **{what: value if math.isfinite(value) else None for what, value in _moments(seen).items()},
                "zeros": seen.zeros,
                "ranges": {method: list(chosen) for method, chosen in (ranges or {}).get(name, {}).items()},
                "statistics": base64.b64encode(seen.to_bytes()).decode(),
            }
        table = {
            "format": FORMAT,
            "version": VERSION,
            "model_digest": self.digest,
            "samples": self.samples,
            "factors": {name: [float(factor) for factor in each] for name, each in self.factors.items()},
            "shifts": {name: [float(each) for each in moved] for name, moved in self.shifts.items()},
            "gains": {name: [gain.rounding, *gain.clipping] for name, gain in self.gains.items()},
            "unproven": sorted(self.unproven),
            "tensors": tensors,
        }
        write_atomically(path, (json.dumps(table, indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> CalibrationTable:
        """Read a table that ``save`` wrote.

        Raises:
            MissingFileError: there is no such file.
            CalibrationError: it is not a calibration table, or damaged.
        """
        try:
            table = json.loads(Path(path).read_text("utf-8"))
            _expect_format(table)
            statistics = {
                name: ops.TensorStatistics.from_bytes(base64.b64decode(entry["statistics"], validate=True))
                for name, entry in table["tensors"].items()
            }
            factors = {name: _factors(each) for name, each in table["factors"].items()}
            return cls(
                statistics,
                digest=str(table["model_digest"]),
                samples=_samples(table["samples"]),
                factors=factors,
                shifts={name: _shifts(each) for name, each in table.get("shifts", {}).items()},
                gains={name: _gain(each) for name, each in table.get("gains", {}).items()},
                unproven=_unproven(table.get("unproven", [])),
            )
        except FileNotFoundError:
            raise missing_file("calibration table", path) from None
        except OSError as problem:
            raise CalibrationError(f"calibration table {path} cannot be read: {problem.strerror}") from None
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise CalibrationError(
                f"{path} is not a calibration table, which is a JSON file",
                hint="samples are --data; make a table of them with `requant calibrate`",
            ) from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as problem:
            raise CalibrationError(
                f"{path} is not a calibration table of version {VERSION}, or it is damaged ({problem})",
                hint="make one with `requant calibrate`",
            ) from None


def _samples(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError("the number of samples is none")
    return value


def _unproven(names: Any) -> frozenset[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("what is unproven are not names")
    return frozenset(names)


def _factors(values: Any) -> NDArray[np.float32]:
    factors = np.array(values, np.float32)
    if factors.ndim != 1 or not np.all((factors > 0) & np.isfinite(factors)):
        raise ValueError("a factor is not positive")
    return factors


def _shifts(values: Any) -> NDArray[np.float32]:
    shifts = np.array(values, np.float32)
    if shifts.ndim != 1 or not np.all((shifts >= 0) & np.isfinite(shifts)):
        raise ValueError("a shift is negative or not finite")
    return shifts


def _gain(values: Any) -> OutputGain:
    rounding, *clipping = map(float, values)
    if len(clipping) != len(SHARES) or not all(0 <= gain < math.inf for gain in (rounding, *clipping)):
        raise ValueError("a gain is missing, negative or not finite")
    return OutputGain(rounding, tuple(clipping))


def _expect_format(table: Mapping[str, Any]) -> None:
    if table["format"] != FORMAT or table["version"] != VERSION:
        raise ValueError(f"it is {table['format']} {table['version']}")


def _moments(seen: ops.TensorStatistics) -> dict[str, float]:
    return {"min": seen.min, "max": seen.max, "mean": seen.mean, "std": seen.std}
