"""The HTTP server under the application: uvicorn, with the limits it lacks.

A connection has `header_s` seconds to send a request's head of at most 32 KiB; at most `connections` are
open; one that does not take what is written to it for `write_s` seconds is cut. uvicorn's own signal handling
is not used: it closes the door at once, and running answers would see it shut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from haversack.core.errors import UserError
from haversack.share._errors import ApiError, busy
from haversack.share._waiting import Gone, Receive, Scope, Writing

HEAD_BYTES = 32 * 1024
SEND_BYTES = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """What one server allows: bytes of a body and of all bodies at once, connections, and the seconds that a
    client may let us wait for its head, its body, and for taking what we write."""

    body_bytes: int = 1 << 20
    bodies_bytes: int = 8 << 20
    connections: int = 256
    header_s: float = 10.0
    body_s: float = 20.0
    write_s: float = 20.0


def protocol(limits: Limits) -> type[HttpToolsProtocol]:
    """uvicorn's protocol for one connection, with `limits`."""

    class Connection(HttpToolsProtocol):
        _head_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                error = busy("too many connections.")
                transport.write(_plain(503, error))
                transport.close()
                return
            opened = transport.get_extra_info("socket")
            if opened is not None:  # what a client does not take waits here, not in the system
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
                self._wait_for_head()  # the next request of a connection that is kept
            if self._head_timer is not None:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._head_timer is not None and self._head_bytes > HEAD_BYTES:
                self._refuse(431, f"the request's head is longer than {HEAD_BYTES} bytes.")

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, "the request is not HTTP.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["haversack.transport"] = self.transport  # type: ignore[typeddict-unknown-key]

        def on_headers_complete(self) -> None:
            self._stop_waiting()
            super().on_headers_complete()

        def _wait_for_head(self) -> None:
            self._head_bytes = 0
            self._head_timer = self.loop.call_later(limits.header_s, self._late)

        def _stop_waiting(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _late(self) -> None:
            self._head_timer = None
            self._refuse(408, "the request's head did not arrive in time.")

        def _refuse(self, status: int, sentence: str) -> None:
            self._stop_waiting()
            if not self.transport.is_closing():
                self.transport.write(_plain(status, ApiError(status, sentence, code="bad_request")))
                self.transport.close()

    return Connection


_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Headers Too Large", 503: "Busy"}


def _plain(status: int, error: ApiError) -> bytes:
    """A whole response, for what never reached the application."""
    body = error.body()
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body


class HttpServer(uvicorn.Server):
    """uvicorn's server, whose end others decide (`should_exit`)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


def http_server(app: Any, limits: Limits, message_bytes: int | None = None) -> HttpServer:
    """A server of the ASGI application `app`; with `message_bytes`, WebSockets of messages up to that."""
    config = uvicorn.Config(
        app,
        http=protocol(limits),
        ws="none" if message_bytes is None else "auto",
        ws_max_size=message_bytes or 1,
        ws_per_message_deflate=False,
        lifespan="off",
        loop="asyncio",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=5,
        backlog=256,
        proxy_headers=False,
    )
    return HttpServer(config)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError for a host that is none and for a port that is taken."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, proto)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(256)
            made.setblocking(False)
        except OSError:
            made.close()
            raise
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}; choose another with --port.",
            field="port",
            given=port,
        ) from error
    return made


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
