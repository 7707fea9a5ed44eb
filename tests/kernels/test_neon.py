"""The kernels on 64-bit Arm: cross-compiled and run under qemu, each of its instruction sets against plain
computations and bit for bit over rows, threads and tiles (native/tests)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("aarch64-linux-gnu-g++")
EMULATOR = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)"),
    pytest.mark.skipif(EMULATOR is None, reason="no qemu-aarch64 (Debian: qemu-user-static)"),
]


def tool(name: str) -> str:
    """A build tool of this Python's own environment, else of the system."""
    own = Path(sys.executable).with_name(name)
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"no {name}")
    return found


@pytest.fixture(scope="module")
def program() -> Path:
    """native/tests for Arm, built in the folder of `make neon`, so that a second build has little to do."""
    build = ROOT / "build" / "aarch64"
    configure = [
        tool("cmake"), "-S", str(ROOT), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={Path(str(COMPILER)).name}", "-DCMAKE_EXE_LINKER_FLAGS=-static",
    ]  # fmt: skip
    compile_ = [
        tool("cmake"),
        "--build",
        str(build),
        "--target",
        "test_native",
        "-j",
        str(os.cpu_count() or 1),
    ]
    for command in (configure, compile_):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return build / "native" / "test_native"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("isa", ["portable", "neon", "dotprod"])
def test_all_families_hold_on_arm(program, isa):
    done = subprocess.run(
        [str(EMULATOR), "-cpu", "max", str(program), isa], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert f"{isa}: " in done.stdout and " 0 failures" in done.stdout
