"""Temporal aggregation: what lies between units, restored from features that were encoded one by one.

Paper: MMEdge (arXiv 2510.25327). Frames: the multi-scale shift, two blocks of dilated depthwise and
pointwise convolutions with a residual, a gate over channels (squeeze and excitation), attention over time,
a gated branch of motion (mean first and two-step differences), a feed-forward layer. Sound: the shift, two
layers of a bidirectional LSTM, its last step, a linear layer. It runs once, after the last unit.

The rectifier in the gate, the feed-forward layer's residual and the widths between are [inferred]. Features
are f32 [steps, width], the result is [width]; any number of steps from one on, so an unfinished window is
aggregated by the same numbers. Below: the modules it is measured against, `mean` and `plain`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from haversack.models.streams.temporal_shift import temporal_shift

SYSTEM = 6

F32 = NDArray[np.float32]
Tensors = Mapping[str, F32]


def linear(x: F32, tensors: Tensors, name: str) -> F32:
    """x [..., in] through the layer `name`."""
    return np.asarray(x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"])


def sigmoid(x: F32) -> F32:
    """1 / (1 + exp(-x)) without overflow."""
    return np.asarray(0.5 * (np.tanh(0.5 * x) + 1), np.float32)


def gelu(x: F32) -> F32:
    """The Gaussian error linear unit in its tanh form."""
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))), np.float32)


def depthwise(x: F32, kernel: F32, bias: F32, dilation: int) -> F32:
    """Each channel of [steps, channels] by its own three numbers [channels, 1, 3], steps `dilation` apart."""
    padded = np.zeros((len(x) + 2 * dilation, x.shape[1]), np.float32)
    padded[dilation : dilation + len(x)] = x
    parts = [padded[at * dilation : at * dilation + len(x)] * kernel[:, 0, at] for at in range(3)]
    return np.asarray(parts[0] + parts[1] + parts[2] + bias)


def dual_convolution(x: F32, tensors: Tensors, name: str) -> F32:
    """Two paths, neighbours one and two steps apart, each depthwise and then pointwise; the sum and x,
    rectified."""
    paths = []
    for dilation in (1, 2):
        depth = f"{name}_depth{dilation}"
        each = depthwise(x, tensors[f"{depth}.weight"], tensors[f"{depth}.bias"], dilation)
        paths.append(linear(each, tensors, f"{name}_point{dilation}"))
    return np.asarray(np.maximum(paths[0] + paths[1] + x, 0))


def squeeze_excitation(x: F32, tensors: Tensors, prefix: str) -> F32:
    """Channels weighed by a gate that sees their means over time."""
    squeezed = np.maximum(linear(x.mean(0), tensors, f"{prefix}.squeeze"), 0)
    return np.asarray(x * sigmoid(linear(squeezed, tensors, f"{prefix}.excite")))


def temporal_attention(x: F32, tensors: Tensors, prefix: str) -> F32:
    """The sum over time [width] with weights that are a softmax of each step's score."""
    scores = linear(np.maximum(linear(x, tensors, f"{prefix}.attend1"), 0), tensors, f"{prefix}.attend2")[
        :, 0
    ]
    weights = np.exp(scores - scores.max())
    return np.asarray((weights / weights.sum()) @ x)


def motion(x: F32) -> F32:
    """Mean of the first differences and mean of the two-step differences [width], added; 0 up to two
    steps."""
    if len(x) <= 2:
        return np.zeros(x.shape[1], np.float32)
    return np.asarray(np.diff(x, axis=0).mean(0) + (x[2:] - x[:-2]).mean(0))


def aggregate_video(features: F32, tensors: Tensors, prefix: str, *, shifted: F32 | None = None) -> F32:
    """Features [steps, width] of frames -> [width]; `shifted`, where a GrowingShift has it already."""
    x = temporal_shift(features) if shifted is None else shifted
    for part in ("one", "two"):
        x = dual_convolution(x, tensors, f"{prefix}.{part}")
    x = squeeze_excitation(x, tensors, prefix)
    pooled = temporal_attention(x, tensors, prefix)
    if len(x) > 2:
        pooled = pooled + sigmoid(linear(pooled, tensors, f"{prefix}.motion")) * motion(x)
    return pooled + linear(gelu(linear(pooled, tensors, f"{prefix}.forward1")), tensors, f"{prefix}.forward2")


def lstm(x: F32, tensors: Tensors, name: str, suffix: str) -> F32:
    """One direction of one layer over [steps, in] -> [steps, hidden]; gates in the order input, forget,
    cell, output."""
    drive = x @ tensors[f"{name}.weight_ih_{suffix}"].T
    drive += tensors[f"{name}.bias_ih_{suffix}"] + tensors[f"{name}.bias_hh_{suffix}"]
    again = tensors[f"{name}.weight_hh_{suffix}"].T
    hidden = np.zeros(len(again), np.float32)
    cell = np.zeros_like(hidden)
    made = np.empty((len(x), len(hidden)), np.float32)
    size = len(hidden)
    for at in range(len(x)):
        gates = drive[at] + hidden @ again
        entered, kept, left = (sigmoid(gates[part * size : (part + 1) * size]) for part in (0, 1, 3))
        cell = kept * cell + entered * np.tanh(gates[2 * size : 3 * size])
        hidden = left * np.tanh(cell)
        made[at] = hidden
    return made


def aggregate_audio(features: F32, tensors: Tensors, prefix: str, *, shifted: F32 | None = None) -> F32:
    """Features [steps, width] of chunks -> [width]."""
    x = temporal_shift(features) if shifted is None else shifted
    for layer in (0, 1):
        ahead = lstm(x, tensors, f"{prefix}.lstm", f"l{layer}")
        back = lstm(x[::-1], tensors, f"{prefix}.lstm", f"l{layer}_reverse")[::-1]
        x = np.concatenate([ahead, back], 1)
    return linear(x[-1], tensors, f"{prefix}.out")


def aggregate_plain(features: F32, tensors: Tensors, prefix: str) -> F32:
    """The paper's baseline: one depthwise separable convolution, rectified, and the mean over time."""
    x = depthwise(features, tensors[f"{prefix}.depth.weight"], tensors[f"{prefix}.depth.bias"], 1)
    return np.asarray(np.maximum(linear(x, tensors, f"{prefix}.point"), 0).mean(0))
