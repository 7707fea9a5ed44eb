"""Servers for tests: in a thread of this process, or as the command in a process of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.servers import running

from haversack.share.serve import Options, Server

COMMAND = [sys.executable, "-c", "import sys; from haversack.cli import main; sys.exit(main())"]


@contextlib.contextmanager
def serving(model: Any, engine: dict[str, Any] | None = None, **options: Any) -> Iterator[Server]:
    """A server in a thread; `server.app` is its application."""
    server = Server(model, Options(**{"port": 0, "grace_s": 5.0, "contexts": 4, **options}), **(engine or {}))
    try:
        with running(server):
            yield server
    finally:
        server.close()


def port_of(server: Server) -> int:
    port: int = server.socket.getsockname()[1]
    return port


class Command:
    """`haversack serve` in a process of its own; a context manager."""

    def __init__(self, *words: str | Path) -> None:
        line = [*COMMAND, "serve", *map(str, words), "--json"]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> Command:
        assert self.process.stdout is not None
        said = b""
        while not said.rstrip().endswith(b"\n}"):
            line = self.process.stdout.readline()
            assert line, (said, self.process.stderr and self.process.stderr.read())
            said += line
        self.record = json.loads(said)
        self.port = int(self.record["url"].rsplit(":", 1)[1])
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def ended(self, seconds: float = 30) -> int:
        return self.process.wait(seconds)

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def status(self, field: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        raise AssertionError(field)


def raw(port: int, data: bytes, wait: float = 10.0) -> bytes:
    """Everything the server answers to these bytes until it closes the connection or `wait` is over."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                answer += piece
    return answer


def post(path: str, body: Any, *, close: bool = True, headers: str = "") -> bytes:
    """A request's bytes."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n{headers}"
    return (head + ("Connection: close\r\n" if close else "") + "\r\n").encode() + data


def answered(data: bytes) -> tuple[int, Any]:
    """(status, JSON body) of a response's bytes."""
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else None


def until(condition: Any, seconds: float = 20.0) -> None:
    """Wait until `condition()` holds; fails when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
