"""A radio channel between real programs: a TCP proxy that delivers every piece when an emulated link would.

    with Channel(trace, to=("127.0.0.1", 8000)) as channel:
        ...  # connect to channel.address instead

Both directions follow one trace (core/link.py), each with a queue of its own, shared by all connections as a
radio is. Loss costs time, as with a reliable protocol; order is kept. While the rate is 0 nothing passes, and
what was sent waits; `cut` breaks all connections at once, as when a radio is switched off.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Self

from haversack.core.link import Link, Segment

PIECE = 16 * 1024
HEAD_BYTES = 40
"""Of IP and TCP around a piece, for each packet's worth of it."""
PACKET = 1448
PIECES = 64
"""That wait in one direction of a connection before the sender has to."""


class Channel:
    """A proxy to the address `to`. A context manager; `address` is where to connect, `scale` as in `Link`."""

    def __init__(
        self, trace: Sequence[Segment], to: tuple[str, int], *, seed: int = 0, scale: float = 1.0
    ) -> None:
        self.up, self.down = Link(trace, seed), Link(trace, seed + 1)
        self.scale = scale
        self.pieces = 0
        self._to = to
        self._ready = threading.Event()
        self._failed: BaseException | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="haversack-channel", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        if self._failed is not None:
            raise self._failed
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def cut(self) -> None:
        """Break all connections now, without a word to either side's program."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failed = error
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address: tuple[str, int] = server.sockets[0].getsockname()[:2]
        self._began = time.monotonic()
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            server.close()
            self._cut()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._to)
        except OSError:
            writer.transport.abort()
            return
        writers = {writer, far_writer}
        self._open |= writers
        pumps = [
            asyncio.create_task(self._pump(reader, far_writer, self.up)),
            asyncio.create_task(self._pump(far_reader, writer, self.down)),
        ]
        self._tasks.update(pumps)
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
                self._tasks.discard(pump)
            for one in writers:
                one.transport.abort() if one.transport.is_closing() else one.close()
            self._open -= writers

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        """One direction of one connection; ends when its sender does, or either side broke."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)
        delivering = asyncio.create_task(self._deliver(waiting, writer))
        self._tasks.add(delivering)
        try:
            due = 0.0
            while not delivering.done():
                try:
                    piece = await reader.read(PIECE)
                except OSError:
                    writer.transport.abort()
                    return
                packets = max(1, -(-len(piece) // PACKET))
                at = (time.monotonic() - self._began) / self.scale
                arrived = link.transfer(len(piece) + HEAD_BYTES * packets, at).arrived_at
                due = max(due, self._began + arrived * self.scale)  # a shorter round trip overtakes nobody
                await waiting.put((due, piece))
                self.pieces += 1
                if not piece:
                    await delivering
                    return
        finally:
            delivering.cancel()
            self._tasks.discard(delivering)

    async def _deliver(
        self, waiting: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        while True:
            due, piece = await waiting.get()
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                if not piece:
                    writer.write_eof()
                    return
                writer.write(piece)
                await writer.drain()
            except (OSError, RuntimeError):
                return
