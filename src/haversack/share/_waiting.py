"""Between the batch's thread and the event loop: answers that coroutines wait for, and how they are sent."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

import msgspec

from haversack.run._batch import Batch, Busy, Event
from haversack.run._jobs import COMPLETE, Ask, Drawn, Job
from haversack.share._answers import DONE, KEEP_ALIVE, Form
from haversack.share._errors import ApiError, busy, stopping

KEEP_ALIVE_S = 10.0
"""A stream that says nothing for so long says that it lives."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Waiting:
    """Answers that are under way, on this event loop. Give `deliver` to the batch, then set `batch`."""

    batch: Batch

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._answers: dict[int, Answer] = {}
        self.stopping = False
        self._none = asyncio.Event()
        self._none.set()

    def deliver(self, events: Sequence[Event]) -> None:
        """From the batch's thread: hand the events of a step over, in one call."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
            self._loop.call_soon_threadsafe(self._hand_out, events)

    def _hand_out(self, events: Sequence[Event]) -> None:
        for job, drawn in events:
            answer = self._answers.get(job.number)
            if answer is not None:
                answer.take(job, drawn)

    def ask(self, asks: Sequence[Ask], *, together: bool = False) -> Answer:
        """Begin answers. Raises ApiError 429 when the queue is full, 503 when the server stops."""
        if self.stopping:
            raise stopping()
        try:
            jobs = self.batch.submit(asks, together=together)
        except Busy as error:
            raise busy(f"the queue is full: {error}.") from error
        answer = Answer(self, jobs)
        self._answers.update({job.number: answer for job in jobs})
        self._none.clear()
        return answer

    def forget(self, answer: Answer) -> None:
        """Nobody waits for it any more; what of it still runs is cancelled."""
        left = [job for job in answer.jobs if job.stop is None]
        for job in answer.jobs:
            self._answers.pop(job.number, None)
        if not self._answers:
            self._none.set()
        if left:
            self.batch.cancel(left)

    async def idle(self) -> None:
        """Wait until nobody waits for an answer."""
        await self._none.wait()


class Answer:
    """The jobs of one request."""

    def __init__(self, waiting: Waiting, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.gone = False
        self._waiting = waiting
        self._index = {job.number: index for index, job in enumerate(jobs)}
        self._events: deque[tuple[int, Drawn | None]] = deque()
        self._wake = asyncio.Event()
        self.left = len(jobs)

    def take(self, job: Job, drawn: Drawn | None) -> None:
        """An event of one of the jobs."""
        self._events.append((self._index[job.number], drawn))
        if drawn is None:
            self.left -= 1
        self._wake.set()

    def leave(self) -> None:
        """The client is gone."""
        self.gone = True
        self._wake.set()

    def remind(self) -> None:
        """Wake whoever waits for events, without one."""
        self._wake.set()

    async def events(self) -> list[tuple[int, Drawn | None]]:
        """Wait for events (or for `leave`, `remind`): (choice, token or None for its end)."""
        await self._wake.wait()
        self._wake.clear()
        found = list(self._events)
        self._events.clear()
        return found

    async def all(self, receive: Receive) -> None:
        """Wait until all jobs have ended. Raises ApiError when one of them broke; Gone when the client
        left."""
        watching = asyncio.create_task(_watch(receive, self))
        try:
            while self.left and not self.gone:
                await self.events()
        finally:
            watching.cancel()
            self._waiting.forget(self)
        if self.gone:
            raise Gone
        broken = self.broken()
        if broken is not None:
            raise broken

    def broken(self) -> ApiError | None:
        """Why the answer is none, when one of its jobs did not end by itself."""
        for job in self.jobs:
            if job.stop is not None and job.stop not in COMPLETE:
                return _why(job)
        return None


class Gone(Exception):  # noqa: N818 - a state, not a fault
    """The client went away; there is nobody to answer."""


def _why(job: Job) -> ApiError:
    if job.stop == "stopped":
        error = stopping()
        return ApiError(503, "the server stopped before the answer was complete.", code=error.code)
    if job.stop == "deadline":
        return ApiError(504, "the answer took longer than this server allows.", code="deadline")
    if job.error is not None and getattr(job.error, "field", None) in ("response_format", "schema"):
        return ApiError(400, str(job.error), param="response_format", code="invalid_value")
    said = type(job.error).__name__ if job.error is not None else str(job.stop)
    return ApiError(500, f"the answer failed by our fault ({said}).", code="internal_error")


async def _watch(receive: Receive, answer: Answer) -> None:
    """Wait for the client to go away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    answer.leave()


async def send_json(send: Send, record: Any, status: int = 200, headers: Any = ()) -> None:
    """A whole response."""
    body = record if isinstance(record, bytes) else msgspec.json.encode(record)
    given = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    given += [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    await send({"type": "http.response.start", "status": status, "headers": given})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError) -> None:
    """A refusal."""
    await send_json(send, error.body(), error.status, error.headers)


async def send_stream(answer: Answer, form: Form, receive: Receive, send: Send, writing: Writing) -> None:
    """The answer as server-sent events, token by token.

    It begins with the first token, so that what breaks before is still refused by a status (raises ApiError);
    one that breaks later ends with an error event and DONE.
    """
    watching = asyncio.create_task(_watch(receive, answer))
    quiet = Quiet(answer)
    begun = over = False
    try:
        while not over and not answer.gone:
            events = await answer.events()
            broken = answer.broken()
            if answer.gone:
                break
            if broken is not None and not begun:
                raise broken
            over = broken is not None or not answer.left  # all may have ended while we waited to write
            payload = _payload(answer, form, events, broken)
            if not payload and quiet.long():
                payload = KEEP_ALIVE
            if not payload:
                continue
            quiet.broken()
            with writing:
                if not begun:
                    begun = True
                    await send({"type": "http.response.start", "status": 200, "headers": _STREAM})
                    payload = b"".join(form.begin(index) for index in range(len(answer.jobs))) + payload
                await send({"type": "http.response.body", "body": payload, "more_body": True})
        if answer.gone:
            raise Gone
        with writing:
            await send({"type": "http.response.body", "body": b""})
    finally:
        watching.cancel()
        quiet.end()
        answer._waiting.forget(answer)


_STREAM = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


def _payload(
    answer: Answer, form: Form, events: Sequence[tuple[int, Drawn | None]], broken: ApiError | None
) -> bytes:
    """What the stream says of some events, and at its end."""
    parts = []
    for index, drawn in events:
        job = answer.jobs[index]
        if drawn is not None:
            parts.append(form.chunk(index, drawn))
        elif job.stop in COMPLETE:
            parts.append(form.last(index, job))
    if broken is not None:
        parts += [b"data: " + broken.body() + b"\n\n", DONE]
    elif not answer.left:
        parts += [form.count(answer.jobs), DONE]
    return b"".join(parts)


class Quiet:
    """Reminds a stream that it has said nothing for long."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._loop = asyncio.get_running_loop()
        self._since = time.monotonic()
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._remind)

    def _remind(self) -> None:
        if self.long():
            self._answer.remind()
        self._timer = self._loop.call_later(KEEP_ALIVE_S, self._remind)

    def long(self) -> bool:
        """True when nothing was said for the time of a keep-alive."""
        return time.monotonic() - self._since >= 0.99 * KEEP_ALIVE_S

    def broken(self) -> None:
        """Something is said."""
        self._since = time.monotonic()

    def end(self) -> None:
        """Stop reminding."""
        self._timer.cancel()


class Writing:
    """A context around `send`: notes since when a client lets us wait to write."""

    def __init__(self, scope: Scope, all: set[Writing]) -> None:
        self.transport = scope.get("haversack.transport")
        self.since: float | None = None
        self._all = all

    def __enter__(self) -> None:
        self.since = time.monotonic()
        self._all.add(self)

    def __exit__(self, *_: object) -> None:
        self.since = None
        self._all.discard(self)
