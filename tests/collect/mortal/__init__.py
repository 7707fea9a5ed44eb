"""Stages whose worker is killed at their first try: before they wrote, midway, when all is written."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from haversack.collect._stages import Clip, Outcome

PARTS = 4


def dying(name: str, at: int) -> Callable[[Clip, Path], Outcome]:
    """A stage's work that ends its process once for each clip, when `at` of its files are written."""

    def run(clip: Clip, out: Path) -> Outcome:
        assert clip.store is not None and not list(out.iterdir())
        mark = clip.store.parent / f"died-{name}-{clip.manifest.clip_uuid}"
        for part in range(PARTS + 1):
            if part == at and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if part < PARTS:
                (out / f"{part}.txt").write_text(name)
        return Outcome({"parts": PARTS})

    return run
