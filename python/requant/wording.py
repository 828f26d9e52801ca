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
