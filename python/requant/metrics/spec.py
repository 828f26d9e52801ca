"""What a metric says about itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]


class Against(Enum):
    """What outputs are held against."""

    LABELS = "labels"
    TARGETS = "labels, or the outputs of another model"
    MODEL = "the outputs of another model"
    TOKENS = "labels, or the tokens that were fed"
    ANYTHING = "whatever there is"


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One batch, as a metric sees it.

    Attributes:
        feeds: what the model was fed, by input.
        outputs: what it gave, by output, in the model's order.
        count: samples in the batch.
        labels: their labels ``[count, ...]``, where there are labels.
        reference: the outputs of the model to compare with, where one is asked for.
    """

    feeds: Mapping[str, Array]
    outputs: Mapping[str, Array]
    count: int
    labels: Array | None = None
    reference: Mapping[str, Array] | None = None

    @property
    def output(self) -> Array:
        """The first output."""
        return next(iter(self.outputs.values()))


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A figure for a whole data set, from what single batches contribute to it.

    Attributes:
        name: as the user types it.
        against: what it needs beside the outputs.
        higher_is_better: the direction in which models improve.
        measure: what one batch contributes; raises DataError where outputs and labels do not fit.
        value: the figure, from the contributions of all batches in their order.
        source: what ``get_metric`` was given: that travels to other processes.
    """

    name: str
    against: Against
    higher_is_better: bool
    measure: Callable[[Case], Any]
    value: Callable[[Sequence[Any]], float]
    source: str | Callable[..., object] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        from requant.metrics import get_metric

        return get_metric, (self.source,)

    def refers(self, *, labelled: bool) -> bool:
        """Whether it takes the outputs of another model, of samples that are ``labelled`` or not."""
        return self.against is Against.MODEL or (self.against is Against.TARGETS and not labelled)

    def kept(self, value: float, of: float) -> float | None:
        """The share of the figure ``of`` that ``value`` keeps: 1 is as good, less is worse; None where ``of`` is 0."""
        if value == of:
            return 1.0
        part, whole = (value, of) if self.higher_is_better else (of, value)
        return None if of == 0 or whole == 0 else part / whole
