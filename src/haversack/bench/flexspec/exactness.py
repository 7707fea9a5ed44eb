"""That a server's text is its plain text whoever drafts, that rejection keeps the distribution, and that what
a device held is given back."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.flexspec._bench import (
    DRAFT,
    TARGET,
    Served,
    answered,
    bench,
    device,
    prompts,
    served,
)

TOKENS = 48
SAMPLES, QUICK_SAMPLES = 20_000, 1_000
LIKELIEST = 8
VANISHED = 60


def versions() -> Iterator[tuple[str | Path, dict[str, str], str, dict[str, Any]]]:
    """(server's model, its options, how the device writes, the device's options): versions of the model that
    one draft serves, and combinations of slots on both sides."""
    from haversack.bench.llmcad._bench import target

    yield TARGET, {}, "", {}
    yield TARGET, {"cache_type": "int8"}, "adaptive=channel", {"cache_type": "f16"}
    yield TARGET, {"attention": "sliding:window=48,sink=2"}, "adaptive=none,length=16", {}
    yield target(), {"activations": "int8-dynamic"}, "", {"prefill": "chunked:tokens=16"}
    yield (
        target(),
        {"activations": "f32", "residency": "streamed:mb_s=2000"},
        "most=4",
        {"residency": "copied"},
    )


@bench.measure(
    Row(
        "same-tokens",
        "greedy tokens of every prompt are those of the server's model alone: two versions of it, every "
        "cache and activation type, slots on both sides",
        "share of prompts",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        published="by construction",
        quick=True,
    ),
    Row(
        "same-draws",
        "tokens drawn at temperature 1 are those of the server's plain run with the same seed",
        "share of prompts",
        "quality",
        Bar("==", 1.0),
        judged="ours",
        quick=True,
    ),
    seconds=80,
    quick_seconds=12,
)
def exact(run: Run) -> Outcomes:
    from haversack.run import Engine, Sampler

    asked = prompts(run, 2 if run.quick else 12)
    samplers = {"same-tokens": Sampler(), "same-draws": Sampler(temperature=1.0, top_p=0.95, seed=run.seed)}
    same, seen = dict.fromkeys(samplers, 0), 0
    chosen = list(versions())[:1] if run.quick else list(versions())
    for model, options, how, here in chosen:
        plain = {name: value for name, value in options.items() if name != "residency"}
        with Engine.open(model, **plain) as engine:  # type: ignore[arg-type]
            expected = {
                name: [answered(engine, prompt, TOKENS, sampler).tokens for prompt in asked]
                for name, sampler in samplers.items()
            }
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
        with served(*words, model=model) as server, device(server.address, how, **here) as engine:
            for name, sampler in samplers.items():
                found = [answered(engine, prompt, TOKENS, sampler).tokens for prompt in asked]
                same[name] += sum(one == other for one, other in zip(found, expected[name], strict=True))
        seen += len(asked)
    note = f"{len(chosen)} combinations, {len(asked)} prompts, {TOKENS} tokens, over sockets"
    return {name: Outcome.single(same[name] / seen, name="remote", note=note) for name in samplers}


@bench.measure(
    Row(
        "distribution",
        "sampling by rejection, the draft's probabilities computed by the server: second tokens of many "
        "seeds beside the model's own distribution, probability of a larger chi-square",
        "p",
        "quality",
        Bar(">=", 0.01),
        judged="ours",
    ),
    seconds=720,
)
def distribution(run: Run) -> Outcomes:
    from haversack.bench.llmcad.exactness import tail
    from haversack.run import Engine, Sampler

    settings: dict[str, Any] = {"temperature": 1.0, "top_k": LIKELIEST}
    (prompt,) = prompts(run, 1)
    prompt = prompt[:8]
    count = QUICK_SAMPLES if run.quick else SAMPLES
    with Engine.open(TARGET) as engine:

        def after(*more: int) -> Any:
            logits, _ = engine.step([*prompt, *more], cache=engine.cache(len(prompt) + 4))
            return Sampler(**settings).distribution(logits[0], None).astype(np.float64)

        first = after()
        likely = np.flatnonzero(first)
        expected = sum(first[token] * after(int(token)) for token in likely)
    found = np.zeros_like(expected)
    accepted = drafted = 0
    how = "sampling=rejection,adaptive=none,length=2"
    with served("--draft", DRAFT) as server, device(server.address, how) as engine:
        for seed in range(count):
            answer = answered(engine, prompt, 3, Sampler(**settings, seed=run.seed + seed))
            found[answer.tokens[1]] += 1
            accepted += answer.drafting.accepted
            drafted += answer.drafting.drafted
    often = expected * count >= 5
    groups = [*np.flatnonzero(often)[:, None], np.flatnonzero(~often)]
    pairs = [(found[group].sum(), count * expected[group].sum()) for group in groups]
    chi = sum((seen - due) ** 2 / due for seen, due in pairs if due > 0)
    note = (
        f"{count} seeds, {len(pairs) - 1} tokens; {accepted / drafted:.0%} of drafts accepted; "
        f"chi-square {chi:.1f}"
    )
    return {"distribution": Outcome.single(tail(chi, len(pairs) - 1), name="remote", note=note)}


@bench.measure(
    Row(
        "given-back",
        f"memory of the server after {VANISHED} devices that vanished in mid-verification, beside after the "
        "first 10; every slot is free again",
        "MiB",
        "memory",
        Bar("<=", 1.05),
        quick=True,
    ),
    Row(
        "bytes",
        "bytes both ways a token, beside the server's own stream of tokens (server-sent events)",
        "bytes/token",
        "bytes",
        quick=True,
    ),
    seconds=30,
    quick_seconds=10,
)
def held(run: Run) -> Outcomes:
    from haversack.bench.flexspec.speed import streamed

    asked = prompts(run, 10 if run.quick else VANISHED)
    with served() as server:
        for prompt in asked[:10]:
            _vanish(server, prompt)
        before = _resident_mib(server)
        for prompt in asked:
            _vanish(server, prompt)
        until = time.monotonic() + 20
        while (state := server.state())["running"] or state["devices"]:
            if time.monotonic() > until:
                raise ValueError(f"slots are not given back: {state}")
            time.sleep(0.05)
        after = _resident_mib(server)
        with device(server.address) as engine:
            answers = [answered(engine, prompt, TOKENS) for prompt in asked[:4]]
        ours = sum(one.drafting.up_bytes + one.drafting.down_bytes for one in answers) / (4 * TOKENS)
        theirs = sum(streamed(server.address, prompt, TOKENS)[1] for prompt in asked[:4]) / (4 * TOKENS)
    return {
        "given-back": Outcome.single(after, before, name=f"after {len(asked) + 10}", against="after 10"),
        "bytes": Outcome.single(
            ours, theirs, name="drafts and replies", against="streamed", note="without TCP and IP"
        ),
    }


class Gone(Exception):  # noqa: N818 - what the device does
    """The device is switched off."""


def _vanish(server: Served, prompt: Any) -> None:
    """A device that opens a text, sends a round, and is gone."""
    from haversack.run import Limits, generate

    with device(server.address, "adaptive=none,length=8") as engine:
        tokens = iter(generate(engine, prompt, Limits(TOKENS, end=())))
        next(tokens)
        uplink = engine.learned.uplink
        say = uplink.say

        def last(message: Any) -> int:
            count: int = say(message)
            uplink._connection.socket.shutdown(socket.SHUT_RDWR)
            raise Gone(count)

        uplink.say = last
        try:
            for _ in tokens:
                pass
        except Gone:
            uplink._connection = None


def _resident_mib(server: Served) -> float:
    for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ValueError("the server's memory cannot be read")
