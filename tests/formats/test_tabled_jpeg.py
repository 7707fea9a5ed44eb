"""JPEG with own tables: stored as given, read as stored, opened by any reader, refused when damaged."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from haversack.core.errors import DamagedFileError, UserError
from haversack.formats.tabled_jpeg import read_jpeg, scan_nbytes, write_jpeg

PAIR = "0123456789abcdef"


def planes_of(seed=0, height=40, width=56):
    rng = np.random.default_rng(seed)
    smooth = rng.normal(0, 30, (height, width, 3)).cumsum(0).cumsum(1) / 20
    return np.clip(smooth + 128, 0, 255).astype(np.uint8)


def test_tables_and_comment_are_stored_as_given():
    tables = np.random.default_rng(1).integers(1, 256, (3, 8, 8))
    back = read_jpeg(write_jpeg(planes_of(), tables, PAIR, "birds"))
    assert np.array_equal(back.tables, tables.reshape(3, 64))
    assert (back.pair, back.task) == (PAIR, "birds")


def test_planes_come_back_without_a_change_of_colours():
    planes = planes_of()
    back = read_jpeg(write_jpeg(planes, np.ones((3, 8, 8)), PAIR)).planes
    assert np.abs(back.astype(int) - planes).max() <= 2
    assert np.mean(np.abs(back.astype(int) - planes)) < 0.5


def test_equal_second_and_third_tables_are_still_three():
    tables = np.full((3, 8, 8), 7)
    tables[0] = 9
    assert read_jpeg(write_jpeg(planes_of(), tables, PAIR)).tables[2].tolist() == [7] * 64


def test_a_constant_picture_is_lossless():
    planes = np.full((32, 48, 3), 128, np.uint8)
    data = write_jpeg(planes, np.full((3, 8, 8), 255), PAIR)
    assert np.array_equal(read_jpeg(data).planes, planes)
    assert scan_nbytes(data) < 60


def test_any_reader_opens_the_file_at_its_size():
    for height, width in ((1, 1), (7, 130), (40, 56)):
        data = write_jpeg(planes_of(0, height, width), np.full((3, 8, 8), 16), PAIR)
        with Image.open(io.BytesIO(data)) as opened:
            opened.load()
            assert (opened.mode, opened.size) == ("RGB", (width, height))


def test_chroma_is_kept_at_full_size():
    planes = np.full((16, 16, 3), 128, np.uint8)
    planes[:, ::2, 1] = 255
    back = read_jpeg(write_jpeg(planes, np.ones((3, 8, 8)), PAIR)).planes
    assert np.abs(back[..., 1].astype(int) - planes[..., 1]).max() <= 3


@pytest.mark.parametrize("entry", [0, 256, -1, 7.5])
def test_entries_out_of_bounds_are_refused(entry):
    tables = np.full((3, 8, 8), 8.0)
    tables[1, 2, 3] = entry
    with pytest.raises(UserError, match="1 to 255"):
        write_jpeg(planes_of(), tables, PAIR)


def test_other_files_are_refused():
    good = write_jpeg(planes_of(), np.full((3, 8, 8), 8), PAIR)
    png, grey, half = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(planes_of()).save(png, "PNG")
    Image.fromarray(planes_of()[..., 0]).save(grey, "JPEG")
    Image.fromarray(planes_of()).save(half, "JPEG", subsampling=2)
    for bad in (b"", b"\xff\xd8", png.getvalue(), grey.getvalue(), half.getvalue(), good[: len(good) // 2]):
        with pytest.raises(DamagedFileError):
            read_jpeg(bad)
    other = good.replace(b"haversack codec 1 ", b"haversack codec 2 ")
    with pytest.raises(DamagedFileError, match="version"):
        read_jpeg(other)
    strange = read_jpeg(good.replace(b"haversack codec", b"somebody elses!"))
    assert strange.pair == ""
    zero = bytearray(good)
    zero[zero.index(b"\xff\xdb") + 5] = 0
    with pytest.raises(DamagedFileError):
        read_jpeg(bytes(zero))


def test_tasks_with_odd_names_are_refused():
    for task in ("a b", "x" * 81, "é"):
        with pytest.raises(UserError, match="task"):
            write_jpeg(planes_of(), np.full((3, 8, 8), 8), PAIR, task)
