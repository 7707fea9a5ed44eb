"""From one row of logits to one token.

Filters apply in this order, each on what the one before left: repetition penalty (arXiv 1909.05858: a score
of a token already seen is divided by the penalty when positive, else multiplied by it), temperature, top-k,
top-p (arXiv 1904.09751: the fewest likeliest tokens whose probabilities reach p), min-p (arXiv 2407.01082:
tokens at least p times as likely as the likeliest). Equal scores rank by token number.

The random number of step i of a seed is a function of (seed, i) alone, so a run can be resumed anywhere and
does not depend on what else drew numbers.
"""

from __future__ import annotations

import math

import numpy as np

from haversack.core.errors import UserError
from haversack.kernels._arguments import check_array, check_out, placed, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

_WORD = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15


def _mixed(z: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)


def uniform(seed: int, step: int) -> float:
    """The random number in [0, 1) of one step: 53 bits of SplitMix64 from a mixed seed, jumped to `step`."""
    return (_mixed((_mixed((seed + _STEP) & _WORD) + (step + 1) * _STEP) & _WORD) >> 11) * 2.0**-53


def greedy_twin(logits: Array) -> int:
    """The definition of `greedy`."""
    return int(np.argmax(logits))


def scaled(logits: Array, temperature: float, repetition_penalty: float, history: Array | None) -> Array:
    """`logits` with those of the tokens in `history` penalized, divided by the temperature (0: undivided)."""
    scores = logits.copy()
    if history is not None and repetition_penalty != 1:
        seen, penalty = logits[history], np.float32(repetition_penalty)
        scores[history] = np.where(seen > 0, seen / penalty, seen * penalty)
    divisor = np.float32(temperature)
    with np.errstate(over="ignore"):
        result: Array = scores / divisor if divisor else scores
    return result


def filter_logits_twin(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history: Array | None = None,
) -> Array:
    """The definition of `filter_logits`."""
    scores = scaled(logits, temperature, repetition_penalty, history)
    order = np.argsort(-scores, kind="stable")
    if top_k:
        order = order[:top_k]
    largest = scores[order[0]]
    if top_p < 1:
        weights = np.exp(scores[order].astype(np.float64) - largest)
        before = np.cumsum(weights) - weights
        order = order[before < top_p * weights.sum()]
    if min_p > 0:
        order = order[scores[order] >= np.float32(float(largest) + math.log(min_p))]
    result: Array = np.full_like(scores, -np.inf)
    result[order] = scores[order]
    return result


def draw_twin(scores: Array, number: float) -> int:
    """The token at which the running sum of probabilities, in the order of tokens, passes `number`."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    sums = np.cumsum(weights)
    passed = np.flatnonzero(sums > number * sums[-1])
    return int(passed[0]) if len(passed) else int(np.flatnonzero(weights)[-1])


def log_probability_twin(logits: Array, token: int) -> float:
    """Natural logarithm of a token's probability under the unfiltered logits."""
    shifted = logits.astype(np.float64) - logits.max()
    return float(shifted[token] - np.log(np.exp(shifted).sum()))


def only_allowed(logits: Array, allowed: Array) -> Array:
    """A copy of logits f32[vocabulary], minus infinity where `allowed` bool[any] is false or at its end."""
    masked: Array = np.full_like(logits, -np.inf)
    known = min(len(allowed), len(logits))
    masked[:known] = np.where(allowed[:known], logits[:known], np.float32(-np.inf))
    return masked


def greedy(logits: Array) -> int:
    """The first token with the largest of logits f32[vocabulary]. NaN, or no finite logit: UserError."""
    module = native()
    if module is not None:
        token: int = module.greedy(logits)
        if token >= 0:
            return token
    _check_logits("greedy", logits)
    if module is not None:
        refuse_arrays("greedy")
    return greedy_twin(logits)


def filter_logits(
    logits: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history: Array | None = None,
    out: Array | None = None,
) -> Array:
    """logits f32[vocabulary] -> scores f32[vocabulary], minus infinity where a filter excludes the token;
    `softmax` of it is the distribution that `sample` draws from.

    temperature > 0; top_k 0: off; history i32[any]: tokens seen. `out` may be `logits`. Raises UserError for
    what does not fit, for NaN and plus infinity, and when no logit is finite.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(logits), np.float32) if out is None else out
        if module.filter_logits(logits, temperature, top_k, top_p, min_p, repetition_penalty, history, out):
            return out
    if temperature == 0:
        raise _parameter_error("filter_logits", "temperature", temperature, "above 0")
    _checked_scores("filter_logits", logits, temperature, top_k, top_p, min_p, repetition_penalty, history)
    check_out("filter_logits", out, logits.shape)
    if module is not None:
        refuse_arrays("filter_logits")
    return placed(
        filter_logits_twin(logits, temperature, top_k, top_p, min_p, repetition_penalty, history), out
    )


def sample(
    logits: Array,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    history: Array | None = None,
    seed: int = 0,
    step: int = 0,
    allowed: Array | None = None,
) -> tuple[int, float]:
    """Draws one token from logits f32[vocabulary]: the token, and the natural logarithm of its probability
    under the unfiltered logits at temperature 1.

    temperature 0 takes the first largest score after the repetition penalty. `allowed` bool[any]: the others
    and tokens behind its end count as logits of minus infinity, for both answers. Other parameters and
    errors: see `filter_logits`. The same (seed, step) and logits give the same token.
    """
    module = native()
    if module is not None:
        drawn: tuple[int, float] | None = module.sample(
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            history,
            seed & _WORD,
            step & _WORD,
            allowed,
        )
        if drawn is not None:
            return drawn
    if allowed is not None:
        check_array("sample", "allowed", allowed, (None,), ("bool",))
        logits = only_allowed(logits, allowed)
    scores = _checked_scores("sample", logits, temperature, top_k, top_p, min_p, repetition_penalty, history)
    if module is not None:
        refuse_arrays("sample")
    if temperature == 0:
        token = greedy_twin(scores)
    else:
        scores = filter_logits_twin(logits, temperature, top_k, top_p, min_p, repetition_penalty, history)
        token = draw_twin(scores, uniform(seed, step))
    return token, log_probability_twin(logits, token)


def _parameter_error(op: str, name: str, given: float, expected: str) -> UserError:
    return UserError(f"{op}: {name}={given:g} is not supported (must be {expected})", field=name, given=given)


def _check_logits(op: str, logits: Array, what: str = "logits") -> None:
    check_array(op, "logits", logits, (None,))
    if logits.size == 0 or not bool(np.isfinite(logits.max())):
        raise UserError(f"{op}: {what} hold NaN, infinity, or no finite number", field="logits")


def _checked_scores(
    op: str,
    logits: Array,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    history: Array | None,
) -> Array:
    """`scaled` of what fits; UserError for what does not."""
    _check_logits(op, logits)
    if not 0 <= temperature < math.inf:
        raise _parameter_error(op, "temperature", temperature, "at least 0 and finite")
    if top_k < 0:
        raise _parameter_error(op, "top_k", top_k, "at least 0")
    if not 0 < top_p <= 1:
        raise _parameter_error(op, "top_p", top_p, "above 0 and at most 1")
    if not 0 <= min_p <= 1:
        raise _parameter_error(op, "min_p", min_p, "within 0..1")
    if not 0 < repetition_penalty < math.inf:
        raise _parameter_error(op, "repetition_penalty", repetition_penalty, "above 0 and finite")
    if history is not None:
        check_array(op, "history", history, (None,), ("int32",))
        if history.size and not 0 <= int(history.min()) <= int(history.max()) < len(logits):
            raise UserError(f"{op}: history holds tokens outside 0..{len(logits) - 1}", field="history")
    scores = scaled(logits, temperature, repetition_penalty, history)
    _check_logits(op, scores, "scores after penalty and temperature")
    return scores
