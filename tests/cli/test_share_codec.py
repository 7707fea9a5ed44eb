"""`haversack share encode | transcode | decode`, `share codec`: files, folders, pipes, records, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tests.cli.said import said
from tests.share import codecs as drawn

from haversack.cli._records import OUTPUTS


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("codec") / "drawn.pack"
    drawn.codec(task="birds").write(path, {"made_by": "a test"})
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one of them in a folder of its own, one grey."""
    (tmp_path / "in" / "more").mkdir(parents=True)
    Image.fromarray(drawn.picture(40, 70)).save(tmp_path / "in" / "a.png")
    Image.fromarray(drawn.picture(33, 31)[..., 0]).save(tmp_path / "in" / "more" / "b.jpg")
    return tmp_path / "in"


def test_one_picture_goes_all_the_way(pack, folder, tmp_path, capsys):
    share = ("share", "encode", folder / "a.png", "-o", tmp_path / "x.fr", "--codec", pack)
    record = said(capsys, *share)
    msgspec.convert(record, OUTPUTS["share-coded"])
    one = record["files"][0]
    assert (one["height"], one["width"], one["channels"]) == (40, 70, 9)
    assert one["nbytes"] == (tmp_path / "x.fr").stat().st_size
    assert one["bpp"] == pytest.approx(8 * one["nbytes"] / 2800) and one["ratio"] == pytest.approx(
        24 / one["bpp"]
    )
    record = said(capsys, "share", "transcode", tmp_path / "x.fr", "-o", tmp_path / "y.jpg", "--codec", pack)
    msgspec.convert(record, OUTPUTS["share-coded"])
    assert record["files"][0]["sent_nbytes"] == one["nbytes"]
    record = said(capsys, "share", "decode", tmp_path / "y.jpg", "-o", tmp_path / "z.png", "--codec", pack)
    msgspec.convert(record, OUTPUTS["share-coded"])
    assert record["files"][0]["task"] == "birds"
    codec = drawn.codec(task="birds")
    expected = codec.consumer().decode((tmp_path / "y.jpg").read_bytes())
    assert np.array_equal(np.asarray(Image.open(tmp_path / "z.png")), expected)
    assert not list(tmp_path.glob("*partial*"))


def test_a_folder_keeps_its_places(pack, folder, tmp_path, capsys):
    said(capsys, "share", "encode", folder, "-o", tmp_path / "sent", "--codec", pack, "-n", 4)
    assert (tmp_path / "sent" / "a.fr").is_file() and (tmp_path / "sent" / "more" / "b.fr").is_file()
    said(capsys, "share", "transcode", tmp_path / "sent", "--codec", pack, "--quality", 2)
    kept = tmp_path / "sent" / "more" / "b.jpg"
    assert Image.open(kept).size == (31, 33)
    record = said(capsys, "share", "decode", tmp_path / "sent", "-o", tmp_path / "out", "--codec", pack)
    assert len(record["files"]) == 2  # the streams beside them are no pictures yet
    assert {one.name for one in (tmp_path / "out").rglob("*.png")} == {"a.png", "b.png"}


def test_the_longest_code_that_fits_is_sent(pack, folder, tmp_path, capsys):
    line = ("share", "encode", folder / "a.png", "-o", tmp_path / "x.fr", "--codec", pack)
    short = said(capsys, *line, "-n", 4)["files"][0]["nbytes"]
    long = said(capsys, *line)["files"][0]["nbytes"]
    for most, channels in ((long, 9), (long - 1, 4), (short, 4)):
        one = said(capsys, *line, "--max-bytes", most)["files"][0]
        assert one["channels"] == channels and one["nbytes"] <= most
    found = said(capsys, *line, "--max-bytes", short - 1, code=2)
    assert found["nearest"] == short
    assert said(capsys, *line, "--max-bytes", 900, "-n", 4, code=2)["field"] == "channels"


def test_pipes(pack, folder, tmp_path):
    line = f"{sys.executable} -c 'from haversack.cli import main; raise SystemExit(main())' share"
    command = (
        f"{line} encode - -o - --codec {pack} < {folder / 'a.png'} | {line} transcode - -o - --codec {pack} "
        f"| {line} decode - -o {tmp_path / 'z.png'} --codec {pack}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "z.png").size == (70, 40)
    assert "for machines" in done.stderr


def test_a_pairs_file_is_enough_for_a_consumer(pack, folder, tmp_path, capsys):
    record = said(capsys, "share", "codec", "pair", pack, "-o", tmp_path / "p.safetensors")
    msgspec.convert(record, OUTPUTS["share-codec-pair"])
    assert record["nbytes"] < 8192
    said(capsys, "share", "encode", folder / "a.png", "-o", tmp_path / "x.fr", "--codec", pack)
    said(capsys, "share", "transcode", tmp_path / "x.fr", "-o", tmp_path / "y.jpg", "--codec", pack)
    pair = tmp_path / "p.safetensors"
    said(capsys, "share", "decode", tmp_path / "y.jpg", "-o", tmp_path / "z.png", "--pair", pair)
    refused = said(capsys, "share", "decode", tmp_path / "x.fr", "--pair", pair, code=2)
    assert "decoder" in refused["error"]
    shown = said(capsys, "share", "codec", "show", tmp_path / "y.jpg")
    msgspec.convert(shown, OUTPUTS["share-codec-show"])
    assert shown["pair"] == record["pair"] and shown["tables"][0][0] == [24] * 64
    assert said(capsys, "share", "codec", "show", pack)["n_trained"] == [4, 9]


def test_check_knows_a_codec(pack, tmp_path, capsys):
    assert said(capsys, "check", pack)["whole"]
    broken = drawn.codec()
    broken.decoders[4]["head.bias"][0] = np.nan
    broken.write(tmp_path / "b.pack", {})
    found = said(capsys, "check", tmp_path / "b.pack", code=2)
    assert "head.bias" in str(found["findings"])


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (("encode", "missing.png"), "input"),
        (("encode", "{a}", "-n", "10"), "channels"),
        (("encode", "{a}", "--coder", "zip"), "coder"),
        (("encode", "{a}", "{a}", "-o", "{t}/same"), "output"),
        (("encode", "{a}", "{b}", "-o", "-"), "output"),
        (("encode", "{a}", "-o", "{a}/x.fr"), "path"),
        (("transcode", "{a}"), "stream"),
        (("decode", "{a}", "-o", "{t}/z.png"), "path"),
        (("decode", "{a}", "-o", "{t}/z.jpg"), "path"),
    ],
)
def test_what_cannot_be_done_is_said(pack, folder, tmp_path, capsys, line, field):
    names = {"a": folder / "a.png", "b": folder / "more" / "b.jpg", "t": tmp_path}
    filled = [str(part).format(**names) for part in line]
    found = said(capsys, "share", *filled, "--codec", pack, code=2)
    assert found["error"] and found["field"] == field
    assert not list(tmp_path.glob("*.fr"))


def test_other_codecs_are_named(folder, capsys):
    found = said(capsys, "share", "encode", folder / "a.png", "--codec", "foto", code=2)
    assert found["nearest"] == "photo"


def test_a_lossy_goal_is_refused(pack, folder, tmp_path, capsys):
    said(capsys, "share", "encode", folder / "a.png", "-o", tmp_path / "x.fr", "--codec", pack)
    said(capsys, "share", "transcode", tmp_path / "x.fr", "-o", tmp_path / "y.jpg", "--codec", pack)
    found = said(
        capsys, "share", "decode", tmp_path / "y.jpg", "-o", tmp_path / "z.jpeg", "--codec", pack, code=2
    )
    assert found["nearest"] == ".png"
