"""Gates of feed-forward blocks, out = activation(gate) * up, and bounds of logits, cap * tanh(x / cap)."""

from __future__ import annotations

import math

import numpy as np

from haversack.core.errors import UserError, not_allowed
from haversack.kernels._arguments import check_array, check_out, check_rows, placed, refuse_arrays
from haversack.kernels._matrix import Array
from haversack.kernels._native import native

KINDS = ("silu", "gelu", "gelu-tanh", "relu")
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


def activation_twin(x: Array, kind: str) -> Array:
    """The activation functions, in f64: f64 of x's shape."""
    x = x.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        if kind == "silu":
            result = x / (1 + np.exp(-x))
        elif kind == "gelu":
            result = x * np.frompyfunc(lambda t: 0.5 * math.erfc(-t / math.sqrt(2)), 1, 1)(x).astype(
                np.float64
            )
        elif kind == "gelu-tanh":
            result = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        elif kind == "relu":
            result = np.maximum(x, 0)
        else:
            raise not_allowed("kind", kind, KINDS)
    activated: Array = result
    return activated


def gate_twin(gate: Array, up: Array | None, kind: str) -> Array:
    """The definition of `gate`."""
    activated = activation_twin(gate, kind).astype(np.float32)
    result: Array = activated if up is None else activated * up
    return result


def gate(gate: Array, up: Array | None, kind: str = "silu", *, out: Array | None = None) -> Array:
    """gate, up f32[n, f] -> activation(gate) * up, f32[n, f]; up None: activation(gate) alone.

    `kind` is silu, gelu (with erf), gelu-tanh or relu. `out` may be `gate` or `up`. Raises UserError for a
    shape, type or kind that does not fit.
    """
    module = native()
    if module is not None and kind in _NUMBERS:
        out = np.empty(np.shape(gate), np.float32) if out is None else out
        if module.gate(gate, up, _NUMBERS[kind], out):
            return out
    if kind not in KINDS:
        raise not_allowed("kind", kind, KINDS)
    check_rows("gate", "gate", gate)
    if up is not None:
        check_array("gate", "up", up, gate.shape)
    check_out("gate", out, gate.shape)
    if module is not None:
        refuse_arrays("gate")
    return placed(gate_twin(gate, up, kind), out)


def softcap_twin(x: Array, cap: float) -> Array:
    """The definition of `softcap`."""
    result: Array = (cap * np.tanh(x.astype(np.float64) / cap)).astype(np.float32)
    return result


def softcap(x: Array, cap: float, *, out: Array | None = None) -> Array:
    """x f32[..., d] -> cap * tanh(x / cap), f32 of x's shape; `out` may be `x`.

    Raises UserError for a shape or type that does not fit and for a `cap` that is not above 0.
    """
    module = native()
    if module is not None:
        out = np.empty(np.shape(x), np.float32) if out is None else out
        if module.softcap(x, cap, out):
            return out
    if not cap > 0:
        raise UserError(f"softcap: cap={cap} must be above 0", field="cap", given=cap)
    check_rows("softcap", "x", x)
    check_out("softcap", out, x.shape)
    if module is not None:
        refuse_arrays("softcap")
    return placed(softcap_twin(x, cap), out)
