"""Clips of the room in a store: rendered, spoiled where a bench asks for it, uploaded as devices do."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench.aoe._scene import Scene
from haversack.bench.aoe._world import FPS

U8 = npt.NDArray[np.uint8]
SPOILED = ("blur", "frozen", "dark")


@dataclass(frozen=True)
class Planted:
    """A clip in a store: its id, its scene, and what is wrong with it (empty: nothing)."""

    clip: str
    scene: Scene
    wrong: str = ""


def pictures(scene: Scene, wrong: str = "") -> Iterator[tuple[int, U8]]:
    """The frames of a scene, spoiled: `blur` out of focus, `frozen` one picture all the time, `dark` a
    covered lens."""
    first: U8 | None = None
    for t_ns, picture in scene.frames() if wrong != "frozen" else _frozen(scene):
        if wrong == "blur":
            picture = blurred(picture, 9)
        elif wrong == "dark":
            picture = (picture // 12).astype(np.uint8)
        first = picture if first is None else first
        yield t_ns, picture


def _frozen(scene: Scene) -> Iterator[tuple[int, U8]]:
    picture = scene.picture(0.5)
    for t_ns in scene.times().tolist():
        yield t_ns, picture


def blurred(picture: U8, side: int) -> U8:
    """Means over squares."""
    wide = np.pad(picture.astype(np.float64), ((side, side), (side, side), (0, 0)), mode="edge")
    for axis in (0, 1):
        total = np.cumsum(wide, axis)
        lead = [slice(None)] * 3
        lag = [slice(None)] * 3
        lead[axis], lag[axis] = slice(side, None), slice(None, -side)
        wide = (total[tuple(lead)] - total[tuple(lag)]) / side
    off = side // 2 + side % 2
    height, width = picture.shape[:2]
    return np.clip(wide[off : off + height, off : off + width], 0, 255).astype(np.uint8)


class Shelf:
    """A store under `root` that takes clips of scenes; contributors enrol as they come."""

    def __init__(self, root: Path) -> None:
        from haversack.collect.store import Store, StoreLimits

        self.root = root
        self.store = Store(root, StoreLimits(keep_free_bytes=0))
        self._owners: dict[str, Any] = {}

    def _owner(self, contributor: str, model: str) -> Any:
        from haversack.collect._devices import device_of, enrol, invite

        key = f"{contributor}/{model}"
        if key not in self._owners:
            code = invite(self.store.books, contributor, policy_version="1", retention_days=365)
            install = f"an-install-of-{uuid.uuid4()}"
            token = enrol(self.store.books, code, install, model, "linux")["token"]
            self._owners[key] = device_of(self.store.books, f"Bearer {token}", install)
        return self._owners[key]

    def put(
        self, scene: Scene, *, contributor: str = "c-bench", wrong: str = "", crf: int = 18, imu: bool = True
    ) -> Planted:
        """Render, spoil, bundle and upload a clip."""
        from haversack.collect._bundle_writer import ClipInfo, write_bundle
        from haversack.collect._video import write_video
        from haversack.collect.bundle import Bundle, Consent, DeviceRecord

        model = f"phone-{scene.phone}"
        owner = self._owner(contributor, model)
        consent = Consent(contributor_pseudonym=contributor, policy_version="1", retention_days=365)
        clip = ClipInfo(
            device=DeviceRecord(id=owner.id, model=model, os="linux", lens_id="0"),
            session="bench",
            consent=consent,
            fps_nominal=float(FPS),
            t0_wall_ns=time.time_ns(),
        )
        times, (imu_t, samples) = scene.times() + 10**9, scene.imu()
        frames = ((t_ns + 10**9, picture) for t_ns, picture in pictures(scene, wrong))
        folder = write_bundle(
            self.root.parent / "spool",
            clip,
            lambda path: write_video(path, frames, float(FPS), crf=crf),
            times,
            samples if imu else None,
            imu_t + 10**9 if imu else None,
        )
        begun = self.store.begin(owner, (folder / "manifest.json").read_bytes())
        for file in Bundle.open(folder).manifest.files:
            if file.sha256 in begun.missing:
                self.store.append(owner, begun.upload, file.sha256, 0, (folder / file.name).read_bytes())
        manifest = self.store.complete(owner, begun.upload)
        return Planted(manifest.clip_uuid, scene, wrong)

    def close(self) -> None:
        """Close the books."""
        self.store.books.close()
