"""Fusion of the senses' features, the predictor of a configuration's accuracy, the gate that skips.

Paper: MMEdge (arXiv 2510.25327). Each sense's feature is scaled by a scalar attention and a gate over its
channels; the features attend to one another (8 heads) and are averaged; two networks of three layers turn the
mean into logits. One such fusion for every pair of encoders.

The order of what goes in is fixed here and used at training and at run time alike: the predictor sees (s, 1
- s, video, rate, audio, chunk), the four choices as 0, 1/2, 1; the gate sees the fast sense first, then the
slow one. The public scripts order and scale them differently in training and at run time. Widths are those
of `_record.py`, not the paper's 512 and 1024."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from haversack.models.streams.temporal_aggregation import linear, sigmoid

SYSTEM = 6

F32 = NDArray[np.float32]
Tensors = Mapping[str, F32]
HEADS = 8
CLOSE = 1e-4
"""A confidence is kept so far from 0 and 1."""


def weigh(feature: F32, tensors: Tensors, prefix: str, at: int) -> F32:
    """A sense's feature [width] times its scalar attention times its gate."""
    hidden = np.maximum(linear(feature, tensors, f"{prefix}.weigh{at}_1"), 0)
    hidden = np.maximum(linear(hidden, tensors, f"{prefix}.weigh{at}_2"), 0)
    scale = sigmoid(linear(hidden, tensors, f"{prefix}.weigh{at}_3"))
    hidden = np.maximum(linear(feature, tensors, f"{prefix}.pass{at}_1"), 0)
    return np.asarray(scale * sigmoid(linear(hidden, tensors, f"{prefix}.pass{at}_2")) * feature)


def self_attention(x: F32, tensors: Tensors, name: str) -> F32:
    """Tokens [n, width] attending to one another in eight heads -> [n, width]."""
    count, width = x.shape
    drawn = x @ tensors[f"{name}.in_proj_weight"].T + tensors[f"{name}.in_proj_bias"]
    q, k, v = (part.reshape(count, HEADS, -1).transpose(1, 0, 2) for part in np.split(drawn, 3, 1))
    scores = q @ k.transpose(0, 2, 1) / np.float32(np.sqrt(width // HEADS))
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear((weights @ v).transpose(1, 0, 2).reshape(count, width), tensors, f"{name}.out_proj")


def fuse(features: F32, tensors: Tensors, prefix: str) -> F32:
    """Features [senses, width] -> logits [classes]."""
    stack = np.stack([weigh(each, tensors, prefix, at) for at, each in enumerate(features)])
    x = self_attention(stack, tensors, f"{prefix}.attention").mean(0)
    for name in ("mix", "classify"):
        for at in range(3):
            x = linear(x, tensors, f"{prefix}.{name}{at}")
            x = np.maximum(x, 0) if at < 2 else x
    return np.asarray(x)


def softmax(logits: F32) -> F32:
    """Probabilities of logits [classes]."""
    raised = np.exp(logits - logits.max())
    return np.asarray(raised / raised.sum())


def similarity(one: F32, other: F32) -> float:
    """s: the cosine between the first units' features; 0 where one of them is 0."""
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size > 0 else 0.0


def predictor_input(s: float, choices: NDArray[np.int64], most: NDArray[np.int64]) -> F32:
    """(s, 1 - s, video, rate, audio, chunk) [n, 6] of configurations [n, 4] as numbers of their choices;
    `most` [4] is each choice's last number."""
    share = choices / np.maximum(most, 1)
    return np.asarray(
        np.column_stack([np.full(len(share), s), np.full(len(share), 1 - s), share]), np.float32
    )


def predict_accuracy(x: F32, tensors: Tensors) -> F32:
    """The accuracy [n] that is expected of inputs [n, 6]."""
    hidden = np.maximum(linear(x, tensors, "predictor.one"), 0)
    hidden = np.maximum(linear(hidden, tensors, "predictor.two"), 0)
    return sigmoid(linear(hidden, tensors, "predictor.accuracy"))[:, 0]


def stop_probability(fast: F32, slow: F32, confidence: float, tensors: Tensors) -> float:
    """How sure it is that the rest of the slow sense may be skipped: the gate sees the fast sense's whole
    feature, then the slow one's partial feature. Ours: its logit is averaged with that of the `confidence` of
    the answer so far, which alone is the better judge of the two here (a bench row holds them apart)."""
    hidden = np.maximum(linear(np.concatenate([fast, slow]), tensors, "gate.one"), 0)
    hidden = np.maximum(linear(hidden, tensors, "gate.two"), 0)
    logit = float(linear(hidden, tensors, "gate.three")[0])
    share = min(max(confidence, CLOSE), 1 - CLOSE)
    both = np.array([0.5 * (logit + math.log(share / (1 - share)))], np.float32)
    return float(sigmoid(both)[0])
