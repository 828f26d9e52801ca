"""Samples of a source, checked, counted, some held back, and cut into batches."""

from __future__ import annotations

import logging
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from requant.data.grouping import Batch, group, group_exactly
from requant.data.opening import FORMS, Opener
from requant.data.options import DataOptions
from requant.data.samples import Sample, Samples
from requant.data.spec import InputSpec, batching_of
from requant.errors import ConfigError, DataError
from requant.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from requant.data.sources import Source

logger = logging.getLogger(__name__)

# One in eight is held back until there are 32: enough to compare two models on, few enough to keep.
HOLD_BACK_EVERY = 8
HOLD_BACK_AT_MOST = 32


class Dataset:
    """Data for a model, read anew on each pass; made by ``open_data``.

    Attributes:
        inputs: The inputs it was opened for.
        length: Number of samples, held-back ones included; None where it cannot be known beforehand.
        has_labels: Whether batches carry labels.
    """

    def __init__(self, source: Source, inputs: Sequence[InputSpec], options: DataOptions, *, hold_back: bool) -> None:
        self.inputs = tuple(inputs)
        self.has_labels = False
        self._source, self._options, self._hold_back = source, options, hold_back
        batching = batching_of(self.inputs)
        self._fixed = batching.fixed
        self._warnings: list[str] = []
        self._kept: list[Sample] = []
        if options.batch_size not in (None, self._fixed) and not (batching.rows and self._fixed is None):
            taken = f"takes {self._fixed} at a time" if self._fixed else "has no batch axis"
            self._warn(f"batch_size {options.batch_size} is not used: the model {taken}")
        available = self._preflight()
        self._chosen = self._draw(available)
        self.length = available if available is None or options.samples is None else min(available, options.samples)

    @property
    def description(self) -> str:
        """For people: ``calib.npz, 256 samples``."""
        if self.length is None:
            return self._source.name
        return f"{self._source.name}, {counted(self.length, 'sample(s)')}"

    @property
    def stable(self) -> bool:
        """Whether each pass gives the same samples; others may come only once."""
        return self._source.stable

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd but usable, in the order it was found; complete after a pass. Also logged."""
        return tuple(self._warnings)

    def batches(self) -> Iterator[Batch]:
        """One pass over the data, without what is held back.

        Rows are joined to batches of ``batch_size`` as long as their shapes agree; a model with a fixed batch gets
        exactly that, and rows that do not fill one are dropped with a warning; samples that are no rows go alone.

        Raises:
            DataError: a sample that does not fit, a NaN or an infinity in one, no samples, or a source that can be
                read only once and has been.
        """
        self._kept = kept = []
        dropped = 0

        def calibration() -> Iterator[Sample]:
            for position, sample in enumerate(self._watched(self._samples())):
                if not self._is_held(position, sample):
                    yield sample
                elif not self._source.stable:
                    kept.append(sample)

        def drop(count: int) -> None:
            nonlocal dropped
            dropped += count

        batch = None
        for batch in self._cut(calibration(), drop):
            yield batch
        if dropped and batch is None:
            raise DataError(
                f"too few samples: the model takes {self._fixed} at a time, and there are {dropped} of one shape",
                hint="give more samples, or a model with a dynamic batch",
            )
        if dropped:
            self._warn(
                f"{counted(dropped, 'sample(s)')} not used: too few to fill the model's fixed batch of {self._fixed}"
            )

    def held_back(self) -> Iterator[Batch]:
        """The samples that ``batches`` leaves out: every eighth until there are 32, none of fewer than eight.

        With a fixed batch, every eighth batch. They are read again where the source gives the same at each pass;
        elsewhere the last pass of ``batches`` has kept those it came by, so it must come first.
        """
        yield from self._cut(self._reread() if self._source.stable else self._kept, drop=lambda _: None)

    def _reread(self) -> Iterator[Sample]:
        for position, sample in enumerate(self._samples() if self._hold_back else ()):
            if position >= HOLD_BACK_EVERY * HOLD_BACK_AT_MOST * (self._fixed or 1):
                return
            if self._is_held(position, sample):
                yield sample

    def _is_held(self, position: int, sample: Sample) -> bool:
        rank, place = divmod(position // (self._fixed or 1 if sample.row else 1), HOLD_BACK_EVERY)
        return self._hold_back and place == HOLD_BACK_EVERY - 1 and rank < HOLD_BACK_AT_MOST

    def _cut(self, samples: Iterable[Sample], drop: Callable[[int], None]) -> Iterator[Batch]:
        if self._fixed is None:
            return group(samples, self._options.batch_size)
        return group_exactly(samples, self._fixed, drop)

    def _samples(self) -> Iterator[Sample]:
        """The chosen samples, in the order of the source."""
        stop = self._options.samples if self._chosen is None else max(self._chosen) + 1
        index = 0
        for table in self._source.tables():
            samples = Samples(table, self.inputs)
            for i in range(samples.count):
                if self._chosen is None or index in self._chosen:
                    yield samples.read(i, index)
                index += 1
                if index == stop:
                    return

    def _watched(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        """The same samples, with what can be said of all of them once they have passed."""
        first: Sample | None = None
        count, varied = 0, False
        for sample in samples:
            count += 1
            first = first or sample
            varied = varied or any(not np.array_equal(first.feeds[name], x) for name, x in sample.feeds.items())
            yield sample
        if not count:
            raise self._no_samples()
        if count > 1 and not varied:
            self._warn(f"all {count} samples are identical: ranges will fit this one sample only")
        self._check_enough(count)

    def _preflight(self) -> int | None:
        """Check all headers of a stable source, else those of the first item; returns the number of samples."""
        if not self._source.stable:
            first = self._source.peek()
            if first is None:
                raise self._no_samples()
            Samples(first, self.inputs)
            self.has_labels = first.labels is not None
            return None
        enough = self._options.samples if self._options.seed is None else None
        available = 0
        for table in self._source.tables():
            if not available:
                self.has_labels = table.labels is not None
            available += Samples(table, self.inputs).count
            if enough is not None and available >= enough:
                break
        if not available:
            raise self._no_samples()
        self._check_enough(available)
        return available

    def _draw(self, available: int | None) -> frozenset[int] | None:
        """The samples drawn at random, or None for all or the first."""
        samples, seed = self._options.samples, self._options.seed
        if samples is None or seed is None:
            return None
        if available is None:
            raise ConfigError(
                f"samples cannot be drawn at random from {self._source.name}: it does not tell how many it has",
                hint="leave seed out to take the first, or give a list, arrays or files",
            )
        # Ordered by a hash, so a seed means the same on every platform and version.
        order = sorted(range(available), key=lambda i: blake2b(b"%d:%d" % (seed, i), digest_size=8).digest())
        return frozenset(order[:samples])

    def _check_enough(self, count: int) -> None:
        if self._options.samples is not None and count < self._options.samples:
            self._warn(f"{self._options.samples} samples were asked for and {count} are there; all are used")

    def _no_samples(self) -> DataError:
        return DataError(f"no samples in {self._source.name}", hint=f"give {FORMS}")

    def _warn(self, message: str) -> None:
        if message not in self._warnings:
            self._warnings.append(message)
            logger.warning("%s: %s", self._source.name, message)


def open_data(
    source: object,
    inputs: Sequence[InputSpec],
    options: DataOptions | None = None,
    *,
    labels: str | None = None,
    hold_back: bool = False,
) -> Dataset:
    """Data for a model, whatever form it has; the same samples in any form give the same batches.

    ``requant.data.samples`` has the rule that tells samples from batches. Headers of files and arrays are checked
    here: names, ranks, fixed sizes, dtypes, numbers of samples. Values are checked as they are read.

    Args:
        source: Path of an ``.npz`` keyed by input name, of an ``.npy`` for a model with one input, of a picture, of a
            folder of files of one of these kinds, or of ONNX test data (``test_data_set_*``); a list of paths; an
            array or tensor for a model with one input; a dict of arrays; an iterable of dicts, arrays or tuples in
            the order of the inputs, with a label as an extra element or not (a torch DataLoader is one); or
            onnxruntime's CalibrationDataReader.
        inputs: What the model takes.
        options: Which samples, and how they are cut.
        labels: Name of the array of labels; None takes one called ``labels``, ``label``, ``targets``, ``target`` or
            ``y`` that is no input.
        hold_back: Keep some samples out of ``batches``, to compare models on.

    Raises:
        MissingFileError: a path that is not there.
        MissingDependencyError: pictures without pillow.
        DataError: data that does not fit the model, is damaged, or is empty.
        ConfigError: options that do not fit the data.

    Example:
        >>> import numpy as np
        >>> x = InputSpec("x", np.dtype("float32"), ("batch", 4))
        >>> data = open_data(np.eye(4, dtype="float32"), [x], DataOptions(batch_size=3))
        >>> [batch.feeds["x"].shape for batch in data.batches()]
        [(3, 4), (1, 4)]
    """
    if not inputs:
        raise DataError("the model has no inputs, so there is nothing to calibrate with")
    options = options or DataOptions()
    if options.seed is not None and options.samples is None:
        raise ConfigError("seed draws samples at random, and all are used", hint="say how many: samples (--samples N)")
    return Dataset(Opener(inputs, options, labels).open(source), inputs, options, hold_back=hold_back)
