"""Our engine behind JSON lines, in a process of its own: the counterpart of a peer's worker.

    python -m haversack.bench._engine_worker

Requests: open {model, threads, residency, context, cache_type}, prefill {tokens}, decode {tokens}, threads
{n}, logits {}, plan {}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


class Session:
    """One opened pack with one cache."""

    def __init__(self, request: dict[str, Any]) -> None:
        from haversack import kernels
        from haversack.run._engine import Engine

        self.kernels = kernels
        kernels.set_threads(request["threads"])
        self.engine = Engine.open(
            request["model"],
            residency=request["residency"],
            threads=request["threads"],
            context_length=request["context"],
            cache_type=request["cache_type"],
        )
        self.cache = self.engine.cache(request["context"])
        self.last: Any = None

    def _step(self, tokens: Any) -> None:
        start = self.cache.length
        positions = np.arange(start, start + len(tokens), dtype=np.int32)
        self.last, _ = self.engine.step(tokens, positions, None, self.cache, want="last")

    def prefill(self, tokens: list[int]) -> dict[str, Any]:
        """From an empty cache: all tokens in one call, then the most likely next token."""
        self.cache.truncate(0)
        ids = np.asarray(tokens, np.int32)
        start = time.perf_counter()
        self._step(ids)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "next": int(self.last[-1].argmax())}

    def decode(self, tokens: list[int]) -> dict[str, Any]:
        """After what the cache holds: one token at a time; the cache is cut back afterwards."""
        before = self.cache.length
        ids = np.asarray(tokens, np.int32).reshape(-1, 1)
        start = time.perf_counter()
        for token in ids:
            self._step(token)
        seconds = time.perf_counter() - start
        self.cache.truncate(before)
        return {"seconds": seconds}

    def threads(self, n: int) -> dict[str, Any]:
        self.kernels.set_threads(n)
        return {}

    def logits(self) -> dict[str, Any]:
        return {"logits": [float(value) for value in self.last[-1]]}

    def plan(self) -> dict[str, Any]:
        return {"plan": self.engine.plan, "isa": self.kernels.isa()}


def serve() -> None:
    """Answer one request a line until standard input ends."""
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        reply: dict[str, Any]
        try:
            if what == "open":
                start = time.perf_counter()
                session = Session(request)
                reply = {"seconds": time.perf_counter() - start}
            else:
                reply = getattr(session, what)(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
