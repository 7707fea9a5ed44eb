"""The bench of AoE: its world is what its truth says, its counting is right, what is not built says so."""

from __future__ import annotations

import itertools

import httpx
import numpy as np
import pytest

from haversack.bench import find_bench
from haversack.bench.aoe import edge
from haversack.bench.aoe._hand import BONES, PARENT, joints
from haversack.bench.aoe._proxy import Proxy
from haversack.bench.aoe._world import FPS, HEIGHT, WIDTH, Day
from haversack.collect._rotations import log
from haversack.collect.server import Options, Server


@pytest.fixture(scope="module")
def day() -> Day:
    return Day(23, 200.0)


def moment(day: Day, kind: str) -> float:
    part = next(part for part in day.stretches if part.kind == kind and part.end - part.begin > 10)
    return (part.begin + part.end) / 2


def test_bones_keep_their_length_however_a_hand_closes() -> None:
    for closed, right in itertools.product((0.0, 0.5, 1.0), (True, False)):
        found = joints(closed, right)
        for finger in range(5):
            for bone in range(3):
                one = 2 + 4 * finger + bone
                assert np.linalg.norm(found[one] - found[PARENT[one]]) == pytest.approx(BONES[finger, bone])
    open_tip, closed_tip = joints(0.0, True)[8], joints(1.0, True)[8]
    assert np.linalg.norm(closed_tip - joints(1.0, True)[4]) < np.linalg.norm(open_tip - joints(0.0, True)[4])


def test_hands_at_work_are_in_the_picture_and_nowhere_else(day: Day) -> None:
    for kind in ("sit", "walk"):
        assert day.shown(moment(day, kind)).hands == (None, None)
    inside = 0
    for step in range(20):
        shown = day.shown(moment(day, "work") + 0.2 * step)
        for hand in shown.hands:
            assert hand is not None and hand.shape == (21, 3) and hand[:, 2].min() > 0.1
            flat = hand @ day.K.T
            x, y = flat[:, 0] / flat[:, 2], flat[:, 1] / flat[:, 2]
            inside += bool(((x > 0) & (x < WIDTH) & (y > 0) & (y < HEIGHT)).mean() > 0.5)
    assert inside > 30


def test_the_motion_sensors_follow_the_camera(day: Day) -> None:
    t = moment(day, "sit")
    times, samples = day.imu(t, t + 1)
    assert len(times) == 100
    up = day.rotation(t).T @ np.array([0.0, -9.81, 0.0])
    assert np.allclose(samples[:5, :3].mean(axis=0), up, atol=0.1)
    turned = log(day.rotation(t).T @ day.rotation(t + 1))
    assert np.allclose(samples[:, 3:].mean(axis=0), turned, atol=0.03)


def test_the_same_seed_is_the_same_day() -> None:
    t = 9.0
    assert np.array_equal(Day(3, 60.0).picture(t), Day(3, 60.0).picture(t))
    assert not np.array_equal(Day(3, 60.0).picture(t), Day(4, 60.0).picture(t))
    assert len(list(Day(3, 60.0).frames(0.0, 0.4))) == round(0.4 * FPS)


def test_counting() -> None:
    assert edge.overlap([(0, 10), (20, 30)], [(5, 22), (21, 25)]) == pytest.approx(10)
    assert edge.overlap([(0, 10)], []) == 0.0
    groups = np.arange(10.0)
    assert edge.bytes_of([(2.5, 4.0), (3.2, 4.1)], groups) == 2 + 3 + 4
    looks = [(round((at + 1) * 2e8), 1.0 if 100 <= at < 200 else 0.01) for at in range(400)]
    seen = edge.Seen([(20.0, 40.0)], [(19.0, 41.0)], 80.0, 100, np.ones(81), looks, 1.0, 2.0)
    nbytes, gain, recall = edge.cheapest_motion([seen], 0.9)
    assert recall >= 0.9 and 18 <= nbytes <= 30 and gain > 0.5
    assert edge.duty_recall([seen], 1.0) == pytest.approx(1.0)
    assert edge.duty_recall([seen], 0.5) == pytest.approx(0.5)
    assert edge.joules(10, 150, 1000, 10, 0, 0) > edge.joules(1, 15, 1000, 10, 5, 5)


def test_a_row_for_every_bar_and_a_reason_for_those_not_built() -> None:
    bench = find_bench("1")
    assert bench.slug == "aoe" and len(bench.rows) >= 25
    assert {row.kind for row in bench.rows if row.quick} >= {"quality", "bytes", "time"}
    ids = {row.id for row in bench.rows}
    assert {"focal", "trajectory", "no-gyro", "wrist", "actions", "bad-clips", "curated", "round-trip"} <= ids


def test_the_room_s_truth_is_what_its_pictures_and_sensors_show() -> None:
    from haversack.bench.aoe._scene import Scene

    scene = Scene(5, 4.0, person=5, phone=2)
    t_ns, samples = scene.imu()
    true = t_ns * 1e-9 - scene.offset_s
    at = int(np.abs(true - 2.0).argmin())
    R0, R1 = scene.pose(float(true[at]) - 0.01)[0], scene.pose(float(true[at]) + 0.01)[0]
    assert np.abs(log(R0.T @ R1) / 0.02 - samples[at, 3:]).max() < 0.03
    assert np.linalg.norm(samples[:, :3], axis=1).mean() == pytest.approx(9.81, abs=0.4)
    hand = scene.hand(2.0, 1)
    assert hand is not None
    flat, depth = scene.project(hand, *scene.pose(2.0))
    picture = scene.picture(2.0)
    inside = (flat > 8).all(1) & (flat[:, 0] < WIDTH - 8) & (flat[:, 1] < HEIGHT - 8)
    assert depth.min() > 0.2 and inside.sum() > 8
    x, y = np.round(flat[inside]).astype(int).T
    assert (picture[y, x, 0].astype(int) > picture[y, x, 2].astype(int) + 15).mean() > 0.8  # skin
    for action, following in itertools.pairwise(a for a in scene.actions if a.hand == 1):
        assert action.t1 == pytest.approx(following.t0)


def test_errors_of_a_trajectory_are_those_that_no_rigid_motion_removes() -> None:
    from haversack.bench.aoe.vision import errors, f1, matched
    from haversack.collect._rotations import exp

    rng = np.random.default_rng(0)
    p = np.cumsum(rng.normal(0, 0.02, (50, 3)), 0)
    R = np.stack([exp(rng.normal(0, 0.3, 3)) for _ in range(50)])
    A = exp(np.array([0.3, -0.2, 1.0]))
    assert max(errors(A @ R, p @ A.T + 3.0, R, p)) < 1e-6
    length = np.linalg.norm(np.diff(p, axis=0), axis=1).sum()
    off = 0.1 * np.sqrt(((p - p.mean(0)) ** 2).sum(1).mean()) / length
    assert (
        errors(R, 1.1 * p, R, p)[0] == pytest.approx(off) and errors(R, 1.1 * p, R, p, scaled=True)[0] < 1e-6
    )
    assert errors(R @ exp(np.array([0.1, 0, 0])), p, R, p)[1] == pytest.approx(0, abs=6)
    assert matched([1.0, 2.0, 2.1], [1.2, 2.05, 4.0]) == 2 and f1(2, 3, 3) == pytest.approx(2 / 3)


def test_what_a_policy_learns_from_are_windows_of_known_hands() -> None:
    from haversack.bench.aoe.curate import AHEAD, PAST, Fields, windows

    n = 30
    wrist = np.zeros((n, 2, 3))
    wrist[:, 1, 0] = 0.01 * np.arange(n)
    known = np.zeros((n, 2), bool)
    known[:, 1] = True
    known[15, 1] = False
    x, y = windows([Fields(wrist, np.ones((n, 2)), known)])
    whole, goals = windows([Fields(wrist, np.ones((n, 2)), known)], unknown=True)
    assert len(goals) == len(whole) == 2 * (n - PAST - AHEAD) and 0 < len(x) < n - PAST - AHEAD
    assert y[:, 0] == pytest.approx(0.01 * AHEAD / 0.1) and x[:, 0, 0] == pytest.approx(-0.01 * PAST / 0.1)


def test_the_proxy_loses_what_it_is_told_to(tmp_path) -> None:
    import asyncio
    import threading

    server = Server(tmp_path / "store", Options(port=0))
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(lambda _: ready.set())))
    thread.start()
    assert ready.wait(30)
    try:
        for share, low, high in ((0.0, 0, 0), (0.3, 12, 50)):
            proxy = Proxy(int(server.url.rsplit(":", 1)[1]), share=share, seed=2)
            lost = 0
            with httpx.Client(base_url=proxy.url) as client:
                for _ in range(100):
                    try:
                        assert client.get("/healthz").status_code == 200
                    except httpx.TransportError:
                        lost += 1
            proxy.close()
            assert lost == proxy.cut and low <= lost <= high
    finally:
        server.stop()
        thread.join(30)
