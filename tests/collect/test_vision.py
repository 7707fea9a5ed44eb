"""The maths of calibration, trajectory and hands, against what is known exactly."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from haversack.collect._adjust import Problem, adjust, positions
from haversack.collect._camera import Camera
from haversack.collect._clip_data import grown, small_turn
from haversack.collect._hand_model import ANGLES, HIGH, LOW, grip, joints, mano, mirrored
from haversack.collect._hand_size import PRIOR, hand_size, ratio
from haversack.collect._mano_hand import betas_of, bones, lengths_of, pose_of, posed
from haversack.collect._rotations import exp, log
from haversack.collect._tracks import Tracks, corners, track
from haversack.collect.stages import c3_trajectory as c3
from haversack.collect.stages import c4_hands as c4
from haversack.formats.mano import Mano


def noise(height=120, width=160, seed=0):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.uniform(0, 255, (height // 5, width // 5)), np.ones((5, 5)))
    for _ in range(3):
        image = (image + np.roll(image, 1, 0) + np.roll(image, 1, 1)) / 3
    return image.astype(np.float32)


def shifted(image, x, y):
    spectrum = np.fft.fft2(image)
    v, u = np.meshgrid(np.fft.fftfreq(image.shape[0]), np.fft.fftfreq(image.shape[1]), indexing="ij")
    return np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (u * x + v * y))).real.astype(np.float32)


@pytest.mark.parametrize("k1", [0.0, -0.08, 0.05])
def test_a_camera_s_rays_are_seen_where_they_came_from(k1):
    camera = Camera(250.0, 159.5, 89.5, 320, 180, k1)
    pixels = np.random.default_rng(0).uniform((0, 0), (320, 180), (200, 2))
    assert np.allclose(camera.project(camera.rays(pixels) * 3.0), pixels, atol=2e-3)
    assert camera.scaled(640, 360).project(np.array([[0.1, -0.1, 1.0]])) + 0.5 == pytest.approx(
        2 * (camera.project(np.array([[0.1, -0.1, 1.0]])) + 0.5)
    )


def test_points_are_followed_below_a_tenth_of_a_pixel_and_never_into_the_mask():
    image, free = noise(), np.ones((120, 160), bool)
    frames = [shifted(image, 1.3 * at, -0.7 * at) for at in range(6)]
    found = track(((frame, free) for frame in frames), most=60)
    one, two = found.pair(0, 5)
    assert len(one) > 25
    moved = np.median(two - one, axis=0)
    assert moved == pytest.approx([6.5, -3.5], abs=0.1)
    barred = free.copy()
    barred[:, 80:] = False
    masked = track(((frame, barred) for frame in frames), most=60)
    assert len(masked.track) and masked.at[:, 0].max() < 80.5
    assert (corners(image, barred, 50)[:, 0] < 80).all()


def test_a_mask_grows_by_as_many_pixels_as_it_is_told():
    mask = np.zeros((9, 12), bool)
    mask[4, 5] = True
    assert grown(mask, 2).sum() == 25 and grown(mask, 2)[2:7, 3:8].all()


def test_the_turn_between_frames_is_that_of_most_points():
    rng = np.random.default_rng(1)
    rays = rng.normal(0, 0.3, (80, 3)) + np.array([0, 0, 1.0])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    w = np.array([0.02, -0.05, 0.01])
    there = rays @ exp(w)
    there[:12] += rng.normal(0, 0.05, (12, 3))  # a hand
    assert small_turn(rays, there) == pytest.approx(w, abs=1e-3)


def scene(seed=0, keys=14, points=120):
    """A camera that sways before points: its poses, what it sees, and its gyroscope's turns."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 5, keys)
    R = np.stack([exp(np.array([0.10 * np.sin(x), 0.25 * np.sin(0.8 * x), 0.05 * x])) for x in t])
    p = np.stack([0.10 * np.sin(t), 0.06 * np.sin(1.3 * t), 0.08 * (np.cos(t) - 1)], 1)
    X = rng.uniform([-1.2, -0.7, 0.6], [1.2, 0.7, 3.0], (points, 3))
    camera = Camera(260.0, 159.5, 89.5, 320, 180, -0.05)
    key, point = (part.ravel() for part in np.meshgrid(np.arange(keys), np.arange(points), indexing="ij"))
    local = np.einsum("nji,nj->ni", R[key], X[point] - p[key])
    at = camera.project(local) + rng.normal(0, 0.15, (len(local), 2))
    inside = (local[:, 2] > 0.2) & (at > 0).all(1) & (at < [320, 180]).all(1)
    turns = np.stack([one.T @ two for one, two in pairwise(R)])
    return camera, R, p, X, key[inside], point[inside], at[inside], turns, np.diff(t)


def kept(point):
    names, again = np.unique(point, return_inverse=True)
    return names, again


def test_positions_come_from_rotations_alone():
    camera, R, p, _, key, point, at, _, _ = scene()
    _, point = kept(point)
    found, _ = positions(R, key, point, camera.rays(at))
    found = found - found[0]
    scale = (found * (p - p[0])).sum() / (found**2).sum()
    assert scale > 0
    off = np.linalg.norm(found * scale - (p - p[0]), axis=1)
    assert off.max() < 0.02


def test_the_adjustment_finds_focal_length_distortion_and_the_gyroscope_s_faults():
    camera, R, _, _, key, point, at, turns, gaps = scene()
    _, point = kept(point)
    bias = np.array([0.004, -0.006, 0.003])
    wrong = np.stack([turn @ exp(bias * gap) for turn, gap in zip(turns, gaps, strict=True)])
    start = [np.eye(3)]
    for turn in wrong:
        start.append(start[-1] @ turn)
    guess = Camera(225.0, 159.5, 89.5, 320, 180)
    p0, X0 = positions(np.asarray(start), key, point, guess.rays(at))
    scale = float(np.median(np.linalg.norm(X0[point] - p0[key], axis=1)))
    rates = np.zeros((len(start), 3))
    problem = Problem(guess, np.asarray(start), p0 / scale, X0 / scale, key, point, at, wrong, gaps, rates)
    rms = adjust(problem, lens=True, iterations=40)
    assert rms < 0.35
    assert abs(problem.camera.f / camera.f - 1) < 0.01 and abs(problem.camera.k1 - camera.k1) < 0.02
    assert problem.bias == pytest.approx(bias, abs=1.5e-3)
    back = R[0] @ problem.R[0].T
    assert (
        max(np.linalg.norm(log((back @ one).T @ two)) for one, two in zip(problem.R, R, strict=True)) < 5e-3
    )


def test_scale_and_gravity_come_from_the_accelerometer():
    t = np.linspace(0, 8, 25)
    fine = np.arange(0, 8, 0.01)

    def place(x):
        return np.stack([0.08 * np.sin(1.4 * x), 0.06 * np.cos(1.9 * x), 0.05 * np.sin(2.3 * x)], 1)

    def turn(x):
        return exp(np.array([0.2 * np.sin(0.7 * x), 0.3 * np.sin(0.9 * x), 0.1]))

    h = 1e-3
    g = np.array([3.0, -8.0, np.sqrt(9.81**2 - 73)])
    pull = (place(fine + h) - 2 * place(fine) + place(fine - h)) / h**2 - g
    accel = np.einsum("nji,nj->ni", np.stack([turn(x) for x in fine]), pull)
    accel += np.random.default_rng(0).normal(0, 0.02, accel.shape) + np.array([0.02, -0.01, 0.015])
    R = np.stack([turn(x) for x in t])
    scale, gravity, open_ = c3.metric(t, place(t) / 2.5, R, fine, accel)
    assert scale == pytest.approx(2.5, rel=0.03) and open_ < 0.1
    assert gravity == pytest.approx(g, abs=0.1)
    up = c3.upright(gravity, R[0])
    assert up @ (-gravity / np.linalg.norm(gravity)) == pytest.approx([0, 0, 1], abs=1e-9)
    assert np.linalg.det(up) == pytest.approx(1)


def test_a_run_of_frames_without_points_counts_as_lost_and_a_short_one_does_not():
    t = np.arange(60) * 66_666_667
    valid = np.ones(60, bool)
    valid[10:14] = False
    assert c3.lost_share(valid, t) == 0
    valid[30:42] = False
    assert c3.lost_share(valid, t) == pytest.approx(12 / 60)


def test_a_trajectory_of_one_s_own_must_hold(tmp_path):
    class Data:
        t_ns = np.arange(5) * 10**8
        working = (320, 180)

        class manifest:  # noqa: N801
            width, height = 640, 360

    T = np.tile(np.eye(4), (5, 1, 1))
    K = np.array([[500.0, 0, 319.5], [0, 500, 179.5], [0, 0, 1]])
    np.savez(tmp_path / "good.npz", T_wc=T, K=K)
    found = c3.given_trajectory(tmp_path / "good.npz", Data())
    assert found.camera.f == 250 and found.camera.cx == 159.5 and found.scale_source == "given"
    bad = T.copy()
    bad[2, 0, 0] = 1.1
    for name, arrays in (
        ("det", {"T_wc": bad, "K": K}),
        ("short", {"T_wc": T[:4], "K": K}),
        ("no", {"K": K}),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(c3.UserError):
            c3.given_trajectory(tmp_path / f"{name}.npz", Data())


# hands


def poses(count, seed=0):
    rng = np.random.default_rng(seed)
    angles = np.clip(c4.RELAXED + rng.normal(0, 0.25, (count, ANGLES)), LOW, HIGH)
    turns = np.stack([exp(rng.normal(0, 0.5, 3)) for _ in range(count)])
    places = rng.uniform([-0.1, -0.1, 0.3], [0.1, 0.1, 0.6], (count, 3))
    return angles, turns, places


def test_a_hand_is_found_again_from_its_picture():
    angles, turns, places = poses(24)
    points = joints(angles) @ turns.transpose(0, 2, 1) + places[:, None]
    rng = np.random.default_rng(3)
    flat = points[..., :2] / points[..., 2:] + rng.normal(0, 0.5 / 260, (24, 21, 2))
    depth = (points[..., 2] - points[:, :1, 2]) / 0.095 + rng.normal(0, 0.15, (24, 21))
    R, _, _, local, error = c4.fitted(flat, depth, 260.0)
    wrist = np.linalg.norm(local[:, 0] - points[:, 0], axis=1)
    assert np.median(wrist) < 0.012 and np.quantile(wrist, 0.9) < 0.03 and np.median(error) < 1.0
    off = [np.linalg.norm(log(one.T @ two)) for one, two in zip(R, turns, strict=True)]
    assert np.degrees(np.median(off)) < 10


def test_mano_s_parameters_say_the_same_pose():
    """Its 15 turns, applied as MANO applies them along each finger, give the joints back."""
    from haversack.collect._hand_model import MANO_ORDER, lengths

    angles, turns, _ = poses(3, 5)
    bases, bones, rest = lengths()
    for right in (True, False):
        for a, R in zip(angles, turns, strict=True):
            pose = mano(R, a, right)
            assert exp(pose[:3]) == pytest.approx(R, abs=1e-6)
            wanted = mirrored(joints(a[None])[0], right)
            for place, finger in enumerate(MANO_ORDER):
                flip = np.array([1.0 if right else -1.0, 1, 1])
                at, total = bases[finger] * flip, np.eye(3)
                straight = exp(np.array([0, 0, -rest[finger]])) @ np.array([0, 1.0, 0]) * flip
                for bone in range(3):
                    total = total @ exp(pose[3 + 9 * place + 3 * bone : 6 + 9 * place + 3 * bone])
                    at = at + total @ straight * bones[finger, bone]
                assert at == pytest.approx(wanted[4 + 4 * finger], abs=1e-6)


def hand_of_mano(right=True, seed=0):
    """A hand as a file of MANO has it: fingers against x, palm down, another length for every bone."""
    rng = np.random.default_rng(seed)
    own = joints(np.zeros((1, ANGLES)))[0] * rng.uniform(0.95, 1.05)
    into = exp(np.array([0, 0, np.pi / 2])) @ exp(np.array([0.2, 0.1, 0.0]))
    rest = own @ into.T * (1 if right else np.array([-1.0, 1, 1]))
    moves = rng.normal(0, 2e-4, (21, 3, 10))
    moves[:, :, 0] = 0.02 * rest
    moves[0] = 0
    return Mano(rest, moves, right)


@pytest.mark.parametrize("side_of_the_file", [True, False])
def test_a_pose_of_mano_s_skeleton_gives_the_joints_back(side_of_the_file):
    hand = hand_of_mano(side_of_the_file)
    angles, turns, _ = poses(4, 6)
    own = joints(angles, hand=lengths_of(hand))
    for right in (True, False):
        flip = np.diag([1.0 if right else -1.0, 1, 1])
        rest = hand.rest * (1 if right == hand.right else np.array([-1.0, 1, 1]))
        for points, R in zip(own, turns, strict=True):
            there = points @ (flip @ R).T
            pose = pose_of(there, flip @ R @ flip, hand, right)
            found = posed(pose, rest)
            assert found - found[0] == pytest.approx(there - there[0], abs=1e-7)


def test_betas_give_the_bones_the_person_s_size():
    hand = hand_of_mano()
    assert betas_of(hand, 1.0) == pytest.approx(np.zeros(10), abs=1e-9)
    for size in (0.94, 1.07):
        found = bones(hand.shaped(betas_of(hand, size))) / bones(hand.rest)
        assert found == pytest.approx(np.full(20, size), abs=0.01)


@pytest.mark.parametrize("size", [0.93, 1.08])
def test_a_hand_s_size_is_seen_from_a_moving_camera(size):
    """Rests between strokes, and errors of a fit: 2 % of the depth, 1.5 mm across."""
    rng = np.random.default_rng(round(100 * size))
    n = 180
    t = np.arange(n) / 15
    p = 0.08 * np.stack([np.sin(1.3 * t), 0.5 * np.sin(0.9 * t + 1), 0.3 * np.sin(1.7 * t)], 1)
    R = np.stack([exp(0.1 * np.array([np.sin(x), np.cos(0.7 * x), 0])) for x in t])
    steps = np.repeat([0, 1, 1, 0, 0, 1], 30)[:, None] * [0.15, 0.05, 0.0]
    hands = np.zeros((n, 2, 21, 3))
    for side in (0, 1):
        wrist = np.array([0.2 * side - 0.1, 0.1, 0.5]) + steps
        world = joints(np.tile(c4.RELAXED, (n, 1)), size) @ exp(np.array([1.2, 0, 0])).T + wrist[:, None]
        local = np.einsum("nji,nkj->nki", R, world - p[:, None]) / size
        local *= 1 + np.repeat(rng.normal(0, 0.02, n // 3), 3)[:, None, None]
        hands[:, side] = local + np.repeat(rng.normal(0, 0.0015, (n // 3, 3)), 3, 0)[:, None]
    valid = np.ones((n, 2), bool)
    found, deviation = hand_size(hands, valid, R, p, t)
    assert abs(found / size - 1) < 0.5 * abs(1 / size - 1) and deviation < PRIOR / 2
    assert hand_size(hands, valid, R, 0 * p, t) == (1.0, PRIOR)  # a camera that only turns cannot know it
    assert hand_size(hands, ~valid, R, p, t) == (1.0, PRIOR)


def test_rays_from_several_places_meet_at_a_distance():
    point, places = np.array([0.1, 0.0, 0.6]), np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.1, 0.0]])
    away = np.linalg.norm(point - places, axis=1)
    found, miss, base = ratio((point - places) / away[:, None], places, away / 1.2)
    assert (found, miss) == pytest.approx((1.2, 0.0), abs=1e-9) and 0.05 < base < 0.1


def test_grip_is_that_of_the_tips():
    points = np.zeros((3, 21, 3))
    points[:, 8, 0] = [0.0, 0.06, 0.2]
    assert grip(points).tolist() == pytest.approx([0, 0.5, 1])


def test_gaps_are_filled_outliers_dropped_and_both_are_flagged():
    n = 40
    hands = c4.Hands.none(n)
    hands.joints[:, 1] = np.array([0.1, 0, 0.5]) + np.linspace(0, 0.2, n)[:, None, None] * np.array(
        [1.0, 0, 0]
    )
    hands.valid[:, 1] = hands.kept[:, 1] = True
    hands.valid[10:14, 1] = False
    hands.valid[25:33, 1] = False
    hands.joints[20, 1] += 0.9
    R, p = np.tile(np.eye(3), (n, 1, 1)), np.zeros((n, 3))
    done = c4.cleaned(hands, R, p, np.arange(n) / 15)
    assert done.valid[10:14, 1].all() and not done.kept[10:14, 1].any()
    assert not done.valid[27:31, 1].any() and not done.kept[20, 1] and done.valid[20, 1]
    assert not done.valid[:, 0].any()
    assert done.joints[12, 1, 0] == pytest.approx([0.1 + 0.2 * 12 / 39, 0, 0.5], abs=0.01)


def test_tracks_of_two_frames_are_those_that_both_see():
    made = Tracks(
        np.array([0, 0, 1, 1], np.int32),
        np.array([3, 7, 7, 9], np.int32),
        np.array([[0, 0], [1, 1], [2, 2], [3, 3]], np.float32),
        2,
    )
    one, two = made.pair(0, 1)
    assert one.tolist() == [[1, 1]] and two.tolist() == [[2, 2]]
