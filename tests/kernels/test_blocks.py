"""GGUF's blocks in the kernels' layout: the same numbers, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels.blocks import BLOCK_BYTES, interleave, interleave_twin, to_blocks


def drawn(rng, kind, rows, columns):
    blocks = rng.integers(0, 256, (rows, columns // 32, BLOCK_BYTES[kind]), dtype=np.uint8)
    scales = (rng.standard_normal((rows, columns // 32)) * 0.1).astype("<f2")
    blocks[..., :2] = scales[..., None].view(np.uint8)
    return blocks.reshape(-1), scales.astype(np.float32)


def values(blocks, kind, rows, columns):
    """The numbers by the format's own words."""
    parts = blocks.reshape(rows, columns // 32, -1)
    scales = np.ascontiguousarray(parts[..., :2]).view("<f2").astype(np.float32)
    if kind == "int8":
        return (parts[..., 2:].view(np.int8).astype(np.float32) * scales).reshape(rows, columns)
    numbers = np.concatenate([parts[..., 2:] & 15, parts[..., 2:] >> 4], axis=2).astype(np.float32) - 8
    return (numbers * scales).reshape(rows, columns)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(BLOCK_BYTES)),
    rows=st.integers(1, 70),
    groups=st.integers(1, 9),
    ordered=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_number_stays_and_the_bytes_come_back(kind, rows, groups, ordered, seed):
    rng = np.random.default_rng(seed)
    columns = 32 * groups
    blocks, _ = drawn(rng, kind, rows, columns)
    order = None if ordered else rng.permutation(rows).astype(np.int32)
    laid = interleave(blocks.tobytes(), kind, rows, columns, order)
    assert np.array_equal(laid, interleave_twin(blocks, kind, rows, columns, order))
    matrix = kernels.Matrix.from_bytes(kind, (rows, columns), 32, "rows16-1", laid)
    expected = values(blocks, kind, rows, columns)
    assert np.array_equal(kernels.unpack(matrix), expected if order is None else expected[order])
    back = None if order is None else np.argsort(order)
    assert np.array_equal(to_blocks(matrix, back), blocks)


@pytest.mark.parametrize("group", [64, 128])
def test_wider_groups_repeat_their_scale(group):
    rng = np.random.default_rng(1)
    matrix = kernels.pack_int4(rng.integers(-8, 8, (20, 256)), rng.random((20, 256 // group)), group)
    assert np.array_equal(values(to_blocks(matrix), "int4", 20, 256), kernels.unpack(matrix))
    three = kernels.pack_int3(rng.integers(-4, 4, (20, 256)), rng.random((20, 256 // group)), group)
    assert np.array_equal(values(to_blocks(three), "int4", 20, 256), kernels.unpack(three))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: interleave(b"123", "int4", 1, 32), "3 bytes are no 1 x 32"),
        (lambda: interleave(bytes(18), "int4", 1, 16), "blocks of 32"),
        (lambda: interleave(bytes(18), "int5", 1, 32), "kind=int5"),
        (lambda: interleave(bytes(18), "int4", 1, 32, np.array([1], np.int32)), "name 1 rows"),
        (lambda: interleave(bytes(18), "int4", 1, 32, None, np.empty(3, np.uint8)), "out must be"),
        (lambda: to_blocks(kernels.pack_int8(np.zeros((2, 32), int), np.ones(2))), "no sum of blocks"),
        (
            lambda: to_blocks(kernels.pack_int4(np.zeros((2, 40), int), np.ones((2, 2)), 32)),
            "no sum of blocks",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()
