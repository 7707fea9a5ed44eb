"""Matrix products of a block: several matrices over one input, biases, activation types and taps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import Matrix, layer_norm, matmul, matmul_many, rms_norm
from haversack.models._architecture import HeadNorm, Linear, Norm
from haversack.run._weights import FLOAT_KINDS, Weights

F32 = npt.NDArray[np.float32]
Tap = Callable[[str, F32], None]
"""Sees (tensor name, input f32 [n, columns]) of every matrix product before it is made."""


class Scratch:
    """Buffers that every block uses again: f32 [rows, width] by name and width, made once for the largest
    `rows`."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._buffers: dict[tuple[str, int], F32] = {}

    def get(self, name: str, rows: int, width: int) -> F32:
        """The buffer `name` as f32 [rows, width]; what it held is lost."""
        found = self._buffers.get((name, width))
        if found is None or found.shape[0] < rows:
            self._buffers[name, width] = found = np.empty((max(rows, self.rows), width), np.float32)
        return found if found.shape[0] == rows else found[:rows]

    def shrink(self, rows: int) -> None:
        """Make the buffers anew, for `rows` rows, when they are next used."""
        if self.rows != rows:
            self.rows = rows
            self._buffers.clear()


def multiply(
    x: F32,
    linears: Sequence[Linear],
    weights: Weights,
    outs: Sequence[F32],
    activations: str,
    tap: Tap | None = None,
) -> None:
    """outs[i] [n, outputs] = x [n, inputs] times linears[i], plus its bias."""
    if tap is not None:
        for linear in linears:
            tap(linear.weight, x)
    matrices = [weights[linear.weight] for linear in linears]
    biases: list[Any] | None = None
    if any(linear.bias is not None for linear in linears):
        biases = [None if linear.bias is None else weights[linear.bias] for linear in linears]
    types = {activations_of(matrix, activations) for matrix in matrices} if activations != "f32" else {"f32"}
    plain = all(type(matrix) is Matrix for matrix in matrices)
    if plain and len(types) == 1 and len(matrices) > 1:
        matmul_many(x, matrices, activations=types.pop(), out=outs, bias=biases)
        return
    for index, matrix in enumerate(matrices):
        product(x, matrix, outs[index], activations, None if biases is None else biases[index])


def multiply_add(
    x: F32, linear: Linear, weights: Weights, hidden: F32, activations: str, tap: Tap | None = None
) -> None:
    """hidden [n, outputs] += x [n, inputs] times `linear`, plus its bias."""
    if tap is not None:
        tap(linear.weight, x)
    bias = None if linear.bias is None else weights[linear.bias]
    product(x, weights[linear.weight], hidden, activations, bias, add=True)


def product(
    x: F32, matrix: Any, out: F32, activations: str, bias: F32 | None = None, *, add: bool = False
) -> None:
    """out [n, rows] = x [n, columns] times a matrix or a form, plus what `out` held if `add`, plus `bias`."""
    if type(matrix) is not Matrix:
        matrix.multiply(x, out, activations=activations, add=add, bias=bias)
        return
    kind = activations_of(matrix, activations)
    matmul(x, matrix, activations=kind, out=out, add=out if add else None, bias=bias)


def activations_of(matrix: Any, activations: str) -> str:
    """Float matrices take f32 activations, whatever the plan says of the packed ones. So does, under
    int8-static, what has no grid for its inputs: the output matrix (see `require_static`).
    """
    plain = activations == "int8-static" and type(matrix) is Matrix
    return "f32" if plain or matrix.kind in FLOAT_KINDS else activations


def normalize(norm: Norm, x: F32, weights: Weights, out: F32 | None = None) -> F32:
    """The rows (or heads) of x normalized, into `out` when given."""
    if norm.kind == "rms":
        scaled: F32 = rms_norm(x, weights[norm.weight], norm.eps, offset=norm.offset, out=out)
        return scaled
    bias = None if norm.bias is None else weights[norm.bias]
    centred: F32 = layer_norm(x, weights[norm.weight], bias, norm.eps, out=out)
    return centred


def normalize_heads(norm: HeadNorm, x: F32, weights: Weights) -> None:
    """The heads x f32 [n, heads, width] normalized in place: by one norm, each by its own, or all as one."""
    if isinstance(norm, Norm):
        x = x if norm.width == x.shape[-1] else x.reshape(len(x), norm.width)
        normalize(norm, x, weights, x)
        return
    scales = np.stack([weights[each.weight] for each in norm])
    ones = np.ones(x.shape[-1], np.float32)
    normalize(replace(norm[0], weight="ones", offset=0.0), x, {"ones": ones}, x)
    x *= scales + np.float32(norm[0].offset)
