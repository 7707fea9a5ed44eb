"""One rendered clip through every stage, and out again in every format."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest

from haversack.bench.aoe._clips import Shelf
from haversack.bench.aoe._scene import Scene
from haversack.bench.aoe.vision import process_here
from haversack.cli import main
from haversack.collect import _labels
from haversack.collect import forget as forgetting
from haversack.collect._books import Books
from haversack.collect._rotations import exp, from_rot6d, log, rot6d
from haversack.collect.export import CAMERA
from haversack.collect.lerobot_reader import LeRobotV3, validate_dataset
from haversack.collect.retarget import Finger, deltas, finger_angles, follow, gripper_pose, read_robot
from haversack.core.errors import UserError

SECONDS = 4.0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with a good clip, the same clip again, and one without hands; and its export."""
    folder = tmp_path_factory.mktemp("labelled")
    shelf = Shelf(folder / "store")
    scene = Scene(61, SECONDS, person=61, phone=3, room=61)
    clips = [
        shelf.put(scene, contributor="c-anna"),
        shelf.put(scene, contributor="c-bert", crf=24),
        shelf.put(Scene(62, 2.6, phone=3, room=62, hands=False), contributor="c-anna"),
    ]
    shelf.close()
    process_here(folder / "store")
    assert main(["collect", "export", str(folder / "store"), "--out", str(folder / "set")]) == 0
    return folder, clips


def test_the_clip_went_through_every_stage_and_the_empty_one_did_not(made):
    folder, clips = made
    books = Books(folder / "store")
    rows = books.rows("SELECT clip, stage, state, drop_reason FROM jobs")
    books.close()
    good = {row["stage"]: row["state"] for row in rows if row["clip"] == clips[0].clip}
    assert len(good) == 8 and set(good.values()) == {"done"}
    assert [row["drop_reason"] for row in rows if row["clip"] == clips[2].clip if row["drop_reason"]] == [
        "no-hands"
    ]


def test_the_set_holds_states_actions_and_the_caption_s_task_and_no_twin(made):
    folder, _ = made
    assert validate_dataset(folder / "set") == []
    data = LeRobotV3(folder / "set")
    assert len(data.episodes) == 1
    n = data.episodes[0]["length"]
    state, action = (
        data.values(data.episodes[0], "observation.state"),
        data.values(data.episodes[0], "action"),
    )
    known = data.values(data.episodes[0], "observation.hand_known")
    assert state.shape == action.shape == (n, 48) and known.any(1).mean() > 0.6
    at = int(np.flatnonzero(known[:-1].all(1) & known[1:].all(1))[5])
    assert state[at + 1, :3] - state[at, :3] == pytest.approx(action[at, :3], abs=1e-5)
    now, following = (from_rot6d(state[row, 3:9].astype(float)) for row in (at, at + 1))
    assert rot6d(now.T @ following) == pytest.approx(action[at, 3:9], abs=1e-3)
    assert np.linalg.norm(
        data.values(data.episodes[0], "observation.camera_pose")[:, 3:], axis=1
    ) == pytest.approx(1)
    notes = json.loads((folder / "set" / "meta" / "annotations.json").read_text())
    assert notes["episodes"][0]["task"] == data.tasks[0] and "hand" in data.tasks[0]
    rows = json.loads((folder / "set" / "meta" / "yield.json").read_text())
    assert {"stage": "export", "reason": "duplicate"}.items() <= next(
        r for r in rows if r["reason"] == "duplicate"
    ).items()


def test_v2_1_and_back_changes_nothing(made, tmp_path):
    folder, _ = made
    old, new = tmp_path / "old", tmp_path / "new"
    assert (
        main(["collect", "export", str(folder / "set"), "--out", str(old), "--format", "lerobot-v2.1"]) == 0
    )
    assert validate_dataset(old) == []
    assert main(["collect", "export", str(old), "--out", str(new), "--format", "lerobot-v3"]) == 0
    assert validate_dataset(new) == []
    one, two = LeRobotV3(folder / "set"), LeRobotV3(new)
    assert one.info == two.info and one.tasks == two.tasks and one.episodes == two.episodes
    for a, b in zip(one.episodes, two.episodes, strict=True):
        assert one.table(a).equals(two.table(b))
        for x, y in zip(one.pictures(a, CAMERA), two.pictures(b, CAMERA), strict=True):
            assert np.array_equal(x, y)
    for name in ("stats", "annotations", "provenance"):
        assert json.loads((folder / "set" / "meta" / f"{name}.json").read_text()) == json.loads(
            (new / "meta" / f"{name}.json").read_text()
        )
    shutil.rmtree(next((old / "data").rglob("*.parquet")).parent)
    assert any("cannot be read" in sentence for sentence in validate_dataset(old))


def test_hdf5_holds_the_same_hands(made, tmp_path):
    import h5py

    folder, _ = made
    assert (
        main(["collect", "export", str(folder / "set"), "--out", str(tmp_path / "h"), "--format", "hdf5"])
        == 0
    )
    data = LeRobotV3(folder / "set")
    path = next((tmp_path / "h").rglob("*.hdf5"))
    with h5py.File(path) as file:
        assert file.attrs["llm_description"] == data.tasks[0]
        joints = data.values(data.episodes[0], "observation.hand_joints").reshape(-1, 2, 21, 3)
        tip = file["transforms/leftIndexFingerTip"][:, :3, 3]
        assert np.allclose(tip, joints[:, 0, 8], atol=1e-6)
        camera = file["transforms/camera"][:]
        assert np.allclose(camera[:, :3, 3], data.values(data.episodes[0], "observation.camera_pose")[:, :3])
        assert np.allclose(np.linalg.det(camera[:, :3, :3]), 1, atol=1e-4)
    assert path.with_suffix(".mp4").stat().st_size > 1000


def test_mcap_is_read_by_the_public_reader(made, tmp_path):
    from mcap.reader import make_reader

    folder, _ = made
    assert (
        main(["collect", "export", str(folder / "set"), "--out", str(tmp_path / "m"), "--format", "mcap"])
        == 0
    )
    data = LeRobotV3(folder / "set")
    n, state = data.episodes[0]["length"], data.values(data.episodes[0], "observation.state")
    with next((tmp_path / "m").glob("*.mcap")).open("rb") as file:
        said = {}
        for schema, channel, message in make_reader(file).iter_messages():
            said.setdefault(channel.topic, []).append(
                (message.log_time, schema.name, json.loads(message.data))
            )
    assert said["/task"][0][2]["task"] == data.tasks[0] and len(said["/camera/image"]) == n
    assert [row[2]["values"] for row in said["/state"]] == [
        pytest.approx(row, abs=1e-5) for row in state.tolist()
    ]
    assert said["/camera/image"][1][0] == round(1e9 / data.fps)
    assert said["/camera/image"][0][1] == "foxglove.CompressedImage"


def test_a_store_is_exported_in_any_format_and_forgotten_in_it(made, tmp_path):
    folder, _ = made
    root = tmp_path / "store"
    shutil.copytree(folder / "store", root)
    shutil.rmtree(root / "exports")  # the other tests' set is the original's
    out = tmp_path / "old"
    assert main(["collect", "export", str(root), "--out", str(out), "--format", "lerobot-v2.1"]) == 0
    assert validate_dataset(out) == [] and not list(tmp_path.glob("*.partial-*"))
    kept = json.loads(next((out / "meta").glob("provenance.json")).read_text())["episodes"][0]["clip_uuid"]
    books = Books(root)
    row = books.row("SELECT contributor FROM clips WHERE uuid = ?", (kept,))
    books.close()
    assert forgetting.forget(root, row["contributor"]).exports == [str(out.resolve())]
    assert not out.exists()
    assert main(["collect", "export", str(root), "--out", str(out)]) == 0  # the twin is back
    assert len(LeRobotV3(out).episodes) == 1


def test_the_page_shows_the_episode_and_nothing_in_it_ends_its_script(made, tmp_path):
    from haversack.collect.view import page, record_of

    folder, _ = made
    line = ["collect", "view", str(folder / "set"), "--out", str(tmp_path / "e.html"), "--pictures", "5"]
    assert main(line) == 0
    text = (tmp_path / "e.html").read_text()
    assert text.count("<script>") == text.count("</script>") == 1 and "http" not in text.replace(
        "http-equiv", ""
    ).replace("http://www.w3.org/2000/svg", "")
    data = LeRobotV3(folder / "set")
    record = record_of(data, data.episodes[0], 5)
    assert len(record["pictures"]) == 5 and len(record["joints"][0]) == 42
    assert "</script><b>" not in page(record | {"task": "</script><b>"})
    assert main([*line, "--episode", "7"]) == 2


def test_who_runs_the_server_sees_clips_with_what_was_found_and_nobody_else_does(made):
    import httpx
    from serving import serving

    folder, clips = made
    with serving(folder / "store", token="a-secret-of-a-server") as server:
        address = f"{server.url}/v1/clips/{clips[0].clip}/page"
        assert httpx.get(address).status_code == 401
        known = {"Authorization": "Bearer a-secret-of-a-server"}
        answer = httpx.get(address, headers=known, timeout=60)
        assert answer.status_code == 200 and "const R = {" in answer.text
        assert httpx.get(f"{server.url}/v1/clips/../page", headers=known).status_code == 404
        assert httpx.get(f"{server.url}/v1/clips/{'0' * 36}/page", headers=known).status_code == 404
        recent = httpx.get(f"{server.url}/v1/state", headers=known).json()["recent"]
    assert {row["clip"]: row["stages"] for row in recent}[clips[0].clip] == 8
    assert {row["drop_reason"] for row in recent} == {None, "no-hands"}


GRIPPER = (
    'kind = "gripper"\nhand = "right"\nbase = [0.1, 0, 0, 0, 0, 0]\nworkspace = [[-2, -2, -2], [2, 2, 2]]\n'
)
HAND = """kind = "fingers"
scale = 1.0
[[finger]]
tip = "index"
base = [0.09, 0.02, 0]
axes = [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
links = [0.0, 0.05, 0.05]
limits = [[-0.2, 1.6], [0, 1.7], [-0.4, 0.4]]
"""


@pytest.mark.parametrize("robot", [GRIPPER, HAND])
def test_hands_become_a_robot_s(made, tmp_path, robot, capsys):
    folder, _ = made
    (tmp_path / "robot.toml").write_text(robot)
    line = ["collect", "retarget", str(folder / "set"), "--robot", str(tmp_path / "robot.toml")]
    assert main([*line, "--out", str(tmp_path / "r"), "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    table = parquet.read_table(next((tmp_path / "r").glob("*.parquet")))
    width = 7 if "gripper" in robot else 9
    assert done["episodes"] == 1 and table["state"].type.list_size == table["action"].type.list_size == width
    state = np.asarray(table["state"].to_pylist())
    known = np.asarray(table["known"].to_pylist())
    assert np.isfinite(state).all() and done["unknown"] == int((~known).sum())


def test_a_gripper_is_between_the_tips_and_as_open_as_they_are():
    joints = np.zeros((1, 21, 3))
    joints[0, 4], joints[0, 8], joints[0, 5] = [0.1, -0.03, 0], [0.1, 0.03, 0], [0.08, 0.0, 0]
    R, p, opening = gripper_pose(joints)
    assert p[0] == pytest.approx([0.1, 0, 0]) and opening[0] == pytest.approx(0.5)
    assert R[0] == pytest.approx(np.eye(3), abs=1e-9)


def test_a_finger_reaches_what_it_can_and_keeps_its_limits():
    low, high = np.array([-0.3, 0.0]), np.array([1.2, 1.5])
    finger = Finger(
        "index", np.zeros(3), np.array([[0, 0, 1.0], [0, 0, 1.0]]), np.array([0.05, 0.04]), low, high
    )
    goal = finger.point(np.array([0.4, 0.8]))
    q, left = finger_angles(finger, goal, np.zeros(2) + 0.2, 60)
    assert left < 4e-3
    q, left = finger_angles(finger, np.array([-0.2, 0, 0]), np.zeros(2))
    assert (q >= low).all() and (q <= high).all() and left > 0.1


def test_a_delta_is_the_logarithm_of_the_motion():
    w, t = np.array([0.3, -0.2, 0.5]), np.array([0.02, 0.01, -0.04])
    R = np.stack([exp(np.array([0.1, 0.4, 0])), np.eye(3)])
    angle = np.linalg.norm(w)
    cross = log(np.eye(3)) * 0
    K = np.array([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]]) / angle
    V = np.eye(3) + (1 - np.cos(angle)) / angle * K + (1 - np.sin(angle) / angle) * K @ K
    R[1] = R[0] @ exp(w)
    p = np.stack([cross, R[0] @ V @ t])
    found = deltas(R, p, np.ones(2, bool))
    assert found[0] == pytest.approx([*t, *w], abs=1e-9) and not found[1].any()


@pytest.mark.parametrize(
    "wrong",
    ["kind = 3", 'kind = "arm"', 'kind = "fingers"', HAND.replace("[0.0, 0.05, 0.05]", "[0.05]"), "["],
)
def test_robots_that_are_none(tmp_path, wrong):
    (tmp_path / "robot.toml").write_text(wrong)
    with pytest.raises(UserError):
        read_robot(tmp_path / "robot.toml")


def test_the_workspace_is_that_of_the_robot_s_base(tmp_path):
    (tmp_path / "robot.toml").write_text(GRIPPER.replace("[2, 2, 2]", "[0.15, 2, 2]"))
    joints = np.zeros((2, 21, 3))
    joints[:, 8, 1], joints[:, 5, 0] = 0.06, 0.08
    joints[1, :, 0] += 0.1
    _, inside, _ = follow(read_robot(tmp_path / "robot.toml"), joints, np.ones(2, bool))
    assert inside.tolist() == [True, False]


def test_quaternions_and_turned_pictures():
    rng = np.random.default_rng(0)
    for _ in range(20):
        w = rng.normal(0, 1.5, 3)
        q = _labels.quaternions(exp(w)[None])[0]
        assert q[0] >= 0 and abs(np.cos(np.linalg.norm(w) / 2)) == pytest.approx(q[0], abs=1e-6)
    from haversack.collect._camera import Camera

    camera = Camera(200.0, 150.0, 80.0, 320, 180)
    point = np.array([[0.2, -0.1, 1.0]])
    for rotation in (90, 180, 270):
        M, centre = _labels.turned(camera, rotation)
        x, y = camera.project(point)[0]
        grid = np.zeros((180, 320))
        grid[round(y), round(x)] = 1
        row, column = np.argwhere(np.rot90(grid, -(rotation // 90)))[0]
        local = (point @ M.T)[0]
        assert [
            200 * local[0] / local[2] + centre[0],
            200 * local[1] / local[2] + centre[1],
        ] == pytest.approx([column, row], abs=0.51)
