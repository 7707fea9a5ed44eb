"""Many clients that leave at any moment: no slot, cache, thread, descriptor or memory stays behind."""

from __future__ import annotations

import asyncio
import json
import random
import urllib.request
from typing import Any

import pytest

pytest.importorskip("fastapi")
PLAIN, STREAM, CHOICES = range(3)


async def visit(port: int, body: bytes, patience: float) -> bool:
    """Ask, and leave after `patience` seconds; True when the answer was whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(body)
        async with asyncio.timeout(patience):
            data = await reader.read()
        return data.endswith((b"0\r\n\r\n", b"}"))
    except (TimeoutError, ConnectionError):
        return False
    finally:
        writer.transport.abort()


async def crowd(serving: Any, port: int, count: int, seed: int, at_once: int = 12) -> int:
    """`count` requests, `at_once` at a time, some left early as `seed` says; returns how many were whole."""
    rng = random.Random(seed)
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> bool:
        fields = {
            "model": "tiny",
            "prompt": "the road " * rng.randint(1, 40),
            "max_tokens": rng.randint(1, 60),
        }
        kind = rng.choice((PLAIN, STREAM, STREAM, CHOICES))
        fields |= {"stream": kind == STREAM, "n": 3 if kind == CHOICES else 1, "seed": number}
        patience = rng.choice((0.0, 0.002, 0.01, 0.05, 30.0))
        async with places:
            return await visit(port, serving.post("/v1/completions", fields), patience)

    return sum(await asyncio.gather(*(one(number) for number in range(count))))


async def fill(serving: Any, port: int, contexts: int) -> None:
    """Read a long prompt, then write in every context until it is full: all memory has been touched."""
    longest = {"model": "tiny", "prompt": "the road " * 60, "max_tokens": 1}
    await visit(port, serving.post("/v1/completions", longest), 30.0)
    fields = {"model": "tiny", "prompt": "the", "max_tokens": 500, "temperature": 1, "logit_bias": {}}
    full = (
        visit(port, serving.post("/v1/completions", {**fields, "seed": number}), 60.0)
        for number in range(contexts)
    )
    await asyncio.gather(*full)


def state(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/state", timeout=10) as response:
        return json.load(response)


def test_nothing_stays_behind(serving: Any, tiny: Any) -> None:
    with serving.Command(
        tiny, "--port", "0", "--contexts", "4", "--queue", "20", "--prefix-mib", "1"
    ) as command:
        port = command.port

        def still() -> bool:
            found = state(port)
            return found["running"] == found["waiting"] == 0

        asyncio.run(fill(serving, port, 4))
        whole = asyncio.run(crowd(serving, port, 100, 1))  # everything has been touched once
        serving.until(still)
        before = (command.status("VmRSS"), command.status("Threads"))
        serving.until(lambda: command.descriptors() <= 20)
        descriptors = command.descriptors()
        whole += asyncio.run(crowd(serving, port, 200, 2))
        serving.until(still)
        assert 30 < whole < 300
        serving.until(lambda: command.descriptors() <= descriptors)
        assert command.status("Threads") <= before[1]
        assert command.status("VmRSS") - before[0] <= 3 * 1024  # KiB
        command.signal()
        assert command.ended() == 0
