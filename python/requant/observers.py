"""Statistics of plain numpy arrays, and the ranges and parameters chosen from them.

For services that see their data pass by: observe in each worker, merge, choose a range.

    observer = Observer()
    for batch in batches:
        observer.observe(batch)
    params = observer.params("mse", QuantScheme(QuantType.UINT8))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from requant import ops
from requant.arrays.affine import compute_params
from requant.arrays.intake import as_float32, thread_count
from requant.errors import CalibrationError, ConfigError, closest
from requant.types import PerTensor, QuantScheme, Range
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from requant.types import QuantParams, QuantType

__all__ = ["Observer", "ObserverSet"]


def observe_many(statistics: Sequence[ops.TensorStatistics], arrays: Sequence[ArrayLike], *, threads: int = 0) -> None:
    """Adds ``arrays[i]`` to ``statistics[i]`` for all ``i``, in one call without the GIL.

    Args:
        statistics: One for each array.
        arrays: Reals of any shape.
        threads: Threads to use; 0 means one for each core.

    Raises:
        ConfigError: The two sequences differ in length, or ``threads`` is negative.
        TypeError: An array does not hold real numbers.
    """
    if len(statistics) != len(arrays):
        raise ConfigError(f"expected an array for each of {len(statistics)} statistics, got {len(arrays)}")
    count = thread_count(threads)
    ops.observe_many(list(statistics), [as_float32(array) for array in arrays], count)


def observe_request(
    statistics: ops.TensorStatistics, x: ArrayLike, dtype: QuantType
) -> tuple[float, float, float] | None:
    """Adds ``x`` to ``statistics``, and tells what dynamic quantization of it costs, without the GIL.

    Returns:
        Smallest and largest finite value of ``x``, and the sum of the squared errors of its finite values when they are
        quantized asymmetrically over that range with one scale; None where there are none. NumPy does the same by
        ``params_from_data`` and ``fake_quantize_array``, in many calls.

    Raises:
        TypeError: ``x`` does not hold real numbers.
    """
    return ops.observe_request(statistics, as_float32(x), dtype.value)


class Observer:
    """What was seen of one tensor: range, moments and a histogram, in constant memory.

    Merging is exact: the same result in any order, on any number of threads or machines. Safe to share between threads.
    """

    def __init__(self) -> None:
        self._statistics = ops.TensorStatistics()

    def observe(self, x: ArrayLike) -> None:
        """Takes in all values of ``x``, of any shape and real dtype; NaN and infinities are counted and left out.

        Raises:
            TypeError: ``x`` does not hold real numbers.
        """
        self._statistics.observe(as_float32(x))

    def merge(self, other: Observer) -> None:
        """Takes in all that ``other`` has seen."""
        self._statistics.merge(other._statistics)

    def range(
        self,
        method: str = "minmax",
        *,
        scheme: QuantScheme = QuantScheme(),
        percentile: float = 99.99,
        skip_nonfinite: bool = False,
    ) -> Range:
        """The range that a calibration method chooses.

        Args:
            method: One of ``requant.ops.CALIBRATION_METHODS``.
            scheme: Symmetric schemes get ``[-a, a]``, or ``[0, a]`` if nothing negative was seen; the integer type
                matters to the methods that weigh rounding against clipping.
            percentile: For the method ``percentile``: the share of values kept, in percent, in (0, 100].
            skip_nonfinite: Choose from the finite values although NaN or infinities were seen.

        Raises:
            CalibrationError: No finite value was seen, or a NaN or infinity was and ``skip_nonfinite`` is false.
            ConfigError: An unknown method, or a percentile outside (0, 100].
        """
        if method not in ops.CALIBRATION_METHODS:
            known = ", ".join(ops.CALIBRATION_METHODS)
            guess = closest(method, ops.CALIBRATION_METHODS)
            raise ConfigError(f"unknown calibration method {method!r}{guess}", hint=f"choose one of {known}")
        if not skip_nonfinite and (self.nan_count or self.inf_count):
            raise CalibrationError(
                f"{self.nan_count} NaN and {counted(self.inf_count, 'infinite value(s)')} were observed",
                hint="clean the data, or pass skip_nonfinite=True to choose from the finite values",
            )
        return Range(*self._statistics.range(method, scheme.dtype.value, scheme.symmetric, percentile))

    def params(
        self,
        method: str = "minmax",
        scheme: QuantScheme = QuantScheme(),
        *,
        percentile: float = 99.99,
        skip_nonfinite: bool = False,
    ) -> QuantParams:
        """The parameters for :meth:`range`, scale and zero point of shape ``()``.

        Raises:
            CalibrationError: As :meth:`range`.
            ConfigError: As :meth:`range`; or a granularity other than per tensor, since an observer has one range.
        """
        if scheme.granularity != PerTensor():
            raise ConfigError(
                f"expected the granularity PerTensor, got {scheme.granularity}",
                hint="use one observer for each slice, or requant.params_from_data",
            )
        chosen = self.range(method, scheme=scheme, percentile=percentile, skip_nonfinite=skip_nonfinite)
        return compute_params(chosen.lo, chosen.hi, scheme)

    @property
    def count(self) -> int:
        """Finite values seen."""
        return self._statistics.count

    @property
    def zeros(self) -> int:
        """Values seen that were zero."""
        return self._statistics.zeros

    @property
    def nan_count(self) -> int:
        """NaN seen."""
        return self._statistics.nan_count

    @property
    def inf_count(self) -> int:
        """Infinities seen."""
        return self._statistics.inf_count

    @property
    def min(self) -> float:
        """Smallest finite value; NaN if there was none."""
        return self._statistics.min

    @property
    def max(self) -> float:
        """Largest finite value; NaN if there was none."""
        return self._statistics.max

    @property
    def mean(self) -> float:
        """Mean of the finite values; NaN if there was none."""
        return self._statistics.mean

    @property
    def std(self) -> float:
        """Standard deviation of the finite values (divided by their count); NaN if there was none."""
        return self._statistics.std

    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.uint64]]:
        """Bin edges (one more than bins) and counts of the finite values."""
        return self._statistics.histogram()

    def to_bytes(self) -> bytes:
        """The statistics in a form that is stable across machines."""
        return self._statistics.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Observer:
        """The observer that :meth:`to_bytes` was called on.

        Raises:
            CalibrationError: Bytes that are damaged.
        """
        observer = cls()
        observer._statistics = ops.TensorStatistics.from_bytes(data)
        return observer

    def __eq__(self, other: object) -> bool:
        """Whether both have seen the same."""
        return isinstance(other, Observer) and self._statistics == other._statistics

    __hash__ = None  # type: ignore[assignment]  # it changes as it observes

    def __repr__(self) -> str:
        return f"Observer(count={self.count}, min={self.min:g}, max={self.max:g}, mean={self.mean:g}, std={self.std:g})"


class ObserverSet(Mapping[str, Observer]):
    """Observers by tensor name; a name gets its observer when it is first seen."""

    def __init__(self) -> None:
        self._observers: dict[str, Observer] = {}

    def observe(self, arrays: Mapping[str, ArrayLike], *, threads: int = 0) -> None:
        """Takes in an array for each name, all in one call to the compiled core, without the GIL.

        Args:
            arrays: Reals of any shape, by name.
            threads: Threads to use; 0 means one for each core. The result is the same for any number.

        Raises:
            TypeError: An array does not hold real numbers; nothing was observed then.
        """
        values = [as_float32(array) for array in arrays.values()]
        observers = [self._observers.setdefault(name, Observer()) for name in arrays]
        observe_many([observer._statistics for observer in observers], values, threads=threads)  # noqa: SLF001

    def merge(self, other: ObserverSet) -> None:
        """Takes in all that ``other`` has seen, name by name."""
        for name, observer in other.items():
            self._observers.setdefault(name, Observer()).merge(observer)

    def __getitem__(self, name: str) -> Observer:
        return self._observers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._observers)

    def __len__(self) -> int:
        return len(self._observers)

    def __repr__(self) -> str:
        return f"ObserverSet({self._observers!r})"
