"""First tokens from cold, on storage held to 400 MB/s, one thread restoring and one computing.

The prompt is as long as restoring takes a chosen multiple of what computing it takes; both are measured at
the start of the run. The unpipelined one allocates, reads and decrypts everything, no stage beside another,
and then computes. Weights in the clear are read by `streamed` from the same storage, itself beside the
computation; it may hold two blocks before the clock starts. Ways take turns, each in a process that is warm
but for its weights.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._workers import Worker
from haversack.bench.tz_llm._bench import bench
from haversack.bench.tz_llm._models import CONFIG, LAYERS, packs

STORAGE_MB_S = 400
PROBE = 256
EQUAL_WITHIN = 0.2
MULTIPLES = {"third-less": 2 / 3, "equal": 1.0, "half-more": 3 / 2}
"""Restoration over computation."""
LENGTHS = (32, 512)
DECODED = 32
SHARES = (0, 20, 40, 60, 80, 100)
PUBLISHED = "0.09-0.24 (Orange Pi 5 Plus with its accelerator, 1.1 to 8 B weights)"
WAYS = {
    "pipelined": "sealed:mb_s={}",
    "unpipelined": "sealed:mb_s={},schedule=at-once",
    "random order": "sealed:mb_s={},schedule=random",
    "whole tensors": "sealed:mb_s={},schedule=whole-tensors",
    "in the clear": "streamed:keep=0,mb_s={}",
    "in memory": "copied",
}


@contextmanager
def workers(*names: str) -> Iterator[dict[str, Worker]]:
    """Processes that hold the model in the ways `names`, computing with one thread."""
    plain, sealed, key = packs()
    with ExitStack() as stack:
        found = {}
        for name in names:
            worker = stack.enter_context(Worker([sys.executable, "-m", "haversack.bench.tz_llm._worker"]))
            secret = WAYS[name].startswith("sealed")
            worker.ask(
                "open",
                model=str(sealed if secret else plain),
                key=str(key) if secret else None,
                residency=WAYS[name].format(STORAGE_MB_S),
                threads=1,
            )
            found[name] = worker
        yield found


def prompt(length: int, seed: int) -> list[int]:
    numbers = np.random.default_rng(seed).integers(1, CONFIG["vocab_size"], length)
    return [int(number) for number in numbers]


@dataclass(frozen=True)
class Speeds:
    """Seconds: of each stage of restoring everything, and of computing PROBE tokens."""

    stages: Mapping[str, float]
    compute: float

    @property
    def restore(self) -> float:
        return sum(self.stages.values())

    def length(self, multiple: float, computing: Callable[[int], float]) -> int:
        """Tokens whose computation takes the restoration's time over `multiple`: in proportion to PROBE of
        them, then to what those take by `computing`, since a token costs more the more there are."""
        wanted, found, taken = self.restore / multiple, PROBE, self.compute
        for _ in range(4):
            found = max(8, min(1800, round(found * wanted / taken)))
            taken = computing(found)
        return found


def speeds(held: Mapping[str, Worker], seed: int) -> Speeds:
    tokens = prompt(PROBE, seed)
    stages, compute = [], []
    for _ in range(3):
        held["unpipelined"].ask("times")
        held["unpipelined"].ask("first", tokens=tokens)
        stages.append(held["unpipelined"].ask("times"))
        compute.append(held["in memory"].ask("first", tokens=tokens)["seconds"])
    middle = {name: statistics.median(one[name] for one in stages) for name in stages[0]}
    return Speeds(middle, statistics.median(compute[1:]))


def computing(held: Mapping[str, Worker], seed: int) -> Callable[[int], float]:
    """Seconds that so many tokens take with the weights in memory, the middle of three."""

    def seconds(length: int) -> float:
        return statistics.median(first(held["in memory"], prompt(length, seed))() for _ in range(3))

    return seconds


def first(worker: Worker, tokens: list[int], kept: int = 0) -> Callable[[], float]:
    def once() -> float:
        return float(worker.ask("first", tokens=tokens, kept=kept)["seconds"])

    return once


def decoding(worker: Worker) -> Callable[[], float]:
    def once() -> float:
        return DECODED / float(worker.ask("decode", count=DECODED)["seconds"])

    return once


def note_of(speed: Speeds, length: int, compute: float) -> str:
    stages = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in speed.stages.items())
    return (
        f"{length} tokens; restoration {speed.restore:.3f} s ({stages}), computation {compute:.3f} s; "
        f"storage {STORAGE_MB_S:.0f} MB/s"
    )


EQUAL_ROWS = (
    Row(
        "first-token",
        "sealed first token over the unpipelined one, restoration and computation equal within 20 %",
        "s",
        "time",
        Bar("<=", 0.70),
        published=PUBLISHED,
        quick=True,
    ),
    Row(
        "in-the-clear",
        "sealed first token over that of the same weights in the clear, streamed from the same storage",
        "s",
        "time",
        Bar("<=", 1.3),
        published="1.05-1.28 over weights in memory (an accelerator computes)",
    ),
    Row("in-memory", "sealed first token over that of weights in memory", "s", "time"),
    Row(
        "overlap",
        "share of what overlap can save by the paper's bound that is saved",
        "share",
        "quality",
        Bar(">=", 0.7),
        judged="ours",
    ),
    Row(
        "order",
        "sealed first token over one restored in random order",
        "s",
        "time",
        Bar("<=", 0.99),
    ),
    Row(
        "grain",
        "sealed first token over one that reads and decrypts tensors whole, without preemption",
        "s",
        "time",
        Bar("<=", 0.99),
    ),
)


@bench.measure(*EQUAL_ROWS, seconds=150, quick_seconds=40)
def equal(run: Run) -> Outcomes:
    names = ["pipelined", "unpipelined", "in memory"] if run.quick else list(WAYS)
    with workers(*names) as held:
        speed = speeds(held, run.seed)
        length = speed.length(1.0, computing(held, run.seed))
        tokens = prompt(length, run.seed)
        sides = {name: first(held[name], tokens) for name in names}
        for once in sides.values():
            once()
        held["unpipelined"].ask("times")
        taken = run.interleave(sides, MIN_PAIRS)
        stages = {k: v / MIN_PAIRS for k, v in held["unpipelined"].ask("times").items()}
    compute = statistics.median(taken["in memory"])
    speed = Speeds(stages, compute)
    note = note_of(speed, length, compute)
    away = abs(speed.restore / compute - 1)
    found: dict[str, Outcome | Unavailable] = {
        "first-token": Outcome.of(taken, ours="pipelined", baseline="unpipelined", note=note)
        if away <= EQUAL_WITHIN
        else Unavailable(f"restoration and computation are {away:.0%} apart here: {note}")
    }
    if run.quick:
        return found
    for row, name in {
        "in-the-clear": "in the clear",
        "in-memory": "in memory",
        "order": "random order",
    }.items():
        found[row] = Outcome.of(taken, ours="pipelined", baseline=name, note=note)
    found["grain"] = Outcome.of(taken, ours="pipelined", baseline="whole tensors", note=note)
    found["overlap"] = overlapped(taken, stages, compute, note)
    return found


def overlapped(
    taken: Mapping[str, list[float]], stages: Mapping[str, float], compute: float, note: str
) -> Outcome:
    from haversack.run.residency.sealed import Stages, bound_s, overlap

    allocate, read, decrypt = (stages[name] / LAYERS for name in ("allocate", "read", "decrypt"))
    one = Stages(allocate, read, decrypt, compute / LAYERS)
    bound = bound_s([one] * LAYERS)
    shares = tuple(
        overlap(slow, fast, bound)
        for slow, fast in zip(taken["unpipelined"], taken["pipelined"], strict=True)
    )
    return Outcome(Side("overlap", shares), note=f"bound {bound:.3f} s; {note}")


@bench.measure(
    *[
        Row(
            f"multiple-{name}",
            f"sealed first token over the unpipelined one, restoration {multiple:.2f} of computation",
            "s",
            "time",
            Bar("<=", 0.65),
            published=PUBLISHED,
        )
        for name, multiple in MULTIPLES.items()
    ],
    *[
        Row(
            f"prompt-{length}",
            f"sealed first token over the unpipelined one for a prompt of {length} tokens",
            "s",
            "time",
            published=PUBLISHED,
        )
        for length in LENGTHS
    ],
    seconds=240,
)
def multiples(run: Run) -> Outcomes:
    found: dict[str, Outcome] = {}
    with workers("pipelined", "unpipelined", "in memory") as held:
        speed = speeds(held, run.seed)
        lengths = {
            f"multiple-{name}": speed.length(multiple, computing(held, run.seed))
            for name, multiple in MULTIPLES.items()
        }
        lengths |= {f"prompt-{length}": length for length in LENGTHS}
        for row, length in lengths.items():
            tokens = prompt(length, run.seed)
            sides = {name: first(held[name], tokens) for name in ("pipelined", "unpipelined")}
            for once in sides.values():
                once()
            taken = run.interleave(sides, MIN_PAIRS)
            compute = statistics.median(first(held["in memory"], tokens)() for _ in range(3))
            note = note_of(speed, length, compute)
            found[row] = Outcome.of(taken, ours="pipelined", baseline="unpipelined", note=note)
    return found


@bench.measure(
    Row(
        "cache-falls",
        "largest rise of the first token's time from one kept share to the next, over the whole fall",
        "share",
        "quality",
        Bar("<=", 0.05),
        judged="ours",
    ),
    Row(
        "cache-linear",
        "R^2 of a line through the falling part",
        "R^2",
        "quality",
        Bar(">=", 0.9),
        judged="ours",
        published="about linear up to a threshold (Llama-3-8B)",
    ),
    Row("decode", "tokens a second after the first, over weights in memory", "tokens/s", "time"),
    seconds=120,
)
def cached_shares(run: Run) -> Outcomes:
    """A prompt whose computation is far shorter than the restoration, so that keeping shows."""
    with workers("pipelined", "in memory") as held:
        tokens = prompt(48, run.seed)
        sides = {str(share): first(held["pipelined"], tokens, share) for share in SHARES}
        held["in memory"].ask("first", tokens=tokens)
        for once in sides.values():
            once()
        taken = run.interleave(sides, MIN_PAIRS)
        speeds_of = run.interleave({name: decoding(worker) for name, worker in held.items()}, MIN_PAIRS)
    medians = [statistics.median(taken[str(share)]) for share in SHARES]
    fall = max(medians) - min(medians)
    rise = max(0.0, *(after - before for before, after in pairwise(medians)))
    note = ", ".join(f"{share} %: {seconds:.3f} s" for share, seconds in zip(SHARES, medians, strict=True))
    falling = [i for i, seconds in enumerate(medians) if seconds > medians[-1] + 0.05 * fall]
    return {
        "cache-falls": Outcome.single(rise / fall, name="rise", note=note),
        "cache-linear": Outcome.single(
            r_squared([SHARES[i] for i in falling], [medians[i] for i in falling]), name="line", note=note
        ),
        "decode": Outcome.of(speeds_of, ours="pipelined", baseline="in memory"),
    }


def r_squared(x: list[Any], y: list[float]) -> float:
    """Of the least-squares line through the points."""
    if len(x) < 3:
        return 0.0
    line = np.polyval(np.polyfit(x, y, 1), x)
    left, whole = np.sum((np.array(y) - line) ** 2), np.sum((np.array(y) - np.mean(y)) ** 2)
    return float(1 - left / whole)
