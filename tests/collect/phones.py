"""The phone app for tests: built or not, a browser with a fake camera, a rendered day for it to see."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench.aoe._world import HEIGHT, WIDTH, Day, Stretch
from haversack.collect._phone import PhoneApp
from haversack.core.index import source_root

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NODE = shutil.which("node")
NO_NODE = "there is no Node; on Debian: apt install nodejs npm"
NO_CHROMIUM = "there is no chromium; on Debian: apt install chromium"
NOT_BUILT = "the phone app is not built; run make app"
ROOT = source_root()
APP = None if ROOT is None else ROOT / "app"
BUILT = PhoneApp().built
INSTALLED = APP is not None and (APP / "node_modules").is_dir()
FPS = 10
CELLS, CELL = 12, 16
"""A frame's number stands in its first rows: black and white cells, the least bit first."""
POLICY = """
[rates]
active_hz = 5
[trigger]
stop_s = 1.5
pre_s = 1.0
post_s = 0.5
merge_s = 0.5
[privacy]
blur_hz = 0
"""
"""Shorter times than a phone's, so that two clips fit into a test; rendered faces are no photographs."""
FACE = (slice(10, 97), slice(200, 293))
"""Rows and columns of the photograph in a day's pictures."""


def short_day(seed: int = 41) -> Day:
    """Eighteen seconds: sitting, work, sitting, work, sitting."""
    day = Day(seed, 60.0)
    edges = [0.0, 2.0, 6.0, 10.0, 14.0, 18.0]
    kinds = ["sit", "work", "sit", "work", "sit"]
    day.stretches = [
        Stretch(kind, begin, end, 2 * at + 11)
        for at, (kind, begin, end) in enumerate(zip(kinds, edges[:-1], edges[1:], strict=True))
    ]
    day.seconds = edges[-1]
    return day


def numbered(picture: Any, number: int) -> Any:
    """The picture with its number in the first rows."""
    for bit in range(CELLS):
        picture[:8, bit * CELL : (bit + 1) * CELL] = 235 if number >> bit & 1 else 20
    return picture


def number_of(picture: Any) -> int:
    """What `numbered` wrote."""
    grey = picture[2:6, : CELLS * CELL].mean(axis=(0, 2)).reshape(CELLS, CELL)[:, 4:-4].mean(axis=1)
    return sum(1 << bit for bit in range(CELLS) if grey[bit] > 128)


def portrait() -> Any:
    """The face of an astronaut (NASA, in the public domain, in scikit-image), to fit into FACE."""
    from PIL import Image
    from skimage import data

    rows, columns = FACE
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(
        Image.fromarray(data.astronaut()[60:200, 150:300]).resize(size, Image.Resampling.LANCZOS)
    )


def render(day: Day, path: Path, face: Any = None) -> None:
    """The day at 10 frames a second, beside somebody's face if one is given, as YUV4MPEG, which Chromium's
    fake camera plays."""
    import av

    with path.open("wb") as file:
        file.write(f"YUV4MPEG2 W{WIDTH} H{HEIGHT} F{FPS}:1 Ip A1:1 C420jpeg\n".encode())
        for at in range(round(day.seconds * FPS)):
            picture = numbered(day.picture(at / FPS), at)
            if face is not None:
                picture[FACE] = face
            planes = av.VideoFrame.from_ndarray(picture, format="rgb24").to_ndarray(format="yuv420p")
            file.write(b"FRAME\n" + np.ascontiguousarray(planes).tobytes())


@contextlib.contextmanager
def browser(
    profile: Path, camera: Path | None = None, *, allow: bool = True, graphics: bool = False
) -> Iterator[Any]:
    """A phone-sized Chromium with a profile that outlives it, whose camera plays a file; `graphics` is
    WebGL in software."""
    from playwright.sync_api import sync_playwright

    args = ["--no-sandbox", "--use-fake-device-for-media-stream"]
    if graphics:
        args += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    if allow:
        args.append("--use-fake-ui-for-media-stream")
    if camera is not None:
        args.append(f"--use-file-for-fake-video-capture={camera}")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(profile),
            executable_path=CHROMIUM,
            args=args,
            viewport={"width": 390, "height": 760},
        )
        try:
            yield context
        finally:
            with contextlib.suppress(Exception):
                context.close()


def node(*words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Node in the app's folder."""
    assert NODE is not None and APP is not None
    return subprocess.run([NODE, *words], cwd=APP, capture_output=True, text=True, timeout=240, **more)
