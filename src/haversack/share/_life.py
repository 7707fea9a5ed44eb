"""How a server of this room lives: it answers until a signal or `stop`, lets what runs finish, and ends."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from haversack.share._http import Limits
    from haversack.share._waiting import Writing

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Life:
    """One server's life; `asked` is the signal that asked it to stop."""

    def __init__(self) -> None:
        self.asked: int | None = None

    def run(self, serving: Coroutine[Any, Any, None], close: Callable[[], None]) -> None:
        """Run `serving` to its end, then `close`. Only from the main thread. Raises KeyboardInterrupt after
        SIGINT, when what ran has been ended properly."""
        before = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            asyncio.run(serving)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            close()
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt

    def begin(self) -> None:
        """It lives on the running event loop from now on."""
        self._loop, self._stop, self._hurry = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()

    def stop(self) -> None:
        """Ask it to stop, from any thread."""
        self._loop.call_soon_threadsafe(self._stop.set)

    async def stand(
        self,
        http: Any,
        listening: socket.socket,
        writing: set[Writing],
        limits: Limits,
        *,
        ready: Callable[[], None],
        drain: Callable[[asyncio.Event], Awaitable[None]],
        signals: bool,
    ) -> None:
        """Answer on `listening` until `stop` or a signal, then `drain`, which a second signal hurries."""
        from haversack.share._http import cut_slow_readers

        if signals:
            for number in SIGNALS:
                self._loop.add_signal_handler(number, self._asked, number)
        serving = asyncio.create_task(http.serve(sockets=[listening]))
        cutting = asyncio.create_task(cut_slow_readers(writing, limits))
        while not http.started and not serving.done():
            await asyncio.sleep(0.005)
        ready()
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({stopping, serving}, return_when=asyncio.FIRST_COMPLETED)
        await drain(self._hurry)
        http.should_exit = True
        await serving
        cutting.cancel()
        stopping.cancel()

    def _asked(self, number: int) -> None:
        if self._stop.is_set():
            self._hurry.set()
        self.asked = number
        self._stop.set()
