"""What the engine costs before it helps: memory of running and packing against their plans, install size."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row, Unavailable
from haversack.bench._store import source_root
from haversack.bench.engine._bench import ENGINE_FILES, SHRINK_FILES, bench
from haversack.bench.engine._models import code_pack, medium_checkpoint
from haversack.core.memory import drop_cached, run_measured

RUN_OVERHEAD_MIB = 60
ANSWER_TOKENS = 24
PACK_ACTIVATIONS_MIB = 256
PACK_OVERHEAD_MIB = 200
PACK_TOKENS = 16384
RESIDENCIES = ("mapped", "copied", "streamed")
_LIBRARY_WEIGHTS = "reference_models"


def haversack(*words: str | Path) -> list[str]:
    """The command line that runs our own command with this interpreter."""
    return [sys.executable, "-c", "from haversack.cli import main; main()", *map(str, words)]


@bench.measure(
    Row(
        "help",
        "`haversack --help` answers at once (baseline: the interpreter alone)",
        "s",
        "time",
        Bar("<=", 0.3),
        judged="ours",
        quick=True,
    ),
    seconds=6,
    quick_seconds=6,
    watches=("cli/*.py", "core/*.py", "__init__.py"),
)
def help_time(run: Run) -> Outcomes:
    def seconds(argv: list[str]) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            subprocess.run(argv, check=True, capture_output=True)
            return time.perf_counter() - start

        return once

    taken = run.interleave(
        {"python": seconds([sys.executable, "-c", ""]), "haversack": seconds(haversack("--help"))}
    )
    return {"help": Outcome.of(taken, ours="haversack", baseline="python")}


@bench.measure(
    *[
        Row(
            f"run-memory-{residency}",
            f"peak memory of `run --residency {residency}` stays below packed bytes + cache + "
            "tokenizer + 60 MiB",
            "MiB",
            "memory",
            Bar("<=", 1.0),
            quick=residency == "mapped",
        )
        for residency in RESIDENCIES
    ],
    seconds=20,
    quick_seconds=10,
)
def run_memory(run: Run) -> Outcomes:
    pack = code_pack("round-to-nearest:bits=4,group=64")
    found: dict[str, Outcome | Unavailable] = {}
    for residency in RESIDENCIES[:1] if run.quick else RESIDENCIES:
        weights = pack / "weights.safetensors"
        drop_cached([weights])
        argv = haversack("run", pack, "--residency", residency, "--prompt", "def read_json(path):")
        done = run_measured(
            [*argv, "--max-tokens", str(ANSWER_TOKENS), "--json"], files=[weights], timeout=60
        )
        if done.returncode:
            found[f"run-memory-{residency}"] = Unavailable(f"run failed: {done.stderr.strip()[-300:]}")
            continue
        reply = json.loads(done.stdout)
        allowed, lines = allowed_run_mib(pack, residency, (reply["prompt_tokens"], ANSWER_TOKENS))
        said = reply["ram_mib"]
        note = f"{lines}; the command itself planned {said['planned']:.1f} and saw {said['measured']:.1f} MiB"
        found[f"run-memory-{residency}"] = Outcome.single(
            done.peak_mib, allowed, name=f"haversack {residency}", against="allowed", note=note
        )
    return found


def allowed_run_mib(pack: Path, residency: str, tokens: tuple[int, int]) -> tuple[float, str]:
    """Packed bytes + KV cache of `tokens` (prompt, answer) + tokenizer + 60 MiB, and the sum in words."""
    from haversack.run._engine import Engine

    plan = Engine.open(pack, residency=residency).memory_plan(tokens)
    parts = {"packed bytes": (pack / "weights.safetensors").stat().st_size}
    for label, count in plan.lines:
        if "cache" in label.lower() or "tokenizer" in label.lower():
            parts[label] = count
    total = sum(parts.values()) / 2**20 + RUN_OVERHEAD_MIB
    words = " + ".join(f"{label} {count / 2**20:.1f}" for label, count in parts.items())
    return total, f"{words} + {RUN_OVERHEAD_MIB} MiB"


@bench.measure(
    Row(
        "pack-memory",
        "peak memory of packing by GPTQ stays below 2 x the largest block in f32 + 2 x its widest Hessian "
        "+ 256 MiB of calibration activations + 200 MiB",
        "MiB",
        "memory",
        Bar("<=", 1.0),
    ),
    seconds=90,
    watches=(*SHRINK_FILES, "plan/*.py", "core/memory.py"),
)
def pack_memory(run: Run) -> Outcomes:
    from haversack.models._calibration import default_text

    model, sizes = medium_checkpoint()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "evaluation.txt"
        text.write_text(default_text("evaluation")[:16384], encoding="utf-8")
        argv = haversack("pack", model, "--device", "laptop", "-o", Path(folder) / "medium.pack", "--json")
        argv += ["--precision", "gptq:bits=4,group=64", "--effort", "1", "--evaluation", str(text)]
        done = run_measured([*argv, "--calibration-tokens", str(PACK_TOKENS)], timeout=600)
    if done.returncode:
        raise Unavailable(f"pack failed: {done.stderr.strip()[-300:]}")
    parts = {
        "2 blocks": 2 * sizes["block"],
        "2 Hessians": 2 * sizes["hessian"],
        "activations": PACK_ACTIVATIONS_MIB * 2**20,
        "overhead": PACK_OVERHEAD_MIB * 2**20,
    }
    note = " + ".join(f"{label} {count / 2**20:.0f}" for label, count in parts.items())
    allowed = sum(parts.values()) / 2**20
    return {"pack-memory": Outcome.single(done.peak_mib, allowed, against="allowed", note=f"{note} MiB")}


@bench.measure(
    Row(
        "install-size",
        "dependencies and our code of the light install, model weights apart",
        "MB",
        "bytes",
        Bar("<=", 165.0),
        judged="ours",
    ),
    seconds=150,
    watches=(*ENGINE_FILES, "cli/*.py", "core/*.py"),
)
def install_size(run: Run) -> Outcomes:
    root = source_root()
    if root is None:
        raise Unavailable("a fresh install is made from the source tree, and this is an installed package")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "venv"
        venv.create(home, with_pip=False, symlinks=True)
        argv = [sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", root]
        done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"pip install failed: {done.stderr.strip()[-300:]}")
        site = next((home / "lib").glob("python*/site-packages"))
        whole, weights = _disk_bytes(site), _disk_bytes(site / "haversack" / _LIBRARY_WEIGHTS)
    note = f"disk blocks as du counts them; {weights / 1e6:.1f} MB of model weights come on top"
    return {"install-size": Outcome.single((whole - weights) / 1e6, name="light install", note=note)}


def _disk_bytes(folder: Path) -> int:
    """What `du` says: blocks of all files and folders, links counted once."""
    seen = {}
    for path in [folder, *folder.rglob("*")] if folder.exists() else []:
        found = path.lstat()
        seen[found.st_dev, found.st_ino] = found.st_blocks * 512
    return sum(seen.values())


@bench.measure(
    Row(
        "packed-size",
        "a 4-bit pack of `code` takes less storage than its f16 checkpoint",
        "MiB",
        "bytes",
        Bar("<=", 0.4),
        quick=True,
    ),
    seconds=10,
    quick_seconds=8,
    watches=SHRINK_FILES,
)
def packed_size(run: Run) -> Outcomes:
    from haversack.bench.engine._models import code_folder

    pack = code_pack("round-to-nearest:bits=4,group=64")
    sizes = [
        sum(path.stat().st_size for path in folder.rglob(pattern)) / 2**20
        for folder, pattern in ((pack, "weights.safetensors"), (code_folder(), "*.safetensors"))
    ]
    return {"packed-size": Outcome.single(sizes[0], sizes[1], name="int4 pack", against="f16 checkpoint")}
