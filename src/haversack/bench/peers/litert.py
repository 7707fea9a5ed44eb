"""LiteRT's interpreter with its reference kernels as an oracle, in an environment of its own.

The environment lies in the cache folder (`peers/ai-edge-litert`), some 100 MB from the package index, made
once. The op resolver is BUILTIN_REF and there is no delegate: LiteRT's default kernels for processors differ
from its reference kernels by several codes.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._cache import cache_folder
from haversack.bench._rows import Unavailable

PACKAGES = ("ai-edge-litert==2.3.0", "numpy>=1.26")
_WORKER = Path(__file__).with_name("_litert_worker.py")


def python(say: Callable[[str], None] = lambda text: None, *, build: bool = True) -> Path:
    """The environment's interpreter, after making the environment when it is not complete.

    Raises Unavailable when it is absent and `build` is false, or when it cannot be made here.
    """
    home = cache_folder() / "peers" / "ai-edge-litert"
    interpreter, done = home / "bin" / "python", home / "complete"
    if done.is_file() and done.read_text(encoding="utf-8").split() == list(PACKAGES):
        return interpreter
    if not build:
        raise Unavailable("ai-edge-litert is not installed on this machine; a full run installs it")
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / ".ai-edge-litert.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        say("installing ai-edge-litert, once")
        if not interpreter.exists():
            _run([sys.executable, "-m", "venv", home], "making an environment")
        _run([interpreter, "-m", "pip", "install", "--quiet", *PACKAGES], "installing ai-edge-litert")
        done.write_text("\n".join(PACKAGES) + "\n", encoding="utf-8")
    return interpreter


def outputs(interpreter: Path, model: Path, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[n, outputs] that the reference kernels give for `rows` [n, ...], in the model's own types."""
    with tempfile.TemporaryDirectory() as name:
        given, found = Path(name) / "inputs.npy", Path(name) / "outputs.npy"
        np.save(given, rows)
        _run([interpreter, "-P", _WORKER, model, given, found], f"running {model.name} in LiteRT")
        made: npt.NDArray[Any] = np.load(found, allow_pickle=False)
    return made


def _run(argv: list[str | Path], what: str) -> None:
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{what} failed: {last}")
