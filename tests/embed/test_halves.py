"""16-bit floats: rounding, packing and the multiply-add are those of exact arithmetic, in numpy and in C."""

from __future__ import annotations

import ctypes
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.embed._c import rendered
from haversack.embed._host import run
from haversack.embed.halves import LARGEST, Numbers, fused, packed, rounded, unpacked

DIGITS = {"f16": (11, -14), "bf16": (8, -126)}


def nearest(exact: Fraction, kind: str) -> float:
    """The number of `kind` nearest to `exact`, halves to the even one, by integers alone."""
    if exact == 0:
        return 0.0
    digits, lowest = DIGITS[kind]
    size = abs(exact)
    power = max(lowest, (size.numerator.bit_length() - size.denominator.bit_length()))
    while Fraction(2) ** power > size and power > lowest:
        power -= 1
    unit = Fraction(2) ** (power - digits + 1)
    whole = round(size / unit)  # Fractions round halves to the even integer
    found = whole * unit
    if found > Fraction(LARGEST[kind]):
        return float("inf") if exact > 0 else float("-inf")
    return float(found if exact > 0 else -found)


def every(kind: str) -> np.ndarray:
    """All finite numbers of `kind`."""
    values = unpacked(np.arange(65536, dtype=np.uint16), kind)
    return values[np.isfinite(values)]


def test_all_numbers_pack_and_unpack() -> None:
    for kind in ("f16", "bf16"):
        values = every(kind)
        assert np.array_equal(unpacked(packed(values, kind), kind), values)
    numbers = np.arange(65536, dtype=np.uint16)
    ours, theirs = unpacked(numbers, "f16"), numbers.view(np.float16).astype(np.float32)
    assert np.array_equal(ours, theirs, equal_nan=True)


@settings(max_examples=150, deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from(["f16", "bf16"]))
def test_rounding_is_to_the_nearest(x: float, kind: str) -> None:
    assert float(rounded(np.float32(x), kind)) == nearest(Fraction(x), kind)


@settings(max_examples=300, deadline=None)
@given(*(st.integers(0, 65535) for _ in range(3)), st.sampled_from(["f16", "bf16"]))
def test_a_multiply_add_rounds_once(a: int, b: int, c: int, kind: str) -> None:
    x, y, z = unpacked(np.array([a, b, c], np.uint16), kind)
    if not np.isfinite([x, y, z]).all():
        return
    exact = Fraction(float(x)) * Fraction(float(y))
    if (
        kind == "bf16"
        and exact != 0
        and (abs(exact) < Fraction(2) ** -126 or abs(exact) >= Fraction(2) ** 127)
    ):
        return  # beyond what 32-bit floats hold exactly, as the file says
    assert float(fused(x, y, z, kind)) == nearest(exact + Fraction(float(z)), kind)


def test_sums_that_two_roundings_would_miss() -> None:
    a, b, c = np.float32(1 + 2**-8), np.float32(1), np.float32(2**-40)
    assert rounded(a * b + c, "bf16") == 1.0, "32 bits lose the third number, and the half goes to the even"
    assert fused(*map(np.float32, (1 + 2**-7, 1 + 2**-7, 2**-30)), "bf16") == nearest(
        Fraction(1 + 2**-7) ** 2 + Fraction(2) ** -30, "bf16"
    )


def test_lanes_are_even_and_odd_terms() -> None:
    numbers = Numbers("f16", "same")
    a = np.array([[2048, 1, 2048, 1]], np.float32)
    found = numbers.dots(a, np.ones((1, 4), np.float32))
    assert found[0, 0] == 4096, "2048 + 2048 in one lane, 1 + 1 in the other, 4098 rounds to the even 4096"
    one = np.full((1, 4), 1.0, np.float32)
    assert Numbers("f16", "f32").dots(a, one)[0, 0] == 4098


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("flags", [("-O1",), ("-O3", "-march=native")])
def test_c_agrees_with_numpy_to_the_bit(kind: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    text = "#include <math.h>\n#include <stdint.h>\n#include <string.h>\ntypedef uint16_t nn_real;\n"
    text += rendered("half.c.j2", kind=kind, fused=True)
    text += """
void rounds(const float *x, uint16_t *y, float *z, int count)
{
    for (int i = 0; i < count; i++)
        z[i] = nn_get(y[i] = nn_put(x[i]));
}

void fuses(const float *a, const float *b, const float *c, float *y, int count)
{
    for (int i = 0; i < count; i++)
        y[i] = nn_fused(a[i], b[i], c[i]);
}
"""
    place = tmp_path / "half.c"
    place.write_text(text)
    library = tmp_path / "half.so"
    run(["gcc", "-std=c99", "-Wall", "-Wextra", "-Werror", *flags, "-ffp-contract=off", "-shared", "-fPIC",
         place, "-o", library, "-lm"])  # fmt: skip
    lib = ctypes.CDLL(str(library))

    def at(array: np.ndarray) -> ctypes.c_void_p:
        return array.ctypes.data_as(ctypes.c_void_p)

    rng = np.random.default_rng(0)
    wild = rng.integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    tame = (rng.normal(size=200_000) * 10.0 ** rng.integers(-9, 6, 200_000)).astype(np.float32)
    ends = np.array([0.0, -0.0, np.inf, -np.inf], np.float32)
    x = np.concatenate([wild[~np.isnan(wild)], tame, every(kind), ends])
    bits, back = np.zeros(len(x), np.uint16), np.zeros(len(x), np.float32)
    lib.rounds(at(x), at(bits), at(back), len(x))
    assert np.array_equal(bits, packed(x, kind)) and np.array_equal(back, rounded(x, kind))

    held = rounded(tame, kind)
    held = held[np.isfinite(held)]
    a, b, c = (rng.permutation(held) for _ in range(3))
    y = np.zeros(len(a), np.float32)
    lib.fuses(at(a), at(b), at(c), at(y), len(a))
    wanted = fused(a, b, c, kind)
    assert np.array_equal(y.view(np.uint32), wanted.view(np.uint32))
    if kind == "f16":  # 64 bits hold a product of two and its sum with a third but for the last rounding
        with np.errstate(over="ignore"):
            direct = (a.astype(float) * b + c).astype(np.float16).astype(np.float32)
        assert np.array_equal(wanted, direct)
