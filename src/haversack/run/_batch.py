"""Continuous batching: answers join and leave between steps, and every step reads the weights once for all.

    batch = Batch(engine, contexts=8)
    jobs = batch.submit([Ask(prompt) for prompt in prompts])
    print([job.wait().text for job in jobs])

An answer's tokens are those of `generate`, whoever shares its steps. Paper: Yu et al., "Orca" (2022) for
joining between steps; Agrawal et al., "Sarathi-Serve" (2024) for reading long prompts in chunks beside them.
Answers begin in the order they came; every running answer gets one token a step, and prompts that are being
read take turns at the step's other rows, so nobody waits for the length of somebody else's prompt. Texts that
others write (see `_rounds`) keep their slots between rounds, and their rounds are verified in the same steps.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from haversack.core.errors import HaversackError, UserError
from haversack.run._cache import Cache
from haversack.run._engine import Engine
from haversack.run._generate import check_length
from haversack.run._jobs import Ask, Drawn, Job
from haversack.run._pool import Part, Together
from haversack.run._prefix_store import PrefixStore
from haversack.run._rounds import ROWS_DUE, RoundsJob

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
Event = tuple[Job, Drawn | None]
"""A job and its next token, or None: it has ended."""

PATIENCE_S = 0.25
"""How long a batch that can do nothing sleeps while somebody waits for a slot: deadlines pass."""
CHUNK = 64
"""Prompt tokens in a step that also writes; one that only reads takes as many as fit."""


class Busy(HaversackError):  # noqa: N818 - a state, not a fault
    """The queue is full; what was submitted has not begun."""


class Watch(Protocol):
    """Told of what happens, from the batch's own thread. `gaps`: seconds between a token written in the step
    and the one before it, for each answer that got one."""

    def first_token(self, seconds: float) -> None: ...
    def step(self, texts: int, rows: int, seconds: float, gaps: Sequence[float]) -> None: ...
    def began(self, prompt: int, cached: int, waited: float) -> None: ...
    def over(self, job: Job) -> None: ...


@dataclass(frozen=True)
class State:
    """How many answers run (`reading` of them still read their prompt) and wait."""

    running: int
    reading: int
    waiting: int
    contexts: int


class Batch:
    """Answers on one engine, from a thread of its own. A context manager; leaving it ends what runs.

    `contexts` answers run at once, `queue` more may wait; `prefix_bytes` bound the prefix store (0: none).
    `deliver` gets the events of each step in one call, on the batch's thread. `draft`: the model that drafts
    were drawn from, for texts that are verified by rejection.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        contexts: int = 8,
        queue: int = 64,
        prefix_bytes: int = 0,
        tokenizer: Any = None,
        deliver: Callable[[Sequence[Event]], None] | None = None,
        watch: Watch | None = None,
        draft: Engine | None = None,
    ) -> None:
        if not 1 <= contexts <= Together.rows // 2:
            raise UserError(
                f"contexts={contexts} is not supported (allowed 1 to {Together.rows // 2}).",
                field="contexts",
                given=contexts,
                nearest=min(max(contexts, 1), Together.rows // 2),
            )
        self.engine = engine
        self.together = Together(engine, contexts)
        self.drafts = None if draft is None else Together(draft, contexts, engine.context_length)
        """Of texts verified by rejection, what the draft model holds; slots as in `together`."""
        self.prefixes = PrefixStore(engine.architecture, engine.cache_type, prefix_bytes)
        self.contexts, self.queue = contexts, queue
        self._tokenizer = tokenizer or engine.model.tokenizer()
        self._deliver, self._watch = deliver, watch
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._reading: deque[Job] = deque()
        self._writing: list[Job] = []
        self._resting: list[RoundsJob] = []
        self._stirred = False
        self._free = list(range(contexts))[::-1]
        self._events: list[Event] = []
        self._gaps: list[float] = []
        self._ending: str | None = None
        self._thread = threading.Thread(target=self._run, name="haversack-batch", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, asks: Sequence[Ask], *, together: bool = False) -> list[Job]:
        """Begin or queue all of `asks`, or none. `together`: they have one prompt, which is read once.

        Raises Busy when the queue has no room for them, UserError for a prompt longer than the context.
        """
        for ask in asks:
            if len(ask.prompt) == 0:
                raise UserError("a prompt of no tokens has no answer.", field="prompt")
            check_length(len(ask.prompt), self.engine.context_length)
        jobs: list[Job] = []
        for ask in asks:
            leader = jobs[0] if jobs and together else None
            jobs.append(Job(ask, leader) if ask.rounds is None else RoundsJob(ask))
        with self._changed:
            if self._ending is not None:
                raise Busy("the server is stopping")
            free = max(0, len(self._free) - len(self._waiting))
            if len(self._waiting) + len(jobs) > self.queue + free:
                raise Busy(f"{len(self._waiting)} answers wait already")
            self._waiting.extend(jobs)
            self._changed.notify()
        return jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End `jobs` at the next step; their slots are free then."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._stirred = True
            self._changed.notify()

    def verify(self, job: RoundsJob, chain: I32) -> None:
        """Verify a round of `job`, the drafts `chain` i32 [n], in the next step; one at a time."""
        with self._changed:
            job.put(chain)
            self._stirred = True
            self._changed.notify()

    def state(self) -> State:
        """How full it is."""
        with self._changed:
            reading = len(self._reading)
            running = reading + len(self._writing) + len(self._resting)
            return State(running, reading, len(self._waiting), self.contexts)

    def close(self, reason: str = "stopped") -> None:
        """End everything, with `reason`, and the thread."""
        with self._changed:
            self._ending = self._ending or reason
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- the batch's own thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._busy() or self._ending):  # all slots may rest while somebody waits
                    if not self._changed.wait(PATIENCE_S if self._waiting else None):
                        break
                ending, self._stirred = self._ending, False
            if ending is not None:
                self._end_all(ending)
                self._tell()
                return
            try:
                self._turn()
            except Exception as error:  # what broke the step broke all that were in it
                self._end_all("failed", error, waiting=False)
            self._tell()

    def _busy(self) -> bool:
        """Something can be done at once."""
        return bool(
            self._reading or self._writing or self._stirred or (self._waiting and self._free) or self._due()
        )

    def _due(self) -> list[RoundsJob]:
        """Texts whose round waits to be verified, the one that waits longest first."""
        return sorted((job for job in self._resting if job.chain is not None), key=lambda job: job.put_at)

    def _turn(self) -> None:
        self._drop()
        self._admit()
        jobs, parts = self._parts()
        if not parts:
            return
        began = time.monotonic()
        results = self.together.step(parts)
        drafted = self._drafted(jobs, parts)
        for job, part, result in zip(jobs, parts, results, strict=True):
            if isinstance(job, RoundsJob):
                self._round(job, part, result, drafted.get(part.slot))
            elif job.reading:
                self._has_read(job, len(part.tokens), result)
            elif result is not None:
                self._write(job, result)
        if self._watch is not None:
            rows = sum(len(part.tokens) for part in parts)
            self._watch.step(len(parts), rows, time.monotonic() - began, self._gaps)
        self._gaps.clear()

    def _drop(self) -> None:
        """End what was cancelled or has passed its deadline."""
        now = time.monotonic()
        with self._changed:
            jobs = [*self._waiting, *self._reading, *self._writing, *self._resting]
        for job in jobs:
            if job.cancelled:
                self._end(job, "cancelled")
            elif job.ask.deadline is not None and now > job.ask.deadline:
                self._end(job, "deadline")

    def _admit(self) -> None:
        """Give free slots to those who waited longest."""
        while self._free:
            with self._changed:
                job = next((one for one in self._waiting if not self._waits_for_leader(one)), None)
                if job is None:
                    return
                self._waiting.remove(job)
            job.slot = self._free.pop()
            self._reading.append(job)
            begins = len(job.ask.prompt) if job.ask.rounds is None else job.ask.rounds.begins
            for cache in self._caches(job):
                cache.truncate(0)
                cache.horizon = cache.sparse_from = begins
            try:
                job.begin(self._tokenizer, self.engine.context_length)
            except Exception as error:  # a constraint that cannot be made
                self._end(job, "failed", error)
                continue
            if not job.ask.embed and len(self._caches(job)) == 1:
                job.cached = job.read = self.prefixes.take(self._whole(job), self.together.caches[job.slot])
            if self._watch is not None:
                self._watch.began(len(job.ask.prompt), job.cached, time.monotonic() - job.came)
            if isinstance(job, RoundsJob) and not job.reading:
                self._rest(job)

    def _whole(self, job: Job) -> I32:
        """The part of its prompt that is read as prompts are, which is what is kept and taken over: where
        weights are sparse, what was written of an answer before is read as answers are."""
        rounds = job.ask.rounds
        return job.ask.prompt if rounds is None or not self.engine.tally else job.ask.prompt[: rounds.begins]

    def _caches(self, job: Job) -> list[Cache]:
        """The caches of its slot: the model's, and the draft model's where its drafts are judged by that."""
        assert job.slot is not None
        found = [self.together.caches[job.slot]]
        if self.drafts is not None and job.ask.rounds is not None and job.ask.rounds.rejection:
            found.append(self.drafts.caches[job.slot])
        return found

    def _waits_for_leader(self, job: Job) -> bool:
        """Its prompt is being read by another, whose keys and values it will take over."""
        leader = job.leader
        return leader is not None and self.prefixes.blocks > 0 and leader.stop is None and leader.reading

    def _parts(self) -> tuple[list[Job], list[Part]]:
        """What the next step reads: a token of each that writes, and parts of prompts in turn."""
        jobs, parts = list(self._writing), []
        for job in jobs:
            assert job.slot is not None
            parts.append(Part(job.slot, job.history[-1:]))
        due = 0
        for one in self._due():
            tokens = one.tokens_of_round
            if due and due + len(tokens) > ROWS_DUE:
                break
            assert one.slot is not None
            jobs.append(one)
            parts.append(Part(one.slot, tokens, "all"))
            due += len(tokens)
        left = self.together.rows - sum(len(part.tokens) for part in parts)
        if parts:
            left = min(left, CHUNK)
        for job in list(self._reading):
            if left <= 0:
                break
            assert job.slot is not None
            goal = len(job.ask.prompt) - isinstance(job, RoundsJob)
            chunk = job.ask.prompt[job.read : min(job.read + left, goal)]
            last = job.read + len(chunk) == len(job.ask.prompt)
            jobs.append(job)
            parts.append(Part(job.slot, chunk, "hidden" if job.ask.embed else "last" if last else "none"))
            left -= len(chunk)
        if len(self._reading) > 1:
            self._reading.rotate(-1)
        return jobs, parts

    def _has_read(self, job: Job, count: int, result: F32 | None) -> None:
        job.read += count
        if job.ask.embed and result is not None:
            job.add_hidden(result)
        if job.reading:
            return
        self._reading.remove(job)
        assert job.slot is not None
        self.prefixes.keep(job.ask.prompt, self.together.caches[job.slot])
        if job.ask.embed:
            self._end(job, "read")
            return
        self._writing.append(job)
        assert result is not None
        self._write(job, result)

    def _drafted(self, jobs: Sequence[Job], parts: Sequence[Part]) -> dict[int, F32 | None]:
        """The draft model reads what the model has read of texts verified by rejection: its logits, by
        slot."""
        if self.drafts is None:
            return {}
        theirs = [part for job, part in zip(jobs, parts, strict=True) if len(self._caches(job)) > 1]
        if not theirs:
            return {}
        return dict(zip((part.slot for part in theirs), self.drafts.step(theirs), strict=True))

    def _round(self, job: RoundsJob, part: Part, rows: F32 | None, drafted: F32 | None) -> None:
        """What a step has done for a text that others write."""
        if job.reading:
            job.read += len(part.tokens)
            if not job.reading:
                self.prefixes.keep(self._whole(job), self._caches(job)[0])
                self._rest(job)
            return
        assert rows is not None
        try:
            verdict = job.judge(rows, drafted)
        except Exception as error:  # this text alone
            self._end(job, "failed", error)
            return
        for cache in self._caches(job):
            cache.truncate(len(job.history) - 1)
        job.rounds.tell("verdict", verdict)

    def _rest(self, job: RoundsJob) -> None:
        if job in self._reading:
            self._reading.remove(job)
        with self._changed:
            self._resting.append(job)
        job.rounds.tell("read", None)

    def _write(self, job: Job, logits: F32) -> None:
        assert job.slot is not None
        cache = self.together.caches[job.slot]
        ends = self.engine.model.end_of_text if job.ask.limits.end is None else job.ask.limits.end
        try:
            drawn = job.draw(logits, ends, cache.length < cache.capacity)
        except Exception as error:  # this answer alone
            self._end(job, "failed", error)
            return
        if drawn:
            now = time.monotonic()
            if job.first_s is None:
                job.first_s = now - job.came
                if self._watch is not None:
                    self._watch.first_token(job.first_s)
            else:
                self._gaps.append(now - job.last)
            job.last = now
            if job.ask.tell:
                self._events.append((job, job.drawn[-1]))
        if job.stop is not None:
            self._end(job, job.stop)

    def _end(self, job: Job, reason: str, error: Exception | None = None) -> None:
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
        if job in self._reading:
            self._reading.remove(job)
        if job in self._writing:
            self._writing.remove(job)
        if job in self._resting:
            with self._changed:
                self._resting.remove(job)
        if job.slot is not None:
            cache, *others = self._caches(job)
            if error is None:  # an answer that was written sparse is no prompt, which is read whole
                self.prefixes.keep(self._whole(job) if self.engine.tally else job.history, cache)
            for one in (cache, *others):
                one.truncate(0)
            self._free.append(job.slot)
            job.slot = None
        job.error = error
        rest = job.rest() if error is None else None
        if rest is not None and job.ask.tell:
            self._events.append((job, rest))
        job.stop = reason if job.stop is None or error is not None else job.stop
        self._events.append((job, None))
        if self._watch is not None:
            self._watch.over(job)
        if isinstance(job, RoundsJob):
            job.rounds.tell("over", job.stop)

    def _end_all(self, reason: str, error: Exception | None = None, *, waiting: bool = True) -> None:
        with self._changed:
            resting = self._resting if waiting else self._due()
            jobs = [*self._reading, *self._writing, *resting, *(self._waiting if waiting else ())]
        for job in jobs:
            self._end(job, reason, error)

    def _tell(self) -> None:
        """Deliver the events of this turn."""
        if not self._events:
            return
        events, self._events = self._events, []
        try:
            if self._deliver is not None:
                self._deliver(events)
        finally:
            for job, drawn in events:
                if drawn is None:
                    job.ended.set()
