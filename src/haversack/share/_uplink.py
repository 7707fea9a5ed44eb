"""The device's side of the connection: greet the server, prove the token, send and hear signed messages.

What goes wrong on the way is `Lost`: trying again may help. What can never work, a wrong token or a draft
that does not fit, is a UserError. The WebSocket library is imported when a connection is made.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from haversack.core.errors import HaversackError, MissingExtraError, UserError
from haversack.share import _protocol as wire

SCHEMES = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
HEAD_UP, HEAD_DOWN = 6, 2
"""Bytes of a WebSocket frame around a short message."""
MESSAGE_BYTES = 1 << 16
CLOSING_S = 0.2
"""What a server gets to say goodbye."""
FATAL = ("protocol", "tokenizer", "family", "draft", "sampling", "text")
"""Codes of refusals that trying again does not change."""


class Lost(HaversackError):  # noqa: N818 - a state of the link
    """The server is not reached, or let go; `reached`: it answers, and the text alone must be opened
    again."""

    def __init__(self, reason: str, *, reached: bool = False) -> None:
        super().__init__(reason)
        self.reached = reached


class Late(Exception):  # noqa: N818 - a state of the link
    """No answer yet."""


@dataclass
class Traffic:
    """Bytes of messages both ways, with those of the frames around them."""

    up: int = 0
    down: int = 0
    messages: int = 0


def server_url(given: str) -> str:
    """The WebSocket address of what a person wrote. Raises UserError for what is no address."""
    text = given if "://" in given else f"ws://{given}"
    parts = urlsplit(text)
    try:
        port_fits = parts.port is None or parts.port > 0
    except ValueError:
        port_fits = False
    if parts.scheme not in SCHEMES or not parts.hostname or not port_fits:
        raise UserError(
            f"--server {given!r} is no address; write ws://HOST:PORT as haversack serve --verify prints it.",
            field="server",
            given=given,
        )
    path = parts.path if parts.path not in ("", "/") else wire.PATH
    return urlunsplit((SCHEMES[parts.scheme], parts.netloc, path, "", ""))


def _library() -> Any:
    try:
        import websockets.sync.client as client
    except ImportError as error:
        raise MissingExtraError("--decode remote", "websockets", "remote") from error
    return client


def _silent() -> logging.Logger:
    """The library's words about broken connections, which are told as notices, go nowhere."""
    logger = logging.getLogger("haversack.uplink")
    logger.propagate, logger.disabled = False, True
    return logger


class Uplink:
    """One connection after the other to one server. `hello` says who the device is (its nonce is made
    here)."""

    def __init__(self, url: str, token: str, hello: wire.Hello, timeout_s: float) -> None:
        self.url, self._token, self._hello = server_url(url), token, hello
        self._timeout_s = timeout_s
        self._client = _library()
        self._connection: Any = None
        self._held = contextlib.ExitStack()
        self._signer: wire.Signer | None = None
        self._pong: Any = None
        self.welcome: wire.Welcome | None = None
        self.traffic = Traffic()

    @property
    def connected(self) -> bool:
        """Whether the server has welcomed this connection, and it was not lost since."""
        return self._connection is not None

    def connect(self) -> wire.Welcome:
        """Connect, greet, be welcomed. Raises Lost, and UserError for what another try does not change."""
        import msgspec

        self.close()
        held = contextlib.ExitStack()
        try:
            connection: Any = held.enter_context(
                self._client.connect(
                    self.url,
                    open_timeout=max(self._timeout_s, 1.0),
                    close_timeout=CLOSING_S,
                    ping_interval=None,
                    compression=None,
                    max_size=MESSAGE_BYTES,
                    logger=_silent(),
                )
            )
        except Exception as error:
            raise self._unreached(error) from error
        try:
            until = time.monotonic() + max(2 * self._timeout_s, 2.0)
            greeting = self._bytes(connection, until)
            said = wire.decode(greeting, wire.Greeting)
            self._check(said)
            hello = msgspec.structs.replace(self._hello, nonce=wire.nonce())
            signer = wire.Signer(self._token, greeting, hello.nonce, device=True)
            self._send(connection, signer.sign(hello))
            answer = signer.open(self._bytes(connection, until), wire.FromServer)
            if isinstance(answer, wire.Refused):
                raise self.refused(answer)
            if not isinstance(answer, wire.Welcome):
                raise wire.ProtocolError("it does not say that a draft is welcome.")
        except BaseException as error:
            with contextlib.suppress(Exception):
                held.close()
            if isinstance(error, Late):
                raise Lost("the server does not answer") from error
            if isinstance(error, wire.ProtocolError):
                raise self._strange(error) from error
            raise
        self._connection, self._held = connection, held
        self._signer, self.welcome = signer, answer
        return answer

    def close(self) -> None:
        """Let the server go."""
        held, self._held = self._held, contextlib.ExitStack()
        self._connection = self._pong = None
        with contextlib.suppress(Exception):
            held.close()

    def say(self, message: wire.Message) -> int:
        """Send a message; returns its bytes. Raises Lost."""
        if self._connection is None or self._signer is None:
            raise Lost("the connection was lost")
        return self._send(self._connection, self._signer.sign(message))

    def hear(self, seconds: float) -> tuple[Any, int]:
        """The next message and its bytes. Raises Late after `seconds`, Lost, and UserError for a server that
        breaks the protocol."""
        if self._connection is None or self._signer is None:
            raise Lost("the connection was lost")
        frame = self._bytes(self._connection, time.monotonic() + seconds)
        try:
            return self._signer.open(frame, wire.FromServer), len(frame) + HEAD_DOWN
        except wire.ProtocolError as error:
            self.close()
            raise self._strange(error) from error

    def knock(self) -> None:
        """Ask the server for a sign of life."""
        if self._pong is None or self._pong.is_set():
            with contextlib.suppress(Exception):
                self._pong = self._connection.ping()

    @property
    def answers(self) -> bool:
        """Whether it gave one since `knock`."""
        return self._pong is not None and bool(self._pong.is_set())

    def refused(self, message: wire.Refused) -> HaversackError:
        """What a refusal means to the device."""
        if message.code in FATAL:
            return UserError(f"the server refuses: {message.sentence}", field=message.code, given=self.url)
        return Lost(message.sentence.rstrip("."), reached=message.code not in ("stopping", "busy"))

    def _send(self, connection: Any, frame: bytes) -> int:
        count = len(frame) + HEAD_UP
        try:
            connection.send(frame)
        except Exception as error:
            self.close()
            raise self._ended(error) from error
        self.traffic.up += count
        self.traffic.messages += 1
        return count

    def _bytes(self, connection: Any, until: float) -> bytes:
        """The next frame. Raises Late and Lost."""
        try:
            frame = connection.recv(max(0.0, until - time.monotonic()))
        except TimeoutError as error:
            raise Late from error
        except Exception as error:
            self.close()
            raise self._ended(error) from error
        if not isinstance(frame, bytes):
            raise self._strange(wire.ProtocolError("it sends text, not bytes."))
        self.traffic.down += len(frame) + HEAD_DOWN
        return frame

    def _check(self, greeting: wire.Greeting) -> None:
        """Raises UserError for a server that this device cannot speak to."""
        if self._hello.version not in greeting.versions:
            spoken = ", ".join(map(str, greeting.versions))
            raise UserError(
                f"the server at {self.url} speaks version {spoken} of the protocol and this device "
                f"{self._hello.version}; bring the older of them up to date.",
                field="server",
                given=spoken,
                nearest=self._hello.version,
            )
        if greeting.token and not self._token:
            raise UserError(
                f"the server at {self.url} wants a token; give --token TOKEN or set HAVERSACK_TOKEN.",
                field="token",
            )
        if self._token and not greeting.token:
            raise UserError(
                f"the server at {self.url} has no token, so it cannot prove who it is; leave --token (and "
                "HAVERSACK_TOKEN) out, or start it with one.",
                field="token",
            )

    def _ended(self, error: Exception) -> HaversackError:
        """Why a connection is over."""
        closed = getattr(error, "rcvd", None)
        code, reason = getattr(closed, "code", None), getattr(closed, "reason", "") or ""
        if code == wire.UNAUTHORIZED:
            return UserError(
                f"the server at {self.url} does not accept the token (or what was sent was altered on its "
                "way); give the one it was started with.",
                field="token",
            )
        if code in (wire.MALFORMED, wire.FOREIGN):
            return UserError(f"the server at {self.url} refuses: {reason}", field="server", given=self.url)
        return Lost(reason.rstrip(".") or "the connection was lost")

    def _unreached(self, error: Exception) -> HaversackError:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None and 400 <= status < 500:
            return UserError(
                f"{self.url} verifies no drafts (HTTP {status}); start it with haversack serve PACK "
                "--verify.",
                field="server",
                given=self.url,
            )
        if type(error).__name__ in ("InvalidURI", "InvalidMessage", "InvalidUpgrade", "NegotiationError"):
            return UserError(f"{self.url} is no server of ours ({error}).", field="server", given=self.url)
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        return Lost(f"{self.url} is not reached ({said})")

    def _strange(self, error: wire.ProtocolError) -> UserError:
        if error.code == wire.UNAUTHORIZED:
            return UserError(
                f"what the server at {self.url} says is not signed with the token: it does not have it, or "
                "the message was altered, repeated or made up on its way.",
                field="token",
            )
        return UserError(
            f"the server at {self.url} does not keep to the protocol: {error}", field="server", given=self.url
        )
