"""C4, hand pose: 21 joints of both hands in metres, camera and world, and the same as MANO's parameters.

Paper: AoE (arXiv 2602.23893), whose successor publishes MANO hands; the method is [inferred].

Joints are found in crops about skin (collect/_landmarks.py). A kinematic hand (collect/_hand_model.py) is
then fitted to each frame, by Levenberg-Marquardt on the wrist's pose and 20 angles: reprojection, the
network's depths with little weight, a pull to a relaxed hand, limits of the joints. Its known lengths give
the depth of a hand of size 1 (wrist to middle knuckle 95 mm); where a hand rests before the camera's moving,
its size is measured (collect/_hand_size.py). Poses are smoothed (Gaussian, sigma 2 frames); a wrist that
moves by more than 4 m/s in the world is an outlier; gaps of at most 5 frames are filled and flagged `kept` =
false.

Bring your own: `[c4-hands] npz = "/folder/{clip}.npz"` reads, for n frames and sides left and right, joints3d
[n, 2, 21, 3] in the camera's axes (or relative to cam_t [n, 2, 3]), conf [n, 2], and where there are
mano_pose [n, 2, 48] and betas [2, 10]: what WiLoR, HaMeR and HaWoR are converted to.

With `[c4-hands] mano = "/folder/MANO_RIGHT.pkl"`, a file of your own (formats/mano.py), the lengths are the
file's, `mano_pose` is of its skeleton, and `betas` give it the person's size (collect/_mano_hand.py); without
one betas are 0.

What we changed: time enters by smoothing, not in the fit. Limits: hands that cover one another
are one blob, and then only one is found. Cost: about 15 ms a frame and hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.collect._camera import Camera
from haversack.collect._clip_data import ClipData, skin
from haversack.collect._hand_model import ANGLES, HIGH, LOW, Lengths, grip, joints, mano, mirrored
from haversack.collect._hand_size import hand_size
from haversack.collect._landmarks import boxes, first_square, landmarks, sides
from haversack.collect._mano_hand import betas_of, lengths_of, pose_of
from haversack.collect._rotations import exp
from haversack.collect._stages import Clip, Outcome, Stage
from haversack.collect.stages.c3_trajectory import CAMERA, POSES
from haversack.core.errors import UserError
from haversack.formats.mano import read_mano

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
SYSTEM = 1
HANDS = "hands.npz"
FASTEST_M_S, GAP_MOST, SIGMA, OUTLIER_M = 4.0, 5, 2.0, 0.08
ERROR_MOST = 0.09
"""RMS of the fit as a share of the hand's extent in the picture, beyond which it is no hand."""
PIXELS, DEEP = 2.5, 0.6
"""Errors of a joint: in the picture, px of the working size, and of its depth from the wrist, in 95 mm."""
RELAXED = np.tile(np.array([0.0, 0.45, 0.6, 0.4]), 5)
PALM = [0, 1, 5, 9, 13, 17]


@dataclass
class Hands:
    """Of n frames and two sides: joints in camera axes [n, 2, 21, 3], the wrist's turn [n, 2, 3, 3], angles
    [n, 2, 20], confidence [n, 2], whether it is known, and whether it was seen (not filled in) [n, 2]."""

    joints: F64
    turn: F64
    angles: F64
    confidence: F64
    valid: Bool
    kept: Bool

    @classmethod
    def none(cls, n: int) -> Hands:
        """No hand anywhere."""
        no = np.zeros((n, 2), bool)
        turn = np.tile(np.eye(3), (n, 2, 1, 1))
        return cls(np.zeros((n, 2, 21, 3)), turn, np.zeros((n, 2, ANGLES)), np.zeros((n, 2)), no, no.copy())


# ---- the maths


def fitted(
    flat: F64, depth: F64, px: float, rounds: int = 14, hand: Lengths | None = None
) -> tuple[F64, F64, F64, F64, F64]:
    """Fit right hands to rays (x, y, 1) [n, 21, 2] and depths from the wrist [n, 21] (in 95 mm); `px` is the
    focal length. Turns [n, 3, 3], places [n, 3], angles [n, 20], joints [n, 21, 3] and errors in pixels
    [n]."""
    n = len(flat)
    R, t = _first(flat, depth, hand)
    angles = np.tile(RELAXED, (n, 1))
    state = np.concatenate([np.zeros((n, 3)), t, angles], 1)

    def residual(state: F64, R: F64) -> tuple[F64, F64]:
        points = joints(state[:, 6:], hand=hand)
        turned = R @ _exps(state[:, :3])
        local = points @ turned.transpose(0, 2, 1) + state[:, None, 3:6]
        z = np.maximum(local[..., 2], 0.05)
        seen = (local[..., :2] / z[..., None] - flat) * (px / PIXELS)
        deep = ((local[..., 2] - local[:, :1, 2]) / 0.095 - depth) / DEEP
        pull = 0.22 * (state[:, 6:] - RELAXED) / 0.5
        over = 8 * (np.maximum(state[:, 6:] - HIGH, 0) - np.maximum(LOW - state[:, 6:], 0))
        spread = 1.5 * state[:, 6::4]
        return np.concatenate([seen.reshape(n, -1), deep, pull, over, spread], 1), local

    damping = np.full(n, 1e-2)
    r, local = residual(state, R)
    for _ in range(rounds):
        J = np.empty((n, r.shape[1], 26))
        for at in range(26):
            moved = state.copy()
            moved[:, at] += 1e-5
            J[:, :, at] = (residual(moved, R)[0] - r) / 1e-5
        H = np.einsum("nri,nrj->nij", J, J)
        diagonal = np.einsum("nii->ni", H)
        H = H + (damping[:, None] * diagonal + 1e-8)[:, :, None] * np.eye(26)
        step = -np.linalg.solve(H, np.einsum("nri,nr->ni", J, r)[..., None])[..., 0]
        trial = state + np.clip(step, -0.6, 0.6)
        after, there = residual(trial, R)
        better = (after**2).sum(1) < (r**2).sum(1)
        state = np.where(better[:, None], trial, state)
        r = np.where(better[:, None], after, r)
        local = np.where(better[:, None, None], there, local)
        damping = np.where(better, np.maximum(damping / 4, 1e-6), np.minimum(damping * 6, 1e6))
        R = R @ _exps(state[:, :3])
        state[:, :3] = 0
    off = (local[..., :2] / np.maximum(local[..., 2:], 0.05) - flat) * px
    return R, state[:, 3:6], state[:, 6:], local, np.sqrt((off**2).sum(2).mean(1))


def _exps(w: F64) -> F64:
    return np.stack([exp(one) for one in w])


def _first(flat: F64, depth: F64, hand: Lengths | None) -> tuple[F64, F64]:
    """Where a fit starts: the depth at which the palm has its lengths, and the turn that lays it there."""
    model = joints(RELAXED[None], hand=hand)[0][PALM]
    deep = depth[:, PALM] * 0.095
    one, two = np.triu_indices(len(PALM), 1)
    real = np.linalg.norm(model[one] - model[two], axis=1) ** 2
    across = np.maximum(real - (deep[:, one] - deep[:, two]) ** 2, 0.15 * real).sum(1)
    seen = (np.linalg.norm(flat[:, PALM][:, one] - flat[:, PALM][:, two], axis=2) ** 2).sum(1)
    z = np.sqrt(across / np.maximum(seen, 1e-9))
    z = np.clip(z, 0.12, 1.5)
    whole = (
        np.concatenate([flat[:, PALM], np.ones((len(flat), len(PALM), 1))], 2)
        * (z[:, None] + deep)[..., None]
    )
    a = model - model.mean(0)
    b = whole - whole.mean(1, keepdims=True)
    U, _, V = np.linalg.svd(np.einsum("npi,pj->nij", b, a))
    D = np.tile(np.eye(3), (len(flat), 1, 1))
    D[:, 2, 2] = np.linalg.det(U @ V)
    R = U @ D @ V
    return R, whole.mean(1) - R @ model.mean(0)


def smoothed(values: F64, good: Bool, sigma: float = SIGMA) -> F64:
    """Gaussian means [n, ...] over what is good, in frames."""
    reach = min(int(np.ceil(3 * sigma)), len(values) - 1)
    total, weight = np.zeros_like(values), np.zeros(len(values))
    for shift in range(-reach, reach + 1):
        w = np.exp(-0.5 * (shift / sigma) ** 2)
        here = slice(max(0, -shift), min(len(values), len(values) - shift))
        there = slice(max(0, shift), min(len(values), len(values) + shift))
        use = w * good[there]
        total[here] += use.reshape(-1, *[1] * (values.ndim - 1)) * values[there]
        weight[here] += use
    return np.asarray(total / np.maximum(weight, 1e-9).reshape(-1, *[1] * (values.ndim - 1)), np.float64)


def filled(values: F64, good: Bool, most: int = GAP_MOST) -> tuple[F64, Bool]:
    """Gaps of at most `most` frames between good ones, linear; which frames are known then."""
    known, made = good.copy(), values.copy()
    places = np.flatnonzero(good)
    for one, two in pairwise(places):
        if 1 < two - one <= most + 1:
            share = ((np.arange(one + 1, two) - one) / (two - one)).reshape(-1, *[1] * (values.ndim - 1))
            made[one + 1 : two] = values[one] * (1 - share) + values[two] * share
            known[one + 1 : two] = True
    return made, known


def far_off(wrist: F64, good: Bool, reach: int = 4) -> Bool:
    """Frames whose wrist [n, 3] is more than OUTLIER_M from the median of the good ones within `reach`
    frames."""
    found = np.zeros(len(wrist), bool)
    for frame in np.flatnonzero(good).tolist():
        near = slice(max(0, frame - reach), frame + reach + 1)
        middle = np.median(wrist[near][good[near]], axis=0)
        found[frame] = float(np.linalg.norm(wrist[frame] - middle)) > OUTLIER_M
    return found


def cleaned(hands: Hands, R_wc: F64, p_wc: F64, t_s: F64) -> Hands:
    """Without outliers, with short gaps filled, smoothed in the world."""
    for side in (0, 1):
        good = hands.valid[:, side].copy()
        wrist = np.einsum("nij,nj->ni", R_wc, hands.joints[:, side, 0]) + p_wc
        last = None
        for frame in np.flatnonzero(good).tolist():
            if last is not None and frame - last <= 8:
                speed = np.linalg.norm(wrist[frame] - wrist[last]) / max(t_s[frame] - t_s[last], 1e-6)
                if speed > FASTEST_M_S:
                    good[frame] = False
                    continue
            last = frame
        good &= ~far_off(wrist, good)
        world = np.einsum("nij,nkj->nki", R_wc, hands.joints[:, side]) + p_wc[:, None]
        turn = R_wc @ hands.turn[:, side]
        world, known = filled(world, good)
        turn, _ = filled(turn, good)
        angles, _ = filled(hands.angles[:, side], good)
        world, turn, angles = smoothed(world, known), smoothed(turn, known), smoothed(angles, known)
        U, _, V = np.linalg.svd(np.where(known[:, None, None], turn, np.eye(3)))
        turn = U @ V
        hands.joints[:, side] = np.einsum("nji,nkj->nki", R_wc, world - p_wc[:, None]) * known[:, None, None]
        hands.turn[:, side] = R_wc.transpose(0, 2, 1) @ turn
        hands.angles[:, side] = angles * known[:, None]
        hands.confidence[:, side] *= good
        hands.valid[:, side], hands.kept[:, side] = known, good
    return hands


# ---- from pictures, or from another model


def found_hands(data: ClipData, camera: Camera, hand: Lengths | None = None) -> Hands:
    """Both hands of every frame, as the built-in method sees them, of size 1."""
    n = len(data.t_ns)
    hands = Hands.none(n)
    pictures: tuple[list[U8], list[U8]] = ([], [])
    squares: tuple[list[F64], list[F64]] = ([], [])
    frames: tuple[list[int], list[int]] = ([], [])
    before: list[F64 | None] = [None, None]
    for number, picture in enumerate(data.pictures()):
        before = sides(boxes(skin(picture)), before, picture.shape[1])
        for side, box in enumerate(before):
            if box is not None:
                pictures[side].append(picture)
                squares[side].append(first_square(box))
                frames[side].append(number)
    for side in (0, 1):
        if not frames[side]:
            continue
        at, depth, spread = landmarks(pictures[side], np.stack(squares[side]), bool(side))
        flat = camera.flat(at)
        if not side:
            flat[..., 0] *= -1
        R, _, angles, local, error = fitted(flat, depth, camera.f, hand=hand)
        extent = np.ptp(at, axis=1).max(1)
        share = error / np.maximum(extent, 1e-6)
        good = (share < ERROR_MOST) & (spread < 0.05) & (local[:, 0, 2] > 0.1) & (local[:, 0, 2] < 1.5)
        inside = ((at > -4) & (at < np.array([camera.width, camera.height]) + 4)).all(2).mean(1)
        good &= inside > 0.6
        rows = np.asarray(frames[side])
        hands.joints[rows, side] = mirrored(local, bool(side))
        flip = np.diag([1.0, 1, 1] if side else [-1.0, 1, 1])
        hands.turn[rows, side] = flip @ R @ flip
        hands.angles[rows, side] = angles
        hands.confidence[rows, side] = np.exp(-share / 0.04) * inside
        hands.valid[rows, side] = good
    return hands


def given_hands(path: Path, n: int) -> Hands:
    """The hands of an npz. Raises UserError for one that does not hold."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: np.asarray(file[name], np.float64) for name in file.files}
        points, confidence = found["joints3d"], found["conf"]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no hands ({error}).", field="npz", given=str(path)) from error
    if points.shape != (n, 2, 21, 3) or confidence.shape != (n, 2):
        raise UserError(
            f"{path}: joints3d is {list(points.shape)} and conf {list(confidence.shape)}; allowed are "
            f"[{n}, 2, 21, 3] and [{n}, 2].",
            field="npz",
            given=str(path),
        )
    if "cam_t" in found:
        points = points + found["cam_t"].reshape(n, 2, 1, 3)
    hands = Hands.none(n)
    valid = (confidence > 0) & np.isfinite(points).all((2, 3))
    hands.joints = np.where(valid[..., None, None], points, 0)
    hands.confidence, hands.valid, hands.kept = np.clip(confidence, 0, 1), valid, valid.copy()
    if "mano_pose" in found and found["mano_pose"].shape == (n, 2, 48):
        hands.turn = np.stack([_exps(found["mano_pose"][:, side, :3]) for side in (0, 1)], 1)
    else:
        hands.turn = np.stack([_palm_turns(hands.joints[:, side], bool(side)) for side in (0, 1)], 1)
    return hands


def _palm_turns(points: F64, right: bool) -> F64:
    """The wrist's turn from joints: y to the middle knuckle, z out of the palm."""
    y = points[:, 9] - points[:, 0]
    x = (points[:, 5] - points[:, 17]) * (1 if right else -1)
    y = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-9)
    x = x - (x * y).sum(1, keepdims=True) * y
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9)
    found = np.stack([x, y, np.cross(x, y)], 2)
    return np.where(np.isfinite(found).all((1, 2))[:, None, None], found, np.eye(3))


def run(clip: Clip, out: Path) -> Outcome:
    """Writes `hands.npz`."""
    data = ClipData.read(clip.path, clip.manifest)
    with np.load(clip.stages["c3-trajectory"] / POSES) as file:
        R_wc, p_wc = file["R"], file["p"]
    said = clip.record("c3-trajectory", CAMERA)
    camera = Camera(*(said[name] for name in ("f", "cx", "cy", "width", "height", "k1")))
    name, file_of_mano = clip.settings.get("npz"), clip.settings.get("mano")
    own = read_mano(Path(str(file_of_mano))) if file_of_mano else None
    n, t_s = len(data.t_ns), (data.t_ns - data.t_ns[0]) * 1e-9
    size, deviation = 1.0, 0.0
    if name:
        hands = given_hands(Path(str(name).format(clip=clip.manifest.clip_uuid)), n)
    else:
        hands = found_hands(data, camera, lengths_of(own) if own else None)
        if said["scale_source"] != "none":
            size, deviation = hand_size(hands.joints, hands.valid, R_wc, p_wc, t_s)
        hands.joints *= size
    hands = cleaned(hands, R_wc, p_wc, t_s)
    world = np.einsum("nij,nskj->nski", R_wc, hands.joints) + p_wc[:, None, None]
    pose = np.zeros((n, 2, 48))
    for side in (0, 1):
        for frame in np.flatnonzero(hands.valid[:, side]).tolist():
            turn, right = hands.turn[frame, side], bool(side)
            pose[frame, side] = (
                pose_of(hands.joints[frame, side], turn, own, right)
                if own
                else mano(turn, hands.angles[frame, side], right)
            )
    np.savez_compressed(
        out / HANDS,
        t_ns=data.t_ns,
        joints=hands.joints,
        world=world * hands.valid[..., None, None],
        turn=R_wc[:, None] @ hands.turn,
        angles=hands.angles,
        mano_pose=pose,
        betas=np.tile(betas_of(own, size), (2, 1)) if own else np.zeros((2, 10)),
        confidence=hands.confidence,
        grip=grip(hands.joints),
        valid=hands.valid,
        kept=hands.kept,
    )
    seen = hands.valid.any(1)
    metrics = {
        **{"visible": float(seen.mean()), "left": float(hands.valid[:, 0].mean())},
        **{"right": float(hands.valid[:, 1].mean()), "confidence": float(hands.confidence.max(1).mean())},
        **{"size": size, "size_deviation": deviation, "source": "given" if name else "built-in"},
    }
    return Outcome(metrics)


STAGE = Stage("c4-hands", "1", run)
