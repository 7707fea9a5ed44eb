"""Devices and servers of remote decoding that do as a test says, over real sockets."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import serve

from haversack.share import _protocol as wire

TOKEN = "a-token-of-enough-letters"


class FakeDevice:
    """A connection that says what it is told to. A context manager; `hello` changes fields of the first
    message."""

    def __init__(self, url: str, tokenizer: bytes, token: str = TOKEN, **hello: Any) -> None:
        self.url, self.token = url + wire.PATH, token
        self.said = {"version": 1, "nonce": wire.nonce(), "tokenizer": tokenizer, "vocabulary": 288}
        self.said |= {"draft": b"", "anchor": "", "family": "", "sampling": "tokens", **hello}

    def __enter__(self) -> FakeDevice:
        self.held = contextlib.ExitStack()
        self.socket = self.held.enter_context(connect(self.url, compression=None, close_timeout=0.1))
        self.greeting = self.socket.recv(10)
        self.signer = wire.Signer(self.token, self.greeting, self.said["nonce"], device=True)
        self.say(wire.Hello(**self.said))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.held.close()

    def say(self, message: wire.Message) -> bytes:
        frame = self.signer.sign(message)
        self.socket.send(frame)
        return frame

    def hear(self, seconds: float = 10.0) -> Any:
        return self.signer.open(self.socket.recv(seconds), wire.FromServer)

    def closed(self) -> tuple[int, str]:
        """(code, reason) with which the server ends the connection, whatever it says before."""
        try:
            while True:
                self.socket.recv(10)
        except ConnectionClosed as error:
            assert error.rcvd is not None
            return error.rcvd.code, error.rcvd.reason

    def vanish(self) -> None:
        """Be gone, without a word."""
        self.socket.socket.close()


def opening(ids: Sequence[int], session: int = 7, **fields: Any) -> wire.Open:
    """A greedy text."""
    given = {"begins": len(ids), "most": 64, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    given |= {"repetition_penalty": 1.0, "seed": 0, "logs": False, **fields}
    return wire.Open(session=session, text=wire.pack_ids(ids, 288), **given)


def drafts(start: int, ids: Sequence[int], round: int = 1, session: int = 7) -> wire.Round:
    return wire.Round(session, round, start, wire.pack_ids(ids, 288))


Meddling = Callable[[Any], Sequence[Any]]


class Meddler:
    """A server between a device and the real one: it knows the token, and does to the real server's messages
    what `meddle` says; bytes are sent as they are. A context manager; `url` is where it listens. `closing`: a
    connection ends when that returns True for a message."""

    def __init__(
        self, server: Any, meddle: Meddling, closing: Callable[[Any], bool] = lambda message: False
    ) -> None:
        self.server, self.meddle, self.closing = server, meddle, closing
        self.connections = 0
        self.heard: list[Any] = []

    def __enter__(self) -> Meddler:
        self._listening = serve(self._relay, "127.0.0.1", 0, compression=None)
        self._thread = threading.Thread(target=self._listening.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"ws://127.0.0.1:{self._listening.socket.getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown()
        self._thread.join(10)

    def _relay(self, socket: Any) -> None:
        self.connections += 1
        greeting = wire.encode(wire.Greeting([1], True, wire.nonce()))
        socket.send(greeting)
        frame = socket.recv(10)
        hello = wire.decode(frame[wire.SIGNED :], wire.Hello)
        signer = wire.Signer(TOKEN, greeting, hello.nonce, device=False)
        signer.open(frame, wire.Hello)
        fields = msgspec.structs.asdict(hello)
        with FakeDevice(self.server.verify_url, fields.pop("tokenizer"), **fields) as device:
            thread = threading.Thread(target=self._down, args=(device, socket, signer), daemon=True)
            thread.start()
            with contextlib.suppress(ConnectionClosed, OSError):
                while True:
                    message = signer.open(socket.recv(), wire.FromDevice)
                    self.heard.append(message)
                    device.say(message)

    def _down(self, device: FakeDevice, socket: Any, signer: wire.Signer) -> None:
        with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
            while True:
                message = device.hear(60)
                if self.closing(message):
                    socket.socket.close()
                    return
                for one in self.meddle(message):
                    socket.send(one if isinstance(one, bytes) else signer.sign(one))


@contextlib.contextmanager
def between(server: Any, meddle: Meddling, **more: Any) -> Iterator[Meddler]:
    with Meddler(server, meddle, **more) as meddler:
        yield meddler
