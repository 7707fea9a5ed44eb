"""The pixel cut: exact numbers of the specification, colour pairs, packs, the three ends, refusals."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.share import codecs as drawn

from haversack.core.errors import DamagedFileError, UserError
from haversack.core.pack import Pack, check_pack
from haversack.formats.tabled_jpeg import read_jpeg, write_jpeg
from haversack.share import seaotter
from haversack.share._codec_pack import Codec, Pair, codec_findings, codec_path
from haversack.share.seaotter import JFIF, ColourPair, Half, SeaOtter, plain_pair

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def test_the_table_map():
    found = seaotter.table_entries(np.array([-256.0, 0.0, 256.0]))
    assert np.allclose(found, [128.5 + 127.5 * (-256 / 257), 128.5, 128.5 + 127.5 * 256 / 257], atol=1e-12)
    assert np.allclose(found, [1.4961, 128.5, 255.5039], atol=1e-4)
    assert np.allclose(seaotter.table_entries(seaotter.table_parameters(np.array([8.0, 200]))), [8, 200])
    assert np.all(seaotter.table_entries(np.linspace(-1e6, 1e6, 999)) > 1) and 24 / 0.10860 // 1 == 220


def test_compression_of_the_papers_operating_point():
    assert round(24 / 0.10860) == 221


def test_zigzag_is_jpegs():
    order = seaotter.zigzag()
    assert order[:10].tolist() == [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]
    assert sorted(order) == list(range(64)) and order[-1] == 63


def test_the_dct_is_orthonormal_and_a_grey_picture_is_free():
    d = seaotter.dct_matrix()
    assert np.allclose(d @ d.T, np.eye(8), atol=1e-12)
    grey = np.full((16, 24, 3), 128, np.uint8)
    assert not seaotter.dct_blocks(grey.transpose(2, 0, 1)).any()
    blocks = 2 * 3 * 3
    assert seaotter.proxy_bpp(grey, np.full((3, 8, 8), 8)) == pytest.approx(blocks / (16 * 24))  # 1 bit each


def test_counted_bits_by_hand():
    z = np.zeros((1, 2, 64))
    z[0, 0, 0], z[0, 1, 0], z[0, 1, 9] = 3, 1, -2
    bits = seaotter.run_length_bits(z)[0]
    assert bits[0] == pytest.approx(1 + np.log2(4))
    assert bits[1] == pytest.approx(1 + np.log2(3) + np.tanh(4) * (np.log2(3) + 4))


@pytest.mark.parametrize("variant", ["A", "D", "F"])
def test_identity_colours_lose_only_companding(variant):
    pair = plain_pair(variant, np.eye(3))
    picture = drawn.picture(40, 50)
    back = pair.to_picture(pair.to_planes(picture))
    worst = 20 if variant == "F" else 5
    assert np.abs(back.astype(int) - picture).max() <= worst
    middle = np.abs(picture.astype(int) - 128) < 40
    assert np.abs(back.astype(int) - picture)[middle].mean() < (2.5 if variant == "F" else 1.0)


def test_jfif_colours_are_standard_ycbcr():
    picture = drawn.picture(31, 47)
    planes = plain_pair("B").to_planes(picture)
    standard = np.asarray(Image.fromarray(picture).convert("YCbCr"))
    assert np.abs(planes.astype(int) - standard).max() <= 1
    back = plain_pair("B").to_picture(planes)
    assert np.abs(back.astype(int) - picture).max() <= 2
    assert np.allclose(JFIF @ [255, 255, 255], [255, 0, 0], atol=1e-9)


def test_a_pair_is_named_by_its_numbers():
    pair = plain_pair()
    other = replace(pair, inverse=replace(pair.inverse, bias=pair.inverse.bias + np.float32(1e-3)))
    assert len(pair.id) == 16 and pair.id != other.id and pair.id == plain_pair().id
    with pytest.raises(UserError, match="variant"):
        ColourPair("C", pair.forward, pair.inverse)
    with pytest.raises(UserError, match="shapes"):
        ColourPair("A", pair.forward, pair.inverse)
    bad = Half(pair.forward.weight * np.nan, *(getattr(pair.forward, n) for n in ("bias", "sigma", "gamma")))
    with pytest.raises(UserError, match="no number"):
        ColourPair("D", bad, pair.inverse)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (60, 90), (64, 64)])
def test_the_three_ends_keep_any_size(size):
    codec = drawn.codec()
    picture = drawn.picture(*size)
    sent = codec.encode(picture)
    for table in (1, 3):
        kept = codec.transcode(sent, table=table)
        assert codec.consumer().decode(kept).shape == (*size, 3)
        with Image.open(io.BytesIO(kept)) as opened:
            assert opened.size == (size[1], size[0])
    assert codec.rebuild(codec.read(sent)).shape == (*size, 3)


def test_what_the_consumer_reads_is_what_was_rebuilt():
    codec = drawn.codec()
    codec.tables = np.ones((1, 3, 8, 8), np.uint8)
    sent = codec.encode(drawn.picture())
    rebuilt, read = codec.rebuild(codec.read(sent)), codec.consumer().decode(codec.transcode(sent))
    assert np.abs(rebuilt.astype(int) - read).mean() < 2.0


def test_a_longer_code_serves_a_shorter_decoder():
    codec = drawn.codec()
    long, short = codec.encode(drawn.picture(), 9), codec.encode(drawn.picture(), 4)
    assert len(short) < len(long)
    assert codec.transcode(long, channels=4) == codec.transcode(short)
    between = codec.encode(drawn.picture(), 7)  # no decoder of 7: that of the first 4
    assert codec.transcode(between) == codec.transcode(short)
    for channels in (5, 10):
        with pytest.raises(UserError, match="channels"):
            codec.transcode(long, channels=channels)
    with pytest.raises(UserError, match="channels"):
        codec.transcode(codec.encode(drawn.picture(), 2))


def test_streams_of_another_encoder_and_files_of_another_pair_are_refused():
    codec, other = drawn.codec(), drawn.codec(seed=9)
    with pytest.raises(UserError, match="encoder"):
        other.transcode(codec.encode(drawn.picture()))
    kept = codec.transcode(codec.encode(drawn.picture()))
    wrong = Pair(plain_pair("D", np.eye(3)))
    with pytest.raises(UserError, match="colour pair") as caught:
        wrong.decode(kept)
    assert caught.value.nearest == codec.pair.id
    plain = io.BytesIO()
    Image.fromarray(drawn.picture()).save(plain, "JPEG", subsampling=0)
    with pytest.raises(UserError, match="names no colour pair"):
        codec.consumer().decode(plain.getvalue())
    with pytest.raises(UserError, match="table=4"):
        codec.transcode(codec.encode(drawn.picture()), table=4)


def test_a_pack_gives_the_codec_back(tmp_path):
    codec = drawn.codec(task="birds")
    codec.write(tmp_path / "birds.pack", {"made_by": "a test"})
    back = Codec.open(tmp_path / "birds.pack")
    picture = drawn.picture()
    assert back.task == "birds" and back.encoder.id == codec.encoder.id and back.pair.id == codec.pair.id
    assert back.encode(picture) == codec.encode(picture)
    assert read_jpeg(back.transcode(back.encode(picture))).task == "birds"
    assert not check_pack(tmp_path / "birds.pack") and not codec_findings(tmp_path / "birds.pack")
    assert Pack.open(tmp_path / "birds.pack").record.kind == "codec"
    Pair.open(tmp_path / "birds.pack").write(tmp_path / "birds.safetensors")
    pair = Pair.open(tmp_path / "birds.safetensors")
    kept = codec.transcode(codec.encode(picture))
    assert (tmp_path / "birds.safetensors").stat().st_size < 8192
    assert np.array_equal(pair.decode(kept), codec.consumer().decode(kept)) and pair.task == "birds"


def test_damaged_packs_and_pairs_are_refused(tmp_path):
    codec = drawn.codec()
    path = tmp_path / "a.pack"
    codec.write(path, {})
    weights = path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert check_pack(path)
    with pytest.raises(DamagedFileError):
        Codec.open(path)
    broken = drawn.codec()
    broken.decoders[4]["head.bias"][0] = np.inf
    broken.write(tmp_path / "b.pack", {})
    assert "head.bias" in str(codec_findings(tmp_path / "b.pack")[0])
    codec.consumer().write(tmp_path / "p.safetensors")
    changed = bytearray((tmp_path / "p.safetensors").read_bytes())
    changed[-1] ^= 64
    (tmp_path / "p.safetensors").write_bytes(changed)
    with pytest.raises(DamagedFileError, match="pair"):
        Pair.open(tmp_path / "p.safetensors")
    with pytest.raises(UserError, match="codec"):
        codec_path("photos-of-nothing")
    with pytest.raises(UserError, match="tables"):
        replace(codec, tables=np.zeros((1, 3, 8, 8), np.uint8))


def test_a_codec_is_whole_or_absent_when_its_writing_fails(tmp_path, monkeypatch):
    codec, path = drawn.codec(), tmp_path / "a.pack"
    codec.write(path, {})
    before = path.joinpath("pack.json").read_bytes()

    def interrupted(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("haversack.core._pack_writer.PackWriter.add_file", interrupted)
    monkeypatch.setattr("haversack.core._pack_writer.PackWriter.finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace(codec, task="birds").write(path, {})
    assert [one.name for one in tmp_path.iterdir()] == ["a.pack"]
    assert path.joinpath("pack.json").read_bytes() == before and not check_pack(path)


def test_the_method_has_declared_bounds():
    with pytest.raises(UserError, match="channels"):
        SeaOtter(channels=0)
    with pytest.raises(UserError, match="coder"):
        SeaOtter(coder="zip")
    codec = drawn.codec()
    sent = SeaOtter(channels=4, coder="jpeg-ls").encode(codec, drawn.picture())
    assert codec.read(sent).channels == 4
    assert read_jpeg(SeaOtter(table=3).transcode(codec, sent)).tables[0, 0] == 6


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium; on Debian: apt install chromium")
def test_a_browser_opens_the_file(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pair = plain_pair()
    data = write_jpeg(pair.to_planes(drawn.picture(50, 70)), np.full((3, 8, 8), 9), pair.id)
    (tmp_path / "y.jpg").write_bytes(data)
    (tmp_path / "page.html").write_text("<img id=i src=y.jpg>", encoding="utf-8")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        size = page.evaluate("[i.complete, i.naturalWidth, i.naturalHeight]")
        browser.close()
    assert size == [True, 70, 50]
