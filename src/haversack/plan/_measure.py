"""Measuring a packed candidate: quality through the engine here, speed and memory of a fresh process."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.core.errors import HaversackError
from haversack.core.memory import run_measured
from haversack.models._calibration import TokenText
from haversack.models._evaluation import windows
from haversack.plan._candidates import Plan
from haversack.run._sweep import target_bits, through_blocks
from haversack.shrink._activations import Activations
from haversack.shrink._rounding import F32

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


def open_engine(source: Path, plan: Plan | None, residency: str, prefill: str = "chunked") -> Engine:
    """The pack or checkpoint at `source`, to be run as `plan` says (None: f32 throughout) but for the
    residency.
    """
    from haversack.run import Engine

    engine: Engine = Engine.open(
        source,
        residency=residency,
        prefill=prefill,
        activations="f32" if plan is None else plan.activations,
        cache_type="f32" if plan is None else plan.cache_type,
    )
    return engine


def quality(source: Path, plan: Plan | None, text: TokenText, window: int, folder: Path) -> float:
    """Bits per byte of `text` by the pack or checkpoint at `source`, run as `plan` says (None: f32
    throughout).

    Windows of `window` tokens follow one another by three quarters, so that every token has a quarter before
    it. All of them pass one block before the next is read from storage, whatever the plan's residency (it
    changes no bit): two blocks are in memory, and the windows' hidden states, or those in `folder`.
    """
    tokens = np.ascontiguousarray(text.tokens, np.int32)
    views = list(windows(len(tokens), window, max(1, 3 * window // 4)))
    texts = [tokens[view.start : view.stop - 1] for view in views]
    longest = max(map(len, texts))
    with (
        open_engine(source, plan, "streamed:keep=0") as engine,
        Activations(len(texts), longest, engine.architecture.width, folder, exact=True) as states,
    ):
        through_blocks(engine, texts, states)

        def before_targets(index: int) -> F32:
            view = views[index]
            return states.read(index)[view.scored - 1 - view.start : view.stop - 1 - view.start]

        targets = [tokens[view.scored : view.stop] for view in views]
        costs = target_bits(engine, before_targets, targets)
    return sum(float(each.sum()) for each in costs) / text.byte_count


def measured_run(pack: Path, plan: Plan, more: Sequence[str]) -> tuple[dict[str, Any], float]:
    """What `haversack run PACK MORE` printed as JSON, run as `plan` says in a fresh process, and its peak MiB
    seen from outside. Raises MeasuringError when it does not run.
    """
    argv = [sys.executable, "-c", RUN, "run", str(pack), *more, "--json"]
    argv += ["--residency", plan.residency, "--activations", plan.activations]
    # A mapped file's pages are in the process's own peak; unmapped at its end they must not count again.
    files = [] if plan.residency == "mapped" else [path for path in pack.iterdir() if path.suffix in STORES]
    done = run_measured(argv, files=files, timeout=TIMEOUT_S)
    if done.returncode != 0:
        said = (done.stdout.strip() or done.stderr.strip()).splitlines() or [f"exit {done.returncode}"]
        raise MeasuringError(f"a packed candidate ({plan.label}) did not run: {said[-1]}")
    record: dict[str, Any] = json.loads(done.stdout)
    return record, done.peak_mib


def run_figures(pack: Path, plan: Plan, prompt: str, tokens: int, prefill: str = "chunked") -> RunFigures:
    """Complete `prompt` with `tokens` tokens by `haversack run` and measure the process from outside.

    The memory is that of a run that fills the model's context: what was measured, and what the plan of such a
    run holds more than the plan of this one.
    """
    asked = ("--prompt", prompt, "--max-tokens", str(tokens), "--cache-type", plan.cache_type)
    record, peak_mib = measured_run(pack, plan, asked)
    with open_engine(pack, plan, plan.residency, prefill) as engine:
        full = engine.memory_plan().total_mib
    more = max(0.0, full - float(record["ram_mib"]["planned"]))
    return RunFigures(float(record["tokens_per_s"]), float(record["first_token_ms"]), peak_mib + more)
