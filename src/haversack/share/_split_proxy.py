"""A link between two real sockets: what passes waits as long as core/link.py says it takes.

What is read at once is one message of the link: it queues behind what was sent before, takes its bytes over
the rate of the moment, and half a round trip; an outage holds everything. Downlink bytes pass a link of their
own with the same trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence

from haversack.core.errors import UserError
from haversack.core.link import Link, Segment

AT_ONCE = 1 << 16


class ThrottledProxy:
    """Listens on a free port of this machine and hands on to `host`:`port` as slowly as `trace`; a context
    manager. `port` is where to connect."""

    def __init__(self, trace: Sequence[Segment], host: str, port: int, seed: int = 0) -> None:
        self.trace, self.seed = tuple(trace), seed
        self._goal = (host, port)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="haversack-link", daemon=True)
        self.port = 0
        self.uplink_bytes = 0
        Link(self.trace)  # refuses a trace in which nothing ever passes

    def __enter__(self) -> ThrottledProxy:
        self._thread.start()
        if not self._ready.wait(10) or not self.port:
            raise UserError("the emulated link cannot listen on this machine.", field="link")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._ready.set()
            self._loop.close()

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        self._up, self._down = Link(self.trace, self.seed), Link(self.trace, self.seed + 1)
        self._began = self._loop.time()
        self._tasks: set[asyncio.Task[None]] = set()
        served = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = served.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        served.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        others: asyncio.StreamWriter | None = None
        try:
            back, others = await asyncio.open_connection(*self._goal)
            await asyncio.gather(self._pass(reader, others, self._up), self._pass(back, writer, self._down))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in (writer, others):
                if each is not None:
                    with contextlib.suppress(OSError):
                        each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        while data := await reader.read(AT_ONCE):
            now = self._loop.time() - self._began
            await asyncio.sleep(link.transfer(len(data), now).arrived_at - now)
            if link is self._up:
                self.uplink_bytes += len(data)
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
