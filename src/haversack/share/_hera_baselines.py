"""What Hera is compared with: constants and chance, routers that look at both agents, routers of whole
tasks.

Routers of whole tasks learn from how device and cloud each did alone on the training's tasks, and decide
once, by the task and what is seen first: `routellm` (which side was preferred, ties left out),
`hybridllm` (how often the device is as good as the cloud), `eagle` (Elo ratings, all tasks' and the
nearest tasks'). `cascade` lets the device try, judges the try by how it ended, and begins anew in the
cloud where it seems to have failed: an undoing that worlds seldom offer, granted here to the baseline.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from haversack.share._hera_agents import Agent
from haversack.share._hera_episodes import Episode, run_episode, states_of
from haversack.share._hera_features import DIMENSIONS, I32, state_bag, task_bag
from haversack.share._hera_net import BagNet, fit
from haversack.share._hera_states import Env, normalised
from haversack.share._routing import Asked
from haversack.share.hera import cross_entropy_slope

F64 = npt.NDArray[np.float64]


@dataclass
class Constant:
    """Always the same chance: 0 is the device alone, 1 the cloud alone."""

    chance: float
    kind: str = "step"

    def p_cloud(self, asked: Asked) -> float:
        return self.chance


class Sampled:
    """The cloud with chance p at every step, whatever the state."""

    kind = "step"

    def __init__(self, p: float, seed: int = 0) -> None:
        self.p = p
        self._draw = random.Random(f"{seed} {p}")

    def p_cloud(self, asked: Asked) -> float:
        return float(self._draw.random() < self.p)


class OracleAgreement:
    """The cloud exactly where the actions differ. It asks both agents at every step: no router of use, a
    mark."""

    kind = "step"

    def __init__(self, device: Agent, cloud: Agent, order_free: frozenset[str] = frozenset()) -> None:
        self.device, self.cloud, self.order_free = device, cloud, order_free

    def p_cloud(self, asked: Asked) -> float:
        one, other = self.device.act(asked).action, self.cloud.act(asked).action
        return float(normalised(one, self.order_free) != normalised(other, self.order_free))


@dataclass
class Entropy:
    """How undecided the device's own choice is, in [0, 1]."""

    device: Agent
    kind: str = "step"

    def p_cloud(self, asked: Asked) -> float:
        return self.device.act(asked).entropy


@dataclass(frozen=True)
class Alone:
    """How device and cloud each did alone on one task: episodes' success; `text` and `seen` first."""

    text: str
    seen: str
    device: tuple[float, ...]
    cloud: tuple[float, ...]


def alone(env: Env, device: Agent, cloud: Agent, runs: int = 1, seed: int = 0) -> Alone:
    """Run a task `runs` times with each agent alone."""
    seen = env.reset()
    found = [
        tuple(
            float(run_episode(env, device, cloud, Constant(chance), seed=seed, episode=at).success)
            for at in range(runs)
        )
        for chance in (0.0, 1.0)
    ]
    return Alone(env.task, seen, found[0], found[1])


class TaskNet:
    """A network over a task's first sight; its chance holds for the whole episode."""

    kind = "query"

    def __init__(self, net: BagNet) -> None:
        self.net = net

    def p_cloud(self, asked: Asked) -> float:
        seen = asked.history[0][0] if asked.history else ""
        return float(1 / (1 + np.exp(-np.clip(self.net.score(task_bag(asked.text, seen)), -30, 30))))


def routellm(outcomes: Sequence[Alone], seed: int = 0, epochs: int = 12) -> TaskNet:
    """The preference classifier: was the cloud better? Tasks where neither was are left out."""
    kept = [one for one in outcomes if np.mean(one.device) != np.mean(one.cloud)]
    labels = [int(np.mean(one.cloud) > np.mean(one.device)) for one in kept]
    return _task_net(kept, labels, [1.0] * len(kept), seed, epochs)


def hybridllm(outcomes: Sequence[Alone], seed: int = 0, epochs: int = 12) -> TaskNet:
    """The chance that the device is not as good as the cloud, over pairs of their episodes."""
    kept: list[Alone] = []
    labels: list[int] = []
    weights: list[float] = []
    for one in outcomes:
        worse = float(np.mean([d < c for d in one.device for c in one.cloud]))
        kept += [one, one]
        labels += [1, 0]
        weights += [worse, 1 - worse]
    return _task_net(kept, labels, weights, seed, epochs)


def _task_net(
    kept: Sequence[Alone], labels: Sequence[int], weights: Sequence[float], seed: int, epochs: int
) -> TaskNet:
    net = BagNet.new(seed)
    if kept:
        bags = [[task_bag(one.text, one.seen)] for one in kept]
        fit(net, bags, cross_entropy_slope(labels, weights), epochs=epochs, rate=1e-3, seed=seed, batch=32)
    return TaskNet(net)


class Eagle:
    """Elo of the two models: half from all comparisons, half from those of the nearest tasks."""

    kind = "query"

    def __init__(self, outcomes: Sequence[Alone], neighbours: int = 20, step: float = 32.0) -> None:
        self.step, self.neighbours = step, neighbours
        self.scores = [float(np.mean(one.cloud) - np.mean(one.device)) / 2 + 0.5 for one in outcomes]
        self.vectors = np.stack([_direction(task_bag(one.text, one.seen)) for one in outcomes])
        self.overall = self._rated(0.0, self.scores)

    def p_cloud(self, asked: Asked) -> float:
        seen = asked.history[0][0] if asked.history else ""
        near = np.argsort(-(self.vectors @ _direction(task_bag(asked.text, seen))), kind="stable")
        local = self._rated(self.overall, [self.scores[at] for at in near[: self.neighbours]])
        return float(1 / (1 + 10 ** (-(self.overall + local) / 2 / 400)))

    def _rated(self, ahead: float, scores: Sequence[float]) -> float:
        """The cloud's rating less the device's after these comparisons."""
        for score in scores:
            ahead += 2 * self.step * (score - 1 / (1 + 10 ** (-ahead / 400)))
        return ahead


def _direction(bag: I32) -> F64:
    found = np.zeros(DIMENSIONS)
    found[bag] = 1 / np.sqrt(len(bag))
    return found


@dataclass(frozen=True)
class Judge:
    """The cascade's score of a finished try of the device: the chance that it failed, by its last state."""

    net: BagNet

    def failed(self, episode: Episode) -> float:
        return float(1 / (1 + np.exp(-np.clip(self.net.score(state_bag(_last(episode))), -30, 30))))


def judge(tries: Sequence[Episode], seed: int = 0, epochs: int = 12) -> Judge:
    """Learned from the device's tries on the training's tasks."""
    net = BagNet.new(seed)
    bags = [[state_bag(_last(one))] for one in tries]
    labels = [int(not one.success) for one in tries]
    fit(
        net,
        bags,
        cross_entropy_slope(labels, [1.0] * len(labels)),
        epochs=epochs,
        rate=1e-3,
        seed=seed,
        batch=32,
    )
    return Judge(net)


def _last(episode: Episode) -> Asked:
    """What is known when an episode is over."""
    *_, (step, state) = states_of(episode.steps)
    return state._replace(history=(*state.history[:-1], (step.text, step.action), (episode.last, "")))
