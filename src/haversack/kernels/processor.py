"""Threads and instruction set of the kernels."""

from __future__ import annotations

import os

from haversack.core.errors import UserError
from haversack.kernels._native import native

MOST_THREADS = 64


def set_threads(n: int) -> None:
    """Let kernels use `n` threads (1..64), the calling one included, from the next call on.

    The threads start when a kernel first needs them. Without this call, as many as processors this process
    may use.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= MOST_THREADS:
        nearest = min(max(n, 1), MOST_THREADS) if isinstance(n, int) else 1
        raise UserError(
            f"threads={n} is not supported (allowed 1 to {MOST_THREADS}); use threads={nearest}.",
            field="threads",
            given=n,
            nearest=nearest,
        )
    module = native()
    if module is not None:
        module.set_threads(n)


def threads() -> int:
    """How many threads kernels use; 1 with the numpy twins."""
    module = native()
    return 1 if module is None else int(module.threads())


def isa() -> str:
    """The active instruction set: portable, avx2, avx512, neon, dotprod, or `twin`."""
    module = native()
    return "twin" if module is None else str(module.isa())


def usable_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
