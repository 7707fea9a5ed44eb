"""The server's application: paths, who may ask, and which part of the store answers.

Uploads follow tus 1.0 (HEAD and PATCH of one file, `Upload-Offset`, the checksum extension) inside a protocol
of clips (docs/collect.md). What touches the disk runs beside the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect

from haversack import __version__
from haversack.collect import _devices
from haversack.collect._crc32c import crc32c
from haversack.collect._devices import Device
from haversack.collect._phone import NOT_BUILT, PhoneApp, policy_record, terms
from haversack.collect._state import state_of
from haversack.collect.bundle import MANIFEST_MOST
from haversack.core._asgi import RefusedError, read_body
from haversack.core._metrics import Metrics
from haversack.core._service import RateLimit

if TYPE_CHECKING:
    from haversack.collect.server import Server

DASHBOARD = "/dashboard"
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "img-src data:; frame-ancestors 'none'"
)
"""The page loads nothing from anywhere; a clip's page, which it opens, brings its pictures along."""
TUS = {"Tus-Resumable": "1.0.0"}
INSTALL = "haversack-install"
CHECKSUMS: dict[str, Callable[[bytes], bytes]] = {
    "crc32c": lambda data: crc32c(data).to_bytes(4, "big"),
    "sha1": lambda data: hashlib.sha1(data, usedforsecurity=False).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}
log = logging.getLogger("haversack.collect")


class Enrolment(msgspec.Struct, forbid_unknown_fields=True):
    """What a device sends to enrol."""

    code: str
    install: str
    model: str
    os: str


class Code(msgspec.Struct, forbid_unknown_fields=True):
    """A code whose terms somebody wants to read before agreeing."""

    code: str


class App:
    """The store behind HTTP."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.store = server.store
        self.phone = PhoneApp()
        self.metrics = Metrics("haversack_collect")
        self.running = 0
        self.stopping = False
        limit = server.options
        self._rate = RateLimit(limit.per_second, limit.burst)
        self._knocks = RateLimit(0.5, 20)
        self.api = self._routes()

    def _routes(self) -> FastAPI:
        api = FastAPI(title="Haversack collect", version=__version__, docs_url=None, redoc_url=None)
        routes: tuple[tuple[str, str, Any], ...] = (
            ("GET", DASHBOARD, self._dashboard),
            ("GET", "/healthz", self._health),
            ("GET", "/metrics", self._metrics),
            ("GET", "/v1/state", self._state),
            ("POST", "/v1/terms", self._terms),
            ("GET", "/v1/policy", self._policy),
            ("POST", "/v1/devices", self._enrol),
            ("POST", "/v1/clips", self._begin),
            ("GET", "/v1/clips/{clip}/page", self._clip_page),
            ("OPTIONS", "/v1/uploads/{upload}/{sha256}", self._options),
            ("HEAD", "/v1/uploads/{upload}/{sha256}", self._offset),
            ("PATCH", "/v1/uploads/{upload}/{sha256}", self._append),
            ("POST", "/v1/uploads/{upload}/complete", self._complete),
        )
        for method, path, run in routes:
            api.add_api_route(path, self._guarded(run, path), methods=[method], response_model=None)
        phone = self._guarded(self._phone, "/")  # the last: it answers every other path
        api.add_api_route("/{name:path}", phone, methods=["GET", "HEAD"], response_model=None)
        for status in (404, 405):
            api.add_exception_handler(status, _no_route)
        return api

    def _guarded(
        self, run: Callable[[Request], Awaitable[Response]], path: str
    ) -> Callable[[Request], Awaitable[Response]]:
        """`run` with its refusals as responses, counted and timed."""

        async def endpoint(request: Request) -> Response:
            begun = time.monotonic()
            self.running += 1
            try:
                if self.stopping and path.startswith("/v1"):
                    raise RefusedError(
                        503, "stopping", "the server is stopping.", headers={"Retry-After": "5"}
                    )
                response = await run(request)
            except RefusedError as error:
                response = _json(error.record(), error.status, error.headers)
                self.metrics.count("refused_total", "Requests refused", code=error.code)
            except ClientDisconnect:  # nobody hears this
                self.metrics.count("broken_total", "Requests whose connection broke")
                response = _json({"error": "the connection broke.", "code": "connection"}, 400)
            except Exception as error:
                log.exception("%s %s failed", request.method, path)
                self.metrics.count("failures_total", "Requests that failed by our fault")
                said = f"the server failed ({type(error).__name__})."
                response = _json({"error": said, "code": "internal"}, 500)
            finally:
                self.running -= 1
            self.metrics.time(
                "request_seconds", "Time until a response", time.monotonic() - begun, route=path
            )
            return response

        endpoint.__name__ = run.__name__.strip("_")
        return endpoint

    # ---- who asks

    async def _device(self, request: Request) -> Device:
        authorization = request.headers.get("authorization", "")
        try:
            device = await asyncio.to_thread(
                _devices.device_of, self.store.books, authorization, request.headers.get(INSTALL, "")
            )
        except RefusedError:
            self._slow_down(self._knocks, request.client.host if request.client else "")
            raise
        self._slow_down(self._rate, device.id)
        return device

    def _slow_down(self, rate: RateLimit, client: str) -> None:
        wait = rate.wait_for(client, time.monotonic())
        if wait > 0:
            raise RefusedError(
                429,
                "rate",
                "too many requests; come back later.",
                headers={"Retry-After": str(int(wait) + 1)},
            )

    def _admin(self, request: Request) -> None:
        """What tells about everybody needs the server's own token, where it has one."""
        token = (self.server.options.token or "").encode()
        said = request.headers.get("authorization", "")
        given = said[7:].encode() if said[:7].lower() == "bearer " else b""
        if token and not hmac.compare_digest(given, token):
            self._slow_down(self._knocks, request.client.host if request.client else "")
            raise RefusedError(
                401, "token", "the server's token is needed.", headers={"WWW-Authenticate": "Bearer"}
            )

    async def _body(self, request: Request, most: int) -> bytes:
        said = request.headers.get("content-length", "")
        return await read_body(request.stream(), said, most, self.server.limits.body_s)

    # ---- endpoints

    async def _dashboard(self, request: Request) -> Response:
        """The page itself tells nothing; what it asks for needs the server's token."""
        page = files("haversack.collect").joinpath("dashboard.html").read_bytes()
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def _phone(self, request: Request) -> Response:
        """The phone app's files."""
        name = str(request.path_params["name"])
        served = await asyncio.to_thread(self.phone.get, name)
        if served is not None:
            return Response(served.data, headers=served.headers)
        if not name and not self.phone.built:
            return Response(f"{NOT_BUILT}\n", 404, media_type="text/plain; charset=utf-8")
        return await _no_route(request, RefusedError(404, "not-found", ""))

    async def _health(self, request: Request) -> Response:
        return _json({"status": "stopping" if self.stopping else "ok"}, 503 if self.stopping else 200)

    async def _metrics(self, request: Request) -> Response:
        self._admin(request)
        state = await asyncio.to_thread(state_of, self.store.books)
        for name, what in (("clips", "Complete clips"), ("receiving", "Unfinished uploads")):
            self.metrics.gauge(name, what, state[name])
        self.metrics.gauge("hours", "Hours of complete clips", state["hours"])
        for job in state["jobs"]:
            self.metrics.gauge("jobs", "Jobs", job["count"], stage=job["stage"], state=job["state"])
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _state(self, request: Request) -> Response:
        self._admin(request)
        return _json(await asyncio.to_thread(state_of, self.store.books))

    async def _terms(self, request: Request) -> Response:
        self._slow_down(self._knocks, request.client.host if request.client else "")
        body = await self._body(request, 4096)
        try:
            asked = msgspec.json.decode(body, type=Code)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise RefusedError(400, "json", f"this is no code ({error}).") from error
        return _json(await asyncio.to_thread(terms, self.store.books, self.store.root, asked.code))

    async def _policy(self, request: Request) -> Response:
        await self._device(request)
        return _json(await asyncio.to_thread(policy_record, self.store.root))

    async def _enrol(self, request: Request) -> Response:
        self._slow_down(self._knocks, request.client.host if request.client else "")
        body = await self._body(request, 4096)
        try:
            asked = msgspec.json.decode(body, type=Enrolment)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise RefusedError(400, "json", f"this is no enrolment ({error}).") from error
        books = self.store.books
        made = await asyncio.to_thread(
            _devices.enrol, books, asked.code, asked.install, asked.model, asked.os
        )
        return _json(made, 201)

    async def _clip_page(self, request: Request) -> Response:
        """A clip with what the stages found drawn over it."""
        from haversack.collect.view import clip_page

        self._admin(request)
        clip = str(request.path_params["clip"])[:64]
        found = await asyncio.to_thread(clip_page, self.store.root, self.store.books, clip)
        if found is None:
            raise RefusedError(404, "not-found", "there is no such clip, or it is not labelled yet.")
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return Response(found, media_type="text/html; charset=utf-8", headers=headers)

    async def _begin(self, request: Request) -> Response:
        device = await self._device(request)
        data = await self._body(request, MANIFEST_MOST)
        begun = await asyncio.to_thread(self.store.begin, device, data)
        if begun.new:
            self.metrics.count("uploads_total", "Uploads begun")
        record = {"upload_id": begun.upload, "state": begun.state, "missing": begun.missing}
        return _json(record, 201 if begun.new else 200, {"Location": f"/v1/uploads/{begun.upload}"})

    async def _options(self, request: Request) -> Response:
        most = str(self.server.options.chunk_bytes)
        extensions = {"Tus-Version": "1.0.0", "Tus-Extension": "checksum", "Haversack-Chunk-Most": most}
        return Response(
            status_code=204,
            headers={**TUS, **extensions, "Tus-Checksum-Algorithm": ",".join(CHECKSUMS)},
        )

    async def _offset(self, request: Request) -> Response:
        device = await self._device(request)
        upload, sha256 = request.path_params["upload"], request.path_params["sha256"]
        here, length = await asyncio.to_thread(self.store.offset, device, upload, sha256)
        headers = {"Upload-Offset": str(here), "Upload-Length": str(length), "Cache-Control": "no-store"}
        return Response(status_code=200, headers={**TUS, **headers})

    async def _append(self, request: Request) -> Response:
        device = await self._device(request)
        upload, sha256 = request.path_params["upload"], request.path_params["sha256"]
        if request.headers.get("content-type") != "application/offset+octet-stream":
            raise RefusedError(415, "type", "send Content-Type: application/offset+octet-stream.")
        said = request.headers.get("upload-offset", "")
        if not said.isascii() or not said.isdigit() or len(said) > 15:
            raise RefusedError(400, "offset", "Upload-Offset is missing or no number.")
        here, _ = await asyncio.to_thread(self.store.offset, device, upload, sha256)
        if int(said) != here:  # before the body is read
            raise RefusedError(
                409, "offset", f"the file is here up to byte {here}.", headers={"Upload-Offset": str(here)}
            )
        data = await self._body(request, self.server.options.chunk_bytes)
        self.metrics.count("received_bytes_total", "Bytes of chunks that arrived", len(data))
        await asyncio.to_thread(_check_sum, request.headers.get("upload-checksum", ""), data)
        after = await asyncio.to_thread(self.store.append, device, upload, sha256, int(said), data)
        return Response(status_code=204, headers={**TUS, "Upload-Offset": str(after)})

    async def _complete(self, request: Request) -> Response:
        device = await self._device(request)
        await self._body(request, 4096)
        manifest = await asyncio.to_thread(self.store.complete, device, request.path_params["upload"])
        self.metrics.count("completed_total", "Requests to complete that were answered with 200")
        return _json({"clip_uuid": manifest.clip_uuid, "state": "complete"})


def _check_sum(said: str, data: bytes) -> None:
    """Raises RefusedError 460 for data that is not what its sum says, 400 for a sum of an unknown kind."""
    if not said:
        return
    kind, _, encoded = said.partition(" ")
    if kind not in CHECKSUMS:
        raise RefusedError(
            400, "checksum", f"checksum {kind[:20]!r} is not known (allowed {', '.join(CHECKSUMS)})."
        )
    try:
        expected = base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise RefusedError(400, "checksum", "the checksum is not base64.") from error
    if not hmac.compare_digest(expected, CHECKSUMS[kind](data)):
        raise RefusedError(460, "checksum", "the chunk is not what its checksum says; send it again.")


def _json(record: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(record), status, media_type="application/json", headers=headers)


async def _no_route(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    said = f"there is no {request.method} {request.url.path[:200]}."
    return _json({"error": said, "code": "not-found"}, status)
