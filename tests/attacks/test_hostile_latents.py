"""Streams and JPEG files that somebody made to harm: refused in words, in little time and memory."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.share import codecs as drawn

from haversack.core.errors import UserError
from haversack.formats.latent_stream import HEAD
from haversack.formats.tabled_jpeg import read_jpeg


@pytest.fixture(scope="module")
def codec() -> Any:
    return drawn.codec()


def sealed(body: bytes) -> bytes:
    return body + struct.pack(">I", zlib.crc32(body))


def head(codec: Any, channels: int = 4, height: int = 64, width: int = 64, version: int = 1) -> bytes:
    return HEAD.pack(b"HVFR", version, channels, height, width, codec.encoder.id)


def refused(call: Any, *given: Any) -> None:
    start = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UserError):
            call(*given)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20 and time.perf_counter() - start < 20


def test_bombs(codec):
    """A few bytes that promise any number of pixels, or of symbols."""
    tiny = struct.pack(">I", 1 << 28 | 4) + bytes(4)
    for height, width in ((65535, 65535), (65535, 1025), (0, 64)):
        refused(codec.read, sealed(head(codec, 4, height, width) + tiny))
    stored = struct.pack(">I", 0 << 28 | 4) + bytes(4)
    refused(codec.read, sealed(head(codec, 4, 8192, 8192) + stored))
    refused(codec.read, sealed(head(codec, 255) + tiny))


def test_a_frame_that_claims_other_sides_than_the_header(codec):
    import jpeg_ls

    frame = bytearray(jpeg_ls.encode_array(np.zeros((8, 2), np.uint8)))
    for rows, columns in ((60000, 60000), (0, 2), (8, 3)):
        struct.pack_into(">HH", frame, 7, rows, columns)
        chunk = bytes(frame)
        refused(codec.read, sealed(head(codec) + struct.pack(">I", 2 << 28 | len(chunk)) + chunk))


def test_chunks_of_noise(codec):
    """Any bytes as a chunk of any coder decode to a map of the right shape, or are refused."""
    rng = np.random.default_rng(0)
    for number in range(150):
        coder, length = number % 5, int(rng.integers(0, 80))
        chunk = rng.integers(0, 256, length, np.uint8).tobytes()
        try:
            found = codec.read(sealed(head(codec) + struct.pack(">I", coder << 28 | length) + chunk))
        except UserError:
            continue
        assert [one.shape for one in found.maps] == [(4, 2, 2)]


def test_lengths_that_overrun(codec):
    good = codec.encode(drawn.picture())
    for length in (0x0FFFFFFF, len(good), 0):
        body = bytearray(good[:-4])
        word = struct.unpack_from(">I", body, HEAD.size)[0]
        struct.pack_into(">I", body, HEAD.size, word & 0xF0000000 | length)
        refused(codec.read, sealed(bytes(body)))
    refused(codec.read, sealed(good[:-4] + b"trailing"))


def test_jpeg_bombs_and_damage(codec):
    kept = codec.transcode(codec.encode(drawn.picture()))
    at = kept.index(b"\xff\xc0")
    bomb = bytearray(kept)
    struct.pack_into(">HH", bomb, at + 5, 65500, 65500)
    refused(read_jpeg, bytes(bomb))
    rng = np.random.default_rng(1)
    for place in rng.integers(0, len(kept), 60):
        changed = bytearray(kept)
        changed[place] ^= int(rng.integers(1, 256))
        try:
            assert codec.consumer().decode(bytes(changed)).shape[2] == 3
        except UserError:
            continue
    for end in range(0, len(kept) - 2, 97):
        refused(read_jpeg, kept[:end])


def test_a_comment_cannot_name_another_pair_unseen(codec):
    kept = codec.transcode(codec.encode(drawn.picture()))
    other = kept.replace(codec.pair.id.encode(), b"f" * 16)
    refused(codec.consumer().decode, other)
    out = io.BytesIO()
    Image.open(io.BytesIO(kept)).save(out, "JPEG", subsampling=0, comment=b"")  # saved anew by a viewer
    refused(codec.consumer().decode, out.getvalue())
