"""Video through PyAV: written with true timestamps, looked at without decoding, decoded under limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.collect._extra import need
from haversack.collect.bundle import FRAMES_MOST, PIXELS_MOST, SIDE_MOST, BundleError

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
TICKS = 90_000
"""Of a second, in the files that we write."""
CODECS = ("h264", "hevc", "av1")


@dataclass(frozen=True)
class Look:
    """A video's packets: presentation times in ns from the first, in order; which begin a group of
    pictures, in the order of the file; and what its header says."""

    codec: str
    width: int
    height: int
    t_ns: I64
    key: npt.NDArray[np.bool_]


def encoder(
    container: Any, width: int, height: int, fps: float, *, crf: int = 23, group_s: float = 1.0
) -> Any:
    """An H.264 stream of `container`: closed groups of `group_s` seconds, no frames that wait for later
    ones, so that any group stands alone."""
    stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    stream.codec_context.time_base = stream.time_base = Fraction(1, TICKS)
    stream.codec_context.thread_count = 1
    group = str(max(1, round(fps * group_s)))
    stream.options = {
        **{"preset": "veryfast", "tune": "zerolatency", "crf": str(crf)},
        **{"g": group, "keyint_min": group, "sc_threshold": "0", "bf": "0", "flags": "+cgop"},
    }
    return stream


def ticks(t_ns: int) -> int:
    """Nanoseconds as a presentation time of our files."""
    return (t_ns * TICKS + 500_000_000) // 1_000_000_000


def write_video(path: Path, frames: Iterable[tuple[int, U8]], fps: float, *, crf: int = 23) -> None:
    """Encode `frames`, (t_ns, RGB u8 [height, width, 3]) with rising times; the first is time 0 of the
    file. Raises UserError for no frame."""
    av = need("av")
    with av.open(str(path), "w", format="mp4") as container:
        stream, first = None, 0
        for t_ns, picture in frames:
            if stream is None:
                stream, first = encoder(container, picture.shape[1], picture.shape[0], fps, crf=crf), t_ns
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = ticks(t_ns - first), Fraction(1, TICKS)
            container.mux(stream.encode(frame))
        if stream is None:
            raise BundleError("video", "a video needs at least one frame.")
        container.mux(stream.encode())


def look(path: Path) -> Look:
    """A video's packets. Raises BundleError (`video`) for a file that is no video of one stream in CODECS, is
    larger than PIXELS_MOST, or is cut short."""
    av = need("av")
    try:
        with av.open(str(path), "r", format="mp4") as container:
            stream = _only(container)
            times, keys = [], []
            for packet in container.demux(stream):
                if packet.pts is None and packet.size == 0:
                    continue
                if packet.pts is None or packet.is_corrupt:
                    raise BundleError("video", f"{path.name} has a packet without a time, or a broken one.")
                times.append(packet.pts)
                keys.append(bool(packet.is_keyframe))
                if len(times) > FRAMES_MOST:
                    raise BundleError("video", f"{path.name} has more than {FRAMES_MOST} frames.")
            base = stream.time_base
            context = stream.codec_context
            if not times:
                raise BundleError("video", f"{path.name} holds no frame.")
            rising = np.sort(np.asarray(times, np.int64))
            t_ns = [int((int(pts) - int(rising[0])) * base * 1_000_000_000) for pts in rising]
            return Look(
                context.name,
                context.width,
                context.height,
                np.asarray(t_ns, np.int64),
                np.asarray(keys, bool),
            )
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise BundleError("video", f"{path.name} cannot be read as video ({_said(error)}).") from error


def decoded(path: Path) -> Iterator[Any]:
    """Every frame in the order it is shown, as PyAV's. Raises BundleError (`video`) where the decoder gives
    up. One thread: the memory of a hostile stream stays that of a few frames."""
    av = need("av")
    try:
        with av.open(str(path), "r", format="mp4") as container:
            stream = _only(container)
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            for frame in container.decode(stream):
                if frame.is_corrupt or frame.width * frame.height > PIXELS_MOST:
                    raise BundleError("video", f"{path.name} has a broken frame, or one of another size.")
                yield frame
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise BundleError("video", f"{path.name} cannot be decoded ({_said(error)}).") from error


def _only(container: Any) -> Any:
    """The one video stream, its header checked."""
    streams = container.streams.video
    if len(streams) != 1 or len(container.streams) != 1:
        raise BundleError("video", "a clip has one video stream and nothing else (no sound, no subtitles).")
    context = streams[0].codec_context
    if context is None or context.name not in (*CODECS, "libdav1d", "libaom-av1"):
        said = getattr(context, "name", "unknown")
        raise BundleError("video", f"the codec {said} is not supported (allowed {', '.join(CODECS)}).")
    sides = (context.width, context.height)
    if min(sides) < 1 or max(sides) > SIDE_MOST or sides[0] * sides[1] > PIXELS_MOST:
        raise BundleError("video", f"the video says {sides[0]} x {sides[1]} pixels, which is not supported.")
    return streams[0]


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
