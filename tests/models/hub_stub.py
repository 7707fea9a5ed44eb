"""A model hub on 127.0.0.1 as the real one answers: model records with hashes, files by commit, large files
behind a redirect to another origin, byte ranges; and the ways in which it can fail.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

LARGE = 4096  # files from here on are in large-file storage


@dataclass
class Repository:
    """Files by name, under one commit. `private` and `gated` need the token; `hidden` sizes lie."""

    files: dict[str, bytes]
    commit: str = "c0ffee" * 6 + "beef"
    private: bool = False
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    """The server. `serve` (file name -> bytes) replaces what a file's address gives; `stop_after` (file name
    -> bytes) leaves an answer hanging there until `released`; `requests` are (method, path, range, token)."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "hf_secret"
    status: int = 0
    serve: dict[str, bytes] = field(default_factory=dict)
    stop_after: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    sent: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        hub = self

        class Handler(_Handler):
            def handle_request(self) -> None:
                hub.answer(self)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.storage = f"http://localhost:{self.server.server_port}"  # another origin: gets no token
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: Any) -> None:
        path = unquote(urlsplit(request.path).path)
        token = request.headers.get("Authorization")
        self.requests.append((request.command, path, request.headers.get("Range"), token))
        if self.status:
            return request.say(self.status, {}, b"out of order")
        if found := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            return self.send(request, found[2], self.repositories[found[1]].files[found[2]], {})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+?)(/revision/(.+))?", path)
        resolved = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name = (found or resolved or [None, ""])[1]
        repository = self.repositories.get(name)
        allowed = token == f"Bearer {self.token}"
        if repository is None or (repository.private and not allowed):
            error = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return request.say(404 if allowed else 401, error, b"{}")
        if found:
            if (found[3] or "main") not in ("main", repository.commit):
                return request.say(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            return request.say(200, {"Content-Type": "application/json"}, self.record(name, repository))
        assert resolved
        if repository.gated and not allowed:
            return request.say(403, {"X-Error-Code": "GatedRepo"}, b"{}")
        data = repository.files.get(resolved[3])
        if data is None or resolved[2] not in ("main", repository.commit):
            return request.say(404, {"X-Error-Code": "EntryNotFound"}, b"{}")
        common = {"X-Repo-Commit": repository.commit, "ETag": f'"{digest(data)}"'}
        if len(data) < LARGE:
            return self.send(request, resolved[3], data, common)
        place = f"{self.storage}/storage/{name}/{quote(resolved[3])}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest(data)}"', "Location": place}
        return request.say(302, {**common, **linked}, b"")

    def record(self, name: str, repository: Repository) -> bytes:
        siblings = []
        for file, data in repository.files.items():
            size = repository.sizes.get(file, len(data))
            entry: dict[str, Any] = {"rfilename": file, "size": size, "blobId": git_hash(data)}
            if len(data) >= LARGE:
                entry["lfs"] = {"sha256": digest(data), "size": size, "pointerSize": 134}
            siblings.append(entry)
        said = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}
        return json.dumps({**said, "private": repository.private, "downloads": 0, "likes": 0}).encode()

    def send(self, request: Any, file: str, data: bytes, headers: dict[str, str]) -> None:
        data = self.serve.get(file, data)
        start = 0
        if found := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or ""):
            start = int(found[1])
            headers = {**headers, "Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        stop = self.stop_after.get(file)
        status = 206 if start else 200
        if stop is None or stop <= start:
            return request.say(status, headers, data[start:])
        request.say(status, headers, data[start:stop], length=len(data) - start)
        self.sent.set()
        self.released.wait(60)
        request.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        raise NotImplementedError

    def do_GET(self) -> None:
        self.handle_request()

    def do_HEAD(self) -> None:
        self.handle_request()

    def say(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)
                self.wfile.flush()
        except OSError:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


def digest(data: bytes) -> str:
    """The hub's hash of a file: SHA-256 in large-file storage, else git's."""
    return hashlib.sha256(data).hexdigest() if len(data) >= LARGE else git_hash(data)


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
