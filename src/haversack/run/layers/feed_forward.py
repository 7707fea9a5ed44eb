"""The dense feed-forward layer, gated or not. The record is `models.FeedForward`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from haversack.kernels import gate
from haversack.run._products import F32, multiply, multiply_add

if TYPE_CHECKING:
    from haversack.models._architecture import FeedForward
    from haversack.run._forward import Call


def forward(layer: FeedForward, x: F32, weights: Any, call: Call, hidden: F32 | None) -> F32 | None:
    """The layer's result of x f32 [n, width]; added to `hidden` in place when given, else returned."""
    inner = activated(layer, x, weights, call)
    if hidden is not None:
        multiply_add(inner, layer.down, weights, hidden, call.activations, call.tap)
        return None
    out = call.scratch.get("branch", len(x), layer.down.outputs)
    multiply(inner, (layer.down,), weights, (out,), call.activations, call.tap)
    return out


def activated(layer: FeedForward, x: F32, weights: Any, call: Call) -> F32:
    """What the down matrix multiplies, f32 [n, layer.width], in a buffer."""
    n, scratch = len(x), call.scratch
    up = scratch.get("up", n, layer.width)
    if layer.gate is None:
        multiply(x, (layer.up,), weights, (up,), call.activations, call.tap)
        gate(up, None, layer.activation, out=up)
        return up
    inner = scratch.get("gate", n, layer.width)
    rows = weights[layer.up.weight]
    if hasattr(rows, "gated") and layer.up.bias is None:  # run/forms/neurons.py
        multiply(x, (layer.gate,), weights, (inner,), call.activations, call.tap)
        gate(inner, None, layer.activation, out=inner)
        if call.tap is not None:
            call.tap(layer.up.weight, x)
        rows.gated(x, inner)
        return inner
    multiply(x, (layer.gate, layer.up), weights, (inner, up), call.activations, call.tap)
    gate(inner, up, layer.activation, out=inner)
    return inner
