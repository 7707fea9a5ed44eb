"""Success against the cloud's share of steps: points of a sweep, the curve through them, the area under
it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from haversack.share._hera_agents import Agent
from haversack.share._hera_episodes import Episode, run_episode
from haversack.share._hera_states import Env
from haversack.share._routing import Router

TAUS = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9)


@dataclass(frozen=True)
class Point:
    """A router at a threshold, over tasks: success rate, cloud steps over all steps, cloud calls a task,
    steps a task, and tokens a task that a model had to read that it had not read (`prefill`)."""

    tau: float
    success: float
    share: float
    calls: float
    steps: float
    prefill: float = 0.0

    @classmethod
    def of(cls, tau: float, episodes: Sequence[Episode]) -> Point:
        steps = [len(one.steps) for one in episodes]
        calls = [one.cloud_calls for one in episodes]
        return cls(
            tau,
            float(np.mean([one.success for one in episodes])),
            sum(calls) / max(sum(steps), 1),
            float(np.mean(calls)),
            float(np.mean(steps)),
            float(np.mean([sum(step.prefill for step in one.steps) for one in episodes])),
        )


def sweep(
    envs: Iterable[Env],
    device: Agent,
    cloud: Agent,
    router: Router,
    taus: Sequence[float] = TAUS,
    *,
    seed: int = 0,
    begin: Callable[[], None] = lambda: None,
) -> list[Point]:
    """A point for each threshold; the same agents' chance in each."""
    worlds = list(envs)
    points: list[Point] = []
    for tau in taus:
        begin()
        points.append(
            Point.of(tau, [run_episode(env, device, cloud, router, tau, seed=seed) for env in worlds])
        )
    return points


def of_tasks(chances: Sequence[float], device: Sequence[Episode], cloud: Sequence[Episode]) -> list[Point]:
    """The whole curve of a router of tasks, from how each agent did alone: the tasks of highest chance to the
    cloud, one more at each point. Nothing needs to be run again."""
    order = sorted(range(len(chances)), key=lambda at: (-chances[at], at))
    return [
        Point.of(
            chances[order[taken - 1]] if taken else 1.0,
            [cloud[at] for at in order[:taken]] + [device[at] for at in order[taken:]],
        )
        for taken in range(len(order) + 1)
    ]


def front(points: Iterable[Point]) -> list[Point]:
    """Those that no other beats in both success and share, by share."""
    found: list[Point] = []
    for point in sorted(points, key=lambda one: (one.share, -one.success)):
        if not found or point.success > found[-1].success:
            found.append(point)
    return found


def at_share(points: Iterable[Point], share: float) -> float:
    """The success at a share, along straight lines between the points that no other beats: what mixing two
    thresholds by chance gives. Beyond the last point its success; before the first the first's."""
    best = front(points)
    return float(np.interp(share, [one.share for one in best], [one.success for one in best]))


def area(points: Iterable[Point]) -> float:
    """The mean success over shares from 0 to 1 along the curve."""
    shares = np.linspace(0, 1, 101)
    listed = list(points)
    return float(np.mean([at_share(listed, float(share)) for share in shares]))


def share_for(points: Iterable[Point], success: float) -> float:
    """The least share at which the curve comes to `success`; infinity where it never does."""
    best = front(points)
    if best[-1].success < success:
        return float("inf")
    if best[0].success >= success:
        return best[0].share
    return float(np.interp(success, [one.success for one in best], [one.share for one in best]))
