"""V8, the joint choice of a model and of what it is shown: a contextual bandit over (node, modalities).

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026: the joint choice is its own proposal
[secondary], no algorithm is given); LinUCB (Li et al., 2010); linear Thompson sampling (Agrawal and Goyal,
2013).
What is here: `LinUcb` and `LinThompson`, one ridge regression an action, A = I and b = 0 at first, score x .
theta + alpha sqrt(x A^-1 x) or a draw from N(theta, alpha^2 A^-1); the reward quality - a latency - b price -
c bytes; `modality-choice` (V8), which asks the action of the highest score that fits the budget and teaches
the bandit where the quality is known. After training, `alpha = 0` is the greedy choice.
Cost: d^2 numbers an action; an update is a rank-1 change of the inverse.
Limits: the context is what the device can see before it uploads anything, and the reward is linear in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.share.collaboration._algorithm import Algorithm, bounded
from haversack.share.collaboration._network import Network, NoAnswer
from haversack.share.collaboration._session import Session, Task, normal

SYSTEM = 40

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Action:
    """A node, and the modalities that it is sent."""

    node: str
    modalities: tuple[str, ...]


def actions_of(nodes: Sequence[str], modalities: Sequence[str]) -> tuple[Action, ...]:
    """Every node with every set of modalities, the empty one too."""
    sets = [some for size in range(len(modalities) + 1) for some in itertools.combinations(modalities, size)]
    return tuple(Action(node, some) for node in nodes for some in sets)


def reward_of(
    quality: float,
    latency_s: float,
    price_usd: float,
    nbytes: float,
    weights: Sequence[float] = (0.0, 0.0, 0.0),
) -> float:
    """quality - a latency - b price - c bytes; `weights` are a (a second), b (a USD), c (a KiB)."""
    a, b, c = weights
    return quality - a * latency_s - b * price_usd - c * nbytes / 1024


class LinUcb:
    """`count` actions over contexts of `width` numbers."""

    def __init__(self, count: int, width: int, alpha: float = 1.0, ridge: float = 1.0) -> None:
        bounded("alpha", alpha, 0.0, 100.0)
        self.alpha = alpha
        self.inverse = np.stack([np.eye(width) / ridge] * count)
        self.b = np.zeros((count, width))

    @property
    def theta(self) -> F64:
        """A^-1 b [count, width]."""
        found: F64 = np.einsum("cij,cj->ci", self.inverse, self.b)
        return found

    def scores(self, x: F64) -> F64:
        """x . theta + alpha sqrt(x A^-1 x) [count]; at first alpha |x|."""
        width = np.sqrt(np.maximum(np.einsum("i,cij,j->c", x, self.inverse, x), 0.0))
        found: F64 = self.theta @ x + self.alpha * width
        return found

    def learn(self, action: int, x: F64, reward: float) -> None:
        """A += x x', b += reward x, by Sherman and Morrison's rank-1 update of the inverse."""
        pushed = self.inverse[action] @ x
        self.inverse[action] -= np.outer(pushed, pushed) / (1 + x @ pushed)
        self.b[action] += reward * x


class LinThompson(LinUcb):
    """The same regressions; a draw from N(theta, alpha^2 A^-1) in place of the bound."""

    def __init__(self, count: int, width: int, alpha: float = 0.3, ridge: float = 1.0, seed: int = 0) -> None:
        super().__init__(count, width, alpha, ridge)
        self._random = np.random.default_rng(seed)

    def scores(self, x: F64) -> F64:
        """x . draws [count]."""
        drawn = [
            self._random.multivariate_normal(mean, self.alpha**2 * spread, method="cholesky")
            if self.alpha
            else mean
            for mean, spread in zip(self.theta, self.inverse, strict=True)
        ]
        found: F64 = np.stack(drawn) @ x
        return found


def _no_context(task: Task) -> F64:
    return np.ones(1)


@dataclass(frozen=True)
class ModalityChoice(Algorithm):
    """V8. `context`: task -> x, from what the device sees; `quality`: (task, answer) -> 0..1, the task's
    known answer where it is None; `weights` as in `reward_of`; with `learning` the bandit is taught."""

    code = "V8"
    name = "modality-choice"
    summary = "Chooses at once which model to ask and what of the input to upload."

    actions: Any = ()
    bandit: Any = None
    context: Callable[[Task], F64] = _no_context
    quality: Callable[[Task, str], float] | None = None
    weights: tuple[float, ...] = (0.0, 0.0, 0.0)
    learning: bool = True
    chosen: Any = field(default=None, compare=False)

    def check(self, network: Network) -> None:
        """Raises UserError without actions or a bandit of as many."""
        if not self.actions or self.bandit is None or len(self.bandit.b) != len(self.actions):
            raise UserError("modality-choice needs actions, and a bandit of as many.", field="actions")
        for action in self.actions:
            network.node(action.node)

    async def solve(self, session: Session) -> str:
        task = session.task
        x = np.asarray(self.context(task), np.float64)
        order = np.argsort(-self.bandit.scores(x), kind="stable")
        for place in map(int, order):
            action = self.actions[place]
            shown: Mapping[str, str] = {name: task.modalities[name] for name in action.modalities}
            before, cost = session.elapsed(), session.counts.cost_usd
            sent = session.counts.left_bytes
            try:
                said = await session.ask(action.node, task.question(), modalities=shown)
            except NoAnswer as error:
                session.degraded = str(error)
                continue
            if self.chosen is not None:
                self.chosen.append(place)
            quality = self._quality(task, said.text)
            if self.learning and quality is not None:
                took = session.elapsed() - before
                spent = session.counts.cost_usd - cost
                reward = reward_of(quality, took, spent, session.counts.left_bytes - sent, self.weights)
                self.bandit.learn(place, x, reward)
            return session.keep(said.text, 1.0)
        raise NoAnswer(session.degraded or "no action fits the budget")

    def _quality(self, task: Task, answer: str) -> float | None:
        if self.quality is not None:
            return self.quality(task, answer)
        return None if task.answer is None else float(normal(answer) == normal(task.answer))
