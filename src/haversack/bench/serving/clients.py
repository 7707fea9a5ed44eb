"""Eight clients beside one, and prompts that begin like one that was read before."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.engine._models import code_folder, code_pack
from haversack.bench.serving._bench import bench
from haversack.bench.serving._server import Served, ask, tokens_per_s, words

CLIENTS = 8
TOKENS = 128
PAIRS = 25
"""Many, since a round takes a fifth of a second and other programs take their turns."""
PREFIX_WORDS = 400


def _served_models() -> dict[str, tuple[str | Path, str, bool]]:
    """Row -> what is served, how the row calls it, and whether answers are streamed."""
    int8 = code_pack("round-to-nearest:bits=8")
    return {
        "eight-clients": (int8, "int8 pack", False),
        "eight-clients-streamed": (int8, "int8 pack", True),
        "eight-clients-f16": (code_folder(), "bundled f16 weights", False),
        "eight-clients-int4": (code_pack("round-to-nearest:bits=4"), "int4 pack", False),
    }


@bench.measure(
    Row(
        "eight-clients",
        "eight concurrent clients get at least 2.5 times the tokens a second of one: int8 pack of `code`, "
        "whole answers over HTTP",
        "tokens/s",
        "time",
        Bar(">=", 2.5),
        quick=True,
    ),
    Row(
        "eight-clients-streamed",
        "the same with every token as an event of its own",
        "tokens/s",
        "time",
        Bar(">=", 2.5),
    ),
    Row("eight-clients-f16", "the same for the bundled f16 weights", "tokens/s", "time", Bar(">=", 2.5)),
    Row("eight-clients-int4", "the same for an int4 pack", "tokens/s", "time"),
    seconds=90,
    quick_seconds=30,
)
def eight_clients(run: Run) -> Outcomes:
    found = {}
    for row, (model, name, stream) in _served_models().items():
        if run.quick and row != "eight-clients":
            continue
        with Served(model, "--contexts", str(CLIENTS)) as served:
            tokens_per_s(served, CLIENTS, 16, run.seed)
            seeds = iter(range(run.seed, run.seed + 10_000, 100))
            taken = run.interleave(
                {
                    "one": lambda s=served, n=seeds, stream=stream: tokens_per_s(
                        s, 1, TOKENS, next(n), stream=stream
                    ),  # type: ignore[misc]
                    "eight": lambda s=served, n=seeds, stream=stream: tokens_per_s(
                        s, CLIENTS, TOKENS, next(n), stream=stream
                    ),  # type: ignore[misc]
                },
                PAIRS,
            )
            activations = served.record["plan"]["activations"]
        note = f"{name}, {activations} activations, {TOKENS} tokens each, two processes on this machine"
        found[row] = Outcome.of(taken, ours="eight", baseline="one", note=note)
    return found


@bench.measure(
    Row(
        "first-token-cached",
        "the first token of a prompt that was read before comes at least five times sooner",
        "ms",
        "time",
        Bar("<=", 0.2),
        quick=True,
    ),
    seconds=30,
    quick_seconds=15,
)
def first_token_cached(run: Run) -> Outcomes:
    rng = random.Random(run.seed)
    cold, cached, read = [], [], 0
    with Served(code_pack("round-to-nearest:bits=8"), "--contexts", "2") as served:
        for number in range(10):
            begins = words(rng, PREFIX_WORDS)
            times = []
            for end in ("\ndef one():", "\nclass Two:"):
                request = served.request(
                    begins + end, 2, stream=True, temperature=0, stream_options={"include_usage": True}
                )
                data, first = asyncio.run(ask(served.port, request))
                times.append(1e3 * first)
            read = int(data.rpartition(b'"prompt_tokens":')[2].partition(b",")[0])
            if number:  # the first pair warms up
                cold.append(times[0])
                cached.append(times[1])
    note = f"prompts of about {read} tokens whose last few differ; int8 pack of `code`"
    return {
        "first-token-cached": Outcome.of(
            {"cached": cached, "cold": cold}, ours="cached", baseline="cold", note=note
        )
    }
