"""The bench object, the two models, their texts, and servers in processes of their own.

The server's model is `code`, the device's draft `code-draft`, distilled from it. Prompts are 64 tokens of
held-out packages, at places drawn by the seed. Server and device are two processes that speak over real
sockets, through an emulated channel where a row says so.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Bench, Run
from haversack.bench._rows import Unavailable
from haversack.bench.serving._bench import SERVER_FILES

I32 = npt.NDArray[np.int32]

FILES = (
    "bench/flexspec/_bench.py",
    "bench/flexspec/control.py",
    "bench/flexspec/exactness.py",
    "bench/flexspec/speed.py",
    *SERVER_FILES,
    *(f"share/_{name}.py" for name in ("controller", "protocol", "remote_counts", "uplink", "verifier")),
    "share/remote.py",
    "simulate/_channel.py",
    "simulate/_traces.py",
    "core/link.py",
    "run/_rounds.py",
    "run/_batch.py",
    "run/_verify.py",
    "run/_drafting.py",
)

bench = Bench("flexspec", number=42, watches=FILES)

TARGET, DRAFT = "code", "code-draft"
TOKEN = "a token for two processes"
PROMPT = 64
COMMAND = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]


def prompts(run: Run, count: int) -> list[I32]:
    """`count` prompts of 64 tokens from packages that neither model was trained on."""
    from haversack.bench.engine.quality import evaluation_text

    tokens = evaluation_text(run).tokens
    starts = np.random.default_rng(run.seed).integers(0, len(tokens) - PROMPT, count)
    return [np.asarray(tokens[start : start + PROMPT], np.int32) for start in starts]


@dataclass(frozen=True)
class Served:
    """A server in a process of its own."""

    address: tuple[str, int]
    process: subprocess.Popen[bytes]

    def state(self) -> dict[str, Any]:
        """What its page shows."""
        connection = HTTPConnection(*self.address, timeout=20)
        connection.request("GET", "/state", headers={"Authorization": f"Bearer {TOKEN}"})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return found


@contextlib.contextmanager
def served(*words: str, model: str | Path = TARGET) -> Iterator[Served]:
    """`haversack serve MODEL --verify` with more options. Raises Unavailable when it does not come up."""
    line = [*COMMAND, "serve", str(model), "--port", "0", "--verify", "--token", TOKEN, "--json", *words]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        yield Served(_address(process), process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[bytes]) -> tuple[str, int]:
    assert process.stdout is not None and process.stderr is not None
    said = b""
    while not said.rstrip().endswith(b"\n}"):
        line = process.stdout.readline()
        if not line:
            why = process.stderr.read().decode(errors="replace").strip().splitlines()
            raise Unavailable(f"haversack serve ended: {why[-1] if why else said.decode(errors='replace')}")
        said += line
    host, _, port = str(json.loads(said)["url"]).removeprefix("http://").rpartition(":")
    return host, int(port)


def device(address: tuple[str, int], how: str = "", model: str = DRAFT, **options: Any) -> Any:
    """An engine of the draft that writes with the server at `address`."""
    from haversack.core import index
    from haversack.run import Engine

    given = f"server=ws://{address[0]}:{address[1]},timeout_s=20{how and ','}{how}"
    method = index.create("run", "decode", f"remote:{given},token={TOKEN}")
    return Engine.open(model, decode=method, **options)


def answered(engine: Any, prompt: I32 | Sequence[int], count: int, sampler: Any = None) -> Any:
    """The finished answer of `count` tokens to `prompt`."""
    from haversack.run import Limits, generate

    answer = generate(engine, prompt, Limits(count, end=()), sampler)
    for _ in answer:
        pass
    return answer
