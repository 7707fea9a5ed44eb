"""The server that devices upload to: enrolment, quotas, resumable uploads, a queue that workers empty.

Paper: AoE (arXiv 2602.23893); the protocol is [inferred], tus 1.0 for the bytes of a file. docs/collect.md
describes every request.

A clip without the consent it was enrolled with is refused before any byte of it is stored. A request that is
answered is on the disk. Told to stop, the server finishes what runs and takes no more. Every
hour it drops uploads that nobody goes on with, and clips whose time of consent is over.

Limits: one process serves a store. Without a token of its own it listens on this machine alone; TLS is the
business of a proxy before it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from haversack.collect._bucket import BucketError
from haversack.collect._extra import need
from haversack.collect.forget import expire
from haversack.collect.store import Store, StoreLimits
from haversack.core._asgi import HttpLimits, http_server, listening, serve_until, url_of
from haversack.core._service import new_token
from haversack.core.errors import UserError

SYSTEM = 1
log = logging.getLogger(__name__)
LOCAL = ("127.0.0.1", "localhost", "::1")
SWEEP_S = 3600.0


@dataclass(frozen=True)
class Options:
    """How to serve. `token` is for who runs the server (metrics, state), devices have their own;
    `chunk_bytes` is the most of one PATCH; `per_second` and `burst` bound each device."""

    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    chunk_bytes: int = 4 << 20
    per_second: float = 50.0
    burst: int = 200
    connections: int = 512
    body_s: float = 60.0
    grace_s: float = 30.0
    limits: StoreLimits = field(default_factory=StoreLimits)

    def __post_init__(self) -> None:
        if self.host not in LOCAL and self.token is None:
            raise UserError(
                f"serving on {self.host} lets others in, so it needs a token; add --token {new_token()}",
                field="token",
            )
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii()):
            raise UserError(
                f"a token has at least 16 ASCII characters; use for example {new_token()}", field="token"
            )


class Server:
    """The store at `root`, served until it is told to stop. The port is taken when it is made."""

    def __init__(self, root: Path, options: Options | None = None) -> None:
        for module in ("fastapi", "uvicorn", "httptools"):
            need(module, "haversack collect server")
        self.options = options or Options()
        self.limits = HttpLimits(
            body_bytes=self.options.chunk_bytes,
            connections=self.options.connections,
            body_s=self.options.body_s,
        )
        self.socket = listening(self.options.host, self.options.port)
        try:
            self.store = Store(root, self.options.limits)
        except BaseException:
            self.socket.close()
            raise
        self.asked: int | None = None
        self._hurry = False

    @property
    def url(self) -> str:
        """Where it is reached."""
        return url_of(self.socket)

    def run(self, ready: Callable[[Server], None] = lambda server: None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; only from the main thread. Raises KeyboardInterrupt after
        SIGINT, when what ran was finished."""
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            asyncio.run(self.serve(ready, signals=True))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Ask it to stop, from any thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def serve(
        self, ready: Callable[[Server], None] = lambda server: None, *, signals: bool = False
    ) -> None:
        """Serve on the running event loop until `stop`."""
        from haversack.collect._app import App

        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.app = App(self)
        drained = asyncio.Event()
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self._signalled, number)
        http = http_server(self.app.api, self.limits, "collect")
        others = [asyncio.create_task(self._drain(drained)), asyncio.create_task(self._sweep())]
        try:
            await serve_until(http, self.socket, drained, lambda: ready(self))
        finally:
            for task in others:
                task.cancel()
            self.socket.close()
            await asyncio.to_thread(self.store.books.close)

    async def _drain(self, drained: asyncio.Event) -> None:
        await self._stop.wait()
        self.app.stopping = True
        end = self._loop.time() + self.options.grace_s
        while self.app.running and self._loop.time() < end and not self._hurry:
            await asyncio.sleep(0.02)
        drained.set()

    async def _sweep(self) -> None:
        while True:
            await asyncio.to_thread(self.store.sweep)
            try:
                await asyncio.to_thread(expire, self.store.root, self.store.books, time.time_ns())
            except BucketError as error:  # the next hour again
                log.error("%s", error)
            await asyncio.sleep(SWEEP_S)

    def _signalled(self, number: int) -> None:
        if self._stop.is_set():  # asked twice: at once
            self._hurry = True
        self.asked = number
        self._stop.set()

    def record(self) -> dict[str, Any]:
        """What `--json` prints when it serves."""
        return {"url": self.url, "root": str(self.store.root), "token": self.options.token is not None}
