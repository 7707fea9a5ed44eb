"""The segment bundle: what is written is accepted and read back as it was, and every refusal has its code."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bundles import FPS, HEIGHT, T0, WIDTH, edit, info, make, pictures, reseal, times
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.cli import main
from haversack.collect._bundle_writer import write_bundle
from haversack.collect._findings import check_bundle, worst_drop_rate
from haversack.collect._tables import read_table, write_table
from haversack.collect._video import decoded, look, ticks, write_video
from haversack.collect.bundle import Bundle, BundleError, bundles_in, parse_manifest


def codes(folder, **how):
    return {finding.code for finding in check_bundle(folder, **how).findings}


def test_what_is_written_is_whole_and_lies_in_its_place(tmp_path):
    folder = make(tmp_path)
    bundle = Bundle.open(folder)
    assert folder == tmp_path / bundle.manifest.folder
    assert bundles_in(tmp_path) == [folder]
    checked = check_bundle(folder)
    assert checked.findings == []
    assert checked.numbers["frames"] == 30 and checked.numbers["seconds"] == pytest.approx(2.0, abs=1e-6)
    assert not checked.numbers["variable_rate"]
    assert parse_manifest(bundle.manifest.encode()) == bundle.manifest
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["manifest.json", "video.mp4", "frames.parquet", "imu.parquet", "edge.parquet"]
    )


def test_pictures_and_tables_come_back(tmp_path):
    folder = make(tmp_path, 20)
    shown = [frame.to_ndarray(format="rgb24") for frame in decoded(folder / "video.mp4")]
    for ours, theirs in zip(pictures(20), shown, strict=True):
        assert np.abs(ours.astype(int) - theirs).mean() < 12  # a lossy codec, one frame off would be 40
    frames = read_table(folder / "frames.parquet")
    assert np.array_equal(frames["t_ns"], times(20))
    hands = read_table(folder / "edge.parquet")["hands"]
    assert hands[3][0].side == 1 and hands[3][0].score == pytest.approx(0.9)
    imu = read_table(folder / "imu.parquet")
    assert imu["gz"].dtype == np.float32 and len(imu["t_ns"]) == 120


def test_a_rate_that_varies_keeps_its_times(tmp_path):
    rng = np.random.default_rng(3)
    when = T0 + np.cumsum(rng.integers(40_000_000, 110_000_000, 30)).astype(np.int64)
    folder = make(tmp_path, t_ns=when)
    checked = check_bundle(folder)
    assert checked.findings == [] and checked.numbers["variable_rate"]
    seen = look(folder / "video.mp4")
    assert np.abs(seen.t_ns - (when - when[0])).max() < 12_000  # a tick of 1/90000 s


@settings(max_examples=50)
@given(st.integers(0, 150 * 10**9))
def test_a_tick_is_never_further_than_half_of_one(t_ns):
    assert abs(ticks(t_ns) * 1_000_000_000 - t_ns * 90_000) <= 45_000 * 10_000 + 500_000_000


def test_a_pause_is_refused_unless_it_is_listed(tmp_path):
    when = times(30)
    when[15:] += 2_000_000_000
    assert codes(make(tmp_path, t_ns=when)) == {"gap"}
    listed = ((int(when[14]), int(when[15])),)
    assert codes(make(tmp_path, t_ns=when, gaps=listed)) == set()
    elsewhere = ((int(when[3]), int(when[4])),)
    assert codes(make(tmp_path, t_ns=when, gaps=elsewhere)) == {"gap"}
    just = times(30)
    just[15:] += int(2 / FPS * 1e9) - 1000  # three periods altogether
    assert codes(make(tmp_path, t_ns=just)) == set()


def test_missing_frames_are_counted(tmp_path):
    kept = np.delete(np.arange(60), [20, 21, 25])
    assert worst_drop_rate(times(60)[kept], FPS) == pytest.approx(0.2)
    assert worst_drop_rate(times(60), FPS) == 0.0
    assert worst_drop_rate(times(3), FPS) == 0.0


def damage_times(folder):
    frames = read_table(folder / "frames.parquet")
    frames["t_ns"] = frames["t_ns"].copy()
    frames["t_ns"][10] = frames["t_ns"][9]
    write_table(folder / "frames.parquet", frames)
    reseal(folder, "frames.parquet")


def drop_a_row(folder):
    frames = read_table(folder / "frames.parquet")
    write_table(folder / "frames.parquet", {name: values[:-1] for name, values in frames.items()})
    reseal(folder, "frames.parquet")


def shift_the_video(folder):
    frames = read_table(folder / "frames.parquet")
    frames["t_ns"] = frames["t_ns"] + np.arange(30) * 2_000_000
    write_table(folder / "frames.parquet", frames)
    reseal(folder, "frames.parquet")


def imu_runs_back(folder):
    imu = read_table(folder / "imu.parquet")
    imu["t_ns"] = imu["t_ns"].copy()
    imu["t_ns"][50:] -= 3_000_000_000
    write_table(folder / "imu.parquet", imu)
    reseal(folder, "imu.parquet")


def imu_is_nan(folder):
    imu = read_table(folder / "imu.parquet")
    imu["gx"] = imu["gx"].copy()
    imu["gx"][7] = np.nan
    write_table(folder / "imu.parquet", imu)
    reseal(folder, "imu.parquet")


def box_outside(folder):
    edge = read_table(folder / "edge.parquet")
    edge["hands"] = [[{**vars(row[0]), "x1": 1.5}] for row in edge["hands"]]
    write_table(folder / "edge.parquet", edge)
    reseal(folder, "edge.parquet")


def one_frame_more(folder):
    edit(folder, n_frames=31)


def another_size(folder):
    edit(folder, width=WIDTH * 2)


def a_byte_is_flipped(folder):
    data = bytearray((folder / "imu.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "imu.parquet").write_bytes(data)


def cut_short(folder):
    data = (folder / "video.mp4").read_bytes()
    (folder / "video.mp4").write_bytes(data[: len(data) // 2])


REFUSED = {
    damage_times: "timestamps",
    shift_the_video: "timestamps",
    imu_runs_back: "timestamps",
    drop_a_row: "count",
    one_frame_more: "count",
    imu_is_nan: "table",
    box_outside: "table",
    another_size: "video",
    a_byte_is_flipped: "hash",
    cut_short: "size",
}


@pytest.mark.parametrize("damage", REFUSED, ids=lambda damage: damage.__name__)
def test_it_is_refused(tmp_path, damage):
    folder = make(tmp_path)
    damage(folder)
    checked = check_bundle(folder)
    assert REFUSED[damage] in {finding.code for finding in checked.findings}
    for finding in checked.findings:
        assert finding.what.endswith(".") and "\n" not in finding.what and len(finding.what) < 400


def test_nothing_is_left_of_a_bundle_that_could_not_be_written(tmp_path):
    def video(path):
        write_video(path, zip(times(5).tolist(), pictures(5), strict=True), FPS)

    with pytest.raises(BundleError) as caught:
        write_bundle(tmp_path, info(session="../../etc"), video, times(5))
    assert caught.value.code == "name"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert HEIGHT == 64


def test_the_command_says_what_it_found(tmp_path, capsys):
    make(tmp_path / "spool")
    assert main(["collect", "validate", str(tmp_path / "spool")]) == 0
    assert "1 checked, 0 refused" in capsys.readouterr().out
    bad = make(tmp_path / "spool")
    a_byte_is_flipped(bad)
    assert main(["collect", "validate", str(tmp_path / "spool"), "--json"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert record["refused"] == 1 and len(record["bundles"]) == 2
    assert main(["collect", "validate", str(tmp_path / "nothing"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["field"] == "path"
