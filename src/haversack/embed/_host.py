"""Compiles emitted C on this machine and runs it; which flags the C has to stand."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from haversack.core.errors import HaversackError, UserError

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wno-sign-conversion")
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TIMEOUT_S = 300


class CompileError(HaversackError):
    """Emitted C that its compiler refused: a fault of ours; the text is the compiler's."""


def tool(name: str, package: str) -> str:
    """The path of a tool. Raises UserError with Debian's package when it is not there."""
    found = shutil.which(name)
    if found is None:
        raise UserError(
            f"{name} is not installed; on Debian and Ubuntu: apt install {package}",
            field="install",
            given=name,
        )
    return found


def run(command: Sequence[str | Path], text: str = "", *, folder: Path | None = None) -> str:
    """What a program prints. Raises HaversackError when it fails, with what it said."""
    done = subprocess.run(
        [str(part) for part in command],
        input=text,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=folder,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-2000:]
        raise HaversackError(f"{Path(str(command[0])).name} ended with {done.returncode}: {said}")
    return done.stdout


def compiled(sources: Sequence[Path], program: Path, *flags: str) -> Path:
    """`program` made of `sources` by this machine's gcc with the strict warnings.

    Raises CompileError with what gcc said, UserError without gcc.
    """
    names = [str(source) for source in sources]
    return compile_with([tool("gcc", "gcc"), *STRICT, *flags], Path(), names, program)


def compile_with(command: Sequence[str], folder: Path, sources: Sequence[str], program: Path) -> Path:
    """`program` made of the `sources` of `folder` by a compiler with its flags. Raises CompileError with what
    it said."""
    line = [*command, *(str(folder / name) for name in sources), "-o", str(program), "-lm"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode:
        raise CompileError(f"{Path(command[0]).name} refused {sources[0]}: {done.stderr.strip()[:2000]}")
    return program
