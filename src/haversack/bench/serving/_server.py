"""A server in a process of its own, and clients that speak to it over plain sockets, so that they cost little
beside what they measure."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from haversack.bench._rows import Unavailable

PROMPTS = (
    "def add(a, b):",
    "import os\nimport sys\n\nclass A",
    "for i in range(",
    "def f(x):\n    return x",
    "class Foo(Bar):\n",
    "try:\n    import json\n",
    "with open(path) as",
    "def read_json(path):\n    with open(path) as f:",
)


class Served:
    """`haversack serve MODEL` with `options`; a context manager. Raises Unavailable when it does not
    start."""

    def __init__(self, model: str | Path, *options: str) -> None:
        line = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]
        line += ["serve", str(model), "--port", "0", "--json", *options]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.record: dict[str, Any] = {}
        self.port = 0

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        said = b""
        while not said.rstrip().endswith(b"\n}"):
            line = self.process.stdout.readline()
            if not line:
                raise Unavailable(f"the server did not start: {said.decode(errors='replace')[:300]}")
            said += line
        self.record = json.loads(said)
        if "url" not in self.record:
            raise Unavailable(f"the server did not start: {self.record.get('error')}")
        self.port = int(self.record["url"].rsplit(":", 1)[1])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def request(self, prompt: str, tokens: int, **fields: Any) -> bytes:
        """The bytes of a completion request."""
        body = {"model": self.record["model"], "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        data = json.dumps(body | fields).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n"
        return head.encode() + b"Connection: close\r\n\r\n" + data

    def state(self) -> dict[str, Any]:
        """What /state says."""
        found = asyncio.run(
            ask(self.port, b"GET /state HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        )
        record: dict[str, Any] = json.loads(found[0].partition(b"\r\n\r\n")[2])
        return record

    def still(self, seconds: float = 30.0) -> None:
        """Wait until nothing runs or waits. Raises Unavailable when that does not happen."""
        deadline = time.monotonic() + seconds
        while (state := self.state())["running"] or state["waiting"]:
            if time.monotonic() > deadline:
                raise Unavailable(f"after {seconds:.0f} s {state['running']} answers still run")
            time.sleep(0.02)

    def status(self, field: str) -> int:
        """A number of /proc/PID/status (KiB for memory)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise Unavailable(f"this system does not say {field}")

    def descriptors(self) -> int:
        """Open file descriptors."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


async def ask(port: int, request: bytes) -> tuple[bytes, float]:
    """(the response, seconds until its first event) of one request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.perf_counter()
    writer.write(request)
    data, first = b"", 0.0
    while piece := await reader.read(1 << 16):
        data += piece
        if not first and b"data: " in data:
            first = time.perf_counter() - began
    writer.close()
    return data, first


async def together(port: int, requests: Sequence[bytes]) -> list[tuple[bytes, float]]:
    """`ask` for all of `requests` at the same time."""
    return await asyncio.gather(*(ask(port, request) for request in requests))


def tokens_per_s(served: Served, clients: int, tokens: int, seed: int, *, stream: bool = True) -> float:
    """Tokens a second of `clients` that each ask for one answer of `tokens` tokens at the same time."""
    requests = [
        served.request(PROMPTS[i % len(PROMPTS)], tokens, stream=stream, temperature=0.8, seed=seed + i)
        for i in range(clients)
    ]
    began = time.perf_counter()
    answers = asyncio.run(together(served.port, requests))
    seconds = time.perf_counter() - began
    for data, _ in answers:
        whole = data.count(b'"finish_reason":"length"') == 1
        if not whole:
            raise Unavailable(f"an answer was not whole: {data[:200]!r}")
    return clients * tokens / seconds


async def crowd(served: Served, count: int, seed: int, at_once: int = 16) -> int:
    """`count` requests, `at_once` at a time, of which some leave early as `seed` says; returns how many were
    whole."""
    rng = random.Random(seed)
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> bool:
        fields: dict[str, Any] = {"stream": rng.random() < 0.7, "n": rng.choice((1, 1, 1, 3)), "seed": number}
        prompt = " ".join(rng.choices(PROMPTS, k=rng.randint(1, 12)))
        request = served.request(prompt, rng.randint(1, 80), **fields)
        patience = rng.choice((0.0, 0.002, 0.01, 0.05, 0.2, 60.0, 60.0, 60.0))
        async with places:
            try:
                async with asyncio.timeout(patience):
                    data, _ = await ask(served.port, request)
                return b'"finish_reason":"length"' in data
            except (TimeoutError, ConnectionError):
                return False

    return sum(await asyncio.gather(*(one(number) for number in range(count))))


def words(rng: random.Random, count: int) -> str:
    """A text of `count` words that no other call gives."""
    vocabulary: Sequence[str] = (
        "self",
        "value",
        "return",
        "index",
        "name",
        "path",
        "data",
        "for",
        "in",
        "None",
    )
    return " ".join(f"{rng.choice(vocabulary)}{rng.randrange(100)}" for _ in range(count))
