"""The bench of SEAOTTER: every bar has a row, other formats are counted fairly, judging never sees what
training saw."""

from __future__ import annotations

import numpy as np
import pytest

from haversack.bench import find_bench
from haversack.bench._rows import Unavailable
from haversack.bench.seaotter import _bench as data
from haversack.bench.seaotter import accuracy, speed
from haversack.formats.tabled_jpeg import read_jpeg

pytest.importorskip("skimage", reason="needs scikit-image (pip install haversack[bench])")
pytest.importorskip("sklearn", reason="needs scikit-learn (pip install haversack[workshop])")


def test_every_bar_has_a_row():
    bars = {row.id: (row.bar.op, row.bar.value) for row in find_bench("2").rows if row.bar}
    assert bars["tuned-over-direct"] == (">=", 5.0) and bars["tuned-over-naive"] == (">=", 2.0)
    assert bars["over-other-formats"] == (">=", 3.0) and bars["compression"] == (">=", 100.0)
    assert bars["encode"] == ("<=", 0.25) and bars["decode-own"] == ("<=", 0.1)
    assert bars["decode-avif"] == ("<=", pytest.approx(1 / 1.5))
    assert bars["sandwich-2"] == bars["sandwich-3"] == (">=", 0.3)
    assert bars["proxy-correlation"] == (">=", 0.98) and bars["proxy-error"] == ("<=", 0.05)
    assert bars["prefix"] == bars["opens"] == ("==", 1.0)
    assert bars["monotone-direct"] == bars["monotone-tuned"] == (">=", 0.0)
    kinds = {row.kind for row in find_bench("seaotter").rows if row.quick}
    assert kinds == {row.kind for row in find_bench("seaotter").rows}


def test_left_and_right_share_no_pixel():
    picture = np.arange(40 * 60 * 3, dtype=np.int64).reshape(40, 60, 3)
    left, right = data.left_and_right(picture)
    assert left.shape[1] == 42 and not set(left.ravel()) & set(right.ravel())
    crops, labels = accuracy.judged_crops(1, 30)
    again, _ = accuracy.judged_crops(2, 30)
    assert len(crops) == 30 and set(labels) == set(range(15))
    assert any(not np.array_equal(one, other) for one, other in zip(crops, again, strict=True))


def test_headers_of_other_formats_are_not_counted():
    picture = data.photographs()["coffee"][:96, :128]
    for kind in ("JPEG", "WEBP", "AVIF"):
        try:
            file = data.saved(picture, kind, 20)
        except Unavailable:
            continue
        inside = data.payload_nbytes(file)
        assert 0 < inside < len(file) and data.opened(file).shape == picture.shape
    first, second = (data.saved(picture, "JPEG", quality) for quality in (5, 60))
    assert data.payload_nbytes(first) < data.payload_nbytes(second)


def test_sizes_are_taken_back():
    picture = data.photographs()["china"][:128, :128]
    for part in (1, 2, 4):
        back = accuracy._larger(accuracy._smaller(picture, part), picture.shape)
        assert back.shape == picture.shape
        assert data.decibels(picture, back) > (15 if part > 1 else 60)


def test_the_avif_that_is_timed_has_no_more_bytes():
    picture = data.photographs()["flower"][:128, :128]
    quality, file = speed.avif_of(picture, 3000)
    assert len(file) <= 3000 and quality > 1
    assert speed.avif_of(picture, 1)[0] == 1


def test_the_shipped_codec_reads_what_it_wrote():
    codec = data.shipped()
    picture = data.unseen()[0][:100, :120]
    kept = codec.transcode(codec.encode(picture))
    assert read_jpeg(kept).pair == codec.pair.id
    rebuilt = codec.rebuild(codec.read(codec.encode(picture)))
    assert data.decibels(picture, rebuilt) > 17
    assert data.decibels(rebuilt, codec.consumer().decode(kept)) > 28
