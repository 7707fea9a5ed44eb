"""Restores units by threads that share three queues: what the process that holds the key does all day.

Three kinds of threads: one reads, in order of the keys; one decrypts and allocates, block by block; others
do the same as long as the engine waits for a unit (the paper's helping threads: they stop at the end of a
block). None of them waits for a unit, so none can wait for itself. Rows of the embedding are restored by
the thread that answers requests, ahead of every queue.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from haversack.core.errors import UserError
from haversack.core.storage import DirectFile, aligned_buffer
from haversack.formats.sealed import BLOCK, TAG, Place, Vault, plain_span
from haversack.run.residency._regions import Region
from haversack.run.residency._restoration import Queues, Span, order_key, pieces
from haversack.run.residency._tickets import Piece, Ticket

PIECE = 16
"""Blocks read at once."""
BUFFERS = 4
"""Reads that wait for their decryption, or are under way."""
PATIENCE_S = 5.0
STALL_S = 60.0
"""A read that takes longer is given up."""

Tell = Callable[[dict[str, Any], int | None], None]
"""Sends the engine a message, and a region's descriptor with it."""


class Restorer:
    """Restores `units`, each (layer, bytes of its region, spans): the first `kept` into regions of their
    own, the others by turns into `slots` regions. `schedule`: see `_restoration.SCHEDULES`. `helpers`:
    threads that help while the engine waits. `times`: seconds of each stage, all threads together;
    `restored`: plain bytes.
    """

    def __init__(
        self,
        vault: Vault,
        file: DirectFile,
        units: Sequence[tuple[int, int, tuple[Span, ...]]],
        kept: int,
        slots: int,
        schedule: str,
        tell: Tell,
        fail: Callable[[BaseException], None],
        helpers: int,
    ) -> None:
        self._vault, self._file, self._units = vault, file, units
        self._tell, self._fail = tell, fail
        self._schedule = schedule
        self._kept = kept
        self._streamed = list(range(kept, len(units)))
        self._changed = threading.Condition()
        self._queues = Queues()
        self._tickets: dict[int, Ticket] = {}
        self._regions: dict[int, Region] = {}
        self._told: set[int] = set()
        self._numbers = 0
        self._slot_size = max((units[i][1] for i in self._streamed), default=0)
        self._slots: list[int] = [self._new_region(self._slot_size) for _ in range(slots)]
        self._scratch = -1
        self._next, self._pass = 0, 0
        self._awaited: int | None = None
        self._resting = False
        self._doomed = 0  # dead tickets that something still works on
        self._closed = False
        self._random = random.Random(0) if schedule == "random" else None
        self.times = {"allocate": 0.0, "read": 0.0, "decrypt": 0.0}
        self.restored = 0
        most = max((s.count for _, _, spans in units for s in spans), default=1)
        self._most = most if schedule == "whole-tensors" else PIECE
        self._preempts = schedule in ("pipelined", "random")
        size = self._most * (BLOCK + TAG)
        self._buffers = [aligned_buffer(size) for _ in range(2 if schedule == "whole-tensors" else BUFFERS)]
        self._ended = threading.Event()
        self._reading: dict[int, float] = {}  # thread -> when its read under way began
        jobs: list[tuple[Any, ...]] = [(self._read,), (self._work, False), *[(self._work, True)] * helpers]
        self._threads = [
            threading.Thread(target=self._guard, args=job, daemon=True)
            for job in [*(jobs if schedule != "at-once" else [(self._at_once,)]), (self._watch,)]
        ]
        for thread in self._threads:
            thread.start()

    # requests

    def begin(self) -> None:
        """Queue what is kept and not restored, then what passes through the slots."""
        with self._changed:
            self._resting = False
            for unit in range(self._kept):
                if unit not in self._tickets:
                    self._queue(unit)
            self._fill_slots()
            self._changed.notify_all()

    def want(self, unit: int, using: Sequence[int] = ()) -> None:
        """The engine waits for `unit`. One that is not on its way makes the slots start over from it, but for
        those that the engine is `using`.
        """
        with self._changed:
            if not 0 <= unit < len(self._units):
                raise ValueError(f"there is no unit {unit}")
            ticket = self._tickets.get(unit)
            if ticket is not None and ticket.ready:
                return
            if ticket is None and unit >= self._kept:
                dropped = [one for one in self._streamed if one in self._tickets and one not in using]
                for other in dropped:
                    self._drop(other)
                self._tell({"dropped": dropped}, None)
                self._next, self._pass = self._streamed.index(unit), self._pass + 1
            self._awaited = unit
        self.begin()

    def free(self, unit: int) -> None:
        """The engine has used `unit`, which passed through a slot."""
        with self._changed:
            if unit in self._tickets and unit >= self._kept:
                self._drop(unit)
                self._fill_slots()
                self._changed.notify_all()

    def rest(self, units: int) -> None:
        """Forget all but the first `units` kept ones, and wipe them, until something is wanted again."""
        with self._changed:
            self._resting = True
            for unit in [one for one in self._tickets if one >= units]:
                self._drop(unit)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or not self._doomed)
            self._tell({"rested": units}, None)

    def gather(self, unit: int | None, name: str, blocks: Sequence[int]) -> None:
        """Restore `blocks` of one tensor now: into its unit's region where that is kept, else one after the
        other into a region for that."""
        place = self._vault.places[name]
        if self._resting:
            self.begin()
        if unit is None:
            self._gather_aside(place, blocks)
            return
        with self._changed:
            ticket = self._tickets.get(unit) or self._queue(unit)
            if ticket.region is None:
                self._allocate_region(ticket)
            self._show(ticket.number)
            (span,) = ticket.spans
            todo = [block for block in blocks if ticket.states[0][block - span.first] != 2]
            region, ticket.flying = ticket.region, ticket.flying + 1
        assert region is not None
        for block, stored in zip(todo, self._stored(place, todo), strict=True):
            start, count = plain_span(block, place.nbytes)
            at = span.at + start - span.first * BLOCK
            self._open(place, block, stored, region.view[at : at + count])
            with self._changed:
                if ticket.states[0][block - span.first] == 0:
                    ticket.states[0][block - span.first] = 2
                    ticket.left -= 1
                    self.restored += count
        with self._changed:
            number = ticket.number
            self._land(ticket)
            self._tell({"gathered": len(blocks), "region": number}, None)

    def close(self) -> None:
        """End the threads and wipe every region."""
        self._ended.set()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(PATIENCE_S)  # storage that stalls keeps nobody from wiping
        for region in self._regions.values():
            region.wipe()

    # state, under the lock

    def _queue(self, unit: int) -> Ticket:
        layer, _, spans = self._units[unit]
        turn = self._pass if unit >= self._kept else 0
        key = (turn, order_key(layer, unit)) if self._random is None else (0, self._random.getrandbits(40))
        ticket = self._tickets[unit] = Ticket(unit, key, spans)
        self._queues.put("allocate", key, (ticket, None))
        return ticket

    def _fill_slots(self) -> None:
        """Queue the next units for the slots that are free."""
        while self._streamed and self._slots and not self._resting:
            waiting = [one for one in self._streamed if one not in self._tickets]
            if not waiting:
                return
            while self._streamed[self._next] in self._tickets:
                self._advance()
            ticket = self._queue(self._streamed[self._next])
            ticket.number = self._slots.pop()
            self._advance()

    def _advance(self) -> None:
        self._next += 1
        if self._next == len(self._streamed):
            self._next, self._pass = 0, self._pass + 1

    def _drop(self, unit: int) -> None:
        ticket = self._tickets.pop(unit)
        ticket.dead = True
        if ticket.flying:
            self._doomed += 1
        else:
            self._bury(ticket)

    def _bury(self, ticket: Ticket) -> None:
        """Give back the region of a dead ticket that nothing works on."""
        if ticket.unit >= self._kept:
            if ticket.number >= 0:
                self._slots.append(ticket.number)
        elif ticket.region is not None:
            region = self._regions.pop(ticket.number)
            self._told.discard(ticket.number)
            region.wipe()
            region.close()
        ticket.region, ticket.number = None, -1

    def _land(self, ticket: Ticket) -> None:
        """One task of `ticket` is done."""
        ticket.flying -= 1
        if ticket.dead:
            if ticket.flying == 0:
                self._doomed -= 1
                self._bury(ticket)
                self._fill_slots()
                self._changed.notify_all()
        elif ticket.left == 0 and ticket.flying == 0 and not ticket.ready:
            self._announce(ticket)

    def _announce(self, ticket: Ticket) -> None:
        assert ticket.region is not None
        ticket.ready = True
        if self._awaited == ticket.unit:
            self._awaited = None
        self._show(ticket.number)
        self._tell({"ready": ticket.unit, "region": ticket.number}, None)

    def _new_region(self, size: int) -> int:
        self._numbers += 1
        self._regions[self._numbers] = Region(size)
        return self._numbers

    def _show(self, number: int) -> None:
        """Hand a region to the engine, once."""
        if number not in self._told:
            self._told.add(number)
            self._tell({"region": number}, self._regions[number].descriptor)

    def _allocate_region(self, ticket: Ticket) -> None:
        if ticket.number < 0:
            ticket.number = self._new_region(self._units[ticket.unit][1])
        ticket.region = self._regions[ticket.number]

    # threads

    def _guard(self, run: Any, *arguments: Any) -> None:
        try:
            run(*arguments)
        except BaseException as error:
            with self._changed:
                self._closed = True
                self._changed.notify_all()
                self._fail(error)

    def _take(self, *stages: str) -> tuple[str, Any, Any] | None:
        """The next task of a ticket that is still wanted, counted as flying."""
        while (found := self._queues.take(*stages)) is not None:
            ticket = found[2][0]
            if not ticket.dead:
                ticket.flying += 1
                return found
            if found[0] == "decrypt":
                self._settle(found[2][1])
        return None

    def _settle(self, piece: Piece, region: Region | None = None) -> None:
        """Nothing more is done with what was read of `piece`: its buffer is free, its place in `region`
        too.
        """
        if region is not None:
            region.forget(piece.to, piece.nbytes)
        if piece.buffer is not None:
            self._buffers.append(piece.buffer)
            piece.buffer = None
            self._changed.notify_all()
        piece.data = None

    def _work(self, helping: bool) -> None:
        while True:
            with self._changed:
                found = None
                while found is None:
                    if self._closed:
                        return
                    if not helping or self._awaited is not None:
                        found = self._take("decrypt", "allocate")
                    if found is None:
                        self._changed.wait()
                stage, key, (ticket, piece) = found
                if stage == "decrypt":
                    piece.claim(ticket)
            if stage == "allocate":
                self._allocate(ticket)
            else:
                self._decrypt(ticket, piece, key)

    def _allocate(self, ticket: Ticket) -> None:
        began = time.perf_counter()
        with self._changed:
            if ticket.region is None:
                self._allocate_region(ticket)
            region = ticket.region
        assert region is not None
        region.allocate()
        with self._changed:
            self.times["allocate"] += time.perf_counter() - began
            for index, span in enumerate(ticket.spans):
                for first, count in pieces(span, self._most):
                    piece = Piece(ticket, index, first, count)
                    self._queues.put("read", (ticket.key, index, first), (ticket, piece))
            self._land(ticket)
            self._changed.notify_all()

    def _read(self) -> None:
        while True:
            with self._changed:
                found = None
                while found is None:
                    if self._closed:
                        return
                    if self._buffers:
                        found = self._take("read")
                    if found is None:
                        self._changed.wait()
                    elif found[2][1].restored(found[2][0]):  # rows of it came first
                        self._land(found[2][0])
                        found = None
                key, (ticket, piece) = found[1], found[2]
                piece.buffer = self._buffers.pop()
            self._fetch(ticket, piece)
            with self._changed:
                self._queues.put("decrypt", key, (ticket, piece))
                self._land(ticket)
                self._changed.notify_all()

    def _fetch(self, ticket: Ticket, piece: Piece) -> None:
        """Read a piece, and map where it goes."""
        place, region = self._vault.places[ticket.spans[piece.span].name], ticket.region
        assert region is not None
        offset, count = place.stored(piece.first, piece.count)
        began = time.perf_counter()
        with self._under_way():
            piece.data = self._file.read(offset, count, piece.buffer)
        read = time.perf_counter()
        region.touch(piece.to, piece.nbytes)
        self.times["read"] += read - began
        self.times["allocate"] += time.perf_counter() - read

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """A read that `_watch` gives up when it takes too long."""
        thread = threading.get_ident()
        self._reading[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._reading[thread]

    def _watch(self) -> None:
        """Storage that stalls stops a thread for good, so another tells the engine."""
        while not self._ended.wait(STALL_S / 10):
            begun = min(self._reading.copy().values(), default=time.monotonic())
            if time.monotonic() - begun > STALL_S:
                raise UserError(
                    f"{self._vault.path} gave nothing for {STALL_S:g} s, so reading it was given up.",
                    field="pack",
                    given=str(self._vault.path),
                )

    def _decrypt(self, ticket: Ticket, piece: Piece, key: Any) -> None:
        """Decrypt what is claimed of a piece, block by block; what is left when something sooner waits goes
        back to the queue.
        """
        span, region = ticket.spans[piece.span], ticket.region
        assert region is not None
        place, done = self._vault.places[span.name], []
        began = time.perf_counter()
        while piece.claimed:
            block = piece.claimed.pop()
            start, count = plain_span(block, place.nbytes)
            to, at = span.at + start - span.first * BLOCK, (block - piece.first) * (BLOCK + TAG)
            self._open(place, block, piece.data[at : at + count + TAG], region.view[to : to + count])
            done.append((block - span.first, count))
            if self._preempts and self._queues.sooner("decrypt", key):
                break
        took = time.perf_counter() - began
        with self._changed:
            self.times["decrypt"] += took
            ticket.left -= len(done)
            for index, count in done:
                ticket.states[piece.span][index] = 2
                self.restored += count
            if piece.claimed:
                self._queues.put("decrypt", key, (ticket, piece))
            else:
                self._settle(piece, region)
            self._land(ticket)

    def _open(self, place: Place, block: int, stored: Any, plain: memoryview) -> None:
        with plain:
            self._vault.open_block(place, block, stored, plain)

    def _at_once(self) -> None:
        """The paper's strawman: one thread allocates everything, then reads and decrypts piece after piece,
        no stage beside another, and nothing is announced before everything is restored."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._queues))
                if self._closed:
                    return
                tickets = []
                while (found := self._take("allocate")) is not None:
                    tickets.append(found[2][0])
            began = time.perf_counter()
            with self._changed:
                for ticket in tickets:
                    self._allocate_region(ticket)
            for ticket in tickets:
                assert ticket.region is not None
                ticket.region.allocate()
            self.times["allocate"] += time.perf_counter() - began
            for ticket in tickets:
                for index, span in enumerate(ticket.spans):
                    for first, count in pieces(span, self._most):
                        piece = Piece(ticket, index, first, count)
                        piece.buffer = self._buffers[0]
                        self._fetch(ticket, piece)
                        piece.buffer = None
                        with self._changed:
                            ticket.flying += 1  # beside the one that holds its announcement back
                            piece.claim(ticket)
                        self._decrypt(ticket, piece, ticket.key)
            with self._changed:
                for ticket in tickets:
                    self._land(ticket)

    # rows

    def _stored(self, place: Place, blocks: Sequence[int]) -> list[memoryview]:
        with self._under_way():
            return self._file.read_many([place.stored(block, 1) for block in blocks])

    def _gather_aside(self, place: Place, blocks: Sequence[int]) -> None:
        with self._changed:
            size = len(blocks) * BLOCK
            if self._scratch < 0 or self._regions[self._scratch].size < size:
                if self._scratch >= 0:
                    old = self._regions.pop(self._scratch)
                    old.wipe()
                    old.close()
                self._scratch = self._new_region(size)
            self._show(self._scratch)
            region = self._regions[self._scratch]
        for at, (block, stored) in enumerate(zip(blocks, self._stored(place, blocks), strict=True)):
            _, count = plain_span(block, place.nbytes)
            self._open(place, block, stored, region.view[at * BLOCK : at * BLOCK + count])
            self.restored += count
        with self._changed:
            region.forget(0, region.size)
            self._tell({"gathered": len(blocks), "region": self._scratch}, None)
