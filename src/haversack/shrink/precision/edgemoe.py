"""EdgeMoE, widths: each expert gets its own, as narrow as a budget of lost quality allows.

Paper: Yi, Guo, Wei, Zhou, Wang and Xu, "EdgeMoE: Fast On-Device Inference of MoE-based Large Language Models"
(2023; "Empowering Sparse LLMs on Mobile Devices", 2025).
What is here: weights are rounded to nearest with one f16 scale for each output, symmetric: s = max|w| /
(2^(b-1) - 1). An expert's importance is what the loss grows by when it alone has 2 bits and all others 4. Two
neighbouring widths bracket the budget `max_loss` when all experts have them; the least important experts get
the narrower one, as many as the budget allows, found by halves and then step by step. What is no expert stays
in f16, which the paper found fastest. The calibration text's routing is kept beside the pack (run/_paths.py),
for predictions and eviction of `run --residency streamed:edgemoe`.
What we changed: the loss is the mean next-token loss of the calibration text, the paper's a task's metric
[inferred]. `importance=error` ranks experts by the squared error of their outputs on the tokens they are
sent, in one pass, for models with many experts [inferred].
Cost: a pass over the calibration text for every expert, or one with `importance=error`; about ten for the
search. The model's experts are in memory in f32 while it runs.
Limits: 2 bits are the three levels -s, 0 and s; only budgets of some percent leave experts there. Widths do
not change while the model runs.
"""

from __future__ import annotations

import numpy as np

from haversack.shrink._rounding import F32, I8


def channel_scales(weight: F32, bits: int) -> F32:
    """One scale a row of `weight` f32 [rows, columns], exact in f16: f32 [rows]."""
    scales = np.abs(weight).max(axis=1) / ((1 << (bits - 1)) - 1)
    return scales.astype(np.float16).astype(np.float32)


def round_channels(weight: F32, bits: int) -> tuple[I8, F32]:
    """Codes int8 [rows, columns] within +-(2^(bits - 1) - 1), and scales f32 [rows], of `weight`; halves go
    to the even code.

    >>> round_channels(np.array([[1, -2, 3.5, -7]], np.float32), 4)[0].tolist()
    [[1, -2, 4, -7]]
    """
    scales = channel_scales(weight, bits)
    largest = (1 << (bits - 1)) - 1
    steps = np.where(scales > 0, scales, np.float32(1))[:, None]
    return np.rint(weight / steps).clip(-largest, largest).astype(np.int8), scales
