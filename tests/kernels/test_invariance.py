"""Row-invariance of all kernels but the matrix products (test_matmul.py), for every instruction set of this
processor."""

from __future__ import annotations

import pytest
from tests.kernels._each_isa import ISAS, each_isa

from haversack.kernels._native import native

pytestmark = pytest.mark.skipif(native() is None, reason="numpy twins only: nothing native to compare")


@pytest.fixture(scope="module")
def digests():
    return each_isa("_rows.py")


@pytest.mark.parametrize("isa", ISAS)
def test_rows_and_threads_leave_the_bits_alone(digests, isa):
    assert digests[isa].code == 0, digests[isa].errors
    assert digests[isa].words[0] == isa


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="this processor lacks AVX-512 VNNI")
def test_avx2_and_avx512_agree_to_the_bit(digests):
    assert digests["avx2"].words[1] == digests["avx512"].words[1]
