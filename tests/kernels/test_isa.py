"""Instruction sets and the choice between native kernels and twins."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from haversack.kernels._native import native

pytestmark = pytest.mark.skipif(native() is None, reason="numpy twins only: no instruction sets")
ISAS = list(native().isa_names()) if native() is not None else []
SHOW = "from haversack import kernels; print(kernels.isa())"


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HAVERSACK_")}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**kept, **environment},
        check=False,
    )


@pytest.mark.parametrize("isa", ISAS)
def test_environment_chooses_the_instruction_set(isa):
    assert run(SHOW, HAVERSACK_ISA=isa).stdout.strip() == isa


def test_default_is_the_best_of_this_processor():
    assert run(SHOW).stdout.strip() == ISAS[-1]


def test_an_unknown_instruction_set_is_refused_with_those_allowed():
    done = run(SHOW, HAVERSACK_ISA="sse9")
    assert "UserError" in done.stderr and "portable" in done.stderr and "sse9" in done.stderr


def test_twins_are_chosen_by_name_only():
    assert run(SHOW, HAVERSACK_KERNELS="twin").stdout.strip() == "twin"
    done = run(SHOW, HAVERSACK_KERNELS="numpy")
    assert "HAVERSACK_KERNELS=numpy is not supported" in done.stderr


def test_a_missing_native_module_is_an_error_with_the_build_command():
    hide = "import sys; sys.modules['haversack._native'] = None; "
    done = run(hide + SHOW)
    assert done.returncode == 1 and "make native" in done.stderr and "HaversackError" in done.stderr
    assert run(hide + SHOW, HAVERSACK_KERNELS="twin").stdout.strip() == "twin"


def test_importing_the_package_does_no_work():
    script = (
        "import sys, haversack.kernels; print('numpy' in sys.modules, 'haversack._native' in sys.modules)"
    )
    assert run(script).stdout.strip() == "False False"
