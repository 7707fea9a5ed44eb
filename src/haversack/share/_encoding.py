"""Embeddings from an encoder: requests that wait pass the model together.

An encoder's vectors do not depend on the texts beside them, so what passes together is nobody's concern. One
thread encodes; while it does, requests wait and then go with one another, first come first served.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.run._encoder import Encoder
from haversack.share._errors import ApiError, busy, stopping

F32 = npt.NDArray[np.float32]
TEXTS_AT_ONCE = 64


@dataclass
class _Wish:
    texts: list[Any]
    result: asyncio.Future[F32]


class Encoding:
    """`encoder` behind a queue of at most `queue` requests, on the running event loop."""

    def __init__(self, encoder: Encoder, queue: int) -> None:
        self.encoder, self.queue = encoder, queue
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Wish] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self.running = 0
        self._thread = threading.Thread(target=self._run, name="haversack-encoding", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Requests that have not begun."""
        return len(self._waiting)

    def tokens(self, text: str | Sequence[int], index: int) -> Any:
        """A text, or its tokens, as the encoder takes it. Raises ApiError for what it does not take."""
        try:
            if isinstance(text, str):
                return self.encoder.tokens([text])[0]
            return self.encoder.checked(text, index=index)
        except UserError as error:
            raise ApiError(400, str(error), param="input", code="invalid_value") from error

    async def embed(self, texts: list[Any]) -> F32:
        """One vector a text, f32 [texts, width]. Raises ApiError 429 when the queue is full."""
        with self._changed:
            if self._ended:
                raise stopping()
            if len(self._waiting) >= self.queue:
                raise busy(f"the queue is full: {len(self._waiting)} requests wait already.")
            wish = _Wish(texts, self._loop.create_future())
            self._waiting.append(wish)
            self._changed.notify()
        return await wish.result

    def close(self) -> None:
        """End the thread; who waits is told."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join()
        for wish in self._waiting:
            self._answer(wish, None, stopping())

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                wishes = [self._waiting.popleft()]
                count = len(wishes[0].texts)
                while self._waiting and count + len(self._waiting[0].texts) <= TEXTS_AT_ONCE:
                    wishes.append(self._waiting.popleft())
                    count += len(wishes[-1].texts)
                wishes = [wish for wish in wishes if not wish.result.cancelled()]
                self.running = len(wishes)
            try:
                vectors = self.encoder.embed_tokens([text for wish in wishes for text in wish.texts])
            except Exception as error:
                for wish in wishes:
                    self._answer(wish, None, error)
            else:
                at = 0
                for wish in wishes:
                    self._answer(wish, vectors[at : at + len(wish.texts)], None)
                    at += len(wish.texts)
            self.running = 0

    def _answer(self, wish: _Wish, vectors: F32 | None, error: Exception | None) -> None:
        def settle() -> None:
            if wish.result.done():
                return
            if error is not None:
                wish.result.set_exception(error)
            elif vectors is not None:
                wish.result.set_result(vectors)

        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(settle)
