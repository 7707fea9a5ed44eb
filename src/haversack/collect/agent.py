"""The edge agent: six stages over a stream of pictures and motion samples, from capture to kept clips.

Paper: AoE (arXiv 2602.23893): the device's own computing decides what is kept. The stages' structure is the
abstract's; rates, sizes and thresholds are [inferred] and every one is in the policy.

`push_frame`, `push_imu` and `tick` are all of it: the same code runs over a file, a camera, a phone's upload.
Frames go into a ring buffer of encoded groups; the motion sensors say how often to look (imu_gate.py); a look
is a 160 x 90 picture judged for sharpness, light and motion of its own (motion_gate.py); where something
moves, hands are looked for (detector.py); the trigger (trigger.py) turns their evidence into clips, which are
cut out of the ring without decoding. Faces found by a plug-in are blurred before a frame is encoded. Nothing
else is ever stored. Same input, same clips.

Cost: reported by `account` in multiply-adds, encoded blocks and camera seconds. Limits: one camera; the
rotation from the motion sensors to the camera is given (identity unless calibrated).
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from haversack.collect._blur import Box, blurred
from haversack.collect._bundle_writer import ClipInfo, EdgeRows, write_bundle
from haversack.collect._day import DAY_NS, Day, Kept, thumbnail
from haversack.collect._policy import Policy
from haversack.collect._ring import Group, Ring
from haversack.collect._rotations import integrated
from haversack.collect._tables import Hand
from haversack.collect.bundle import Trigger as TriggerRecord
from haversack.collect.detector import Detector
from haversack.collect.imu_gate import REST, UNWORN, WALK, ImuGate
from haversack.collect.motion_gate import Blocks, residual, sharpness, shrink
from haversack.collect.trigger import SECOND, Span, Trigger, evidence

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
SYSTEM = 1
Faces = Callable[[U8], list[Box]]
ON_PX = 0.25
"""Own motion from which the third gate looks for hands."""
STAYS_ON_NS = 2 * SECOND
"""So long the third gate looks on after hands that moved. Motion alone does not keep it on: while somebody
walks, blocks are matched a third of a pixel wrong, which would keep the camera on all day."""
EARLY = 0.25
"""Of a frame's period: a look may come so much early, since cameras do not tick evenly."""


@dataclass
class Account:
    """What the agent spent and saw, for the energy proxy and for people."""

    frames: int = 0
    encoded: int = 0
    looks: int = 0
    detections: int = 0
    camera_ns: int = 0
    imu_ns: int = 0
    clips: int = 0
    clip_bytes: int = 0
    given_up: int = 0
    states: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Look:
    """What one look saw."""

    t_ns: int
    a: float
    sharpness: float
    residual_px: float
    hands: tuple[Hand, ...]
    small: F32


class EdgeAgent:
    """Watches one camera. `clip` is what manifests say of device, session and consent; its consent is what
    allows it to run at all. `spool` takes finished bundles, the ring lies in `spool/.ring`."""

    def __init__(
        self,
        spool: Path,
        clip: ClipInfo,
        detector: Detector,
        policy: Policy | None = None,
        *,
        faces: Faces | None = None,
        mount: F64 | None = None,
        camera_from_imu: F64 | None = None,
        K: F64 | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.spool, self.clip, self.detector, self.faces = spool, clip, detector, faces
        self.trigger = Trigger(self.policy.trigger)
        self.gate = ImuGate(self.policy.imu, mount)
        self.day = Day(self.policy.savings.day_mib * 2**20)
        self.ring = Ring(spool / ".ring", clip.fps_nominal, crf=self.policy.crf)
        self.account = Account()
        self.stopped = False
        self._R_ci = np.eye(3) if camera_from_imu is None else camera_from_imu
        self._K = K
        self._imu_t: deque[int] = deque()
        self._imu: deque[tuple[float, ...]] = deque()
        self._before: tuple[int, F32] | None = None
        self._last_look: int | None = None
        self._on_until = -(1 << 62)
        self._last_frame: int | None = None
        self._looks: deque[_Look] = deque()
        self._boxes: tuple[int, list[Box]] = (-(1 << 62), [])
        self._saving = False
        self._wall_offset = 0
        self._has_imu = False

    # ---- inputs

    def push_imu(self, t_ns: int, sample: tuple[float, float, float, float, float, float]) -> None:
        """One sample: acceleration in m/s^2 (gravity included) and turning in rad/s. Times must rise; one
        that does not is left out."""
        if self._imu_t and t_ns <= self._imu_t[-1]:
            return
        if self._imu_t:
            self.account.imu_ns += min(t_ns - self._imu_t[-1], SECOND)
        self._has_imu = True
        self._imu_t.append(t_ns)
        self._imu.append(sample)
        self.gate.push(t_ns, sample)
        needed = self.trigger.needs_from_ns
        keep = min(t_ns - 10 * SECOND, needed if needed is not None else t_ns) - 2 * SECOND
        while self._imu_t[0] < keep:
            self._imu_t.popleft()
            self._imu.popleft()

    def tick(self, wall_ns: int, t_ns: int, *, battery: float = 100.0, temperature_c: float = 25.0) -> None:
        """The state of the device: wall and monotonic clock, battery in percent, temperature."""
        savings = self.policy.savings
        self._wall_offset = wall_ns - t_ns
        self.stopped = battery < savings.empty_battery
        self._saving = battery < savings.low_battery or temperature_c > savings.hot_c

    def push_frame(self, t_ns: int, picture: U8) -> list[Path]:
        """One frame, RGB u8 [height, width, 3]; the bundles that were finished by it. Times must rise;
        a frame whose time does not is left out."""
        account = self.account
        account.frames += 1
        if self._last_frame is not None and t_ns <= self._last_frame:
            return []
        gap, self._last_frame = t_ns - (self._last_frame or t_ns), t_ns
        state = self.gate.state if self._has_imu else "active"
        account.states[state] = account.states.get(state, 0) + 1
        paused = self.stopped or state == UNWORN or self.policy.blocked(t_ns + self._wall_offset)
        if gap > 3 * SECOND / self.clip.fps_nominal:  # the camera paused: a clip does not reach across
            made = self._end()
        else:
            made = []
        if paused:
            return made + self._end()
        hz = self._rate(state, t_ns)
        looks = self._due(t_ns, hz)
        probing = state in (REST, WALK) and t_ns >= self._on_until and not self.trigger.open
        if probing:  # the camera is off but for two pictures a look
            self.ring.drop_all()
            account.camera_ns += round(2 * SECOND / self.clip.fps_nominal) if looks else 0
        else:
            account.camera_ns += min(gap, SECOND)
            self.ring.push(t_ns, self._without_faces(t_ns, picture))
            account.encoded += 1
        if looks:
            made += self._keep(self._look(t_ns, picture, self._before))
            self._before = None
        elif self._due(t_ns + 1.25 * SECOND / self.clip.fps_nominal, hz):  # what the next is compared with
            self._before = (t_ns, shrink(picture))
        needed = self.trigger.needs_from_ns
        if needed is not None:
            self.ring.drop_before(needed)
            while self._looks and self._looks[0].t_ns < needed:
                self._looks.popleft()
        return made

    def finish(self) -> list[Path]:
        """The stream is over; the bundles that were finished by it."""
        made = self._end()
        self.ring.drop_all()
        return made

    def forget_last(self, minutes: float) -> int:
        """Remove everything of the last minutes, finished clips included; how many clips."""
        if self._last_frame is None:
            return 0
        since = self._last_frame - round(minutes * 60 * SECOND)
        self.trigger = Trigger(self.policy.trigger)
        self.ring.drop_all()
        self._looks.clear()
        self._imu_t.clear()
        self._imu.clear()
        return len(self.day.forget(since))

    # ---- steps

    def _rate(self, state: str, t_ns: int) -> float:
        rates = self.policy.rates
        if t_ns < self._on_until or self.trigger.open:
            return rates.saving_hz if self._saving else rates.detect_hz
        return {REST: rates.rest_hz, WALK: rates.walk_hz}.get(state, rates.active_hz)

    def _due(self, t_ns: float, hz: float) -> bool:
        """Whether a frame of that time is looked at."""
        since = self._last_look
        return since is None or t_ns - since >= SECOND / hz - EARLY * SECOND / self.clip.fps_nominal

    def _look(self, t_ns: int, picture: U8, before: tuple[int, F32] | None) -> list[Span]:
        """Judge one frame and feed the trigger."""
        self._last_look = t_ns
        self.account.looks += 1
        grey, limits = shrink(picture), self.policy.motion
        sharp = sharpness(grey)
        hands: list[Hand] = []
        motion = 0.0
        fine = sharp >= limits.sharp and limits.dark <= float(grey.mean()) <= limits.bright
        if fine and before is not None:
            motion, blocks = residual(
                before[1], grey, (t_ns - before[0]) / SECOND, limits, self._turn(before[0], t_ns), self._K
            )
            if motion >= ON_PX or t_ns < self._on_until:
                hands = self._detect(picture, blocks)
            if motion >= ON_PX and hands:
                self._on_until = t_ns + STAYS_ON_NS
        spans = self.trigger.step(t_ns, evidence(hands, motion, self.policy.trigger.m0_px))
        self._looks.append(_Look(t_ns, self.trigger.a, sharp, motion, tuple(hands), thumbnail(grey)))
        return spans

    def _detect(self, picture: U8, moving: Blocks) -> list[Hand]:
        self.account.detections += 1
        return self.detector.detect(picture, moving)

    def _turn(self, begin_ns: int, end_ns: int) -> F64 | None:
        """The camera's rotation between two times; None without motion samples."""
        if not self._imu_t or self._imu_t[-1] < begin_ns:
            return None
        begin_ns, end_ns = begin_ns + self.clip.clock_offset_ns, end_ns + self.clip.clock_offset_ns
        times, gyro = [], []
        for t_ns, sample in zip(reversed(self._imu_t), reversed(self._imu), strict=True):
            times.append(t_ns)
            gyro.append(sample[3:])
            if t_ns <= begin_ns:
                break
        R = integrated(np.asarray(times[::-1], np.int64), np.asarray(gyro[::-1]), begin_ns, end_ns)
        turned: F64 = self._R_ci @ R @ self._R_ci.T
        return turned

    def _without_faces(self, t_ns: int, picture: U8) -> U8:
        if self.faces is None:
            return picture
        if t_ns - self._boxes[0] >= round(0.999 * SECOND / self.policy.privacy.blur_hz):
            self._boxes = (t_ns, self.faces(picture))
        return blurred(picture, self._boxes[1])

    def _end(self) -> list[Path]:
        """End what goes on: the camera pauses."""
        made = self._keep(self.trigger.end())
        self.trigger = Trigger(self.policy.trigger)
        self.ring.drop_all()
        self._looks.clear()
        self._before = None
        return made

    def _keep(self, spans: list[Span]) -> list[Path]:
        return [path for span in spans if (path := self._write(span)) is not None]

    def _write(self, span: Span) -> Path | None:
        """Cut a clip out of the ring and write its bundle; None where nothing of it is there, or it was not
        worth its bytes."""
        groups = self.ring.chosen(span.begin_ns, span.end_ns)
        if not groups:
            return None
        times = np.asarray([t for group in groups for t in group.t_ns], np.int64)
        begin, end = int(times[0]), int(times[-1])
        looks = [look for look in self._looks if begin <= look.t_ns <= end]
        imu = [(t, sample) for t, sample in zip(self._imu_t, self._imu, strict=True) if begin <= t <= end]
        clip = replace(
            self.clip,
            clip_uuid=str(uuid.uuid4()),
            t0_wall_ns=begin + self._wall_offset,
            trigger=TriggerRecord(
                reason="hands",
                thresholds=self.policy.trigger.record(),
                span=(span.begin_ns, span.end_ns),
            ),
            faces_blurred=self.faces is not None,
        )
        edge = EdgeRows(
            np.asarray([look.t_ns for look in looks], np.int64),
            np.asarray([look.a for look in looks], np.float32),
            np.asarray([look.sharpness for look in looks], np.float32),
            np.asarray([look.residual_px for look in looks], np.float32),
            [look.hands for look in looks],
        )
        path = write_bundle(
            self.spool,
            clip,
            lambda goal: self._cut(groups, goal),
            times,
            np.asarray([sample for _, sample in imu], np.float32).reshape(-1, 6),
            np.asarray([t for t, _ in imu], np.int64),
            edge,
        )
        nbytes = sum(file.stat().st_size for file in path.iterdir())
        novelty = self.day.novelty(looks[len(looks) // 2].small) if looks else 1.0
        today = (begin + self._wall_offset) // DAY_NS
        removed = self.day.add(Kept(path, today, nbytes, span.mean_a * novelty, begin, end))
        self.account.given_up += len(removed)
        if any(each.path == path for each in removed):
            return None
        self.account.clips += 1
        self.account.clip_bytes += nbytes
        return path

    def _cut(self, groups: list[Group], goal: Path) -> None:
        self.ring.cut(groups, goal)
