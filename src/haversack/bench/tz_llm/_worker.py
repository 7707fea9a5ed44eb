"""One way of holding the weights, in a process of its own, behind JSON lines: first tokens from cold.

    python -m haversack.bench.tz_llm._worker

Requests: open {model, key, residency, threads}, first {tokens, kept}, decode {count}, times {}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np


class Session:
    """An engine that gives its weights back before every first token, where it can."""

    def __init__(self, request: dict[str, Any]) -> None:
        from haversack.run import Engine

        self.engine = Engine.open(
            request["model"], residency=request["residency"], key=request["key"], threads=request["threads"]
        )
        self.cache = self.engine.cache(2048)
        self.logits: Any = None

    def first(self, tokens: list[int], kept: int = 0) -> dict[str, Any]:
        """Seconds to the logits of the first token, `kept` percent of sealed weights being restored
        already.
        """
        rest = getattr(self.engine.held, "rest", None)
        if rest is not None:
            self.logits = None
            rest(kept)
        self.cache.truncate(0)
        ids = np.asarray(tokens, np.int32)
        start = time.perf_counter()
        self.logits, _ = self.engine.step(ids, cache=self.cache)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "logits": self.logits.tobytes().hex()[:4096]}

    def decode(self, count: int) -> dict[str, Any]:
        """Seconds of so many tokens, one by one, after what the cache holds."""
        before = self.cache.length
        start = time.perf_counter()
        for token in range(count):
            self.engine.step([3 + token], cache=self.cache)
        seconds = time.perf_counter() - start
        self.cache.truncate(before)
        return {"seconds": seconds}

    def times(self) -> dict[str, Any]:
        """Seconds of the stages of restoration since this was last asked for."""
        return dict(self.engine.held.times())


def serve() -> None:
    """Answer one request a line until standard input ends."""
    session: Session | None = None
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("do")
        reply: dict[str, Any]
        try:
            if what == "open":
                session, reply = Session(request), {}
            else:
                reply = getattr(session, what)(**request)
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()
    if session is not None:
        session.engine.close()


if __name__ == "__main__":
    serve()
