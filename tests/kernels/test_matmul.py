"""Matrix products: native equals its twin, and the bits of an output do not depend on the call around it."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels._each_isa import ISAS, each_isa

from haversack import kernels
from haversack.core.errors import UserError
from haversack.kernels._matrix import GROUPS, KINDS, to_bf16
from haversack.kernels._native import native
from haversack.kernels.products import matmul_twin, quantize_activations

pytestmark = pytest.mark.skipif(native() is None, reason="numpy twins only: nothing native to compare")


KINDS = (*KINDS, "int8:32")
PACKED = ("int8", "int8:32", "int4", "int3")


def random_matrix(rng, kind, rows, columns, group=32):
    if kind == "int8:32":
        scales = rng.random((rows, -(-columns // 32))) * 0.02
        return kernels.pack_int8(rng.integers(-128, 128, (rows, columns)), scales, 32)
    if kind == "int8":
        return kernels.pack_int8(rng.integers(-128, 128, (rows, columns)), rng.random(rows) * 0.02)
    if kind == "int4":
        scales = rng.random((rows, -(-columns // group))) * 0.1
        return kernels.pack_int4(rng.integers(-8, 8, (rows, columns)), scales, group)
    if kind == "int3":
        scales = rng.random((rows, -(-columns // group))) * 0.2
        return kernels.pack_int3(rng.integers(-4, 4, (rows, columns)), scales, group)
    return kernels.Matrix.from_array(rng.standard_normal((rows, columns)), kind)


def close(got, expected, tolerance=1e-5):
    scale = max(float(np.abs(expected).max()), 1e-20)
    return float(np.abs(got - expected).max()) <= tolerance * scale


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 70),
    columns=st.integers(1, 300),
    n=st.integers(1, 27),
    group=st.sampled_from(GROUPS),
    activations=st.sampled_from(["f32", "int8-dynamic", "int8-static"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_its_twin(kind, rows, columns, n, group, activations, seed):
    rng = np.random.default_rng(seed)
    matrix = random_matrix(rng, kind, rows, columns, group)
    activations = activations if kind in PACKED else "f32"
    scale = 0.03 if activations == "int8-static" else None
    x = (rng.standard_normal((n, columns)) * rng.choice([1e-3, 1.0, 40.0])).astype(np.float32)
    expected = matmul_twin(x, matrix, activations, scale)
    # Sums that cancel are judged by the size of what was added, as one rounding of a term is.
    size = np.abs(x).max() * np.abs(kernels.unpack(matrix)).max() * np.sqrt(columns)
    got = kernels.matmul(x, matrix, activations=activations, static_scale=scale)
    assert np.abs(got - expected).max() <= 1e-5 * max(float(np.abs(expected).max()), 0.2 * float(size))


@pytest.mark.parametrize("kind", ["f32", "f16", "bf16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (15, 7), (16, 33), (40, 96), (70, 257)])
def test_interleaved_rows_hold_the_same_matrix(kind, rows, columns):
    rng = np.random.default_rng(4)
    matrix = random_matrix(rng, kind, rows, columns)
    ready = kernels.interleave_rows(matrix)
    assert (ready.layout, ready.kind, ready.nbytes) == ("rows16-1", "f32", -(-rows // 16) * 64 * columns)
    assert np.array_equal(kernels.unpack(ready), kernels.unpack(matrix))
    assert np.array_equal(kernels.unpack(pickle.loads(pickle.dumps(ready))), kernels.unpack(matrix))
    for n in (1, 5, 12, 29):
        x = rng.standard_normal((n, columns)).astype(np.float32)
        add = rng.standard_normal((n, rows)).astype(np.float32)
        assert close(kernels.matmul(x, ready, add=add), matmul_twin(x, ready) + add)
        assert close(kernels.matmul(x, ready), kernels.matmul(x, matrix))


def test_an_interleaved_row_is_one_chain_of_fused_sums():
    """In the order of the inputs, exactly: what makes its bits independent of everything else."""
    rng = np.random.default_rng(5)
    matrix = kernels.interleave_rows(random_matrix(rng, "f32", 33, 70))
    x = rng.standard_normal((14, 70)).astype(np.float32)
    chain = np.zeros((14, 33), np.float32)
    for column, weights in enumerate(kernels.unpack(matrix).T):
        # f64 holds the product of two f32 exactly; one rounding to f32 follows, as in a fused operation.
        chain = (x[:, column, None].astype(np.float64) * weights + chain).astype(np.float32)
    same = kernels.matmul(x, matrix) == chain
    assert same.mean() > 0.999  # f64 rounds the sum before f32 does, once in 2^29


def test_interleaved_rows_of_another_kind_are_refused():
    matrix = kernels.pack_int8(np.zeros((16, 32), np.int8), np.ones(16))
    with pytest.raises(UserError):
        kernels.Matrix("f16", 16, 32, None, "rows16-1", matrix.data)
    with pytest.raises(UserError):
        kernels.Matrix("f32", 16, 32, None, "rows16-1", matrix.data)


@pytest.mark.parametrize("kind", PACKED)
def test_f32_activations_equal_the_dequantized_product(kind):
    rng = np.random.default_rng(1)
    matrix = random_matrix(rng, kind, 200, 512, 64)
    x = rng.standard_normal((9, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ kernels.unpack(matrix).astype(np.float64).T
    assert close(kernels.matmul(x, matrix), exact, 2e-6)


@pytest.mark.parametrize("kind", PACKED)
def test_int8_activations_are_near_the_f32_product(kind):
    rng = np.random.default_rng(2)
    matrix = random_matrix(rng, kind, 200, 512, 32)
    x = rng.standard_normal((9, 512)).astype(np.float32)
    exact = kernels.matmul(x, matrix)
    got = kernels.matmul(x, matrix, activations="int8-dynamic")
    assert np.linalg.norm(got - exact) <= 0.008 * np.linalg.norm(exact)


@pytest.fixture(scope="module")
def digests():
    """Runs the invariance check under every instruction set of this processor."""
    return each_isa("_invariance.py")


@pytest.mark.parametrize("isa", ISAS)
def test_rows_threads_and_tiles_leave_the_bits_alone(digests, isa):
    assert digests[isa].code == 0, digests[isa].errors
    assert digests[isa].words[0] == isa


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="this processor lacks AVX-512 VNNI")
def test_avx2_and_avx512_give_the_same_bits(digests):
    assert digests["avx2"].words[1] == digests["avx512"].words[1]


def test_many_equals_one_at_a_time_also_with_mixed_kinds():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((5, 96)).astype(np.float32)
    several = [
        random_matrix(rng, "int4", 40, 96, 32),
        random_matrix(rng, "int4", 24, 96, 32),
        random_matrix(rng, "int4", 17, 96, 96),
        random_matrix(rng, "int8", 33, 96),
        random_matrix(rng, "int8:32", 33, 96),
        random_matrix(rng, "int3", 24, 96, 32),
    ] * 3
    got = kernels.matmul_many(x, several, activations="int8-dynamic")
    for matrix, result in zip(several, got, strict=True):
        assert np.array_equal(result, kernels.matmul(x, matrix, activations="int8-dynamic"))


@pytest.mark.parametrize("kind", KINDS)
def test_add_is_added_and_may_be_the_output(kind):
    rng = np.random.default_rng(4)
    matrix = random_matrix(rng, kind, 37, 70)
    x = rng.standard_normal((3, 70)).astype(np.float32)
    plain = kernels.matmul(x, matrix)
    rest = rng.standard_normal(plain.shape).astype(np.float32)
    expected = plain + rest
    assert np.array_equal(kernels.matmul(x, matrix, add=rest), expected)
    assert kernels.matmul(x, matrix, add=rest, out=rest) is rest
    assert np.array_equal(rest, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 1, 3, 6])
def test_bytes_at_any_alignment(kind, offset):
    rng = np.random.default_rng(5)
    matrix = random_matrix(rng, kind, 20, 45)
    held = np.zeros(matrix.nbytes + offset, np.uint8)
    held[offset:] = matrix.data
    held.flags.writeable = False
    moved = kernels.Matrix.from_bytes(
        matrix.kind, matrix.shape, matrix.group, matrix.layout, memoryview(held)[offset:]
    )
    x = rng.standard_normal((2, 45)).astype(np.float32)
    assert np.array_equal(kernels.matmul(x, moved), kernels.matmul(x, matrix))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activations", ["f32", "int8-dynamic", "int8-static"])
def test_not_finite_inputs_show_in_their_own_token_only(bad, kind, activations):
    if kind not in PACKED and activations != "f32":
        return
    rng = np.random.default_rng(6)
    matrix = random_matrix(rng, kind, 30, 64)
    scale = 0.05 if activations == "int8-static" else None
    x = rng.standard_normal((4, 64)).astype(np.float32)
    clean = kernels.matmul(x, matrix, activations=activations, static_scale=scale)
    x[2, 40] = bad
    got = kernels.matmul(x, matrix, activations=activations, static_scale=scale)
    assert not np.isfinite(got[2]).any() or activations == "f32"
    assert not np.isfinite(got[2]).all()
    keep = [0, 1, 3]
    assert np.array_equal(got[keep], clean[keep])


def test_tiny_and_zero_groups():
    matrix = random_matrix(np.random.default_rng(7), "int4", 16, 64)
    x = np.zeros((2, 64), np.float32)
    x[1, :32] = 1e-38
    assert np.array_equal(
        kernels.matmul(x, matrix, activations="int8-dynamic"), np.zeros((2, 16), np.float32)
    )


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 50),
    columns=st.integers(1, 200),
    group=st.sampled_from(GROUPS),
)
def test_packing_and_unpacking_keep_every_weight(seed, rows, columns, group):
    rng = np.random.default_rng(seed)
    values = rng.integers(-8, 8, (rows, columns))
    scales = rng.standard_normal((rows, -(-columns // group))).astype(np.float16).astype(np.float32)
    packed = kernels.pack_int4(values, scales, group)
    assert packed.nbytes == kernels.packed_nbytes("int4", rows, columns, group)
    assert np.array_equal(kernels.unpack(packed), values * np.repeat(scales, group, axis=1)[:, :columns])
    small = rng.integers(-4, 4, (rows, columns))
    packed = kernels.pack_int3(small, scales, group)
    assert packed.nbytes == kernels.packed_nbytes("int3", rows, columns, group)
    assert np.array_equal(kernels.unpack(packed), small * np.repeat(scales, group, axis=1)[:, :columns])
    eight = rng.integers(-128, 128, (rows, columns))
    one = rng.standard_normal(rows).astype(np.float32)
    packed = kernels.pack_int8(eight, one)
    assert packed.nbytes == kernels.packed_nbytes("int8", rows, columns)
    assert np.array_equal(kernels.unpack(packed), eight.astype(np.float32) * one[:, None])
    several = rng.standard_normal((rows, -(-columns // 32))).astype(np.float16).astype(np.float32)
    packed = kernels.pack_int8(eight, several, 32)
    assert packed.nbytes == kernels.packed_nbytes("int8", rows, columns, 32)
    assert np.array_equal(
        kernels.unpack(packed), eight.astype(np.float32) * np.repeat(several, 32, axis=1)[:, :columns]
    )


def test_layout_byte_by_byte():
    values = np.zeros((17, 32), np.int64)
    values[3, 1], values[3, 5], values[16, 31] = 7, -8, -3
    scales = np.arange(17, dtype=np.float32)[:, None]
    data = kernels.pack_int4(values, scales, 32).data
    assert data.nbytes == 2 * (4 * 64 + 32)
    assert data[4 * 3 + 1] == 15 + 16 * 0  # row 3: column 1 in the low half, column 5 in the high half
    assert data[288 + 3 * 64 + 3] == 8 + 16 * 5  # second block, row 0 of it: column 27 low, column 31 high
    assert np.array_equal(data[256:288].view(np.float16), np.arange(16))
    values[3, 5], values[3, 25], values[3, 30] = -3, -4, 3
    values[3, 1] = 2
    three = kernels.pack_int3(values, scales, 32).data
    assert three.nbytes == 2 * (3 * 64 + 32)
    at = 4 * 3  # row 3: quads 0 and 1 in the first 64 bytes, 6 and 7 above the others
    assert three[at + 1] == (2 + 4) + 8 * (-3 + 4) + 64 * 0 and three[at + 2] == 4 + 8 * 4 + 64 * 0
    assert (
        three[64 + at + 2] == 4 + 8 * 4 + 64 * ((3 + 4) & 3) and three[128 + at + 2] == 4 + 8 * 4 + 64 + 128
    )
    assert three[128 + at + 1] == 4 + 8 * 4 + 128
    assert np.array_equal(three[192:224].view(np.float16), np.arange(16))
    values[3, 1], values[3, 5] = 7, -8
    eight = kernels.pack_int8(values, scales[:, 0]).data
    assert eight.nbytes == 2 * (8 * 64 + 64)
    assert eight[4 * 3 + 1] == 128 + 7 and eight[64 + 4 * 3 + 1] == 128 - 8
    grouped = kernels.pack_int8(values, scales, 32).data
    assert grouped.nbytes == 2 * (8 * 64 + 32)
    assert grouped[4 * 3 + 1] == 128 + 7 and np.array_equal(grouped[512:544].view(np.float16), np.arange(16))


def test_quantized_activations_are_within_half_a_step():
    x = np.random.default_rng(8).standard_normal((4, 100)).astype(np.float32)
    integers, scales = quantize_activations(x, 32)
    back = (integers * scales[:, :, None]).reshape(4, -1)[:, :100]
    assert np.abs(back - x).max() <= 0.5001 * scales.max()
    assert np.abs(integers).max() == 127


def test_bf16_rounds_to_nearest_even():
    values = np.array([1.0, 1.00390625, 1.01171875, -0.0, np.inf, np.nan, 3.4e38], np.float32)
    assert to_bf16(values)[:5].tolist() == [0x3F80, 0x3F80, 0x3F82, 0x8000, 0x7F80]
    assert np.isnan((to_bf16(values).astype(np.uint32) << 16).view(np.float32)[5])


def test_callers_on_several_threads_get_their_own_results():
    rng = np.random.default_rng(9)
    matrix = random_matrix(rng, "int4", 512, 512)
    inputs = [rng.standard_normal((3, 512)).astype(np.float32) for _ in range(6)]
    expected = [kernels.matmul(x, matrix, activations="int8-dynamic") for x in inputs]
    wrong = []

    def call(i):
        for _ in range(100):
            if not np.array_equal(kernels.matmul(inputs[i], matrix, activations="int8-dynamic"), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not wrong and not any(caller.is_alive() for caller in callers)


X = np.zeros((2, 64), np.float32)
INT4 = kernels.pack_int4(np.zeros((8, 64), np.int8), np.ones((8, 2)), 32)
F16 = kernels.Matrix.from_array(np.zeros((8, 64)), "f16")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: kernels.matmul(X[:, :60], INT4), "x has 60 columns, the matrix 64"),
        (lambda: kernels.matmul(X[0], INT4), "x must be f32"),
        (lambda: kernels.matmul(X.astype(np.float64), INT4), "x must be f32"),
        (lambda: kernels.matmul([[0.0] * 64], INT4), "got list"),
        (lambda: kernels.matmul(X, F16, activations="int8-dynamic"), "takes f32 activations"),
        (lambda: kernels.matmul(X, INT4, activations="int8"), "int8-dynamic"),
        (lambda: kernels.matmul(X, INT4, activations="int8-static"), "static_scale"),
        (lambda: kernels.matmul(X, INT4, static_scale=0.1), "static_scale"),
        (lambda: kernels.matmul(X, INT4, activations="int8-static", static_scale=-1.0), "positive"),
        (lambda: kernels.matmul(X, INT4, activations="int8-static", static_scale=float("nan")), "positive"),
        (lambda: kernels.matmul(X, INT4, out=np.zeros((2, 9), np.float32)), "out must be f32"),
        (lambda: kernels.matmul(X, INT4, out=np.zeros((2, 8))), "out must be f32"),
        (lambda: kernels.matmul(X, INT4, add=np.zeros((1, 8), np.float32)), "add must be f32"),
        (lambda: kernels.matmul_many(X, [INT4, F16], out=[np.zeros((2, 8), np.float32)]), "2 matrices but 1"),
        (lambda: kernels.pack_int4(np.full((2, 32), 8), np.ones((2, 1)), 32), "-8..7"),
        (lambda: kernels.pack_int4(np.zeros((2, 32), int), np.ones((2, 2)), 32), "scales of shape"),
        (lambda: kernels.pack_int4(np.zeros((2, 32), int), np.full((2, 1), 1e6), 32), "fit f16"),
        (lambda: kernels.pack_int4(np.zeros((2, 32), int), np.ones((2, 1)), 48), "group=48"),
        (lambda: kernels.pack_int3(np.full((2, 32), 4), np.ones((2, 1)), 32), "pack_int3 .* -4..3"),
        (lambda: kernels.pack_int3(np.zeros((2, 32), int), np.ones((2, 2)), 32), "pack_int3 .*scales"),
        (lambda: kernels.pack_int3(np.zeros((2, 32), int), np.full((2, 1), np.nan), 32), "fit f16"),
        (lambda: kernels.pack_int3(np.zeros((2, 32), int), np.ones((2, 1)), 16), "group=16"),
        (lambda: kernels.pack_int8(np.zeros((2, 32)), np.ones(2)), "integers"),
        (lambda: kernels.pack_int8(np.zeros((2, 64), int), np.ones((2, 1)), 32), "scales of shape"),
        (lambda: kernels.pack_int8(np.zeros((2, 64), int), np.ones((2, 1)), 64), "group=64"),
        (lambda: kernels.pack_int8(np.zeros((2, 32), int), np.full((2, 1), 1e6), 32), "fit f16"),
        (lambda: kernels.Matrix.from_bytes("int8", (8, 64), 64, "rows16-1", b"123"), "group=64"),
        (
            lambda: kernels.Matrix.from_bytes("int4", (8, 64), 32, "rows16-1", b"123"),
            "takes 576 bytes, got 3",
        ),
        (lambda: kernels.Matrix.from_bytes("int4", (8, 64), 32, "rows-1", b"123"), "layout=rows-1"),
        (lambda: kernels.Matrix.from_bytes("int5", (8, 64), 32, "rows-1", b"123"), "kind=int5"),
        (lambda: kernels.Matrix.from_bytes("f32", (0, 64), None, "rows-1", b""), "at least one row"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, words):
    with pytest.raises(UserError, match=words):
        call()


def test_a_matrix_that_was_used_can_be_sent_to_another_process():
    matrix = random_matrix(np.random.default_rng(11), "int4", 24, 64)
    expected = kernels.matmul(X, matrix)
    assert np.array_equal(kernels.matmul(X, pickle.loads(pickle.dumps(matrix))), expected)


def test_strided_inputs_and_outputs_are_served():
    rng = np.random.default_rng(10)
    matrix = random_matrix(rng, "int4", 24, 64)
    wide = rng.standard_normal((4, 128)).astype(np.float32)
    x = wide[:, ::2]
    expected = kernels.matmul(np.ascontiguousarray(x), matrix)
    out = np.zeros((4, 48), np.float32)[:, ::2]
    assert np.array_equal(kernels.matmul(x, matrix), expected)
    assert np.array_equal(kernels.matmul(x, matrix, out=out), expected)
    assert np.array_equal(out, expected)
    assert kernels.matmul(x[:0], matrix).shape == (0, 24)


@pytest.mark.parametrize("kind", ["f32", "bf16", "interleaved", "int8", "int4", "int3"])
@pytest.mark.parametrize("rows", [1, 16, 37, 70])
def test_a_bias_is_added_last(kind, rows):
    rng = np.random.default_rng(6)
    matrix = random_matrix(rng, "f32" if kind == "interleaved" else kind, rows, 96)
    matrix = kernels.interleave_rows(matrix) if kind == "interleaved" else matrix
    bias = rng.standard_normal(rows).astype(np.float32)
    for n in (1, 7, 25):
        x = rng.standard_normal((n, 96)).astype(np.float32)
        add = rng.standard_normal((n, rows)).astype(np.float32)
        plain = kernels.matmul(x, matrix)
        assert np.array_equal(kernels.matmul(x, matrix, bias=bias), plain + bias)
        assert np.array_equal(kernels.matmul(x, matrix, add=add, bias=bias), plain + add + bias)
        both = kernels.matmul_many(x, [matrix, matrix], bias=[None, bias])
        assert np.array_equal(both[0], plain) and np.array_equal(both[1], plain + bias)
        assert close(matmul_twin(x, matrix) + bias, both[1])


@pytest.mark.parametrize(
    "bias", [np.zeros(15, np.float32), np.zeros(16), np.zeros((1, 16), np.float32), [0.0] * 16]
)
def test_a_bias_that_does_not_fit_is_refused(bias):
    matrix = random_matrix(np.random.default_rng(7), "f32", 16, 32)
    x = np.zeros((2, 32), np.float32)
    with pytest.raises(UserError, match="bias"):
        kernels.matmul(x, matrix, bias=bias)
    with pytest.raises(UserError, match="bias"):
        kernels.matmul_many(x, [matrix], bias=[bias, bias])
