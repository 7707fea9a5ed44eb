"""A progress line for people: on standard error, only on a terminal, only for work longer than two
seconds."""

from __future__ import annotations

import contextlib
import contextvars
import sys
import time
from collections.abc import Iterator
from typing import Any

SHOW_AFTER_S = 2.0
_quiet: contextvars.ContextVar[bool] = contextvars.ContextVar("haversack_quiet", default=False)


class Progress:
    """Counts steps of one job; `advance` is cheap and safe to call often. Made by `progress()`."""

    def __init__(self, label: str, total: float | None, visible: bool) -> None:
        self.label = label
        self.total = total
        self.done = 0.0
        self._visible = visible
        self._started = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def advance(self, steps: float = 1.0, label: str | None = None) -> None:
        """`steps` more are done; `label` replaces what stands before the bar."""
        self.done += steps
        self.label = label or self.label
        if not self._visible:
            return
        if self._bar is None:
            if time.monotonic() - self._started < SHOW_AFTER_S:
                return
            self._show()
        self._bar.update(self._task, completed=self.done, total=self.total, description=self.label)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%") if self.total else TextColumn("{task.completed:g}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(self.label, total=self.total)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def progress(label: str, total: float | None = None) -> Iterator[Progress]:
    """A bar labelled `label` over `total` steps (None: unknown) while the block runs.

    Nothing is shown when standard error is no terminal, inside `quiet()`, or before two seconds have passed.

    >>> with progress("packing", total=2) as bar:
    ...     bar.advance()
    ...     bar.advance(label="packing: last block")
    """
    bar = Progress(label, total, visible=not _quiet.get() and sys.stderr.isatty())
    try:
        yield bar
    finally:
        bar._close()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress inside the block; commands use it under `--json`."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)
