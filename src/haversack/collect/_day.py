"""S6, the budget of a day: which clips are worth their bytes, when the disk or the plan holds no more.

The value of a clip is its mean evidence times its novelty; novelty is 1 minus the largest cosine to the
thumbnails of the last 500 clips. Over the budget the clips with the least value a byte go.
"""

from __future__ import annotations

import shutil
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
THUMBNAILS = 500
DAY_NS = 86_400 * 1_000_000_000


@dataclass(frozen=True)
class Kept:
    """A clip in the spool: its folder, day, bytes, value, and when it was taken (ns of the agent's clock)."""

    path: Path
    day: int
    nbytes: int
    value: float
    begin_ns: int
    end_ns: int


def thumbnail(grey: F32) -> F32:
    """A unit vector [64] of an 8 x 8 shrinking with its mean taken away."""
    rows = np.array_split(np.arange(grey.shape[0]), 8)
    columns = np.array_split(np.arange(grey.shape[1]), 8)
    small = np.array([[grey[np.ix_(row, column)].mean() for column in columns] for row in rows], np.float32)
    small -= small.mean()
    length = float(np.linalg.norm(small))
    return np.asarray((small / length if length > 1e-6 else small).ravel(), np.float32)


class Day:
    """Counts clips against `day_bytes` and removes the least worthy."""

    def __init__(self, day_bytes: float) -> None:
        self.day_bytes = day_bytes
        self.kept: list[Kept] = []
        self._seen: deque[F32] = deque(maxlen=THUMBNAILS)

    def novelty(self, small: F32) -> float:
        """1 minus the largest cosine to what was seen; 1 for the first. It is seen from now on."""
        closest = max((float(small @ other) for other in self._seen), default=0.0)
        self._seen.append(small)
        return float(np.clip(1.0 - closest, 0.0, 1.0))

    def add(self, clip: Kept) -> list[Kept]:
        """Enter a clip; those that went for it (it itself, when it is the least worthy)."""
        self.kept = [each for each in self.kept if each.day >= clip.day - 1 and each.path.exists()]
        self.kept.append(clip)
        removed = []
        today = [each for each in self.kept if each.day == clip.day]
        total = sum(each.nbytes for each in today)
        for each in sorted(today, key=lambda one: one.value / max(1, one.nbytes)):
            if total <= self.day_bytes:
                break
            total -= each.nbytes
            self.kept.remove(each)
            remove_clip(each.path)
            removed.append(each)
        return removed

    def forget(self, since_ns: int) -> list[Kept]:
        """Remove clips that reach beyond `since_ns`."""
        removed = [each for each in self.kept if each.end_ns >= since_ns and each.path.exists()]
        self.kept = [each for each in self.kept if each not in removed]
        for each in removed:
            remove_clip(each.path)
        return removed


def remove_clip(path: Path) -> None:
    """Remove a clip's folder; its name goes first."""
    if path.is_dir():
        aside = path.with_name(f"{path.name}.partial-0-gone")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
