"""The server's side of remote decoding: devices send drafts, the batch verifies them beside everybody's
answers.

A device has one connection and on it one text at a time; the text holds a slot of the batch until it is
closed, its device is gone or silent, or its time is over. What a device says is checked before the batch sees
it; what is refused is told by a code (docs/remote.md), and who is refused too often is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from haversack.core.errors import UserError
from haversack.run._batch import Batch, Busy
from haversack.run._draft_costs import Line
from haversack.run._generate import Limits, check_length
from haversack.run._jobs import Ask
from haversack.run._rounds import LONGEST, Rounds, RoundsJob, Verdict
from haversack.run._sampler import Sampler
from haversack.share import _protocol as wire
from haversack.share._family import draft_hash, family_of, require_pair, tokenizer_hash, version_of

if TYPE_CHECKING:
    from haversack.run._engine import Engine
    from haversack.share._telemetry import Telemetry
    from haversack.share._waiting import Receive, Scope, Send

HELLO_S = 10.0
REFUSALS = 16
"""So many refusals end a connection."""
WAITING = 1.5
"""Connections for each text that may run."""


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    """What a device asked is not done."""

    def __init__(self, code: str, sentence: str, *, over: bool = False) -> None:
        super().__init__(sentence)
        self.code, self.over = code, over


class Verifier:
    """All devices of a server. `most`: texts at once; `idle_s`: silence after which a device is let go."""

    def __init__(
        self,
        batch: Batch,
        name: str,
        token: str,
        *,
        most: int,
        idle_s: float,
        deadline_s: float,
        write_s: float,
        telemetry: Telemetry,
    ) -> None:
        engine = batch.engine
        self.batch, self.token, self.most = batch, token, most
        self.idle_s, self.deadline_s, self.write_s = idle_s, deadline_s, write_s
        self.telemetry = telemetry
        self.family = family_of(engine.model)
        self.tokenizer = tokenizer_hash(engine.model)
        self.vocabulary = engine.architecture.vocabulary
        self.draft = b"" if batch.drafts is None else draft_hash(batch.drafts.engine)
        self.costs = Line()
        self.stopping = False
        self.devices: set[Device] = set()
        self.welcome = wire.Welcome(
            model=name[:200],
            target=version_of(engine.model),
            vocabulary=self.vocabulary,
            context=engine.context_length,
            longest=LONGEST,
            idle_s=idle_s,
        )

    @property
    def engine(self) -> Engine:
        """The model that verifies."""
        return self.batch.engine

    @property
    def texts(self) -> int:
        """Texts that hold a slot or wait for one."""
        return sum(device.text is not None for device in self.devices)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: one device's connection, from its first message to its end."""
        await receive()
        await send({"type": "websocket.accept"})
        device = Device(self, receive, send)
        crowded = len(self.devices) >= max(2, int(WAITING * self.most))
        self.devices.add(device)
        try:
            if self.stopping:
                raise wire.ProtocolError("the server is stopping.", wire.STOPPING)
            if crowded:
                raise wire.ProtocolError("too many devices are connected.", wire.CROWDED)
            await device.serve()
        except wire.ProtocolError as error:
            await device.leave(error.code, str(error))
        except Gone:
            pass
        finally:
            device.drop()
            self.devices.discard(device)

    def stop(self) -> None:
        """Let all devices go, with a word."""
        self.stopping = True
        for device in self.devices:
            device.hear("stop", None, None)


class Gone(Exception):  # noqa: N818 - a state, not a fault
    """The device went away."""


class Text:
    """A text under way: how long it is, the round that is being verified and the one before it."""

    def __init__(self, opened: wire.Open, length: int) -> None:
        self.session, self.logs = opened.session, opened.logs
        self.length, self.begins, self.most = length, opened.begins, opened.most
        self.came = time.monotonic()
        self.job: RoundsJob | None = None
        self.round: wire.Round | None = None
        self.reply: wire.Reply | None = None
        self.drafted = 0


class Device:
    """One connection. What the batch says comes from its thread, through `hear`."""

    def __init__(self, verifier: Verifier, receive: Receive, send: Send) -> None:
        self.verifier = verifier
        self.text: Text | None = None
        self._receive, self._send = receive, send
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Text | None, Any]] = asyncio.Queue()
        self._signer: wire.Signer | None = None
        self._refusals = 0
        self._came = 0.0
        self._rejection = False

    async def serve(self) -> None:
        """Greet, then answer until the device leaves. Raises ProtocolError for what is no way to speak."""
        await self._greet()
        frame, event = self._next(self._frame()), self._next(self._events.get())
        try:
            while True:
                silence = None if self._verifying else self.verifier.idle_s
                done, _ = await asyncio.wait(
                    {frame, event}, timeout=silence, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    raise wire.ProtocolError("the device was silent for too long.", wire.IDLE)
                if event in done:
                    await self._take(*event.result())
                    event = self._next(self._events.get())
                if frame in done:
                    await self._handle(frame.result())
                    frame = self._next(self._frame())
        finally:
            for task in (frame, event):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    def hear(self, kind: str, text: Text | None, value: Any) -> None:
        """From any thread: something happened."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, text, value))

    def drop(self) -> None:
        """Give the text's slot back."""
        text, self.text = self.text, None
        if text is not None and text.job is not None and text.job.stop is None:
            self.verifier.batch.cancel([text.job])

    async def leave(self, code: int, sentence: str) -> None:
        """Close the connection."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(self.verifier.write_s):
                await self._send({"type": "websocket.close", "code": code, "reason": sentence[:120]})

    @property
    def _verifying(self) -> bool:
        text = self.text
        return text is not None and (text.job is None or text.job.reading or text.job.chain is not None)

    def _next(self, coming: Any) -> asyncio.Task[Any]:
        return self._loop.create_task(coming)

    async def _frame(self) -> bytes:
        """The next frame, and when it came."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            raise Gone
        data = message.get("bytes")
        if data is None:
            raise wire.ProtocolError("frames are bytes, not text.")
        self._came = time.monotonic()
        return bytes(data)

    async def _say(self, message: wire.Message) -> None:
        assert self._signer is not None
        await self._write(self._signer.sign(message))

    async def _write(self, frame: bytes) -> None:
        try:
            async with asyncio.timeout(self.verifier.write_s):
                await self._send({"type": "websocket.send", "bytes": frame})
        except (TimeoutError, OSError) as error:
            raise Gone from error

    # ---- the beginning

    async def _greet(self) -> None:
        verifier = self.verifier
        greeting = wire.encode(wire.Greeting(list(wire.VERSIONS), bool(verifier.token), wire.nonce()))
        await self._write(greeting)
        try:
            async with asyncio.timeout(HELLO_S):
                frame = await self._frame()
        except TimeoutError as error:
            raise wire.ProtocolError("the device did not say who it is in time.", wire.IDLE) from error
        if len(frame) > wire.FIRST_BYTES:
            raise wire.ProtocolError("the first message is too long.")
        said = wire.decode(frame[wire.SIGNED :], wire.Hello)  # its number is part of the key
        signer = wire.Signer(verifier.token, greeting, said.nonce, device=False)
        hello = signer.open(frame, wire.Hello)
        self._signer = signer
        try:
            self._check(hello)
        except Refusal as refusal:
            await self._say(wire.Refused(0, refusal.code, str(refusal), over=True))
            raise wire.ProtocolError(str(refusal), wire.FOREIGN) from refusal
        self._rejection = hello.sampling == wire.REJECTION
        await self._say(verifier.welcome)

    def _check(self, hello: wire.Hello) -> None:
        """Raises Refusal unless the device's draft fits the model."""
        verifier = self.verifier
        if hello.version not in wire.VERSIONS:
            spoken = ", ".join(map(str, wire.VERSIONS))
            raise Refusal("protocol", f"the server speaks version {spoken} and not {hello.version}.")
        if hello.tokenizer != verifier.tokenizer:
            raise Refusal(
                "tokenizer",
                "the draft has another tokenizer than the server's model; a draft must share it.",
            )
        try:
            require_pair(verifier.family, type(verifier.family)(hello.family, hello.anchor))
        except UserError as error:
            raise Refusal("family", str(error)) from error
        if hello.sampling not in (wire.TOKENS, wire.REJECTION):
            raise Refusal("sampling", f"sampling={hello.sampling!r} is not known (tokens or rejection).")
        if hello.sampling == wire.REJECTION and not verifier.draft:
            raise Refusal(
                "draft",
                "sampling by rejection needs the draft model on the server too (serve --verify --draft "
                "MODEL); use sampling=tokens.",
            )
        if hello.sampling == wire.REJECTION and hello.draft != verifier.draft:
            raise Refusal(
                "draft",
                "the device's draft is not the server's copy of it, by hash; use the same model and types, "
                "or sampling=tokens.",
            )

    # ---- what a device asks

    async def _handle(self, frame: bytes) -> None:
        assert self._signer is not None
        message = self._signer.open(frame, wire.FromDevice)
        try:
            if isinstance(message, wire.Open):
                self._open(message)
            elif isinstance(message, wire.Round):
                await self._verify(message)
            elif self.text is not None and self.text.session == message.session:
                self.drop()
        except Refusal as refusal:
            if refusal.over:
                self.drop()
            await self._say(wire.Refused(message.session, refusal.code, str(refusal), refusal.over))
            self._refusals += 1
            if self._refusals >= REFUSALS:
                raise wire.ProtocolError("the device asked too often for what is refused.") from refusal

    def _open(self, message: wire.Open) -> None:
        """A text begins. Raises Refusal."""
        self.drop()
        verifier = self.verifier
        if verifier.stopping:
            raise Refusal("stopping", "the server is stopping.", over=True)
        if verifier.texts >= verifier.most:
            raise Refusal("busy", f"{verifier.texts} devices write already; try again later.", over=True)
        try:
            ids = wire.unpack_ids(message.text, verifier.vocabulary)
            ask, text = self._asked(message, ids)
            (text.job,) = verifier.batch.submit([ask])  # type: ignore[assignment]
        except Busy as error:
            raise Refusal("busy", f"the queue is full: {error}.", over=True) from error
        except (UserError, ValueError) as error:
            raise Refusal("text", str(error), over=True) from error
        self.text = text

    def _asked(self, message: wire.Open, ids: Any) -> tuple[Ask, Text]:
        """Raises UserError and ValueError."""
        if not 1 <= message.begins <= len(ids):
            raise ValueError(f"an answer cannot begin at {message.begins} in {len(ids)} tokens.")
        if not len(ids) - message.begins < message.most <= 1 << 24:
            raise ValueError(f"{len(ids) - message.begins} of at most {message.most} tokens are written.")
        if not -(2**63) <= message.seed < 2**63:
            raise ValueError("a seed has 64 bits.")
        check_length(len(ids), self.verifier.engine.context_length)
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
        sampler = Sampler(**{name: getattr(message, name) for name in names})
        room = self.verifier.engine.context_length + 1 - message.begins  # what there is memory for
        text = Text(message, len(ids))
        tell: Callable[[str, Any], None] = lambda kind, value: self.hear(kind, text, value)  # noqa: E731
        ask = Ask(
            ids,
            Limits(min(message.most, room), end=()),
            sampler,
            deadline=time.monotonic() + self.verifier.deadline_s,
            rounds=Rounds(message.begins, tell, self._rejection and not sampler.greedy),
        )
        return ask, text

    async def _verify(self, message: wire.Round) -> None:
        """A round. Raises Refusal for one that is out of turn or of the wrong size."""
        text = self.text
        if text is None or text.session != message.session or text.job is None:
            raise Refusal("session", "there is no such text (any more); open it again.")
        last = 0 if text.round is None else text.round.round
        if message.round < last:
            return  # stale: its reply has been heard, or it would not have gone on
        if message.round == last:
            if message != text.round:
                raise Refusal("round", f"round {last} was another one.")
            if text.reply is not None:
                await self._say(text.reply)  # lost on its way, or late
            return
        if message.round != last + 1 or (text.round is not None and text.reply is None):
            raise Refusal("round", f"round {last + 1} is next, not {message.round}.")
        if message.start != text.length:
            raise Refusal(
                "start", f"the text has {text.length} tokens, and the drafts begin at {message.start}."
            )
        try:
            ids = wire.unpack_ids(message.ids, self.verifier.vocabulary)
        except ValueError as error:
            raise Refusal("ids", f"{error}.") from error
        room = min(
            self.verifier.engine.context_length - text.length,
            text.begins + text.most - 1 - text.length,
        )
        if len(ids) > min(LONGEST, room) or room < 0:
            raise Refusal("length", f"a round has at most {max(0, min(LONGEST, room))} drafts here.")
        text.round, text.reply, text.came, text.drafted = message, None, self._came, len(ids)
        self.verifier.batch.verify(text.job, np.ascontiguousarray(ids))

    # ---- what the batch says

    async def _take(self, kind: str, text: Text | None, value: Any) -> None:
        if kind == "stop":
            if self._signer is not None:
                await self._say(wire.Refused(0, "stopping", "the server is stopping.", over=True))
            raise wire.ProtocolError("the server is stopping.", wire.STOPPING)
        if text is None or text is not self.text:
            return  # of a text that is over
        if kind == "read":
            assert text.job is not None
            first, more = self._costs()
            took = int(1e6 * (time.monotonic() - text.came))
            await self._say(wire.Opened(text.session, text.length, text.job.cached, took, first, more))
        elif kind == "verdict":
            await self._reply(text, value)
        else:
            self.text = None
            code, sentence = OVER.get(str(value), ("internal", "the text failed by our fault."))
            await self._say(wire.Refused(text.session, code, sentence, over=True))

    async def _reply(self, text: Text, verdict: Verdict) -> None:
        assert text.round is not None
        self.verifier.costs.observe(verdict.seconds, text.drafted + 1)
        self.verifier.telemetry.verified(text.drafted, verdict.accepted)
        text.length += len(verdict.drawn)
        logs = np.asarray([log for _, log in verdict.drawn], "<f8").tobytes() if text.logs else b""
        first, more = self._costs()
        text.reply = wire.Reply(
            text.session,
            text.round.round,
            verdict.accepted,
            verdict.drawn[-1][0],
            int(1e6 * (time.monotonic() - text.came)),
            first,
            more,
            logs,
        )
        await self._say(text.reply)

    def _costs(self) -> tuple[int, float]:
        line = self.verifier.costs
        return int(1e6 * line.first), round(1e6 * line.more, 1)


OVER = {
    "deadline": ("deadline", "the text took longer than this server allows."),
    "stopped": ("stopping", "the server is stopping."),
    "cancelled": ("session", "the text was closed."),
}
"""How a text that ends by itself is told."""
