"""What `haversack share encode`, `transcode`, `decode` and `codec` do between their options and their
records."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core._files import write_atomically
from haversack.core.errors import DamagedFileError, UserError
from haversack.core.progress import progress
from haversack.formats.latent_stream import read_header
from haversack.formats.picture_sets import picture_files, samples, whole_picture
from haversack.formats.pictures import ENDINGS
from haversack.formats.tabled_jpeg import read_jpeg
from haversack.share._codec_pack import Codec, Pair
from haversack.share.seaotter import SeaOtter

U8 = NDArray[np.uint8]
STREAM_MOST = 1 << 30
PICTURES_MOST = 2000
"""That training keeps in memory."""


@dataclass(frozen=True)
class Job:
    """A source (None: standard input) and where its result goes (None: standard output)."""

    source: Path | None
    goal: Path | None

    @property
    def name(self) -> str:
        return "standard input" if self.source is None else str(self.source)

    def read(self) -> bytes:
        """The source's bytes. Raises UserError for what cannot be read and for more than a stream can be."""
        try:
            if self.source is None:
                data = sys.stdin.buffer.read(STREAM_MOST + 1)
            else:
                if self.source.stat().st_size > STREAM_MOST:
                    raise DamagedFileError(self.source, f"it has more than {STREAM_MOST >> 20} MiB")
                data = self.source.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.name} cannot be read: {error.strerror}.", field="input", given=self.name
            ) from error
        if len(data) > STREAM_MOST:
            raise DamagedFileError(self.name, f"it has more than {STREAM_MOST >> 20} MiB")
        return data

    def write(self, data: bytes) -> None:
        """Whole or not at all."""
        if self.goal is None:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            self.goal.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.goal, data)


def jobs_of(inputs: Sequence[Path], output: Path | None, ending: str, kinds: Sequence[str]) -> list[Job]:
    """Which file goes where. One input has one goal (`-` is standard input or output); several, or a folder,
    go into the folder `output` and keep their places in it. Without `output`, results lie beside their
    sources."""
    found: list[tuple[Path | None, Path]] = []
    for one in inputs:
        if str(one) == "-":
            found.append((None, Path(f"stdin{ending}")))
        elif one.is_dir():
            own = [each for each in sorted(one.rglob("*")) if each.suffix.lower() in kinds and each.is_file()]
            if not own:
                raise UserError(f"{one} holds no {'/'.join(kinds[:3])} files.", field="input", given=str(one))
            found += [(each, each.relative_to(one).with_suffix(ending)) for each in own]
        elif one.is_file():
            found.append((one, Path(one.name).with_suffix(ending)))
        else:
            raise UserError(f"there is no file {one}.", field="input", given=str(one))
    single = len(inputs) == 1 and not (str(inputs[0]) != "-" and inputs[0].is_dir())
    if single and output is not None and not output.is_dir():
        return [Job(found[0][0], None if str(output) == "-" else output)]
    if output is not None and str(output) == "-":
        raise UserError("only one result goes to standard output.", field="output", given="-")
    if output is not None and output.is_file():
        raise UserError(
            f"{output} is a file; several results need a folder.", field="output", given=str(output)
        )
    made = []
    for source, inside in found:
        if source is None and output is None:
            made.append(Job(None, None))
        else:
            place = output / inside if output is not None else (source or inside).with_suffix(ending)
            made.append(Job(source, place))
    goals = [job.goal for job in made]
    if len(set(goals)) != len(goals):
        raise UserError("two inputs would have one result's name; give them one at a time.", field="output")
    if any(job.source is not None and job.goal == job.source for job in made):
        raise UserError("a result would replace its source; name another -o.", field="output")
    return made


def _each(
    label: str, jobs: Sequence[Job], work: Callable[[Job, bytes], dict[str, Any]]
) -> list[dict[str, Any]]:
    rows = []
    with progress(label, total=len(jobs)) as bar:
        for job in jobs:
            data = job.read()
            start = time.perf_counter()
            row = work(job, data)
            spent = row.pop("seconds", time.perf_counter() - start)
            rows.append(
                {
                    "input": job.name,
                    "output": None if job.goal is None else str(job.goal),
                    **row,
                    "ms": 1000 * spent,
                }
            )
            bar.advance()
    return rows


def encode(
    jobs: Sequence[Job], codec: Codec, method: SeaOtter, most: int | None = None
) -> list[dict[str, Any]]:
    """Pictures -> streams, each of at most `most` bytes."""

    def work(job: Job, data: bytes) -> dict[str, Any]:
        picture = whole_picture(data, job.name)
        start = time.perf_counter()
        if most is None:
            stream = method.encode(codec, picture)
        else:
            stream = codec.encode_within(picture, most, method.coder)
        spent = time.perf_counter() - start
        job.write(stream)
        return {**_sizes(picture, stream), "channels": read_header(stream)[0], "seconds": spent}

    return _each("encoding", jobs, work)


def transcode(jobs: Sequence[Job], codec: Codec, table: int, channels: int | None) -> list[dict[str, Any]]:
    """Streams -> JPEG files."""

    def work(job: Job, data: bytes) -> dict[str, Any]:
        start = time.perf_counter()
        jpeg = codec.transcode(data, table=table, channels=channels, name=job.name)
        spent = time.perf_counter() - start
        _, height, width, _ = read_header(data, job.name)
        job.write(jpeg)
        pixels = height * width
        return {
            "height": height,
            "width": width,
            "sent_nbytes": len(data),
            "nbytes": len(jpeg),
            "sent_bpp": 8 * len(data) / pixels,
            "bpp": 8 * len(jpeg) / pixels,
            "seconds": spent,
        }

    return _each("transcoding", jobs, work)


def decode(jobs: Sequence[Job], consumer: Pair, codec: Codec | None) -> list[dict[str, Any]]:
    """JPEG files (or, with `codec`, streams, by the sensor's decoder) -> pictures."""

    def work(job: Job, data: bytes) -> dict[str, Any]:
        start = time.perf_counter()
        if data[:4] == b"HVFR":
            if codec is None:
                raise UserError(
                    f"{job.name} is a stream; --codec names a codec with a decoder, not a pair's file.",
                    field="codec",
                )
            picture = codec.rebuild(codec.read(data, job.name))
        else:
            picture = consumer.decode(data, job.name)
        spent = time.perf_counter() - start
        job.write(_picture_bytes(picture, job.goal))
        return {**_sizes(picture, data), "task": consumer.task, "seconds": spent}

    return _each("decoding", jobs, work)


def _sizes(picture: U8, data: bytes) -> dict[str, Any]:
    height, width = picture.shape[:2]
    bpp = 8 * len(data) / (height * width)
    return {"height": height, "width": width, "nbytes": len(data), "bpp": bpp, "ratio": 24 / bpp}


def _picture_bytes(picture: U8, goal: Path | None) -> bytes:
    import io

    from PIL import Image

    kind = "PNG" if goal is None else Image.registered_extensions().get(goal.suffix.lower())
    if kind not in ("PNG", "BMP", "TIFF", "PPM", "WEBP"):
        raise UserError(
            f"{goal} names no kind of picture that keeps every value; write .png, .tiff, .bmp or .ppm.",
            field="output",
            given=str(goal),
            nearest=".png",
        )
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


def show(name: str) -> dict[str, Any]:
    """What a codec, a pair's file or a JPEG says of itself."""
    path = Path(name)
    if path.is_file() and path.suffix.lower() in (".jpg", ".jpeg"):
        found = read_jpeg(path.read_bytes(), str(path))
        return {
            "kind": "jpeg",
            "pair": found.pair,
            "task": found.task,
            "encoder": None,
            "n_trained": [],
            "tables": found.tables.reshape(1, 3, 64).tolist(),
            "patches": [],
        }
    if path.is_file():
        pair = Pair.open(path)
        return {
            "kind": "pair",
            "pair": pair.colours.id,
            "task": pair.task,
            "encoder": None,
            "n_trained": [],
            "tables": [],
            "patches": [],
        }
    codec = Codec.open(name)
    return {
        "kind": "codec",
        "pair": codec.pair.id,
        "task": codec.task,
        "encoder": f"{codec.encoder.id:08x}",
        "n_trained": sorted(codec.decoders),
        "tables": codec.tables.reshape(-1, 3, 64).tolist(),
        "patches": list(codec.encoder.patches),
    }


def pictures_of(path: Path, least: int) -> list[U8]:
    """Pictures to learn from, those with a side under `least` left out. Raises UserError where none is
    left."""
    kept: list[U8] = []
    for one in samples(path):
        if min(one.picture.shape[:2]) >= least:
            kept.append(one.picture)
        if len(kept) == PICTURES_MOST:
            break
    if not kept:
        raise UserError(
            f"no picture of {path} has sides of {least} pixels or more; lower --crop.",
            field="data",
            given=str(path),
        )
    return kept


def classes_of(path: Path, least: int) -> tuple[list[str], list[list[U8]]]:
    """Names of classes and their pictures: folders of a folder, or the class numbers of shards."""
    by_class: dict[str, list[U8]] = {}
    if list(path.glob("*.tar")) or path.suffix == ".tar":
        for one in samples(path):
            if one.label is not None and min(one.picture.shape[:2]) >= least:
                by_class.setdefault(f"{one.label:06d}", []).append(one.picture)
    else:
        for folder in _class_folders(path):
            own = [whole_picture(file, str(file)) for file in picture_files(folder)[:PICTURES_MOST]]
            by_class[folder.name] = [one for one in own if min(one.shape[:2]) >= least]
    empty = [name for name, own in by_class.items() if not own]
    if len(by_class) < 2 or empty:
        what = (
            f"the class {empty[0]} of {path} has no picture"
            if empty
            else f"{path} has fewer than two classes"
        )
        raise UserError(
            f"{what} with sides of {least} pixels or more; put the pictures of each class into a folder "
            "of its name.",
            field="data",
            given=str(path),
        )
    names = sorted(by_class)
    return names, [by_class[name] for name in names]


def _class_folders(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is no folder.", field="data", given=os.fspath(path))
    for folder in sorted(path.iterdir()):
        if folder.is_dir() and any(each.suffix.lower() in ENDINGS for each in folder.rglob("*")):
            yield folder
