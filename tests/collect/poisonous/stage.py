"""A stage for tests: a clip of session `poison` ends its process as a broken decoder does, one of `hang`
never ends, one of `raise` raises."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from haversack.collect._stages import Clip, Outcome, Stage


def run(clip: Clip, out: Path) -> Outcome:
    if clip.manifest.session == "poison":
        ctypes.string_at(0)
    if clip.manifest.session == "raise":
        raise RuntimeError("this clip is not to be read")
    while clip.manifest.session == "hang":
        time.sleep(1)
    (out / "seen.txt").write_text(clip.manifest.clip_uuid)
    return Outcome({"frames": clip.manifest.n_frames})


STAGE = Stage("poisonous", "1", run)
