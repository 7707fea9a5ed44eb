"""The ring buffer: encoded video on the disk, one small file for each group of pictures, the oldest dropped.

A clip is cut out by copying whole groups, without decoding: it begins with the key frame at or before its
begin. Nothing leaves the ring unless a clip is cut.
"""

from __future__ import annotations

import contextlib
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._extra import need
from haversack.collect._video import TICKS, encoder, ticks

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
SECOND = 1_000_000_000


@dataclass
class Group:
    """One group of pictures: its file and the times of its frames."""

    path: Path
    t_ns: list[int] = field(default_factory=list)


class Ring:
    """Encodes frames as they come into `folder`; groups of `group_s` seconds. The folder's old groups are
    removed: they belong to a run that is over."""

    def __init__(self, folder: Path, fps: float, *, crf: int = 23, group_s: float = 1.0) -> None:
        self._av = need("av", "haversack collect edge")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("group-*.mp4"):
            old.unlink()
        self.folder, self.fps, self.crf, self.group_s = folder, fps, crf, group_s
        self.groups: deque[Group] = deque()
        self._open: tuple[Any, Any, Group] | None = None
        self._number = 0
        self.encoded_frames = 0

    def push(self, t_ns: int, picture: U8) -> None:
        """Encode one frame, RGB u8 [height, width, 3]."""
        if self._open is not None:
            begun = self._open[2].t_ns[0]
            if t_ns - begun >= round((self.group_s - 0.5 / self.fps) * SECOND):
                self.close_group()
        if self._open is None:
            self._begin(picture)
        assert self._open is not None
        container, stream, group = self._open
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        group.t_ns.append(t_ns)
        frame.pts, frame.time_base = ticks(t_ns - group.t_ns[0]), Fraction(1, TICKS)
        container.mux(stream.encode(frame))
        self.encoded_frames += 1

    def _begin(self, picture: U8) -> None:
        group = Group(self.folder / f"group-{self._number:06d}.mp4")
        self._number += 1
        container = self._av.open(str(group.path), "w", format="mp4")
        height, width = picture.shape[:2]
        # Groups end when the clock says so; the encoder itself must not begin another within one.
        stream = encoder(container, width, height, self.fps, crf=self.crf, group_s=10 * self.group_s)
        self._open = (container, stream, group)
        self.groups.append(group)

    def close_group(self) -> None:
        """End the group that is open, if any: it can be cut from now on."""
        if self._open is None:
            return
        container, stream, _ = self._open
        self._open = None
        container.mux(stream.encode())
        container.close()

    def drop_before(self, t_ns: int) -> None:
        """Remove groups that end before `t_ns`."""
        while len(self.groups) > 1 and self.groups[1].t_ns and self.groups[1].t_ns[0] <= t_ns:
            self.groups.popleft().path.unlink(missing_ok=True)

    def drop_all(self) -> None:
        """Remove everything."""
        with contextlib.suppress(Exception):
            self.close_group()
        while self.groups:
            self.groups.popleft().path.unlink(missing_ok=True)

    def chosen(self, begin_ns: int, end_ns: int) -> list[Group]:
        """The groups that hold frames of a time."""
        found = [
            group
            for group in self.groups
            if group.t_ns and group.t_ns[-1] >= begin_ns and group.t_ns[0] <= end_ns
        ]
        if found and self._open is not None and found[-1] is self._open[2]:
            self.close_group()
        return found

    def cut(self, groups: list[Group], path: Path) -> I64:
        """Copy whole groups into the video `path`; the times of its frames."""
        av = self._av
        begin = groups[0].t_ns[0]
        with av.open(str(path), "w", format="mp4") as out:
            stream = None
            for group in groups:
                with av.open(str(group.path), "r", format="mp4") as source:
                    if stream is None:
                        stream = out.add_stream_from_template(source.streams.video[0])
                        stream.time_base = Fraction(1, TICKS)
                    at = 0
                    for packet in source.demux(source.streams.video[0]):
                        if packet.size == 0:
                            continue
                        when = ticks(group.t_ns[at] - begin)
                        at += 1
                        packet.pts = packet.dts = when
                        packet.time_base = Fraction(1, TICKS)
                        packet.stream = stream
                        out.mux(packet)
        return np.asarray([t for group in groups for t in group.t_ns], np.int64)
