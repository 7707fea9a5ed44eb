"""Measuring a packed candidate: quality through the engine here, speed and memory of a fresh process."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from haversack.core.errors import HaversackError
from haversack.core.memory import run_measured
from haversack.models._calibration import TokenText
from haversack.models._evaluation import bits_per_byte
from haversack.plan._candidates import Plan

if TYPE_CHECKING:
    from haversack.run import Engine

RUN = "import sys; from haversack.cli import main; sys.exit(main())"
TIMEOUT_S = 600.0
STORES = (".safetensors", ".store")


class MeasuringError(HaversackError):
    """A packed candidate that did not run: our fault, with what the run said."""


@dataclass(frozen=True)
class RunFigures:
    """Of one run in a fresh process: `tokens_per_s` decoding, `first_token_ms`, peak `ram_mib` seen from
    outside.
    """

    tokens_per_s: float
    first_token_ms: float
    ram_mib: float


def open_engine(source: Path, plan: Plan | None) -> Engine:
    """The pack or checkpoint at `source`, to be run as `plan` says (None: f32 throughout)."""
    from haversack.run import Engine

    engine: Engine = Engine.open(
        source,
        residency="mapped" if plan is None else plan.residency,
        prefill="chunked",
        activations="f32" if plan is None else plan.activations,
        cache_type="f32" if plan is None else plan.cache_type,
    )
    return engine


def quality(source: Path, plan: Plan | None, text: TokenText, window: int) -> float:
    """Bits per byte of `text` by the pack or checkpoint at `source`, run as `plan` says (None: f32
    throughout).

    Windows of `window` tokens follow one another by three quarters, so that every token has a quarter before
    it.
    """
    with open_engine(source, plan) as engine:
        return bits_per_byte(engine, text.tokens, text.byte_count, window, max(1, 3 * window // 4))


def run_figures(pack: Path, plan: Plan, prompt: str, tokens: int) -> RunFigures:
    """Complete `prompt` with `tokens` tokens by `haversack run` and measure the process from outside.

    The memory is that of a run that fills the model's context: what was measured, and what the plan of such a
    run holds more than the plan of this one.
    """
    argv = [
        *(sys.executable, "-c", RUN, "run", str(pack), "--json"),
        *("--prompt", prompt, "--max-tokens", str(tokens)),
        *("--residency", plan.residency, "--activations", plan.activations, "--cache-type", plan.cache_type),
    ]
    # A mapped file's pages are in the process's own peak; unmapped at its end they must not count again.
    files = [] if plan.residency == "mapped" else [path for path in pack.iterdir() if path.suffix in STORES]
    done = run_measured(argv, files=files, timeout=TIMEOUT_S)
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines() or [f"exit {done.returncode}"]
        raise MeasuringError(f"a packed candidate ({plan.label}) did not run: {said[-1]}")
    record = json.loads(done.stdout)
    with open_engine(pack, plan) as engine:
        full = engine.memory_plan().total_mib
    more = max(0.0, full - float(record["ram_mib"]["planned"]))
    return RunFigures(float(record["tokens_per_s"]), float(record["first_token_ms"]), done.peak_mib + more)
