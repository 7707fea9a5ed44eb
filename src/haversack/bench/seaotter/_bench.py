"""The bench object that the files of this folder add their rows to, the photographs, other codecs' bytes."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.bench._harness import Bench
from haversack.bench._rows import Unavailable
from haversack.formats.tabled_jpeg import scan_nbytes
from haversack.share._codec_pack import Codec

CODEC = (
    "share/seaotter.py",
    "share/_codec_*.py",
    "models/vision/*frappe*.py",
    "formats/latent_stream.py",
    "formats/tabled_jpeg.py",
    "kernels/pixels.py",
    "native/pixels.*",
)
FILES = (*CODEC, "bench/seaotter/*.py", "reference_models/photo-codec/*")
U8 = NDArray[np.uint8]
NAMES = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "brick",
    "grass",
    "gravel",
    "camera",
    "moon",
    "coins",
)
LEFT = 0.7

bench = Bench("seaotter", number=2, watches=FILES)


@functools.cache
def photographs() -> dict[str, U8]:
    """Fifteen photographs that scikit-image and scikit-learn bundle, RGB; the retina at half its size."""
    try:
        from skimage import data
        from sklearn.datasets import load_sample_images
    except ModuleNotFoundError as error:
        raise Unavailable(
            f"{error.name} is not installed; run: pip install 'haversack[bench,workshop]'"
        ) from None
    found: dict[str, U8] = {}
    for name in NAMES:
        one = getattr(data, name)()
        one = one[::2, ::2] if name == "retina" else one
        found[name] = np.repeat(one[..., None], 3, 2) if one.ndim == 2 else one[..., :3].copy()
    for name, one in zip(("china", "flower"), load_sample_images().images, strict=True):
        found[name] = np.asarray(one)
    return found


def left_and_right(picture: U8) -> tuple[U8, U8]:
    """Where training may look, and where judging does."""
    cut = int(picture.shape[1] * LEFT)
    return np.ascontiguousarray(picture[:, :cut]), np.ascontiguousarray(picture[:, cut:])


UNSEEN = ("china", "flower", "hubble_deep_field", "immunohistochemistry", "retina")


def unseen() -> list[U8]:
    """Photographs that the shipped codec did not learn from."""
    return [photographs()[name] for name in UNSEEN]


@functools.cache
def shipped() -> Codec:
    """The codec that ships."""
    return Codec.open("photo")


def saved(picture: U8, kind: str, quality: int, **how: Any) -> bytes:
    """A picture as a file of JPEG, WEBP or AVIF, Huffman tables optimized."""
    from PIL import Image, features

    if kind == "AVIF" and not features.check("avif"):
        raise Unavailable("this Pillow was built without AVIF")
    out = io.BytesIO()
    more = {"optimize": True} if kind == "JPEG" else {}
    Image.fromarray(picture).save(out, kind, quality=quality, **{**more, **how})
    return out.getvalue()


def opened(data: bytes) -> U8:
    """The picture in a file."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def payload_nbytes(data: bytes) -> int:
    """Bytes of a file that hold the picture, headers left out: JPEG's scan, WebP's VP8 chunk, AVIF's mdat."""
    if data[:2] == b"\xff\xd8":
        return scan_nbytes(data)
    if data[:4] == b"RIFF":
        return int.from_bytes(data[16:20], "little")
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"mdat":
            return size - 8
        at += max(size, 8)
    raise ValueError("this AVIF file has no mdat")


def decibels(one: U8, other: U8) -> float:
    """PSNR."""
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return float(10 * np.log10(255**2 / max(error, 1e-9)))
