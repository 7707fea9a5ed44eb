"""The HTTP server under the application (core/_asgi.py) and the bodies it reads.

Besides the limits of every server of ours, all bodies that are held at once have one, and a connection that
does not take what is written to it for `write_s` seconds is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from typing import Any

from haversack.core import _asgi
from haversack.share._errors import ApiError, busy
from haversack.share._waiting import Gone, Receive, Scope, Writing

SEND_BYTES = 64 * 1024


@dataclass(frozen=True)
class Limits(_asgi.HttpLimits):
    """What one server allows: besides what every server does, the bytes of all bodies at once, and the
    seconds that a client may take for what we write."""

    body_bytes: int = 1 << 20
    connections: int = 256
    body_s: float = 20.0
    bodies_bytes: int = 8 << 20
    write_s: float = 20.0


def http_server(app: Any, limits: Limits, message_bytes: int | None = None) -> Any:
    """A server of the ASGI application `app`; with `message_bytes`, WebSockets of messages up to that."""
    return _asgi.http_server(
        app, limits, "serve", refusal=_refusal, send_bytes=SEND_BYTES, message_bytes=message_bytes
    )


def _refusal(status: int, sentence: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers for what never reached the application."""
    error = busy(sentence) if status == 503 else ApiError(status, sentence, code="bad_request")
    return error.body(), error.headers


class Bodies:
    """Reads bodies: each at most `body_bytes`, all that are held at once at most `bodies_bytes`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = 0

    @contextlib.asynccontextmanager
    async def read(self, scope: Scope, receive: Receive) -> Any:
        """The body of a request, held until the context ends. Raises ApiError 413, 408, 400 and 429."""
        limits = self._limits
        said = dict(scope["headers"]).get(b"content-length", b"")
        if said.isdigit() and int(said[:20]) > limits.body_bytes:
            raise _too_large(limits)
        pieces: list[bytes] = []
        try:
            async with asyncio.timeout(limits.body_s):
                await self._collect(receive, pieces)
        except BaseException as error:
            self.held -= sum(map(len, pieces))
            if isinstance(error, TimeoutError):
                raise ApiError(
                    408, "the body did not arrive in time.", code="timeout", headers=_LAST
                ) from error
            raise
        try:
            yield b"".join(pieces)
        finally:
            self.held -= sum(map(len, pieces))

    async def _collect(self, receive: Receive, pieces: list[bytes]) -> None:
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            piece = message.get("body", b"")
            size += len(piece)
            self.held += len(piece)
            pieces.append(piece)
            if size > self._limits.body_bytes:
                raise _too_large(self._limits)
            if self.held > self._limits.bodies_bytes:
                raise busy("too many large requests at once.")
            if not message.get("more_body", False):
                return


_LAST = {"Connection": "close"}
"""What follows on this connection is the rest of a body that nobody reads."""


def _too_large(limits: Limits) -> ApiError:
    sentence = f"the body is longer than {limits.body_bytes} bytes."
    return ApiError(413, sentence, code="body_too_large", headers=_LAST)


async def cut_slow_readers(writing: set[Writing], limits: Limits) -> None:
    """Cut connections that take nothing for `write_s` seconds; runs until cancelled."""
    while True:
        await asyncio.sleep(min(1.0, limits.write_s / 4))
        now = time.monotonic()
        for one in list(writing):
            if one.since is not None and now - one.since > limits.write_s and one.transport is not None:
                one.transport.abort()
