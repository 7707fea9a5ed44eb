"""The bench object, and one seed of an experiment: agents and routers learned on tasks of their own,
every router's curve over test tasks that nothing saw."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from haversack.bench._cache import cached
from haversack.bench._harness import Bench
from haversack.bench._store import content_hash
from haversack.share import _hera_baselines as baselines
from haversack.share._hera_agents import Planner, Scorer
from haversack.share._hera_baselines import Constant, Sampled
from haversack.share._hera_curve import Point, at_share, of_tasks, sweep
from haversack.share._hera_episodes import Episode, run_episode, states_of
from haversack.share._hera_router import StepRouter
from haversack.share._hera_states import Env
from haversack.share._routing import Asked, Router
from haversack.share.hera import Hera

PARTS = ("agents", "baselines", "curve", "episodes", "features", "household", "net", "router", "states")
FILES = (
    "bench/hera/*.py",
    "share/hera.py",
    "share/_routing.py",
    *(f"share/_hera_{part}.py" for part in PARTS),
)
bench = Bench("hera", number=39, watches=FILES)

SEEDS = 5
RANDOM = (0.3, 0.4, 0.5)
QUANTILES = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SHARE_MOST = 0.55
WANTED = 0.5
"""The share that a threshold may have on the development tasks: below SHARE_MOST by what they may differ
from others."""
METHOD = Hera()
TASKWISE = ("routellm", "hybridllm", "eagle", "cascade")


@dataclass(frozen=True)
class Tasks:
    """Worlds by what they are for. `taught`: the device's agent learns from walkthroughs of these alone."""

    taught: tuple[Env, ...]
    train: tuple[Env, ...]
    dev: tuple[Env, ...]
    test: tuple[Env, ...]


@dataclass(frozen=True)
class Size:
    """How much one seed takes."""

    rollouts: int = 8
    rounds: int = 3
    random_runs: int = 2
    all_routers: bool = True


@dataclass(frozen=True)
class Found:
    """One seed: curves by router over the test tasks, and Hera's point at the threshold chosen on the
    development tasks."""

    curves: dict[str, list[Point]]
    chosen: Point
    rounds: list[dict[str, float]]

    @property
    def device(self) -> Point:
        return self.curves["device"][0]

    @property
    def cloud(self) -> Point:
        return self.curves["cloud"][0]

    def curve(self, name: str) -> list[Point]:
        """A router's points between the device alone and the cloud alone."""
        return [self.device, *self.curves[name], self.cloud]

    def taskwise(self, share: float) -> tuple[float, str]:
        """The best success of a router of tasks at a share, and its name."""
        return max((at_share(self.curve(name), share), name) for name in TASKWISE if name in self.curves)


def experiment(
    name: str, seed: int, size: Size, tasks: Callable[[], Tasks], say: Callable[[str], None]
) -> Found:
    """One seed, from the cache where it was run before with the same files."""
    inputs = {"name": name, "seed": seed, "size": asdict(size), "method": str(METHOD)}
    inputs |= {"program": content_hash(FILES)["package"]}
    folder = cached("hera", inputs, functools.partial(_keep, seed, size, tasks, say))
    record = json.loads((folder / "found.json").read_text())

    def points(listed: Sequence[dict[str, Any]]) -> list[Point]:
        return [Point(**one) for one in listed]

    return Found(
        {key: points(listed) for key, listed in record["curves"].items()},
        Point(**record["chosen"]),
        record["rounds"],
    )


def _keep(seed: int, size: Size, tasks: Callable[[], Tasks], say: Callable[[str], None], goal: Path) -> None:
    found = run_seed(seed, size, tasks(), say)
    (goal / "found.json").write_text(json.dumps(asdict(found)))


def run_seed(seed: int, size: Size, tasks: Tasks, say: Callable[[str], None]) -> Found:
    """Teach the device, learn every router, play the test tasks with each."""
    cloud = Planner()
    device = Scorer.learn(tasks.taught, seed=seed)

    def alone(envs: Sequence[Env], chance: float, both: bool = False) -> list[Episode]:
        return [run_episode(env, device, cloud, Constant(chance), seed=seed, both=both) for env in envs]

    on_device, in_cloud = alone(tasks.test, 0.0), alone(tasks.test, 1.0)
    curves = {"device": [Point.of(1.0, on_device)], "cloud": [Point.of(0.0, in_cloud)]}
    curves["random"] = [
        Point.of(
            p,
            [
                run_episode(env, device, cloud, Sampled(p, seed + run), seed=seed + run)
                for run in range(size.random_runs)
                for env in tasks.test
            ],
        )
        for p in RANDOM
    ]
    traces = [
        run_episode(env, device, cloud, Constant(1.0), seed=seed + 1000, both=True) for env in tasks.train
    ]
    states = [state for one in traces for _, state in states_of(one.steps)]
    say(f"seed {seed}: device {curves['device'][0].success:.2f}, cloud {curves['cloud'][0].success:.2f}")

    def swept(router: Router, envs: Sequence[Env], taus: Sequence[float] | None = None) -> list[Point]:
        return sweep(envs, device, cloud, router, taus or taus_of(router, states), seed=seed)

    imitation = StepRouter(METHOD, seed)
    imitation.fit_imitation([step for one in traces for step in one.steps])
    hera, outcomes = StepRouter(METHOD, seed), StepRouter(METHOD, seed)
    hera.net = imitation.net.copy()

    def learn(router: StepRouter, name: str, rounds: int) -> list[dict[str, float]]:
        def after(at: int) -> None:
            say(f"seed {seed}: {name}, round {at + 1}")

        learned = router.fit_rl(lambda: tasks.train, device, cloud, rounds, size.rollouts, after_round=after)
        return learned.rounds

    rounds = learn(hera, "hera", size.rounds)
    if size.all_routers:
        learn(outcomes, "outcomes alone", 1)
        curves["outcomes"] = swept(outcomes, tasks.test)
        curves["entropy"] = swept(baselines.Entropy(device), tasks.test)
        curves["oracle"] = [_oracle(tasks.test, device, seed)]
    curves["imitation"] = swept(imitation, tasks.test)
    taus = taus_of(hera, states)
    curves["hera"] = swept(hera, tasks.test, taus)
    chosen = taus.index(choose(swept(hera, tasks.dev, taus)))
    curves |= _taskwise(tasks, device, cloud, seed, on_device, in_cloud)
    return Found(curves, curves["hera"][chosen], rounds)


def taus_of(router: Router, states: Sequence[Asked]) -> list[float]:
    """Thresholds that spread a router's chances over training states, and one half."""
    chances = [router.p_cloud(state) for state in states]
    return sorted({*(float(np.quantile(chances, at)) for at in QUANTILES), 0.5})


def choose(points: Sequence[Point]) -> float:
    """The threshold that spends what may be spent: of most share within WANTED, since more of the better
    agent's steps do no harm and few tasks cannot tell where they stop helping; of least share where none
    is within."""
    within = [one for one in points if one.share <= WANTED]
    return (
        max(within, key=lambda one: one.share).tau if within else min(points, key=lambda one: one.share).tau
    )


def _oracle(envs: Sequence[Env], device: Scorer, seed: int) -> Point:
    """The cloud exactly where its action differs from the device's; its own asking is not counted."""
    looks, acts = Planner(), Planner()
    router = baselines.OracleAgreement(device, looks)
    episodes = []
    for env in envs:
        looks.begin(env, seed)
        episodes.append(run_episode(env, device, acts, router, seed=seed))
    return Point.of(0.5, episodes)


def _taskwise(
    tasks: Tasks, device: Scorer, cloud: Planner, seed: int, on_device: list[Episode], in_cloud: list[Episode]
) -> dict[str, list[Point]]:
    known = [baselines.alone(env, device, cloud, 2, seed + 2000) for env in tasks.train]
    routers: dict[str, Router] = {
        "routellm": baselines.routellm(known, seed),
        "hybridllm": baselines.hybridllm(known, seed),
        "eagle": baselines.Eagle(known),
    }
    first = [next(iter(states_of(one.steps)))[1] for one in on_device]
    curves = {
        name: of_tasks([router.p_cloud(state) for state in first], on_device, in_cloud)
        for name, router in routers.items()
    }
    tries = [run_episode(env, device, cloud, Constant(0.0), seed=seed) for env in tasks.train]
    judge = baselines.judge(tries, seed)
    curves["cascade"] = of_tasks([judge.failed(one) for one in on_device], on_device, in_cloud)
    return curves
