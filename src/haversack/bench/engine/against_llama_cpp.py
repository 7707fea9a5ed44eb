"""Speed, first token and memory beside llama.cpp: the same random TinyLlama-1.1B, the same bits, the same
threads.

Both sides hold groups of 32 weights in 4 bits with a 16-bit scale and an output matrix of at least 6 bits
(llama.cpp's own Q6_K, ours int8), keep keys and values in f16, read 256 prompt tokens and decode 64 given
ones. The peer runs its native build with batches of 512, flash attention on or off (the faster one) and its
file mapped or read (for every row the better one); what it holds when it reads past the page cache has a row
of its own. In each round all sides start a fresh process, one after
the other, from a warm page cache; first token, speeds and memory of a round come from those processes.
Memory is core/memory.py's: the peak from outside plus unmapped cached pages of the weights.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from haversack.bench._cache import cached
from haversack.bench._harness import Run
from haversack.bench._rows import MIN_PAIRS, Bar, Outcome, Outcomes, Row, Side, Unavailable
from haversack.bench._workers import Worker
from haversack.bench.engine._bench import bench
from haversack.bench.engine._shapes import random_pack
from haversack.bench.peers import llama_cpp
from haversack.bench.peers._equal_weights import Shape, token_ids
from haversack.core.memory import MemoryWatch, drop_cached

PROMPT, DECODED, CONTEXT = 256, 64, 512
OUTPUT_TYPE = "Q6_K"
PATHS = ("copied", "mapped")
Values = dict[str, dict[str, list[float]]]

SHAPE = Shape()
TOKENS = token_ids(PROMPT + DECODED, SHAPE)


@dataclass(frozen=True)
class Contender:
    """One side: how its worker starts, what it is asked to open, and the weights file it reads."""

    name: str
    spawn: Callable[[], Worker]
    opening: dict[str, Any]
    weights: Path

    def start(self, threads: int = 2) -> tuple[Worker, float]:
        """A worker that has decoded its first token, and the seconds since its process start."""
        worker = self.spawn()
        try:
            worker.ask("open", **self.opening, threads=threads, context=CONTEXT)
            worker.ask("prefill", tokens=TOKENS[:PROMPT])
            return worker, worker.since_start()
        except BaseException:
            worker.close()
            raise


def ours(path: str, *, copy: int = 0, env: dict[str, str] | None = None) -> Contender:
    """Our engine with residency `path`."""
    pack = random_pack(SHAPE, copy)
    argv = [sys.executable, "-m", "haversack.bench._engine_worker"]
    opening = {"model": str(pack), "residency": path, "cache_type": "f16"}
    return Contender(path, lambda: Worker(argv, env=env), opening, pack / "weights.safetensors")


def theirs(interpreter: Path, load: str, flash: bool) -> Contender:
    """llama.cpp with its file "mapped", "read" or read "direct", that is past the page cache.

    What is mapped and what is read are two copies, so that neither sees the other's pages.
    """
    gguf = llama_cpp.model(interpreter, OUTPUT_TYPE)
    if load != "mapped":
        size = gguf.stat().st_size

        def make(folder: Path) -> None:
            shutil.copyfile(gguf, folder / gguf.name)

        gguf = cached("llama-cpp-copy", {"of": str(gguf), "size": size}, make) / gguf.name
    opening = {"model": str(gguf), "load": load, "flash": flash}
    return Contender(f"llama.cpp {load}", lambda: llama_cpp.worker(interpreter), opening, gguf)


def _speed(worker: Worker, do: str, count: int) -> float:
    tokens = TOKENS[:PROMPT] if do == "prefill" else TOKENS[PROMPT : PROMPT + count]
    return count / float(worker.ask(do, tokens=tokens)["seconds"])


def _faster_attention(interpreter: Path) -> bool:
    """Whether flash attention makes the peer faster at one prompt and its answer."""
    seconds = {}
    for flash in (True, False):
        worker, _ = theirs(interpreter, "mapped", flash).start()
        with worker:
            rounds = [
                PROMPT / _speed(worker, "prefill", PROMPT) + DECODED / _speed(worker, "decode", DECODED)
                for _ in range(3)
            ]
        seconds[flash] = min(rounds)
    return seconds[True] <= seconds[False]


def _warm(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(8 << 20)
        while file.readinto(buffer):
            pass


def _round(contenders: Iterable[Contender], values: Values) -> None:
    """One round: every side starts, then all decode and prefill in turns; the figures join `values`."""
    workers: dict[str, tuple[Contender, Worker]] = {}
    try:
        for one in contenders:
            _warm(one.weights)
            worker, seconds = one.start()
            workers[one.name] = one, worker
            values[one.name]["first"].append(seconds)
        for metric, do, count in (("decode-2", "decode", DECODED), ("prefill", "prefill", PROMPT)):
            for name, (_, worker) in workers.items():
                values[name][metric].append(_speed(worker, do, count))
        for name, (_, worker) in workers.items():
            worker.ask("threads", n=1)
            values[name]["decode-1"].append(_speed(worker, "decode", DECODED))
        for name, (one, worker) in workers.items():
            values[name]["memory"].append(MemoryWatch(worker.process.pid, [one.weights]).peak_mib)
            values[name]["own"].append(MemoryWatch(worker.process.pid).peak_mib)
    finally:
        for _, worker in workers.values():
            worker.close()


def _best(values: Values, metric: str, *, most: bool) -> str:
    """The name of the peer's variant with the best median."""
    medians = {
        name: statistics.median(found[metric])
        for name, found in values.items()
        if name.startswith("llama.cpp")
    }
    return (max if most else min)(medians, key=lambda name: medians[name])


def _outcomes(values: Values, metrics: dict[str, bool], suffix: str, note: str) -> Outcomes:
    """For both paths and each metric: ours against the peer's best variant (metric -> more is better)."""
    found = {}
    for metric, most in metrics.items():
        rival = _best(values, metric, most=most)
        for path in PATHS:
            found[f"{path}-{metric}{suffix}"] = Outcome(
                Side(f"haversack {path}", tuple(values[path][metric])),
                Side(rival, tuple(values[rival][metric])),
                note,
            )
    return found


def _contenders(run: Run) -> list[Contender]:
    interpreter = llama_cpp.python(run.say)
    flash = _faster_attention(interpreter)
    return [
        theirs(interpreter, "mapped", flash),
        ours("copied"),
        theirs(interpreter, "read", flash),
        ours("mapped", copy=1),
    ]


_CLAIMS = {
    "decode-1": ("decodes faster on one thread", "tokens/s", "time"),
    "decode-2": ("decodes faster on two threads", "tokens/s", "time"),
    "prefill": ("reads a prompt of 256 tokens faster on two threads", "tokens/s", "time"),
    "first": ("comes sooner from process start to its first token, prompt included", "s", "time"),
    "memory": ("holds less memory at its peak", "MiB", "memory"),
}
_BARS = {
    "copied-decode-1": Bar(">=", 1.6),
    "copied-decode-2": Bar(">=", 1.2),
    "copied-prefill": Bar(">=", 1.3),
    "copied-first": Bar("<=", 1.0),
    "copied-memory": Bar("<=", 0.7),
    "mapped-decode-2": Bar(">=", 1.05),
    "copied-first-cold": Bar("<=", 1.0),
}


def _row(path: str, metric: str, suffix: str = "", also: str = "") -> Row:
    claim, unit, kind = _CLAIMS[metric]
    row_id = f"{path}-{metric}{suffix}"
    quick = row_id == "copied-decode-2"
    claim = f"with weights {path}, {claim} than llama.cpp{also}"
    return Row(row_id, claim, unit, kind, _BARS.get(row_id), quick=quick)


_DIRECT = Row(
    "copied-memory-direct",
    "with weights copied, holds less memory at its peak than llama.cpp reading past the page cache",
    "MiB",
    "memory",
)


@bench.measure(
    *[_row(path, metric) for path in PATHS for metric in _CLAIMS], _DIRECT, seconds=440, quick_seconds=25
)
def against_llama_cpp(run: Run) -> Outcomes:
    if run.quick:
        return _quickly()
    contenders = _contenders(run)
    values: Values = defaultdict(lambda: defaultdict(list))
    for number in range(MIN_PAIRS):
        run.say(f"beside llama.cpp: round {number + 1} of {MIN_PAIRS}")
        _round(contenders if number % 2 == 0 else contenders[::-1], values)
    more = {"decode-1": True, "decode-2": True, "prefill": True, "first": False, "memory": False}
    flash = "on" if contenders[0].opening["flash"] else "off"
    note = f"peer's best of mapped and read files, flash attention {flash}, output {OUTPUT_TYPE}"
    found = dict(_outcomes(values, more, "", note))
    own = statistics.median(values["llama.cpp read"]["own"])
    cached = (
        f"unmapped page cache counts as memory; the peer's own VmHWM when it reads its file: {own:.0f} MiB"
    )
    for path in PATHS:
        row = found[f"{path}-memory"]
        assert isinstance(row, Outcome)
        found[f"{path}-memory"] = replace(row, note=f"{row.note}; {cached}")
    found[_DIRECT.id] = Outcome.single(
        statistics.median(values["copied"]["memory"]),
        _direct_mib(flash == "on"),
        name="haversack copied",
        against="llama.cpp direct",
        note="the peer has to be told to load with direct I/O",
    )
    return found


def _direct_mib(flash: bool) -> float:
    """Peak memory of the peer when it reads its file past the page cache."""
    one = theirs(llama_cpp.python(build=False), "direct", flash)
    drop_cached([one.weights])
    worker, _ = one.start()
    with worker:
        _speed(worker, "decode", 1)
        return MemoryWatch(worker.process.pid, [one.weights]).peak_mib


def _quickly() -> Outcomes:
    """Decoding on two threads only, when the peer and both models are there already."""
    interpreter = llama_cpp.python(build=False)
    peer, mine = theirs(interpreter, "mapped", True), ours("copied")
    values: dict[str, list[float]] = {peer.name: [], "haversack copied": []}
    first, _ = peer.start()
    with first:
        second, _ = mine.start()
        with second:
            for turn in range(MIN_PAIRS):
                sides = [(peer.name, first), ("haversack copied", second)]
                for name, worker in sides if turn % 2 == 0 else sides[::-1]:
                    values[name].append(_speed(worker, "decode", 24))
    return {"copied-decode-2": Outcome.of(values, ours="haversack copied", baseline=peer.name)}


@bench.measure(
    *[_row(path, "first", "-cold", ", from a cold page cache") for path in PATHS],
    seconds=150,
    quick_seconds=99,
)
def cold_start(run: Run) -> Outcomes:
    contenders = _contenders(run)
    values: Values = defaultdict(lambda: defaultdict(list))
    for number in range(MIN_PAIRS):
        run.say(f"cold start: round {number + 1} of {MIN_PAIRS}")
        for one in contenders if number % 2 == 0 else contenders[::-1]:
            drop_cached([one.weights])
            worker, seconds = one.start()
            worker.close()
            values[one.name]["first"].append(seconds)
    return _outcomes(
        values, {"first": False}, "-cold", "weights dropped from the page cache before each start"
    )


@bench.measure(
    Row("avx2-decode-2", "with AVX2 only, decodes on two threads beside llama.cpp", "tokens/s", "time"),
    Row("avx2-prefill", "with AVX2 only, reads a prompt beside llama.cpp", "tokens/s", "time"),
    seconds=60,
)
def with_avx2(run: Run) -> Outcomes:
    interpreter = llama_cpp.python(run.say)
    peer, mine = theirs(interpreter, "mapped", True), ours("copied", env={"HAVERSACK_ISA": "avx2"})
    speeds: dict[str, dict[str, list[float]]] = {}
    first, _ = peer.start()
    with first:
        second, _ = mine.start()
        with second:
            for do, count in (("decode", DECODED), ("prefill", PROMPT)):

                def speed(worker: Worker, do: str = do, count: int = count) -> float:
                    return _speed(worker, do, count)

                speeds[do] = run.interleave(
                    {peer.name: lambda: speed(first), "haversack avx2": lambda: speed(second)}
                )
    note = "ours limited to AVX2, the peer at its native instructions"
    return {
        f"avx2-{row}": Outcome.of(speeds[do], ours="haversack avx2", baseline=peer.name, note=note)
        for row, do in (("decode-2", "decode"), ("prefill", "prefill"))
    }


@bench.measure(
    Row(
        "same-model",
        "both sides compute the same model: correlation of the logits after the prompt",
        "correlation",
        "quality",
        Bar(">=", 0.98),
        judged="ours",
    ),
    seconds=15,
)
def same_model(run: Run) -> Outcomes:
    import numpy as np

    interpreter = llama_cpp.python(run.say)
    logits = []
    for one in (theirs(interpreter, "mapped", True), ours("copied")):
        worker, _ = one.start()
        with worker:
            logits.append(np.asarray(worker.ask("logits")["logits"]))
    if logits[0].shape != logits[1].shape:
        raise Unavailable("the two sides have different vocabularies")
    found = float(np.corrcoef(logits[0], logits[1])[0, 1])
    same = int(logits[0].argmax() == logits[1].argmax())
    return {"same-model": Outcome.single(found, note=f"arg-max {'agrees' if same else 'differs'}")}
