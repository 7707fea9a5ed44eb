"""A server of this package in a thread of the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def running(server: Any) -> Iterator[None]:
    """Serve until the block ends; what the server raises is raised here."""
    ready = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.serve(lambda _: ready.set()))
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(30)
        if failed:
            raise failed[0]
        yield
    finally:
        with contextlib.suppress(RuntimeError):
            server.stop()
        thread.join(30)
    assert not failed, failed
