"""A worker process spoken to in JSON lines: one request, one reply; timed and weighed from outside."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from haversack.bench._rows import Unavailable


class Worker:
    """`argv` started with `env` on top of this process's environment. A context manager; leaving it ends the
    process.

    `started` is the clock (`time.perf_counter`) just before the process was made, so that a reply's arrival
    minus `started` counts everything from process start on.
    """

    def __init__(
        self, argv: Sequence[str | Path], *, env: Mapping[str, str] | None = None, patience: float = 300.0
    ) -> None:
        self.patience = patience
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
        )
        self._rest = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Send one request and wait for its reply. Raises Unavailable when the worker fails or is silent."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended(do) from None
        reply: dict[str, Any] = json.loads(self._line(do))
        if "error" in reply:
            raise Unavailable(f"{self._name()} cannot {do}: {reply['error']}")
        return reply

    def since_start(self) -> float:
        """Seconds from just before the process was made until now."""
        return time.perf_counter() - self.started

    def close(self) -> None:
        """End the process: standard input ends, and it is killed when it has not left within five seconds."""
        with contextlib.suppress(OSError):
            assert self.process.stdin is not None
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _line(self, do: str) -> bytes:
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        until = time.monotonic() + self.patience
        while b"\n" not in self._rest:
            left = until - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self.process.kill()
                raise Unavailable(f"{self._name()} did not answer {do!r} within {self.patience:.0f} s")
            more = os.read(descriptor, 1 << 20)
            if not more:
                raise self._ended(do)
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _ended(self, do: str) -> Unavailable:
        assert self.process.stderr is not None
        self.process.wait()
        said = self.process.stderr.read().decode(errors="replace").strip().splitlines()
        last = said[-1] if said else f"exit code {self.process.returncode}"
        return Unavailable(f"{self._name()} ended at {do!r}: {last}")

    def _name(self) -> str:
        return " ".join(Path(str(part)).name for part in list(self.process.args)[:3])  # type: ignore[arg-type]
