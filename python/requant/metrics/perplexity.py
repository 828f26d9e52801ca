"""Perplexity of a language model: ``exp`` of the mean negative log-likelihood of the next token.

The first output holds logits ``[batch, tokens, vocabulary]``. Labels ``[batch, tokens]`` say which token each of them
predicts, negative ones being left out; without labels that is the next of the token ids that were fed, as far as an
input named ``attention_mask`` is not 0 there.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from requant.errors import DataError
from requant.metrics.spec import Against, Metric

if TYPE_CHECKING:
    from collections.abc import Sequence

    from requant.metrics.spec import Array, Case

_BLOCK = 1 << 20  # logits that are made float64 at a time
_MASK = "attention_mask"


def _measure(case: Case) -> tuple[float, int]:
    logits = case.output
    if logits.ndim != 3 or logits.dtype.kind != "f":
        raise DataError(
            f"perplexity needs logits [batch, tokens, vocabulary] as the first output, "
            f"got {logits.dtype} {list(logits.shape)}",
            hint="choose another metric for this model",
        )
    if case.labels is None:
        logits, targets = logits[:, :-1], _next_tokens(case)
    else:
        targets = _checked(case.labels, logits.shape, "labels")
    rows, tokens = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
    scored = tokens >= 0
    if np.any(tokens >= rows.shape[1]):
        raise DataError(f"token {int(tokens.max())} is outside of the {rows.shape[1]} tokens that the logits are for")
    rows, tokens = rows[scored], tokens[scored]
    step = max(1, _BLOCK // rows.shape[1])
    starts = range(0, len(rows), step)
    return sum(_surprise(rows[i : i + step], tokens[i : i + step]) for i in starts), len(tokens)


def _surprise(rows: Array, tokens: Array) -> float:
    """The sum of ``-log softmax(row)[token]``."""
    x = rows.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    own = np.take_along_axis(x, tokens[:, np.newaxis], axis=1)[:, 0]
    return float(np.sum(np.log(np.exp(x).sum(axis=1)) - own))


def _next_tokens(case: Case) -> Array:
    """The tokens ``[batch, tokens - 1]`` that follow; -1 where nothing is to be scored."""
    shape = case.output.shape
    names = [n for n, x in case.feeds.items() if x.dtype.kind in "iu" and x.shape == shape[:2] and n != _MASK]
    if not names:
        raise DataError(
            f"perplexity found no input of token ids {list(shape[:2])} beside logits {list(shape)}, and no labels",
            hint="give labels: the token id that each of the logits predicts",
        )
    ids = np.asarray(case.feeds["input_ids" if "input_ids" in names else names[0]])
    targets = _checked(ids, shape, "token ids")[:, 1:]
    mask = case.feeds.get(_MASK)
    return targets if mask is None or mask.shape != ids.shape else np.where(mask[:, 1:] != 0, targets, -1)


def _checked(tokens: Array, shape: tuple[int, ...], what: str) -> Array:
    if tokens.dtype.kind not in "iu" or tokens.size != math.prod(shape[:2]):
        raise DataError(
            f"perplexity needs integer {what} {list(shape[:2])} for logits {list(shape)}, "
            f"got {tokens.dtype} {list(tokens.shape)}"
        )
    return tokens.reshape(shape[:2]).astype(np.int64)


def _value(parts: Sequence[tuple[float, int]]) -> float:
    surprise, count = (sum(column) for column in zip(*parts, strict=True))
    if not count:
        raise DataError("perplexity found no token to score", hint="give sequences of at least two tokens")
    try:
        return math.exp(surprise / count)
    except OverflowError:
        return math.inf


METRIC = Metric("perplexity", Against.TOKENS, higher_is_better=False, measure=_measure, value=_value)
