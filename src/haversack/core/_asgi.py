"""The HTTP server under an ASGI application: uvicorn, with the limits it lacks, and bodies read under limits.

A connection has `header_s` seconds for a request's head of at most 32 KiB, `body_s` for its body; at most
`connections` are open. uvicorn's own signal handling is not used: it closes the door at once, and running
answers would see it shut; whoever serves decides when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from haversack.core.errors import HaversackError, MissingExtraError, UserError

HEAD_BYTES = 32 * 1024


@dataclass(frozen=True)
class HttpLimits:
    """What one server allows: bytes of a body, open connections, and the seconds that a client may let us
    wait for its head and for its body."""

    body_bytes: int = 4 << 20
    connections: int = 512
    header_s: float = 10.0
    body_s: float = 60.0


class RefusedError(HaversackError):
    """A request that is not done: HTTP status, a code for programs, one sentence."""

    def __init__(
        self, status: int, code: str, sentence: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.more = more

    def record(self) -> dict[str, Any]:
        """The body."""
        return {"error": str(self), "code": self.code, **self.more}


def plain_refusal(status: int, sentence: str) -> tuple[bytes, dict[str, str]]:
    """The body and the headers of a request that is refused before the application sees it."""
    return json.dumps({"error": sentence, "code": "http"}).encode(), {}


def http_server(
    app: Any,
    limits: HttpLimits,
    extra: str,
    *,
    refusal: Callable[[int, str], tuple[bytes, dict[str, str]]] = plain_refusal,
    send_bytes: int | None = None,
    message_bytes: int | None = None,
) -> Any:
    """A uvicorn server of `app` that others start and end (`should_exit`).

    `refusal` gives body and headers for a status and a sentence; `send_bytes` is what of an answer may
    wait in the system for a client that does not take it; with `message_bytes`, WebSockets of messages up
    to that. The transport is in the scope, as `haversack.transport`. Raises MissingExtraError, naming
    `extra`, where uvicorn is absent.
    """
    try:
        import uvicorn
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError as error:
        raise MissingExtraError("an HTTP server", error.name or "uvicorn", extra) from error

    class Connection(HttpToolsProtocol):
        _timer: asyncio.TimerHandle | None = None
        _head = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                self._end(503, "too many connections.")
                return
            opened = transport.get_extra_info("socket")
            if opened is not None and send_bytes is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._timer is None and (self.cycle is None or self.cycle.response_complete):
                self._await_head()  # the next request of a connection that is kept
            self._head += len(data) if self._timer is not None else 0
            super().data_received(data)
            if self._timer is not None and self._head > HEAD_BYTES:
                self._end(431, f"the request's head is longer than {HEAD_BYTES} bytes.")

        def send_400_response(self, msg: str) -> None:
            self._end(400, "the request is not HTTP.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self.scope["haversack.transport"] = self.transport  # type: ignore[typeddict-unknown-key]

        def on_headers_complete(self) -> None:
            self._forget_timer()
            super().on_headers_complete()

        def _await_head(self) -> None:
            self._head = 0
            self._timer = self.loop.call_later(
                limits.header_s, self._end, 408, "the request's head did not arrive in time."
            )

        def _forget_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _end(self, status: int, sentence: str) -> None:
            self._forget_timer()
            if not self.transport.is_closing():
                body, headers = refusal(status, sentence)
                head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
                head += f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                self.transport.write(head.encode() + body)
                self.transport.close()

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    return Server(
        uvicorn.Config(
            app,
            http=Connection,
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
    )


def listening(host: str, port: int) -> socket.socket:
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


def url_of(listener: socket.socket) -> str:
    """Where a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def read_body(pieces: AsyncIterator[bytes], said: str, most: int, seconds: float) -> bytes:
    """A request's body: `pieces` as they come, `said` its Content-Length if any. Raises RefusedError 413 as
    soon as it is longer than `most`, 408 when it takes longer than `seconds`."""
    last = {"Connection": "close"}
    too_long = RefusedError(413, "size", f"the body may have {most} bytes and is longer.", headers=last)
    if said.isdigit() and int(said[:20]) > most:
        raise too_long
    held, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            async for piece in pieces:
                size += len(piece)
                if size > most:
                    raise too_long
                held.append(piece)
    except TimeoutError as error:
        raise RefusedError(408, "slow", "the body did not arrive in time.", headers=last) from error
    return b"".join(held)


async def serve_until(
    http: Any, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Serve on `listener` until `stop` is set; `ready` is called when requests are answered. Requests in
    progress are finished."""
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    while not http.started and not serving.done():
        await asyncio.sleep(0.005)
    ready()
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
    http.should_exit = True
    await serving
    stopping.cancel()
