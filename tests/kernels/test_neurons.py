"""Rows that a gate left: twin and kernel, the bits of the dense product, what is not read, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from tests.kernels.test_sparse import made

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels import Channels, Matrix
from haversack.kernels.neurons import Neurons, gated_twin

SHAPES = ((1, 1), (5, 17), (64, 96), (37, 130), (33, 2051), (9, 4224))  # rows, columns
KINDS = ("f32", "f16", "bf16", "int4")


def neurons(rng: np.random.Generator, kind: str, rows: int, columns: int, group: int = 64) -> Neurons:
    return Neurons(made(rng, kind, columns, rows, group))


def gates(rng: np.random.Generator, n: int, rows: int, share: float = 0.6) -> np.ndarray:
    found = rng.random((n, rows)).astype(np.float32) + np.float32(0.1)
    found[rng.random((n, rows)) < share] = 0
    return found


@pytest.mark.parametrize("group", [64, 128])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_definition(kind, shape, group):
    rng, (rows, columns) = np.random.default_rng(2), shape
    matrix = neurons(rng, kind, rows, columns, group)
    x = rng.standard_normal((7, columns)).astype(np.float32)
    gate = gates(rng, 7, rows)
    wanted = gated_twin(matrix, x, gate)
    got = matrix.gated(x, gate)
    assert np.allclose(got, wanted, rtol=1e-5, atol=1e-3)
    assert np.array_equal(got != 0, wanted != 0)
    assert matrix.gated(x, gate, out=gate) is gate and np.array_equal(gate, got)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_the_others(kind):
    rng = np.random.default_rng(3)
    matrix = neurons(rng, kind, 70, 300)
    x = rng.standard_normal((11, 300)).astype(np.float32)
    gate = gates(rng, 11, 70)
    for threads in (1, 2):
        kernels.set_threads(threads)
        whole = matrix.gated(x, gate)
        for row in range(11):
            one = matrix.gated(x[row : row + 1], gate[row : row + 1])
            assert np.array_equal(one[0].view(np.uint32), whole[row].view(np.uint32))


@pytest.mark.parametrize("columns", [96, 101, 2051])
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
def test_float_rows_have_the_bits_of_the_dense_layer(kind, columns):
    rng = np.random.default_rng(4)
    values = rng.standard_normal((60, columns)).astype(np.float32)
    matrix = Neurons(kernels.pack_channels(np.ascontiguousarray(values.T), kind))
    x = rng.standard_normal((5, columns)).astype(np.float32)
    gate = rng.standard_normal((5, 60)).astype(np.float32)
    up = kernels.matmul(x, Matrix.from_array(values, kind))
    dense = kernels.gate(gate, up, "relu")
    left = kernels.gate(gate, None, "relu")
    assert np.array_equal(matrix.gated(x, left) + 0, dense + 0)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_left_out_are_not_read(kind):
    """Poison in them changes nothing."""
    rng = np.random.default_rng(5)
    matrix = neurons(rng, kind, 40, 700)
    gate = gates(rng, 1, 40)
    x = rng.standard_normal((1, 700)).astype(np.float32)
    data = matrix.transposed.data.copy()
    run = matrix.transposed.channel_nbytes  # one block
    for row in np.nonzero(gate[0] == 0)[0]:
        data[row * run : (row + 1) * run] = 0xFF  # NaN in every kind of float, scales included
    poisoned = Neurons(Channels(kind, 700, 40, matrix.transposed.group, data))
    got = poisoned.gated(x, gate)
    assert np.isfinite(got).all() and np.array_equal(got, matrix.gated(x, gate))


def test_what_is_not_a_number_opens_its_gate():
    matrix = Neurons(kernels.pack_channels(np.eye(3, dtype=np.float32)))
    x = np.array([[1, np.inf, 3]], np.float32)
    got = matrix.gated(x, np.array([[np.nan, 0, 2]], np.float32))
    assert np.isnan(got[0, 0]) and got[0, 1] == 0


def test_calls_that_do_not_fit():
    matrix = neurons(np.random.default_rng(6), "f32", 4, 6)
    with pytest.raises(UserError, match=r"x must be f32\[any, 6\]"):
        matrix.gated(np.zeros((2, 5), np.float32), np.zeros((2, 4), np.float32))
    with pytest.raises(UserError, match=r"gate must be f32\[2, 4\]"):
        matrix.gated(np.zeros((2, 6), np.float32), np.zeros((3, 4), np.float32))
    with pytest.raises(UserError, match=r"out must be f32\[2, 4\]"):
        matrix.gated(
            np.zeros((2, 6), np.float32), np.zeros((2, 4), np.float32), out=np.zeros((2, 6), np.float32)
        )
