"""LeRobot v3.0: the specification's numbers, an independent reader, and every fault it must name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest
from bundles import make
from filled import device, fill, put

from haversack.cli import main
from haversack.collect import forget as forgetting
from haversack.collect._statistics import joined, of_values, sample_count
from haversack.collect._video import write_video
from haversack.collect.bundle import Consent, DeviceRecord
from haversack.collect.export import CAMERA, export, grid, split_of
from haversack.collect.lerobot_reader import LeRobotV3, validate_dataset
from haversack.collect.lerobot_v3 import DatasetWriter, Feature
from haversack.collect.process import Settings, process
from haversack.collect.store import Store, StoreLimits
from haversack.core.errors import UserError

LENGTHS = (10, 7, 5)
FEATURES = {
    "observation.images.ego": Feature("video", (48, 64, 3), ("height", "width", "channels")),
    "observation.state": Feature("float32", (2,), ("x", "y")),
}


def shade(episode, frame):
    return 20 + 60 * episode + 4 * frame


def pictures(episode, count):
    return [np.full((48, 64, 3), shade(episode, frame), np.uint8) for frame in range(count)]


def states(episode, count):
    return np.stack([np.arange(count), np.full(count, episode)], axis=1).astype(np.float32)


def write(path, lengths=LENGTHS, **how):
    with DatasetWriter(path, 10, FEATURES, **how) as writer:
        for number, count in enumerate(lengths):
            columns = {"observation.state": states(number, count)}
            writer.add_episode(columns, f"task {number % 2}", {CAMERA: iter(pictures(number, count))})
        return writer.finish()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("set") / "whole")


def test_the_specification_s_numbers(whole):
    info = json.loads((whole / "meta" / "info.json").read_text())
    assert (info["total_frames"], info["total_episodes"], info["total_tasks"]) == (22, 3, 2)
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": "0:3"}
    data = LeRobotV3(whole)
    second = data.episodes[1]
    assert (second["dataset_from_index"], second["dataset_to_index"]) == (10, 17)
    assert second[f"videos/{CAMERA}/from_timestamp"] == pytest.approx(1.0)
    assert second[f"videos/{CAMERA}/to_timestamp"] == pytest.approx(1.7)
    assert [data.row(at)["index"] for at in range(22)] == list(range(22))
    assert [sample_count(n) for n in (1000, 2000, 5000, 10_000, 20_000)] == [177, 299, 594, 1000, 1681]


def test_every_frame_is_read_back(whole):
    data = LeRobotV3(whole)
    at = 0
    for number, count in enumerate(LENGTHS):
        for frame in range(count):
            row = data.row(at)
            assert (row["episode_index"], row["frame_index"]) == (number, frame)
            assert row["timestamp"] == pytest.approx(frame / 10, abs=1e-6)
            assert row["observation.state"].tolist() == [frame, number]
            assert data.tasks[row["task_index"]] == f"task {number % 2}"
            assert abs(float(data.picture(at, CAMERA).mean()) - shade(number, frame)) < 2.0
            at += 1
    assert len(data) == 22 and validate_dataset(whole) == []


def test_files_roll_and_are_found(tmp_path):
    path = write(tmp_path / "small", (6, 6, 6, 6), data_mib=1e-6, video_mib=1e-6)
    assert len(list((path / "data").rglob("*.parquet"))) == 4
    assert len(list((path / "videos").rglob("*.mp4"))) == 4
    assert validate_dataset(path) == []
    data = LeRobotV3(path)
    assert data.row(20)["observation.state"].tolist() == [2, 3]
    assert abs(float(data.picture(20, CAMERA).mean()) - shade(3, 2)) < 2.0


def test_statistics_of_the_whole_are_those_of_all_values(whole):
    rng = np.random.default_rng(0)
    parts = [rng.normal(at, 1 + at, (50 + 30 * at, 3)) for at in range(4)]
    found, truth = joined([of_values(part) for part in parts]), of_values(np.concatenate(parts))
    for name in ("min", "max", "mean", "std", "count"):
        assert np.allclose(found[name], truth[name])
    stats = json.loads((whole / "meta" / "stats.json").read_text())
    assert np.shape(stats[CAMERA]["mean"]) == (3, 1, 1) and 0 <= stats[CAMERA]["min"][0][0][0] <= 1
    assert stats["observation.state"]["max"] == [9.0, 2.0] and stats["index"]["count"] == [22]


def test_tasks_have_the_sentence_as_their_index(whole):
    table = parquet.read_table(whole / "meta" / "tasks.parquet")
    said = json.loads(table.schema.metadata[b"pandas"])
    assert said["index_columns"] == ["task"] and table["task"].to_pylist() == ["task 0", "task 1"]


def cut_the_footer(path):
    file = next((path / "data").rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])


def a_rate_of_29_97(path):
    info(path, fps=29.97)


def too_many_frames(path):
    info(path, total_frames=23)


def a_slash(path):
    features = json.loads((path / "meta" / "info.json").read_text())["features"]
    features["observation/x"] = features["observation.state"]
    info(path, features=features)


def off_the_grid(path):
    file = next((path / "data").rglob("*.parquet"))
    table = parquet.read_table(file)
    times = np.asarray(table["timestamp"]) + np.where(np.arange(22) == 12, 0.004, 0).astype(np.float32)
    at = table.column_names.index("timestamp")
    parquet.write_table(table.set_column(at, "timestamp", [times.astype(np.float32)]), file)


def a_row_less(path):
    file = next((path / "data").rglob("*.parquet"))
    parquet.write_table(parquet.read_table(file).slice(0, 21), file)


def a_shorter_video(path):
    file = next((path / "videos").rglob("*.mp4"))
    frames = [(round(at * 1e8), picture) for at, picture in enumerate(pictures(0, 20))]
    write_video(file, frames, 10.0)


def no_video(path):
    shutil.rmtree(path / "videos")


def info(path, **changes):
    file = path / "meta" / "info.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


FAULTS = {
    cut_the_footer: "no whole Parquet file",
    a_rate_of_29_97: "29.97",
    too_many_frames: "total_frames 23",
    a_slash: "slash",
    off_the_grid: "off the grid",
    a_row_less: "rows are not those",
    a_shorter_video: "20 frames for 22 rows",
    no_video: "cannot be read",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_the_validator_names_it(tmp_path, whole, fault, capsys):
    path = tmp_path / "set"
    shutil.copytree(whole, path)
    fault(path)
    assert any(FAULTS[fault] in sentence for sentence in validate_dataset(path))
    assert main(["collect", "validate", str(path), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["refused"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda path: DatasetWriter(path, 29.97, FEATURES),
        lambda path: DatasetWriter(path, 0, FEATURES),
        lambda path: DatasetWriter(path, 10, {"a/b": FEATURES["observation.state"]}),
        lambda path: DatasetWriter(path, 10, {"index": FEATURES["observation.state"]}),
        lambda path: DatasetWriter(path, 10, {"x": Feature("float64", (2,))}),
        lambda path: write(path, ()),
    ],
)
def test_what_no_set_may_have(tmp_path, wrong):
    with pytest.raises(UserError):
        wrong(tmp_path / "set")
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("what", ["nan", "short", "size", "missing"])
def test_episodes_that_do_not_hold_leave_nothing(tmp_path, what):
    columns = {"observation.state": states(0, 5)}
    video = pictures(0, 5)
    if what == "nan":
        columns["observation.state"][2, 1] = np.nan
    elif what == "short":
        columns["observation.state"] = states(0, 4)
    elif what == "size":
        video[3] = np.zeros((50, 64, 3), np.uint8)
    else:
        columns = {}
    with pytest.raises(UserError), DatasetWriter(tmp_path / "set", 10, FEATURES) as writer:
        writer.add_episode(columns, "x", {CAMERA: video})
    assert list(tmp_path.iterdir()) == []


# from the store


def test_the_grid_takes_the_nearest_frames():
    t_ns = np.array([0, 66, 133, 210, 266, 333], np.int64) * 1_000_000
    times, chosen = grid(t_ns, 10)
    assert times.tolist() == [0, 100_000_000, 200_000_000, 300_000_000]
    assert chosen.tolist() == [0, 2, 3, 5] or chosen.tolist() == [0, 1, 3, 5]


def test_splits_are_by_contributor():
    names = [split_of(f"c-{at}") for at in range(4000)]
    assert abs(names.count("train") / 4000 - 0.9) < 0.02 and {"validation", "test"} <= set(names)


def test_a_store_becomes_a_set_and_forgetting_takes_it_away(tmp_path, capsys):
    root = tmp_path / "store"
    fill(root, 2, "c-anna", frames=20)
    store = Store(root, StoreLimits(keep_free_bytes=0))
    owner = device(store, "c-bert")
    turned = make(
        tmp_path / "spool2",
        20,
        seed=7,
        device=DeviceRecord(id=owner.id, model="m", os="o", lens_id="b"),
        consent=Consent(contributor_pseudonym="c-bert", policy_version="1.2", retention_days=30),
        rotation=90,
    )
    put(store, owner, turned)
    line = ["collect", "export", str(root), "--out", str(tmp_path / "set"), "--fps", "15", "--json"]
    assert main(line) == 2  # nothing was processed
    assert "process" in json.loads(capsys.readouterr().out)["error"]
    process(root, ["c1-ingest"], settings=Settings(workers=1))
    assert main(line) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["episodes"], done["frames"], done["left_out"]) == (2, 40, {"another size": 1})
    assert validate_dataset(tmp_path / "set") == []
    data = LeRobotV3(tmp_path / "set")
    row = data.row(25)
    assert row["observation.hand_valid"].tolist() == [False, True] and row["observation.imu"].shape == (6,)
    assert row["observation.hand_boxes"][6:].tolist() == pytest.approx(
        [0.2, 0.5, 0.4, 0.8, 0.9, 0.7], abs=1e-5
    )
    origin = json.loads((tmp_path / "set" / "meta" / "provenance.json").read_text())
    assert len(origin["episodes"]) == 2 and "c-anna" not in json.dumps(origin)
    assert main(line) == 2  # it is there already
    capsys.readouterr()
    forgotten = forgetting.forget(root, "c-anna")
    assert not (tmp_path / "set").exists() and len(forgotten.exports) == 1
    upright = export(root, tmp_path / "set")
    assert upright.episodes == 1
    assert LeRobotV3(tmp_path / "set").picture(0, CAMERA).shape == (96, 64, 3)
