"""The functions that end a layer, on arrays, by the names that Keras gives them.

Sigmoid and softplus are written so that nothing overflows. `hard_sigmoid` is that of Keras 2,
clip(0.2 x + 0.5, 0, 1); Keras 3 gave the name another slope, 1/6, which is `hard_sigmoid_sixth` here. Softmax
is taken over the last axis; it is the one function that mixes the values of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import unknown_name

Array = npt.NDArray[Any]

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def linear(x: Array) -> Array:
    return x


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def relu6(x: Array) -> Array:
    return np.clip(x, 0, 6)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), from the side on which exp is at most 1."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + small), small / (1 + small))


def hard_sigmoid(x: Array) -> Array:
    return np.clip(0.2 * x + 0.5, 0, 1)


def hard_sigmoid_sixth(x: Array) -> Array:
    return np.clip(x / 6 + 0.5, 0, 1)


def elu(x: Array) -> Array:
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def selu(x: Array) -> Array:
    return SELU_SCALE * np.where(x > 0, x, SELU_ALPHA * np.expm1(np.minimum(x, 0)))


def softplus(x: Array) -> Array:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def softsign(x: Array) -> Array:
    return x / (1 + np.abs(x))


def softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "linear": linear,
    "relu": relu,
    "relu6": relu6,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "hard_sigmoid": hard_sigmoid,
    "hard_sigmoid_sixth": hard_sigmoid_sixth,
    "elu": elu,
    "selu": selu,
    "softplus": softplus,
    "softsign": softsign,
    "exponential": np.exp,
    "softmax": softmax,
}

# Derivatives of those that trained networks here use, from the function's value y.
SLOPES: dict[str, Callable[[Array], Array]] = {
    "linear": np.ones_like,
    "relu": lambda y: (y > 0).astype(y.dtype),
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: y * (1 - y),
}


def activate(name: str, x: Array) -> Array:
    """The function `name` of x. Raises UserError for a name that is not known."""
    if name not in FUNCTIONS:
        raise unknown_name("activation", name, FUNCTIONS)
    return FUNCTIONS[name](x)
