"""A script run once for each instruction set of this processor."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from haversack.kernels._native import native

ISAS = list(native().isa_names()) if native() is not None else []


@dataclass(frozen=True)
class Said:
    """How a script ended and what it printed: the instruction set it ran with, and a digest of its bits."""

    code: int
    words: list[str]
    errors: str


def each_isa(script: str) -> dict[str, Said]:
    """`script`, a file beside this one, with every instruction set in a process of its own."""
    found = {}
    for isa in ISAS:
        env = dict(os.environ, HAVERSACK_ISA=isa, HAVERSACK_KERNELS="native", PYTHONDONTWRITEBYTECODE="1")
        run = subprocess.run(
            [sys.executable, str(Path(__file__).with_name(script))],
            capture_output=True,
            text=True,
            env=env,
            check=False,
        )
        found[isa] = Said(run.returncode, run.stdout.split(), run.stderr)
    return found
