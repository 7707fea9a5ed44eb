"""The device's loop: a picture, a mode, a frame, an answer; one frame in flight, late answers are misses.

When no whole answer came within `patience_ms`, however it trickles in, the connection is given up and opened
anew for the next picture; that frame is lost, and counted so. Errors that the server words (another model,
another version) end the run. All times are differences of this device's own clock; the server's share is a
duration that it measured, believed within what the frame took.
"""

from __future__ import annotations

import http.client
import json
import math
import socket
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.core.ledger import Ledger
from haversack.share._split_frame import HEAD_BYTES, VERSION, Fares
from haversack.share._split_halves import SlimEncoder
from haversack.share.slimmable import Controller, Mode, Times, deadline_of

U8 = NDArray[np.uint8]
ANSWER_MOST = 1 << 20


@dataclass(frozen=True)
class Shot:
    """One frame: its mode, bytes of payload and with its head, times, whether it was in time, and the
    server's answer (None: lost)."""

    seq: int
    mode: Mode
    nbytes: int
    times: Times
    hit: bool
    answer: dict[str, Any] | None

    def record(self) -> dict[str, Any]:
        """As `--json` prints it; with the fields of the public traces."""
        transfer = self.times.transfer
        return {
            "seq": self.seq,
            "mode": 10 * self.mode[0] + self.mode[1],
            "bytes": self.nbytes,
            "e2e_ms": round(self.times.total, 3),
            "encoder_time_ms": round(self.times.encode, 3),
            "decoder_time_ms": round(self.times.decode, 3),
            "transfer_time_ms": round(transfer, 3),
            "kbs": round(self.nbytes / transfer, 3),
            "hit": self.hit,
            "answer": self.answer,
        }


class Wire:
    """One kept connection to a server, opened when it is first needed."""

    def __init__(self, url: str, token: str | None, patience_ms: float) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"{url} is no address of a server; give http://HOST:PORT.", field="server", given=url
            )
        self._make = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._where = (parts.hostname, parts.port)
        self._headers = {"Content-Type": "application/octet-stream"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self.patience_s = patience_ms / 1000
        self._open: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """(status, body). Raises OSError or HTTPException when the link does not hold, the answer is longer
        than ANSWER_MOST or not whole in time."""
        if self._open is None or self._open.sock is None:  # never opened, or ended by the server
            self._open = self._make(*self._where, timeout=self.patience_s)
            self._open.connect()
            self._open.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        given_up = threading.Timer(self.patience_s, _cut, [self._open.sock])
        given_up.daemon = True
        given_up.start()
        try:
            self._open.request(method, path, body, self._headers)
            response = self._open.getresponse()
            said = response.read(ANSWER_MOST + 1)
            if len(said) > ANSWER_MOST:
                raise http.client.HTTPException(f"the answer has more than {ANSWER_MOST} bytes")
            return response.status, said
        except BaseException:
            self.close()
            raise
        finally:
            given_up.cancel()

    def close(self) -> None:
        """Give the connection up."""
        if self._open is not None:
            with suppress(OSError):
                self._open.close()
            self._open = None


class SplitDevice:
    """Encoder, controller and connection of one device; `greet` once, then `shoot` picture after picture."""

    def __init__(
        self,
        encoder: SlimEncoder,
        controller: Controller,
        server: str,
        *,
        deadline_ms: float = 300.0,
        token: str | None = None,
        patience_ms: float | None = None,
        ledger: Ledger | None = None,
        slower: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.encoder, self.controller = encoder, controller
        self.deadline_ms = deadline_of(deadline_ms)
        self.wire = Wire(server, token, patience_ms or max(5 * deadline_ms, 1000.0))
        self.server, self.ledger, self.slower, self.clock = server, ledger, slower, clock
        self.frames = self.hits = self.lost = 0
        self._last_ms = 0.0
        self._encodes: dict[int, deque[float]] = {}

    def greet(self) -> None:
        """Compare model and version with the server's. Raises UserError where they differ or nobody
        answers."""
        try:
            status, body = self.wire.ask("GET", "/v1/model")
            said = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise UserError(
                f"{self.server} does not answer as a split server ({error}); start one with haversack share "
                "split serve.",
                field="server",
                given=self.server,
            ) from error
        if status != 200 or not isinstance(said, dict):
            raise UserError(f"{self.server} refuses: {str(said)[:200]}", field="server", given=self.server)
        if said.get("version") != VERSION or said.get("head_bytes") != HEAD_BYTES:
            raise UserError(
                f"{self.server} speaks version {said.get('version')} and this device version {VERSION}; use "
                "the same haversack on both sides.",
                field="version",
                given=said.get("version"),
                nearest=VERSION,
            )
        if said.get("model") != self.encoder.record.model:
            raise UserError(
                f"{self.server} serves another model than this device has ({str(said.get('model'))[:12]}, "
                f"here {self.encoder.record.model[:12]}); give both sides halves of the same pack.",
                field="model",
                given=str(said.get("model"))[:12],
                nearest=self.encoder.record.model[:12],
            )

    def shoot(self, picture: U8) -> Shot:
        """Encode, send, wait. Raises UserError for what the server refuses."""
        began = self.clock()
        mode = self.controller.choose(self.deadline_ms)
        self.encoder.set_mode(*mode)
        fares = Fares(self.deadline_ms, self._last_ms, self.frames, self.hits)
        data = self.encoder.encode(picture, fares)
        encode = 1000 * (self.clock() - began)
        if self.slower > 1:
            time.sleep(self._remains(mode[0], encode) / 1000)
            encode = 1000 * (self.clock() - began)
        answer = self._sent(data)
        total = 1000 * (self.clock() - began)
        decode = 0.0 if answer is None else _within(answer.get("decoder_time_ms"), total - encode)
        times = Times(mode, len(data), encode, decode, total)
        hit = answer is not None and total <= self.deadline_ms
        self.frames += 1
        self.hits += hit
        self.lost += answer is None
        self._last_ms = total
        self.controller.observe(times)
        if self.ledger is not None:
            self.ledger.add("uplink_bytes", len(data), "split frame")
        return Shot(self.encoder.seq, mode, len(data), times, hit, answer)

    def _remains(self, k: int, encode: float) -> float:
        """What the played device would still be encoding after `encode` milliseconds: it takes `slower` times
        this one's median for k members, whose own noise is not multiplied."""
        seen = self._encodes.setdefault(k, deque(maxlen=31))
        seen.append(encode)
        return max(self.slower * statistics.median(seen) - encode, 0.0)

    def _sent(self, data: bytes) -> dict[str, Any] | None:
        try:
            status, body = self.wire.ask("POST", "/v1/frames", data)
        except (OSError, http.client.HTTPException):
            return None
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            said = None
        if status == 400 and isinstance(said, dict) and "error" in said:
            raise UserError(
                str(said["error"]),
                field=said.get("field"),
                given=said.get("given"),
                nearest=said.get("nearest"),
            )
        if status == 401:
            raise UserError(f"{self.server} wants a token; give --token.", field="token")
        if status != 200 or not isinstance(said, dict) or said.get("seq") != self.encoder.seq:
            return None
        return said

    def run(self, pictures: Iterable[U8]) -> Iterator[Shot]:
        """Greet, then one shot a picture."""
        self.greet()
        for picture in pictures:
            yield self.shoot(picture)

    def close(self) -> None:
        """End the connection."""
        self.wire.close()


def _within(said: object, most: float) -> float:
    """A duration that the other side says: none where it is no number, at most what there was."""
    known = isinstance(said, (int, float)) and math.isfinite(said)
    return min(max(float(said), 0.0), max(most, 0.0)) if known else 0.0  # type: ignore[arg-type]


def _cut(sock: socket.socket) -> None:
    """End whatever waits for this socket."""
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
