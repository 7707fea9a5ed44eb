"""llama.cpp as a peer, through llama-cpp-python built on this machine, in an environment of its own.

The environment lies in the cache folder (`peers/llama-cpp-python`) and takes about ten minutes to build on
two cores, once. llama.cpp picks its native build's instructions (AVX-512 VNNI where the machine has it) and
repacks Q4_0 weights for them. The package never imports it: the comparison talks to a worker process.
"""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from haversack.bench._cache import cache_folder, cached
from haversack.bench._rows import Unavailable
from haversack.bench._workers import Worker

PACKAGES = ("llama-cpp-python==0.3.36", "gguf==0.19.0")
_WORKER = Path(__file__).with_name("_llama_cpp_worker.py")
MAPPED_WORKER = Path(__file__).with_name("_llama_cpp_mapped_worker.py")
"""The same worker with weights that stay as the mapped file has them."""
_WEIGHTS = Path(__file__).with_name("_equal_weights.py")


def python(say: Callable[[str], None] = lambda text: None, *, build: bool = True) -> Path:
    """The peer environment's interpreter, after making the environment when it is not complete.

    Raises Unavailable when it is absent and `build` is false, or when it cannot be built here.
    """
    home = cache_folder() / "peers" / "llama-cpp-python"
    interpreter = home / "bin" / "python"
    done = home / "complete"
    if done.is_file() and done.read_text().split() == list(PACKAGES):
        return interpreter
    if not build:
        raise Unavailable(
            "llama-cpp-python is not built on this machine; a full run builds it in ten minutes"
        )
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / ".llama-cpp-python.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        say("building llama-cpp-python: about ten minutes, once")
        if not interpreter.exists():
            _run([sys.executable, "-m", "venv", home], "making an environment")
        _run([interpreter, "-m", "pip", "install", "--quiet", *PACKAGES], "building llama-cpp-python")
        done.write_text("\n".join(PACKAGES) + "\n")
    return interpreter


def _run(argv: list[str | Path], what: str) -> None:
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Unavailable(f"{what} failed: {last}")


def model(interpreter: Path, output_type: str) -> Path:
    """The random TinyLlama-shaped GGUF (Q4_0, output matrix `Q6_K` or `Q8_0`), written once and cached."""

    def make(folder: Path) -> None:
        _run([interpreter, "-P", _WORKER, "write", folder / "model.gguf", output_type], "writing the GGUF")

    made_by = [path.read_text(encoding="utf-8") for path in (_WORKER, _WEIGHTS)]
    return cached(f"llama-cpp-{output_type.lower()}", {"written_by": made_by}, make) / "model.gguf"


def worker(interpreter: Path) -> Worker:
    """A fresh worker process; its first request is `open`."""
    return Worker([interpreter, "-P", _WORKER, "serve"])
