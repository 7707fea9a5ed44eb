"""A small HTTP service on the standard library: a token, limits, metrics, a graceful stop.

Routes are functions from `Request` to `Response`. Every service has /healthz (no token) and /metrics. It
listens on 127.0.0.1 unless it is given a host and a token. A handler's UserError becomes 400 with the error's
record, anything else 500 without details. Bodies are either bytes or an iterable of bytes, which is sent in
chunks as it comes.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import signal
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from haversack.core._metrics import Metrics
from haversack.core.errors import UserError

_LOCAL = ("127.0.0.1", "localhost", "::1")
_TOKEN_LEAST = 16


@dataclass(frozen=True)
class Limits:
    """What one service allows: bytes of a request's body, requests at once (more get 503), requests a second
    of one client with `burst` at once after a pause (more get 429), and seconds that a client may let us wait
    for its bytes."""

    body_bytes: int = 8 * 2**20
    at_once: int = 16
    per_second: float = 50.0
    burst: int = 100
    wait_s: float = 15.0


@dataclass(frozen=True)
class Request:
    """What arrived. `path` without the query; `headers` with lower-case names; `client` is the peer's
    address."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    client: str

    def json(self) -> Any:
        """The body as JSON. Raises UserError (400) when it is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UserError("the request's body is not JSON.", field="body") from error


@dataclass(frozen=True)
class Response:
    """What is sent: `body` as bytes, or as an iterable of bytes that goes out in chunks."""

    body: bytes | Iterable[bytes] = b""
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Any, status: int = 200) -> Response:
        """A record as JSON."""
        return cls(json.dumps(record).encode(), status)


Handler = Callable[[Request], Response]


def new_token() -> str:
    """A token nobody guesses, for `--token`."""
    return secrets.token_urlsafe(24)


class RateLimit:
    """At most `per_second` of each client over time, `burst` at once after a pause; remembers the last 10,000
    clients."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second = per_second
        self._burst = burst
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._lock = threading.Lock()

    def wait_for(self, client: str, now: float) -> float:
        """0 when the client may go on, else the seconds until it may."""
        with self._lock:
            tokens, before = self._clients.pop(client, (float(self._burst), now))
            tokens = min(float(self._burst), tokens + max(0.0, now - before) * self._per_second)
            passes = tokens >= 1
            self._clients[client] = (tokens - passes, now)
            if len(self._clients) > 10_000:
                self._clients.popitem(last=False)
            return 0.0 if passes else (1 - tokens) / self._per_second


class Service:
    """Serves `routes` ((method, path) -> handler); a path that ends in `/*` takes everything below it.

    `port` 0 takes a free one (`url` says which). `open_pages` are shown without the token: pages that hold
    nothing themselves and send the token, typed in by who looks, with what they ask. Raises UserError for a
    host other than this machine without a token of at least 16 characters, and for a port that cannot be had.

    >>> service = Service({("GET", "/hello"): lambda request: Response.of({"hello": request.client})})
    >>> service.run()  # until SIGTERM, SIGINT or stop(); requests in progress are finished
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Handler],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        open_pages: Collection[str] = (),
    ) -> None:
        if host not in _LOCAL and token is None:
            raise UserError(
                f"serving on {host} lets others in, so it needs a token; add --token {new_token()}",
                field="token",
                given=None,
            )
        if token is not None and len(token) < _TOKEN_LEAST:
            raise UserError(
                f"a token has at least {_TOKEN_LEAST} characters; use for example {new_token()}",
                field="token",
            )
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self._routes = dict(routes)
        self._token = token
        self._open = {("GET", page) for page in open_pages}
        self._rate = RateLimit(self.limits.per_second, self.limits.burst)
        self._places = threading.BoundedSemaphore(self.limits.at_once)
        self._running = 0
        self._idle = threading.Condition()
        self._started = False
        self._stopping = threading.Event()
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            said = f"{host}:{port} cannot be listened on: {error.strerror or error}."
            raise UserError(said, field="port", given=port) from error

    @property
    def url(self) -> str:
        """Where the service is reached."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}" if ":" not in str(host) else f"http://[{host!s}]:{port}"

    def start(self) -> None:
        """Serve from a thread of its own and return."""
        self._started = True
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="haversack-service", daemon=True
        ).start()

    def run(self, grace_s: float = 30.0) -> None:
        """Serve until SIGTERM, SIGINT or `stop`; then take no more requests and finish those in progress, for
        at most `grace_s` seconds. A second signal stops at once. Only from the main thread."""
        before = {number: signal.signal(number, self._asked) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.start()
            while not self._stopping.wait(0.2):
                pass
            self.stop(grace_s)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self, grace_s: float = 30.0) -> bool:
        """Take no more requests, wait for those in progress; True when all were finished within `grace_s`
        seconds."""
        self._stopping.set()
        if self._started:
            self._server.shutdown()
        with self._idle:
            finished = self._idle.wait_for(lambda: self._running == 0, grace_s)
        self._server.server_close()
        return finished

    def answer(self, request: Request) -> Response:
        """Token, rate, places, route, handler: everything between a parsed request and its response."""
        if (request.method, request.path) == ("GET", "/healthz"):
            return Response.of({"status": "stopping" if self._stopping.is_set() else "ok"})
        shown = (request.method, request.path) in self._open
        if self._token is not None and not shown and not self._allowed(request):
            return _error(
                401, "a valid token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )
        wait = self._rate.wait_for(request.client, time.monotonic())
        if wait > 0:
            return _error(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        if (request.method, request.path) == ("GET", "/metrics"):
            return Response(self.metrics.text().encode(), content_type="text/plain; version=0.0.4")
        handler, route = self._find(request)
        if handler is None:
            return _error(405 if route else 404, f"there is no {request.method} {request.path}")
        started = time.monotonic()
        try:
            response = handler(request)
        except UserError as error:
            response = Response.of(error.record(), 400)
        except Exception as error:
            self.metrics.count(
                "failures_total", "Requests that failed by our fault", kind=type(error).__name__
            )
            response = _error(500, "the service failed; its log says why")
        self.metrics.time(
            "request_seconds", "Time until a response begins", time.monotonic() - started, route=route
        )
        return response

    def _allowed(self, request: Request) -> bool:
        said = request.headers.get("authorization", "")
        given = said[7:] if said[:7].lower() == "bearer " else ""
        return hmac.compare_digest(given.encode(), (self._token or "").encode())

    def _find(self, request: Request) -> tuple[Handler | None, str]:
        path = request.path
        while True:
            if (request.method, path) in self._routes:
                return self._routes[request.method, path], path
            if any(known == path for _, known in self._routes):
                return None, path
            above = path.removesuffix("/*").rpartition("/")[0]
            if not path.removesuffix("/*"):
                return None, ""
            path = f"{above}/*"

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt
        self._stopping.set()

    @contextlib.contextmanager
    def place(self) -> Iterator[bool]:
        """One of the places for requests at once, for the whole of a request; False when all are taken."""
        taken = self._places.acquire(blocking=False)
        if taken:
            with self._idle:
                self._running += 1
        try:
            yield taken
        finally:
            if taken:
                self._places.release()
                with self._idle:
                    self._running -= 1
                    self._idle.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error of ours."""
        self.service.metrics.count(
            "broken_connections_total", "Connections that broke before their response was sent"
        )


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "haversack"
    sys_version = ""
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.service.limits.wait_s)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted, not printed."""

    def _serve(self) -> None:
        service = self.server.service
        with service.place() as taken:
            response, keep = self._respond(taken)
            self.close_connection = self.close_connection or not keep or service._stopping.is_set()
            service.metrics.count("requests_total", "Requests answered", status=str(response.status))
            self._send(response)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _serve  # noqa: N815

    def _respond(self, taken: bool) -> tuple[Response, bool]:
        """The response, and whether the connection is still in step with the client."""
        if not taken:
            return _error(503, "too many requests at once", {"Retry-After": "1"}), False
        if "transfer-encoding" in self.headers:
            return _error(411, "send the body with Content-Length"), False
        lengths = self.headers.get_all("content-length", ["0"])
        if len(lengths) != 1 or not lengths[0].isascii() or not lengths[0].isdigit():
            return _error(400, "Content-Length is not one number"), False
        length = int(lengths[0][:20])
        most = self.server.service.limits.body_bytes
        if length > most:
            return _error(413, f"the body may have {most} bytes and has {length}"), False
        body = self.rfile.read(length)
        if len(body) < length:
            return _error(400, "the body ended early"), False
        parts = urlsplit(self.path)
        request = Request(
            "GET" if self.command == "HEAD" else self.command,
            parts.path,
            dict(parse_qsl(parts.query, max_num_fields=100)),
            {name.lower(): value for name, value in self.headers.items()},
            body,
            str(self.client_address[0]),
        )
        return self.server.service.answer(request), True

    def _send(self, response: Response) -> None:
        self.send_response(response.status)
        self.send_header("Content-Type", response.content_type)
        for name, value in response.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        if isinstance(response.body, bytes):
            self.send_header("Content-Length", str(len(response.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(response.body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = iter(response.body)
        try:
            if self.command != "HEAD":
                for piece in pieces:
                    if piece:
                        self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                        self.wfile.flush()
                self.wfile.write(b"0\r\n\r\n")
        except Exception:
            self.close_connection = True  # the client sees a body without its end
            raise
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps({"error": sentence, "field": None, "given": None, "nearest": None}).encode()
    return Response(body, status, headers=headers or {})
