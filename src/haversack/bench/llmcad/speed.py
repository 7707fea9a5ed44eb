"""What token trees save, by the clock: the large model is read from slowed storage at every pass.

The storage is as fast as makes a pass of plain decoding read for 50 or 200 steps of the small model, which
are measured first; the pack lies in memory where the system has a file system there. Sides take turns, prompt
by prompt; all stream through the same two buffers. The baseline among linear drafts is the fastest of three
lengths over all prompts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from time import perf_counter
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side
from haversack.bench.llmcad._bench import answered, bench, opened, prompts, target

TOKENS = 48
OURS, PLAIN, ALONE = "tree", "plain", "nothing drafted beside a pass"
SIDES = {
    PLAIN: "one-by-one",
    OURS: "tree",
    ALONE: "tree:speculate=false",
    **{f"{length} in a row": f"linear-draft:length={length}" for length in (4, 8, 16)},
}
LINEAR = tuple(name for name in SIDES if name.endswith("in a row"))
WAITING = "plain, one buffer"
HIDDEN = "on either side the first two blocks of a pass are read while its tree is drafted"


@contextmanager
def fast_copy() -> Iterator[Path]:
    """The pack in memory, where the system has a file system there: what is slowed must not be slow."""
    memory = Path("/dev/shm")
    folder = Path(mkdtemp(prefix="haversack-", dir=memory if os.access(memory, os.W_OK) else None))
    try:
        yield Path(shutil.copytree(target(), folder / "code.pack"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def small_step(pack: Path) -> float:
    """Seconds of a step of the small model, over one token behind 96 others."""
    with opened("tree", pack) as engine:
        cache, times = engine.draft.cache(128), []
        engine.draft.step(np.arange(5, 101), cache=cache)
        for _ in range(60):
            began = perf_counter()
            engine.draft.step((7,), cache=cache)
            times.append(perf_counter() - began)
            cache.truncate(96)
    return float(np.median(times))


def pass_bytes(pack: Path) -> int:
    """Bytes that a pass reads."""
    with opened("one-by-one", pack, residency="streamed") as engine:
        cache = engine.cache(16)
        engine.step((5,), cache=cache)
        engine.step((6,), cache=cache)
        units = [sum(span.nbytes for span in unit.ranges) for unit in engine.held._units]
    return sum(units)


def one_buffer(engine: Any) -> None:
    """Take the second buffer away: a block is read only when the one before has been computed."""
    held = engine.held
    cache = engine.cache(4)
    engine.step((5,), cache=cache)
    with held._reader.changed:
        while not held._free and not held._ready:
            held._reader.changed.wait()
        if held._free:
            held._free.pop()
        else:
            held._ready.popitem()


def rows(ratio: int) -> list[Row]:
    return [
        Row(
            f"clock-{ratio}",
            f"tokens a second beside plain decoding, reads of a pass as long as {ratio} steps of the small "
            "model",
            "tokens/s",
            "time",
            Bar(">=", 2.3),
            published="2.9-9.3x (IoT), 3.47-4.67x (phones)",
            quick=ratio == 50,
        ),
        Row(
            f"clock-linear-{ratio}",
            f"tokens a second beside the fastest of three lengths of linear drafts, ratio {ratio}",
            "tokens/s",
            "time",
            Bar(">=", 1.05),
            published="1.93-2.00x (IoT), 1.34-1.77x (phones)",
        ),
        Row(
            f"clock-beside-{ratio}",
            f"tokens a second beside a tree that drafts nothing while a pass waits, ratio {ratio}",
            "tokens/s",
            "time",
            Bar(">=", 1.1),
            published="up to 1.51x",
        ),
        Row(
            f"clock-pipelined-{ratio}",
            f"plain decoding that reads the next block while one computes, beside one that does not, ratio "
            f"{ratio}",
            "tokens/s",
            "time",
        ),
    ]


def timed(run: Run, ratio: int) -> Outcomes:
    with fast_copy() as pack, ExitStack() as stack:
        step, nbytes = small_step(pack), pass_bytes(pack)
        mb_s = max(1, round(nbytes / (ratio * step) / 1e6))
        chosen = {name: SIDES[name] for name in (PLAIN, OURS)} if run.quick else SIDES
        engines = {
            name: stack.enter_context(opened(decode, pack, residency=f"streamed:mb_s={mb_s}"))
            for name, decode in chosen.items()
        }
        if not run.quick:
            engines[WAITING] = stack.enter_context(
                opened("one-by-one", pack, residency=f"streamed:mb_s={mb_s}")
            )
            one_buffer(engines[WAITING])
        asked = iter(prompts(run, 100))
        plain: list[list[int]] = []
        prompt: list[Any] = [None]

        def side(name: str) -> Callable[[], tuple[float, list[int], Any]]:
            def decode() -> tuple[float, list[int], Any]:
                answer = answered(engines[name], prompt[0], TOKENS)
                return answer.tokens_per_s, answer.tokens, answer.drafting

            return decode

        taken: dict[str, list[tuple[float, list[int], Any]]] = {name: [] for name in engines}
        for engine in engines.values():
            answered(engine, next(asked), 8)
        order = list(engines)
        for _ in range(MIN_PAIRS if run.quick else 2 * MIN_PAIRS):
            prompt[0] = next(asked)
            for name, values in run.interleave({name: side(name) for name in order}, 1).items():
                taken[name] += values
            order.reverse()
            plain.append(taken[PLAIN][-1][1])
    other = [name for name in taken if [tokens for _, tokens, _ in taken[name]] != plain]
    if other:
        raise ValueError(f"other tokens than plain decoding's: {', '.join(other)}")
    speeds = {name: tuple(speed for speed, _, _ in values) for name, values in taken.items()}
    counts = [drafting for _, _, drafting in taken[OURS]]
    passes = sum(one.passes for one in counts)
    note = (
        f"{mb_s} MB/s, a step of the small model {1e6 * step:.0f} us; {passes} passes for "
        f"{len(counts) * (TOKENS - 1)} tokens, {sum(one.accepted for one in counts) / passes + 1:.2f} each; "
        f"drafting {sum(one.drafting_s for one in counts):.2f} s, verifying "
        f"{sum(one.verifying_s for one in counts):.2f} s"
    )
    ours = Side(OURS, speeds[OURS])
    found = {f"clock-{ratio}": Outcome(ours, Side(PLAIN, speeds[PLAIN]), note)}
    if not run.quick:
        linear = max(LINEAR, key=lambda name: 1 / sum(1 / speed for speed in speeds[name]))
        found[f"clock-linear-{ratio}"] = Outcome(ours, Side(linear, speeds[linear]))
        found[f"clock-beside-{ratio}"] = Outcome(ours, Side(ALONE, speeds[ALONE]), HIDDEN)
        found[f"clock-pipelined-{ratio}"] = Outcome(
            Side(PLAIN, speeds[PLAIN]), Side(WAITING, speeds[WAITING])
        )
    return found


@bench.measure(*rows(50), seconds=60, quick_seconds=15)
def clock_50(run: Run) -> Outcomes:
    return timed(run, 50)


@bench.measure(*rows(200), seconds=120)
def clock_200(run: Run) -> Outcomes:
    return timed(run, 200)
