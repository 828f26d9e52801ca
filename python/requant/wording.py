"""Numbers in sentences."""

from __future__ import annotations


def counted(count: int, words: str) -> str:
    """``count`` of what ``words`` say, in which each ``(s)`` and ``(es)`` is left out of one.

    Example:
        >>> counted(1, "weight(s) rounded"), counted(12, "bias(es) corrected")
        ('1 weight rounded', '12 biases corrected')
    """
    for ending in ("s", "es"):
        words = words.replace(f"({ending})", "" if count == 1 else ending)
    return f"{count} {words}"


def times(ratio: float, above: str, below: str, equal: str) -> str:
    """How many times ``above`` or ``below``, or ``equal`` where both round to once.

    Example:
        >>> times(3.314, "smaller", "larger", "as large"), times(0.999, "faster", "slower", "as fast")
        ('3.31 x smaller', 'as fast')
    """
    larger = f"{max(ratio, 1 / ratio):.2f}"
    return equal if larger == "1.00" else f"{larger} x {above if ratio > 1 else below}"


def sqnr(decibels: float | None) -> str:
    """How far outputs are from others in words; None: not at all."""
    return "equal" if decibels is None else f"SQNR {decibels:.1f} dB"
