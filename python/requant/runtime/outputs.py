"""What a runtime gives: arrays, and sequences and maps as arrays of one Python object."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_array(output: object) -> NDArray[Any]:
    """What a runtime gives for an output; sequences and absent optionals as an array of one Python object.

    Maps from the same keys to reals, which classifiers give, one for each sample, are a row of their values each.
    """
    if isinstance(output, np.ndarray):
        return output
    if isinstance(output, list) and output and all(isinstance(each, dict) for each in output):
        first, *rest = output
        reals = all(isinstance(value, float) for each in output for value in each.values())
        if reals and all(each.keys() == first.keys() for each in rest):
            return np.array([[each[key] for key in first] for each in output], np.float32)
    boxed = np.empty((), object)
    boxed[()] = output
    return boxed


def unboxed(output: NDArray[Any]) -> Any:
    """What a runtime takes again as an input: an array, or the sequence in it."""
    boxed: Any = output[()] if output.dtype == object and output.ndim == 0 else None
    return boxed if isinstance(boxed, list) else output


def held(output: NDArray[Any]) -> list[NDArray[Any]]:
    """The arrays in an output: itself, or those of a sequence that hold anything, stacked where all have one shape.

    Other Python objects have none.
    """
    if output.dtype != object:
        return [output]
    boxed: Any = output[()]
    items = boxed if isinstance(boxed, list) else ()
    arrays = [item for item in items if isinstance(item, np.ndarray) and item.size]
    return [np.stack(arrays)] if len({array.shape for array in arrays}) == 1 else arrays


def joined(output: NDArray[Any]) -> NDArray[Any]:
    """All values in an output, of a sequence as one row ``[1, values]``."""
    if output.dtype != object:
        return output
    return np.concatenate([np.zeros(0, np.float32), *(array.ravel() for array in held(output))])[None]
