"""Row-invariance of all kernels but the matrix products (test_matmul.py), for every instruction set of this
processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from haversack.kernels._native import native

pytestmark = pytest.mark.skipif(native() is None, reason="numpy twins only: nothing native to compare")
ISAS = list(native().isa_names()) if native() is not None else []


@pytest.fixture(scope="module")
def digests():
    found = {}
    for isa in ISAS:
        script = Path(__file__).with_name("_rows.py")
        env = dict(os.environ, HAVERSACK_ISA=isa, HAVERSACK_KERNELS="native", PYTHONDONTWRITEBYTECODE="1")
        run = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, env=env, check=False
        )
        found[isa] = (run.returncode, run.stdout.split(), run.stderr)
    return found


@pytest.mark.parametrize("isa", ISAS)
def test_rows_and_threads_leave_the_bits_alone(digests, isa):
    code, words, errors = digests[isa]
    assert code == 0, errors
    assert words[0] == isa


@pytest.mark.skipif(not {"avx2", "avx512"} <= set(ISAS), reason="this processor lacks AVX-512 VNNI")
def test_avx2_and_avx512_agree_to_the_bit(digests):
    assert digests["avx2"][1][1] == digests["avx512"][1][1]
