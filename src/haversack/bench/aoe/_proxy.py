"""A proxy that loses a share of HTTP requests: cut at a random byte, or answered and the answer lost."""

from __future__ import annotations

import contextlib
import random
import socket
import threading


class Proxy:
    """Forwards connections to `port`. Of all requests a share is cut: the connection breaks after a part of
    the request's bytes, or after the request and before its response. Counts the bytes that devices sent."""

    def __init__(self, port: int, *, share: float = 0.0, seed: int = 0) -> None:
        self.target, self.share = port, share
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.sent = self.requests = self.cut = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                device, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(device,), daemon=True).start()

    def _serve(self, device: socket.socket) -> None:
        with contextlib.suppress(OSError), device:
            device.settimeout(30)
            with socket.create_connection(("127.0.0.1", self.target), timeout=30) as server:
                while self._one(device, server):
                    pass

    def _one(self, device: socket.socket, server: socket.socket) -> bool:
        """One request and its response; False when the connection is over."""
        head = b""
        while b"\r\n\r\n" not in head:
            piece = device.recv(65536)
            if not piece:
                return False
            head += piece
        with self._lock:
            self.requests += 1
            dropped = self._random.random() < self.share
            at, lost_answer = self._random.random(), self._random.random() < 0.5
            self.cut += dropped
        length = _length(head) + head.index(b"\r\n\r\n") + 4
        stop = int(at * length) if dropped and not lost_answer else length
        passed = 0
        piece = head
        while True:
            part = piece[: max(0, stop - passed)]
            with self._lock:
                self.sent += len(piece)
            server.sendall(part)
            passed += len(piece)
            if passed >= stop:
                break
            piece = device.recv(min(65536, length - passed))
            if not piece:
                return False
        if dropped and not lost_answer:
            return False
        answer = b""
        while b"\r\n\r\n" not in answer:
            piece = server.recv(65536)
            if not piece:
                return False
            answer += piece
        left = 0 if head.startswith(b"HEAD") else _length(answer)
        left -= len(answer) - answer.index(b"\r\n\r\n") - 4
        if dropped:
            return False
        device.sendall(answer)
        while left > 0:
            piece = server.recv(65536)
            if not piece:
                return False
            device.sendall(piece)
            left -= len(piece)
        return True


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n\r\n", 1)[0].split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
