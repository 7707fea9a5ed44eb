"""The edge agent over rendered days: what it keeps, what it never stores, and the same again."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from bundles import info

from haversack.bench.aoe._world import FPS, Day
from haversack.cli import main
from haversack.collect._day import Day as Budget
from haversack.collect._day import Kept, thumbnail
from haversack.collect._findings import check_bundle
from haversack.collect._policy import Policy, Privacy, Savings, read_policy
from haversack.collect._tables import read_table
from haversack.collect._video import decoded, write_video
from haversack.collect.agent import EdgeAgent
from haversack.collect.bundle import Bundle, bundles_in
from haversack.collect.detector import SkinDetector
from haversack.core.errors import UserError

SECOND = 1_000_000_000
SEED = 23
"""A day with a work of 16 s after a walk and before another."""


@pytest.fixture(scope="module")
def stream():
    """A work of some twenty seconds with what is around it, rendered once."""
    day = Day(SEED, 200.0)
    work = next(part for part in day.stretches if part.kind == "work" and part.begin > 10 and part.end < 190)
    begin, end = work.begin - 6, work.end + 7
    frames = list(day.frames(begin, end))
    t_ns, samples = day.imu(begin, end)
    return frames, t_ns, samples, (work.begin, work.end)


@pytest.fixture(scope="module")
def played(stream, tmp_path_factory):
    """An agent that has seen the stream, and the bundles it made."""
    spool = tmp_path_factory.mktemp("played")
    agent = agent_of(spool)
    return agent, play(agent, stream), spool


def agent_of(spool, policy=None, **how):
    return EdgeAgent(spool, info(fps_nominal=float(FPS)), SkinDetector(), policy, **how)


def play(agent, stream, *, wall=1_760_000_000 * SECOND, finish=True):
    frames, t_ns, samples, _ = stream
    agent.tick(wall, frames[0][0])
    made, at = [], 0
    for when, picture in frames:
        while at < len(t_ns) and t_ns[at] <= when:
            agent.push_imu(int(t_ns[at]), tuple(samples[at].tolist()))
            at += 1
        made += agent.push_frame(when, picture)
    return made + (agent.finish() if finish else [])


def spans(folders):
    found = []
    for folder in folders:
        times = read_table(folder / "frames.parquet")["t_ns"]
        found.append((int(times[0]), int(times[-1])))
    return found


def covered(found, begin, end):
    return sum(max(0.0, min(end, b / SECOND) - max(begin, a / SECOND)) for a, b in found) / (end - begin)


def test_work_is_kept_idling_is_not_and_the_same_again(tmp_path, stream, played):
    frames, _, _, work = stream
    _, one, spool = played
    assert one and all(check_bundle(folder).findings == [] for folder in one)
    found = spans(one)
    assert covered(found, work[0] + 1, work[1] - 1) > 0.8
    length = (frames[-1][0] - frames[0][0]) / SECOND
    assert sum(b - a for a, b in found) / SECOND < 0.9 * length
    manifest = Bundle.open(one[0]).manifest
    assert manifest.trigger.reason == "hands" and manifest.trigger.thresholds["start"] == 0.55
    edge = read_table(one[0] / "edge.parquet")
    assert max(edge["a"]) > 0.55 and any(edge["hands"])
    assert len(read_table(one[0] / "imu.parquet")["t_ns"]) > 100
    assert spans(play(agent_of(tmp_path / "two"), stream)) == found
    assert list((spool / ".ring").iterdir()) == []  # nothing but clips is left


def test_the_clip_s_pictures_are_those_of_its_times(stream, played):
    folder = played[1][0]
    by_time = dict(stream[0])
    times = read_table(folder / "frames.parquet")["t_ns"]
    for t, frame in list(zip(times.tolist(), decoded(folder / "video.mp4"), strict=True))[::17]:
        difference = np.abs(frame.to_ndarray(format="rgb24").astype(int) - by_time[t])
        assert difference.mean() < 8


@pytest.mark.parametrize("how", ["battery", "blocked", "unworn"])
def test_nothing_is_kept_when_it_must_not_be(tmp_path, stream, how):
    policy = Policy(privacy=Privacy(minutes_blocked=((0, 1440),))) if how == "blocked" else None
    mount = np.array([1.0, 0, 0]) if how == "unworn" else None
    agent = agent_of(tmp_path, policy, mount=mount)
    if how == "battery":
        tick = agent.tick
        agent.tick = lambda wall, t: tick(wall, t, battery=10.0)
    frames, t_ns, samples, work = stream
    assert play(agent, (frames[:300], t_ns, samples, work)) == [] and bundles_in(tmp_path) == []


def test_the_last_minutes_are_forgotten(tmp_path, stream):
    agent = agent_of(tmp_path)
    play(agent, stream)
    count = len(bundles_in(tmp_path))
    assert count and agent.forget_last(10) == count
    assert bundles_in(tmp_path) == [] and not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_faces_are_blurred_in_what_is_stored(tmp_path, stream):
    box = (0.25, 0.0, 0.75, 0.5)
    frames, t_ns, samples, work = stream
    agent = agent_of(tmp_path, faces=lambda picture: [box])
    folder = play(agent, (frames[: 15 * FPS], t_ns, samples, work))[0]
    assert Bundle.open(folder).manifest.privacy.faces_blurred
    frame = next(iter(decoded(folder / "video.mp4"))).to_ndarray(format="rgb24").astype(float)
    detail = [np.abs(np.diff(part, axis=1)).mean() for part in (frame[:85, 85:235], frame[95:])]
    assert detail[0] < 0.25 * detail[1]


def test_a_slow_or_hot_device_looks_less(tmp_path, stream, played):
    cool, hot = played[0], agent_of(tmp_path / "hot")
    tick = hot.tick
    hot.tick = lambda wall, t: tick(wall, t, temperature_c=45.0)
    play(hot, stream)
    assert hot.account.detections < 0.6 * cool.account.detections


def test_a_walk_keeps_the_camera_off_for_blocks_that_shake(tmp_path):
    """Blocks are matched worse than ON_PX while the camera bounces: without hands nothing is filmed."""
    day = Day(SEED, 200.0)
    walk = next(part for part in day.stretches if part.kind == "walk" and part.end - part.begin > 20)
    agent, begin = agent_of(tmp_path), walk.begin + 5
    played = (list(day.frames(begin, walk.end - 2)), *day.imu(begin, walk.end - 2), None)
    assert play(agent, played) == []
    seconds = walk.end - 2 - begin
    assert agent.account.states["walk"] > 0.6 * FPS * seconds
    assert agent.account.detections > 3
    assert agent.account.camera_ns / SECOND < 0.5 * seconds


def test_a_day_s_budget_keeps_what_is_worth_its_bytes(tmp_path):
    day, paths = Budget(250), []
    for at, value in enumerate([0.9, 0.1, 0.8]):
        path = tmp_path / str(at)
        path.mkdir()
        paths.append(path)
        removed = day.add(Kept(path, 1, 100, value, at, at + 1))
        assert [each.path for each in removed] == ([paths[1]] if at == 2 else [])
    assert [path.exists() for path in paths] == [True, False, True]
    rng = np.random.default_rng(0)
    picture = rng.uniform(0, 255, (90, 160)).astype(np.float32)
    assert day.novelty(thumbnail(picture)) == 1.0
    assert day.novelty(thumbnail(picture)) == pytest.approx(0.0, abs=1e-5)
    assert Savings().day_mib > 0


def test_the_command_watches_a_file_and_what_it_keeps_is_valid(tmp_path, stream, capsys):
    frames, t_ns, samples, _ = stream
    begin = frames[0][0]
    write_video(tmp_path / "day.mp4", frames, float(FPS), crf=18)
    with (tmp_path / "imu.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["t_ns", "ax", "ay", "az", "gx", "gy", "gz"])
        rows.writerows([[int(t) - begin, *map(float, row)] for t, row in zip(t_ns, samples, strict=True)])
    line = ["collect", "edge", "--source", str(tmp_path / "day.mp4"), "--out", str(tmp_path / "spool")]
    assert main([*line, "--json"]) == 2  # nobody agreed
    assert json.loads(capsys.readouterr().out)["field"] == "contributor"
    assert main([*line, "--imu", str(tmp_path / "imu.csv"), "--contributor", "c-anna", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["clips"] and done["frames"] == len(frames) and done["seconds"] > 20
    assert main(["collect", "validate", str(tmp_path / "spool"), "--json"]) == 0
    capsys.readouterr()
    for word, value, field in (
        ("--imu", "day.mp4", "imu"),
        ("--detector", "eyes", "detector"),
        ("--source", "none.mp4", "source"),
    ):
        given = [
            *line,
            "--contributor",
            "c",
            word,
            str(tmp_path / value) if "." in value else value,
            "--json",
        ]
        assert main(given) == 2
        assert json.loads(capsys.readouterr().out)["field"] == field


def test_policies(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text("crf = 28\n[trigger]\nstart = 0.6\n[privacy]\nminutes_blocked = [[1320, 360]]\n")
    policy = read_policy(path)
    assert policy.crf == 28 and policy.trigger.start == 0.6 and policy.trigger.stop == 0.30
    assert (
        policy.blocked(23 * 3600 * SECOND)
        and policy.blocked(3600 * SECOND)
        and not policy.blocked(12 * 3600 * SECOND)
    )
    assert read_policy(None) == Policy()
    for text in (
        "[trigger]\nstrat = 1",
        "[tirgger]\n",
        "trigger = 1",
        "[rates]\nactive_hz = 'x'",
        "= 3",
        "crf = -1",
    ):
        path.write_text(text)
        with pytest.raises(UserError):
            read_policy(path)
