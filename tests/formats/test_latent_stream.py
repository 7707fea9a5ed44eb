"""Streams of latents: every coder gives the maps back, any prefix is a code, and damage is refused."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.latent_stream import (
    CODERS,
    HEAD,
    PIXELS_MOST,
    Stream,
    read_header,
    read_stream,
    table_of,
    write_stream,
)

PATCHES = (32,) * 4 + (16,) * 3 + (8,) * 2


def stream_of(seed=0, height=70, width=100, scale=6.0):
    rng = np.random.default_rng(seed)
    maps = []
    for patch in dict.fromkeys(PATCHES):
        shape = (PATCHES.count(patch), 96 // patch, 128 // patch)
        maps.append(np.clip(np.rint(rng.laplace(0, scale, shape)), -127, 127).astype(np.int8))
    return Stream(height, width, 0xDEADBEEF, tuple(maps))


def tables_of(stream):
    return [table_of(channel) for one in stream.maps for channel in one]


@settings(max_examples=25, deadline=None)
@given(coder=st.sampled_from([*CODERS, "smallest"]), seed=st.integers(0, 999), scale=st.floats(0.0, 200.0))
def test_every_coder_gives_the_maps_back(coder, seed, scale):
    stream = stream_of(seed, scale=scale + 0.01)
    tables = tables_of(stream_of(seed + 1))  # of other data: every value can be coded all the same
    data = write_stream(stream, tables, coder)
    back = read_stream(data, PATCHES, tables)
    assert (back.height, back.width, back.encoder) == (70, 100, 0xDEADBEEF)
    assert all(np.array_equal(a, b) for a, b in zip(back.maps, stream.maps, strict=True))


def test_smallest_is_never_longer_than_any_coder():
    for scale in (0.3, 3.0, 60.0):
        stream = stream_of(scale=scale)
        lengths = {coder: len(write_stream(stream, tables_of(stream), coder)) for coder in CODERS}
        assert len(write_stream(stream, tables_of(stream))) <= min(lengths.values())


def test_any_prefix_is_a_code_of_its_own():
    stream = stream_of()
    tables = tables_of(stream)
    for count in range(1, 10):
        short = stream.first(count)
        assert short.channels == count
        back = read_stream(write_stream(short, tables[:count]), PATCHES, tables)
        whole = read_stream(write_stream(stream, tables), PATCHES, tables).first(count)
        assert all(np.array_equal(a, b) for a, b in zip(back.maps, whole.maps, strict=True))
    for count in (0, 10):
        with pytest.raises(UserError, match="channels"):
            stream.first(count)


def sealed(body):
    return body + struct.pack(">I", zlib.crc32(body))


def test_every_truncation_and_every_flipped_bit_is_refused():
    stream = stream_of()
    tables = tables_of(stream)
    data = write_stream(stream, tables)
    for end in range(len(data)):
        with pytest.raises(DamagedFileError):
            read_stream(data[:end], PATCHES, tables)
    rng = np.random.default_rng(3)
    for at in rng.choice(len(data) * 8, 200, replace=False):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(UserError):
            read_stream(bytes(broken), PATCHES, tables)


def test_a_bad_length_under_a_right_checksum_is_refused():
    stream = stream_of()
    tables = tables_of(stream)
    for coder in CODERS:
        body = bytearray(write_stream(stream, tables, coder)[:-4])
        word = struct.unpack_from(">I", body, HEAD.size)[0]
        for changed in (word + 1, word - 1, word | 0x0FFFFFFF, 0xF0000000 | word, word & 0xF0000000):
            struct.pack_into(">I", body, HEAD.size, changed)
            with pytest.raises(DamagedFileError):
                read_stream(sealed(bytes(body)), PATCHES, tables)


def test_a_stream_that_promises_too_much_takes_no_memory():
    head = HEAD.pack(b"HVFR", 1, 9, 65535, 65535, 1)
    with pytest.raises(DamagedFileError, match="promises"):
        read_header(sealed(head))
    assert PIXELS_MOST < 65535 * 65535
    for bad in (HEAD.pack(b"HVFR", 1, 0, 32, 32, 1), HEAD.pack(b"HVFR", 1, 1, 0, 32, 1)):
        with pytest.raises(DamagedFileError):
            read_header(sealed(bad))
    with pytest.raises(DamagedFileError, match="version"):
        read_header(sealed(HEAD.pack(b"HVFR", 2, 1, 32, 32, 1)))
    more = HEAD.pack(b"HVFR", 1, 10, 32, 32, 1)
    with pytest.raises(UserError, match="channels=10"):
        read_stream(sealed(more), PATCHES, None)


def test_a_frame_of_other_sides_is_refused_before_it_is_decoded():
    import jpeg_ls

    big = bytes(jpeg_ls.encode_array(np.zeros((400, 400), np.uint8)))
    body = HEAD.pack(b"HVFR", 1, 1, 32, 32, 1) + struct.pack(">I", 2 << 28 | len(big)) + big
    with pytest.raises(DamagedFileError, match="other sides"):
        read_stream(sealed(body), PATCHES, None)


def test_raw_bits_of_three_coarse_channels():
    """Three channels of 32 x 32 patches: 24 bits for 1024 pixels, 0.0234 bits a pixel before coding."""
    maps = (np.zeros((3, 12, 12), np.int8),)
    data = write_stream(Stream(384, 384, 1, maps), None, "stored")
    assert (len(data) - HEAD.size - 8) * 8 / 384**2 == 24 / 1024
    assert round(24 / 1024, 4) == 0.0234


def test_range_coding_without_distributions_says_so():
    with pytest.raises(ValueError, match="distributions"):
        write_stream(stream_of(), None, "range")
    with pytest.raises(UserError, match="coder=zip"):
        write_stream(stream_of(), None, "zip")
