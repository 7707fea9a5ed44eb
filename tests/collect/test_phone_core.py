"""The phone app's agent in Node: its unit tests, and one stream played to it and to the agent in Python."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from bundles import info
from phones import APP, FPS, INSTALLED, NO_NODE, NODE, NOT_BUILT, POLICY, node, short_day

from haversack.bench.aoe._world import HEIGHT, WIDTH
from haversack.collect._policy import Policy, read_policy
from haversack.collect.agent import EdgeAgent
from haversack.collect.bundle import Bundle
from haversack.collect.detector import HANDS, OnnxDetector

pytestmark = [
    pytest.mark.skipif(NODE is None, reason=NO_NODE),
    pytest.mark.skipif(not INSTALLED, reason=NOT_BUILT),
]
SECOND = 1_000_000_000
RUNTIME = "node_modules/onnxruntime-web/dist/ort.wasm.min.mjs"


@pytest.fixture(scope="module")
def bundled() -> None:
    """The app's tests and player, bundled for Node."""
    done = node("build.test.mjs")
    assert done.returncode == 0, done.stderr


def test_the_app_s_unit_tests(bundled: None) -> None:
    """Among them: every vector of the trigger, as the agent in Python replays it."""
    done = node("--test", "out/core.test.mjs")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "trigger: noisy" in done.stdout


@pytest.fixture(scope="module")
def stream() -> tuple[list[tuple[int, Any]], Any, Any]:
    day = short_day()
    frames = [(round(at * SECOND / FPS), day.picture(at / FPS)) for at in range(round(day.seconds * FPS))]
    return (frames, *day.imu())


@pytest.mark.parametrize("sensors", [True, False], ids=["with motion sensors", "without"])
def test_one_stream_gives_both_agents_the_same_clips(
    bundled: None, stream: Any, sensors: bool, tmp_path: Any
) -> None:
    """Looks at the same moments, the same hands, averages within a thousandth, clips at the same times."""
    frames, imu_t, imu = stream
    policy = Policy()
    if not sensors:  # and with other times
        (tmp_path / "policy.toml").write_text(POLICY)
        policy = read_policy(tmp_path / "policy.toml")
    agent = Watched(tmp_path / "spool", info(fps_nominal=float(FPS)), OnnxDetector(HANDS), policy)
    agent.tick(0, 0)
    made, at = [], 0
    for t_ns, picture in frames:
        while sensors and at < len(imu_t) and imu_t[at] <= t_ns:
            agent.push_imu(int(imu_t[at]), tuple(imu[at].tolist()))
            at += 1
        made += agent.push_frame(t_ns, picture)
    made += agent.finish()
    expected = [list(Bundle.open(path).manifest.trigger.span or ()) for path in made]
    assert len(expected) == 2

    samples = [{"t": int(t), "sample": row} for t, row in zip(imu_t, imu.tolist(), strict=True)]
    assert APP is not None
    given = {
        **{"width": WIDTH, "height": HEIGHT, "fps": FPS, "times": [t for t, _ in frames]},
        **{"imu": samples if sensors else [], "model": str(HANDS), "runtime": str(APP / RUNTIME)},
        "trigger": policy.trigger.record(),
        "rates": vars(policy.rates),
    }
    (tmp_path / "stream.json").write_text(json.dumps(given))
    np.stack([picture for _, picture in frames]).tofile(tmp_path / "frames.rgb")
    done = node("out/replay.mjs", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["clips"] == expected
    assert [look["t"] for look in found["looks"]] == [look[0] for look in agent.seen]
    off = [abs(look["a"] - a) for look, (_, a, _, _) in zip(found["looks"], agent.seen, strict=True)]
    assert max(off) < 1e-3
    motion = [
        abs(look["residual"] - px) for look, (_, _, px, _) in zip(found["looks"], agent.seen, strict=True)
    ]
    assert max(motion) < 1e-2
    for look, (_, _, _, hands) in zip(found["looks"], agent.seen, strict=True):
        assert len(look["hands"]) == len(hands)
        for one, other in zip(look["hands"], hands, strict=True):
            assert all(
                abs(one[key] - getattr(other, key)) < 1e-3 for key in ("x0", "y0", "x1", "y1", "score")
            )
            assert one["side"] == other.side
    assert sum(bool(look["hands"]) for look in found["looks"]) > 20


class Watched(EdgeAgent):
    """The agent, and every look of it."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.seen: list[tuple[int, float, float, Any]] = []

    def _look(self, *given: Any) -> Any:
        spans = super()._look(*given)
        last = self._looks[-1]
        self.seen.append((last.t_ns, last.a, last.residual_px, last.hands))
        return spans
