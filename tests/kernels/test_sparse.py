"""Row-skipping products: the layout byte by byte, twin and native kernels, what is skipped, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels._each_isa import ISAS, each_isa

from haversack.core.errors import UserError
from haversack.kernels import (
    Channels,
    SparseMatrix,
    channel_nbytes,
    pack_channels,
    pack_channels_int4,
    unpack_channels,
)
from haversack.kernels._native import native
from haversack.kernels.sparse import active_inputs, block_sizes, sparse_twin

SHAPES = ((1, 1), (17, 33), (130, 64), (576, 150), (2051, 40), (4224, 36))
KINDS = ("f32", "f16", "bf16", "int4")


def made(rng: np.random.Generator, kind: str, rows: int, columns: int, group: int = 64) -> Channels:
    if kind != "int4":
        return pack_channels(rng.standard_normal((rows, columns)).astype(np.float32), kind)
    codes = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
    scales = (0.5 + rng.random((-(-rows // group), columns))).astype(np.float32) / 8
    return pack_channels_int4(codes, scales, group)


def limits_for(rng: np.random.Generator, columns: int) -> np.ndarray:
    return (rng.random(columns) * 1.3).astype(np.float32)


def low_rank(rng: np.random.Generator, rows: int, columns: int, rank: int) -> tuple[Channels, Channels]:
    return made(rng, "f32", rank, columns), made(rng, "f32", rows, rank)


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_where_the_layout_says(kind):
    rng = np.random.default_rng(1)
    if kind != "int4":
        values = rng.standard_normal((2050, 3)).astype(np.float16).astype(np.float32)
        packed = pack_channels(values, kind)
        if kind == "f32":
            stored = packed.data.view("<f4")
            assert stored[1 * 2048 + 7] == values[7, 1] and stored[3 * 2048 + 2 * 2 + 1] == values[2049, 2]
        assert np.array_equal(unpack_channels(packed), values) or kind == "bf16"
        return
    codes = rng.integers(-8, 8, (4096 + 128, 2)).astype(np.int8)
    scales = rng.random((66, 2)).astype(np.float16).astype(np.float32)
    packed = pack_channels_int4(codes, scales, 64)
    assert block_sizes("int4", 4224) == [4096, 128]
    run = packed.data[2176 : 2 * 2176]  # the second input in the first block: 128 bytes of scales
    assert run[:4].view("<f2")[1] == scales[1, 1]
    unit, place = 3, 16 * 2 + 4 * 1 + 3
    byte = int(run[128 + 64 * unit + place])
    output = 128 * unit + 16 * 1 + 4 * 2 + 3
    assert (byte & 15) - 8 == codes[output, 1] and (byte >> 4) - 8 == codes[output + 64, 1]
    assert np.array_equal(unpack_channels(packed), codes * np.repeat(scales, 64, axis=0))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 70),
    group=st.sampled_from((64, 128)),
    seed=st.integers(0, 1000),
)
def test_int4_comes_back_as_it_went(rows, columns, group, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-8, 8, (rows, columns)).astype(np.int8)
    scales = rng.random((-(-rows // group), columns)).astype(np.float16).astype(np.float32)
    packed = pack_channels_int4(codes, scales, group)
    assert packed.nbytes == channel_nbytes("int4", rows, group) * columns
    assert np.array_equal(unpack_channels(packed), codes * np.repeat(scales, group, axis=0)[:rows])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_equal_their_definition(kind, shape):
    rng, (rows, columns) = np.random.default_rng(2), shape
    rank = min(5, rows, columns)
    matrix = SparseMatrix(
        made(rng, kind, rows, columns), limits_for(rng, columns), *low_rank(rng, rows, columns, rank)
    )
    x = rng.standard_normal((7, columns)).astype(np.float32)
    whole = np.array([False, True, False, False, True, False, False])
    add, bias = rng.standard_normal((7, rows)).astype(np.float32), np.arange(rows, dtype=np.float32)
    for activations in ("f32", "int8-dynamic"):
        wanted = sparse_twin(matrix, x, whole, activations) + add + bias
        matrix.counts[:] = 0
        got = matrix.multiply(x, add=add, bias=bias, whole=whole, activations=activations)
        assert np.allclose(got, wanted, rtol=1e-5, atol=2e-4)
        active = active_inputs(x, matrix.limits, whole)
        assert matrix.counts.tolist() == [5, int(active[~whole].sum())]


@pytest.mark.parametrize("kind", ("f32", "f16", "bf16"))
def test_a_threshold_of_nothing_is_the_dense_product(kind):
    rng = np.random.default_rng(3)
    weights = made(rng, kind, 300, 200)
    x = rng.standard_normal((3, 200)).astype(np.float32)
    got = SparseMatrix(weights, np.zeros(200, np.float32)).multiply(x)
    assert np.abs(got - x @ unpack_channels(weights).T).max() < 1e-4


@pytest.mark.parametrize("shape", ((96, 64), (64, 96)))
def test_a_full_rank_makes_good_any_mask(shape):
    rng, columns = np.random.default_rng(4), shape[1]
    weight = (rng.standard_normal(shape) / 8).astype(np.float32)
    u, s, v = np.linalg.svd(weight.astype(np.float64), full_matrices=False)
    down = pack_channels((s[:, None] * v).astype(np.float32))
    up = pack_channels(u.astype(np.float32))
    x = rng.standard_normal((5, columns)).astype(np.float32)
    for share in (0.0, 0.3, 0.9, 1.0):
        limits = np.where(rng.random(columns) < share, 10, 0).astype(np.float32)
        got = SparseMatrix(pack_channels(weight), limits, down, up).multiply(x)
        assert np.abs(got - x @ weight.T).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_skipped_weights_are_not_read(kind):
    """Poison in the weights of inactive inputs changes nothing, so that no byte of them is used."""
    rng = np.random.default_rng(5)
    rows, columns = 700, 96
    weights = made(rng, kind, rows, columns)
    limits = np.where(np.arange(columns) % 3 == 0, 0, 100).astype(np.float32)
    x = rng.standard_normal((1, columns)).astype(np.float32)
    clean = SparseMatrix(weights, limits).multiply(x, activations="int8-dynamic")
    data = weights.data.copy()
    run = weights.channel_nbytes  # one block
    for j in range(columns):
        if j % 3:
            data[j * run : (j + 1) * run] = 0xFF  # NaN in every kind of float, scales included
    poisoned = Channels(kind, rows, columns, weights.group, data)
    got = SparseMatrix(poisoned, limits).multiply(x, activations="int8-dynamic")
    assert np.array_equal(got, clean) and np.isfinite(got).all()


def test_bytes_read_are_the_share_of_active_inputs():
    rng = np.random.default_rng(6)
    matrix = SparseMatrix(made(rng, "f32", 640, 1000), np.full(1000, 0.6745, np.float32))
    matrix.multiply(rng.standard_normal((40, 1000)).astype(np.float32))
    rows, active = matrix.counts.tolist()
    share = matrix.row_nbytes(active / rows) / matrix.weights.nbytes
    assert rows == 40 and abs(share - 0.5) < 0.015


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_is_seen(kind):
    rng = np.random.default_rng(7)
    matrix = SparseMatrix(made(rng, kind, 150, 64), np.full(64, 3e38, np.float32))
    x = np.zeros((2, 64), np.float32)
    x[1, 9] = np.nan
    for activations in ("f32", "int8-dynamic"):
        got = matrix.multiply(x, activations=activations)
        assert np.isnan(got[1]).all() and not got[0].any()


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(8)
    weights, limits = made(rng, "f32", 8, 6), np.zeros(6, np.float32)
    matrix, x = SparseMatrix(weights, limits), np.zeros((1, 6), np.float32)
    for words, call in (
        ("x must be", lambda: matrix.multiply(np.zeros((1, 5), np.float32))),
        ("add must be", lambda: matrix.multiply(x, add=np.zeros((1, 9), np.float32))),
        ("bias must be", lambda: matrix.multiply(x, bias=np.zeros(7, np.float32))),
        ("whole must be", lambda: matrix.multiply(x, whole=np.zeros(1, np.int8))),
        ("contiguous", lambda: matrix.multiply(np.zeros((1, 12), np.float32)[:, ::2])),
        ("limits must be", lambda: SparseMatrix(weights, np.zeros(5, np.float32))),
        ("both matrices or none", lambda: SparseMatrix(weights, limits, down=weights)),
        ("do not fit", lambda: SparseMatrix(weights, limits, made(rng, "f32", 3, 6), made(rng, "f32", 8, 4))),
        ("takes 192 bytes", lambda: Channels("f32", 8, 6, None, np.zeros(191, np.uint8))),
        ("group=32", lambda: pack_channels_int4(np.zeros((8, 6), np.int8), np.zeros((1, 6)), 32)),
        ("in -8..7", lambda: pack_channels_int4(np.full((8, 6), 8, np.int8), np.zeros((1, 6)), 64)),
        ("does not fit f16", lambda: pack_channels_int4(np.zeros((8, 6), np.int8), np.full((1, 6), 1e6), 64)),
        ("kind=int3", lambda: Channels("int3", 8, 6, None, np.zeros(8, np.uint8))),
    ):  # fmt: skip
        if words == "contiguous" and native() is None:
            continue
        with pytest.raises(UserError, match=words):
            call()


@pytest.fixture(scope="module")
def digests():
    return each_isa("_sparse.py")


@pytest.mark.parametrize("isa", ISAS)
def test_rows_and_threads_leave_the_bits_alone(digests, isa):
    assert digests[isa].code == 0, digests[isa].errors
    assert digests[isa].words[0] == isa


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="this processor lacks AVX-512 VNNI")
def test_avx2_and_avx512_agree_to_the_bit(digests):
    assert digests["avx2"].words[1] == digests["avx512"].words[1]
