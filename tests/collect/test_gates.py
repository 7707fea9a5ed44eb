"""The gates one by one: known numbers, and signals whose answer is known by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haversack.bench.aoe._hand import joints
from haversack.bench.aoe._world import Day, draw_hand, panorama
from haversack.collect._blur import blurred, gaussian
from haversack.collect._rotations import exp, from_rot6d, integrated, log, rot6d
from haversack.collect.detector import SkinDetector, blobs, iou, make_detector, suppressed
from haversack.collect.imu_gate import ACTIVE, REST, UNWORN, WALK, ImuGate
from haversack.collect.motion_gate import (
    HEIGHT,
    WIDTH,
    Blocks,
    MotionLimits,
    camera,
    match_blocks,
    residual,
    sharpness,
    shrink,
    turned_flow,
)
from haversack.core.errors import UserError

SECOND = 1_000_000_000
LIMITS = MotionLimits()
NOTHING = Blocks(np.zeros((0, 2)), np.zeros((0, 2)))


# rotations


def test_rotations_known_numbers():
    assert rot6d(np.eye(3)).tolist() == [1, 0, 0, 0, 1, 0]
    K = np.array([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]])
    flow = turned_flow(np.array([[320.0, 240.0]]), K, exp(np.array([0, np.radians(1), 0])))
    assert abs(flow[0, 0]) == pytest.approx(8.73, abs=0.005) and flow[0, 1] == pytest.approx(0, abs=1e-9)
    assert flow[0, 0] < 0  # turned to the right, the room moves left


@given(st.lists(st.floats(-3.1, 3.1), min_size=3, max_size=3))
def test_exponential_and_logarithm(w):
    w = np.asarray(w)
    if np.linalg.norm(w) > 3.14:
        w = w / np.linalg.norm(w) * 3.14
    R = exp(w)
    assert np.allclose(R @ R.T, np.eye(3), atol=1e-9) and np.linalg.det(R) == pytest.approx(1)
    assert np.allclose(exp(log(R)), R, atol=1e-6)
    assert np.allclose(from_rot6d(rot6d(R)), R, atol=1e-9)


@pytest.mark.parametrize("axis", [*np.eye(3).tolist(), [0.6, -0.48, 0.64]])
def test_half_a_turn_has_a_logarithm(axis):
    R = exp(np.pi * np.asarray(axis))
    assert np.allclose(exp(log(R)), R, atol=1e-7)


def test_the_integrated_gyroscope_is_the_path():
    day = Day(3, 40.0)
    t_ns, samples = day.imu(10.0, 14.0)
    R = integrated(t_ns, samples[:, 3:], 10 * SECOND, 13 * SECOND)
    truth = day.rotation(10.0).T @ day.rotation(13.0)
    assert np.degrees(np.linalg.norm(log(R.T @ truth))) < 1.5  # noise and bias of three seconds
    assert np.allclose(integrated(t_ns[:0], samples[:0, 3:], 0, SECOND), np.eye(3))


# S2


def feed(gate, seconds, accel, gyro, start=0.0, hz=100, noise=0.0):
    rng = np.random.default_rng(0)
    for at in range(int(seconds * hz)):
        t = start + at / hz
        sample = np.concatenate([accel(t), gyro(t)]) + noise * rng.normal(0, 1, 6)
        gate.push(round(t * SECOND), tuple(sample.tolist()))
    return start + seconds


def test_states():
    gate = ImuGate()
    up = np.array([0.0, -9.81, 0.0])
    t = feed(gate, 12, lambda t: up, lambda t: np.array([0.3 * np.sin(t), 0, 0]), noise=0.01)
    assert gate.state == ACTIVE
    t = feed(
        gate,
        8,
        lambda t: up * (1 + 0.2 * np.sin(2 * np.pi * 2.0 * t)),
        lambda t: np.array([0.3 * np.sin(7 * t), 0, 0]),
        t,
        noise=0.02,
    )
    assert gate.state == WALK and gate.features.gait_m_s2 == pytest.approx(1.96, rel=0.25)
    t = feed(gate, 29, lambda t: up, lambda t: np.zeros(3), t, noise=0.002)
    assert gate.state == ACTIVE  # still, but not for 30 s
    t = feed(gate, 4, lambda t: up, lambda t: np.zeros(3), t, noise=0.002)
    assert gate.state == REST
    t = feed(gate, 2, lambda t: np.array([9.81, 0, 0]), lambda t: np.zeros(3), t, noise=0.002)
    assert gate.state == UNWORN  # on a table, on its side
    feed(gate, 2, lambda t: up, lambda t: np.array([0.5, 0, 0]), t)
    assert gate.state == ACTIVE


# S3


def textured(seed=0):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.uniform(20, 235, (30, 53)), np.ones((6, 6)))
    return image[:, :318].astype(np.float32)


def view(image, x, y):
    return np.ascontiguousarray(image[40 + y : 40 + y + HEIGHT, 60 + x : 60 + x + WIDTH])


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-5, 4), (6, 6)])
def test_blocks_find_a_shift(shift):
    image = textured()
    blocks = match_blocks(view(image, 0, 0), view(image, -shift[0], -shift[1]), LIMITS)
    assert len(blocks.centres) > 20
    assert np.abs(blocks.motion - shift).max() < 0.51 and np.median(blocks.motion, axis=0) == pytest.approx(
        shift, abs=0.1
    )


def test_blocks_without_texture_are_left_out():
    flat = np.full((HEIGHT, WIDTH), 100, np.float32)
    assert len(match_blocks(flat, flat, LIMITS).centres) == 0
    assert residual(flat, flat, 0.1, LIMITS)[0] == 0.0
    stripes = np.tile(np.where(np.arange(WIDTH) // 2 % 2, 200, 50), (HEIGHT, 1)).astype(np.float32)
    assert len(match_blocks(stripes, stripes, LIMITS).centres) == 0  # every fourth place is as good


def test_what_the_camera_does_is_taken_away_and_what_a_hand_does_is_not():
    """A plane of texture seen by a camera that turns about two axes: some 2.7 px at the centre."""
    from scipy.ndimage import map_coordinates

    image, K = textured(1), camera()
    turned = exp(np.array([0.008, 0.02, 0.0]))
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].reshape(2, -1).astype(np.float64)
    pixels = np.stack([columns, rows], axis=1)
    seen_from = pixels + turned_flow(pixels, K, turned.T)  # where a pixel of the second was in the first
    before = view(image, 0, 0)
    places = [seen_from[:, 1] + 40, seen_from[:, 0] + 60]
    after = map_coordinates(image, places, order=1).reshape(HEIGHT, WIDTH).astype(np.float32)
    assert np.linalg.norm(np.median(match_blocks(before, after, LIMITS).motion, axis=0)) > 2.0
    assert residual(before, after, 0.1, LIMITS, turned)[0] < 0.4
    assert residual(before, after, 0.1, LIMITS)[0] < 0.4  # the affine motion does it without a gyroscope
    patch = textured(2)[:48, :48]
    before[38:86, 60:108] = patch
    after[36:84, 64:112] = patch
    for R in (turned, None):
        assert residual(before, after, 0.1, LIMITS, R)[0] > 3.0
    one, two = (residual(before, after, gap, LIMITS, turned)[0] for gap in (0.1, 0.2))
    assert two == pytest.approx(one / 2)


def test_sharpness_and_shrinking():
    image = textured(3)
    soft = image.copy()
    for _ in range(12):
        soft[1:-1, 1:-1] = (soft[:-2, 1:-1] + soft[2:, 1:-1] + soft[1:-1, :-2] + soft[1:-1, 2:]) / 4
    assert sharpness(view(image, 0, 0)) > LIMITS.sharp > sharpness(view(soft, 0, 0))
    for shape in ((180, 320, 3), (480, 640, 3), (1080, 1920, 3), (64, 96, 3), (90, 160)):
        picture = np.full(shape, 77, np.uint8)
        assert shrink(picture).shape == (HEIGHT, WIDTH) and np.allclose(shrink(picture), 77, atol=0.1)


# S4


def scene(hands, seed=0):
    rng = np.random.default_rng(seed)
    day = Day(seed, 10.0)
    image = panorama(rng)[200:380, 100:420].copy()
    for hand in hands:
        draw_hand(image, day.K, hand, np.array([205, 150, 120], np.float32))
    return np.clip(image, 0, 255).astype(np.uint8)


def placed(x, right=True):
    forward = np.array([[-1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    return joints(0.3, right) @ forward.T @ exp(np.array([0.6, 0, 0])).T + np.array([x, 0.06, 0.42])


@pytest.mark.parametrize("seed", range(5))
def test_skin_finds_rendered_hands_and_nothing_in_an_empty_room(seed):
    detector = SkinDetector()
    assert detector.detect(scene([], seed), NOTHING) == []
    one = detector.detect(scene([placed(0.1)], seed), NOTHING)
    assert len(one) == 1 and one[0].side == 1 and one[0].score > 0.6
    two = detector.detect(scene([placed(0.12), placed(-0.12, False)], seed), NOTHING)
    assert sorted(hand.side for hand in two) == [0, 1]


def test_contact_is_what_moves_along():
    picture = scene([placed(0.1)])
    still = SkinDetector().detect(picture, NOTHING)[0]
    centres = np.array([[x, y] for x in range(16, 160, 16) for y in range(16, 90, 16)], np.float64)
    moving = SkinDetector().detect(picture, Blocks(centres, np.full_like(centres, 2.0)))[0]
    assert still.contact == 0.0 and moving.contact > 0.8


@given(st.integers(0, 2**30), st.floats(0.05, 0.7))
def test_blobs_are_the_connected_parts(seed, density):
    mask = np.random.default_rng(seed).random((12, 17)) < density
    left = mask.copy()
    expected = []
    while left.any():
        seeds = [tuple(np.argwhere(left)[0])]
        part = set(seeds)
        while seeds:
            y, x = seeds.pop()
            for place in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                inside = 0 <= place[0] < 12 and 0 <= place[1] < 17
                if inside and left[place] and place not in part:
                    part.add(place)
                    seeds.append(place)
        ys, xs = [y for y, _ in part], [x for _, x in part]
        expected.append((min(ys), min(xs), max(ys) + 1, max(xs) + 1, len(part)))
        for place in part:
            left[place] = False
    assert sorted(blobs(mask)) == sorted((int(a), int(b), int(c), int(d), e) for a, b, c, d, e in expected)


def test_suppression():
    boxes = [(0, 0, 0.5, 0.5), (0.02, 0, 0.52, 0.5), (0.6, 0.6, 0.9, 0.9), (0, 0, 0, 0)]
    hands = suppressed(boxes, [0.8, 0.9, 0.5, 0.99], [0, 0, 1, 0], [0.1, 0.2, 0.3, 0.4])
    assert [hand.score for hand in hands] == [0.9, 0.5]
    assert iou(hands[0], hands[0]) == pytest.approx(1.0) and iou(hands[0], hands[1]) == 0.0
    with pytest.raises(UserError, match=r"skin, hands, or a file"):
        make_detector("eyes")


def test_a_detector_of_one_s_own(tmp_path):
    import onnx
    from onnx import TensorProto, helper

    def constant(name, values, kind=TensorProto.FLOAT):
        return helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, kind, np.shape(values), np.ravel(values))
        )

    nodes = [
        constant("boxes", [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 0.9]]),
        constant("sides", [0.0, 1.0]),
        constant("contacts", [0.25, 0.75]),
        constant("half", [0.5, 0.9]),
        helper.make_node("ReduceMax", ["picture"], ["most"], keepdims=0),
        helper.make_node("Mul", ["half", "most"], ["scores"]),
    ]
    given_ = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 48, 64])]
    out = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, None)
        for n in ("boxes", "scores", "sides", "contacts")
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "hands", given_, out),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "hands.onnx")
    detector = make_detector(str(tmp_path / "hands.onnx"))
    white = np.full((90, 160, 3), 255, np.uint8)
    found = detector.detect(white, NOTHING)
    assert [(round(hand.score, 3), hand.side) for hand in found] == [(0.9, 1), (0.5, 0)]
    assert detector.detect(white // 4, NOTHING) == []
    (tmp_path / "none.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="no ONNX model"):
        make_detector(str(tmp_path / "none.onnx"))


# S6


def test_a_blurred_face_is_gone_and_the_rest_is_untouched():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
    box = (0.25, 0.25, 0.5, 0.75)
    done = blurred(picture, [box])
    inside = (slice(30, 90), slice(40, 80))
    assert done[inside].std() < 0.15 * picture[inside].std()
    outside = np.ones((120, 160), bool)
    outside[inside] = False
    assert np.array_equal(done[outside], picture[outside])
    assert blurred(picture, []) is picture and blurred(picture, [(2, 2, 3, 3)]) is picture
    assert gaussian(5.0).sum() == pytest.approx(1.0)
