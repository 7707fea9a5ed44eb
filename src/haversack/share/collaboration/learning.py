"""L1 to L4 and L7: learning whom to ask, from paired runs, from preferences, online, under a budget,
together.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; the learning problems are named there,
details [inferred]); FedAvg (McMahan et al., 2017); policy gradient with a Lagrangian (Tessler et al., 2018).
What is here, as functions on arrays: labels of paired runs (L1) and the preference loss (L2), whose routers
are fitted in share/learning_routers.py; the bandit of V8 as an online router (L3); `LagrangianRouter` (L4):
maximise E[quality] subject to E[cost] <= B, by the policy's gradient on quality - lambda cost, lambda <-
[lambda + eta (cost - B)]+; the mean cost over its last steps meets the budget; `federated` (L7): clients fit
a router on their own outcomes and share only its weights, averaged by their counts. A device that learns to
call the cloud itself and one that learns from accepted edits (L5, L6) are in learning_device.py.
Cost: vectors as long as the context; a step of L4 is one multiplication.
Limits: L4's budget holds on average, not for each task: a task's own limit is its Budget, enforced before
every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.share._routing import Asked
from haversack.share.collaboration._algorithm import bounded
from haversack.share.collaboration.modalities import LinUcb

SYSTEM = 40

F64 = NDArray[np.float64]


def paired_labels(device: F64, cloud: F64) -> NDArray[np.int64]:
    """L1: 1 where the cloud does better, -1 where the device does, 0 for a tie."""
    found: NDArray[np.int64] = np.sign(np.asarray(cloud) - np.asarray(device)).astype(np.int64)
    return found


def preference_loss(scores: F64, labels: NDArray[np.int64]) -> float:
    """L2: mean cross entropy of sigmoid(score) against win 1, tie 1/2, lose 0 (Bradley-Terry)."""
    wins = 0.5 + 0.5 * np.asarray(labels, np.float64)
    return float((np.logaddexp(0.0, scores) - wins * scores).mean())


class OnlineRouter:
    """L3: a LinUCB of two actions, device (0) and cloud (1), taught by what each answer was worth."""

    def __init__(self, width: int, alpha: float = 0.5, price: float = 0.0) -> None:
        self.bandit, self.price = LinUcb(2, width, alpha), price

    def choose(self, x: F64) -> int:
        """0 or 1."""
        return int(np.argmax(self.bandit.scores(x)))

    def learn(self, action: int, x: F64, quality: float) -> None:
        """Its quality, less the price of the cloud."""
        self.bandit.learn(action, x, quality - self.price * action)


def lagrange_step(multiplier: float, eta: float, cost: float, budget: float) -> float:
    """lambda <- [lambda + eta (cost - B)]+"""
    return max(0.0, multiplier + eta * (cost - budget))


class LagrangianRouter:
    """L4: P(cloud | x) = sigmoid(w . x). `costs`: of the device and of the cloud; `budget`: mean cost
    allowed.

    Raises UserError for a budget that is below the device's cost: nothing would meet it.
    """

    kind = "query"

    def __init__(
        self,
        width: int,
        costs: tuple[float, float],
        budget: float,
        rate: float = 0.5,
        eta: float = 0.05,
        seed: int = 0,
    ) -> None:
        if not budget >= min(costs):
            raise UserError(
                f"budget={budget:g} is below {min(costs):g}, the cost of the cheaper node.",
                field="budget",
                given=budget,
                nearest=min(costs),
            )
        bounded("eta", eta, 1e-6, 10.0)
        self.w, self.costs, self.budget = np.zeros(width), costs, budget
        self.rate, self.eta, self.multiplier = rate, eta, 0.0
        self._random = np.random.default_rng(seed)

    def p(self, x: F64) -> F64:
        """P(cloud) of contexts [..., width]."""
        found: F64 = 0.5 * (1 + np.tanh(0.5 * (np.asarray(x) @ self.w)))
        return found

    def draw(self, x: F64) -> NDArray[np.int64]:
        """0 or 1 for each context."""
        found: NDArray[np.int64] = (self._random.random(np.shape(x)[:-1]) < self.p(x)).astype(np.int64)
        return found

    def learn(self, x: F64, quality: F64) -> float:
        """One step on a batch: contexts [n, width], quality [n, 2] of device and cloud. Returns the batch's
        mean cost. The gradient is exact, as both outcomes are known; with one known only, use `learn_one`."""
        p = self.p(x)
        gain = (quality[:, 1] - quality[:, 0]) - self.multiplier * (self.costs[1] - self.costs[0])
        self.w += self.rate * ((gain * p * (1 - p)) @ x) / len(x)
        return self._paid(float((self.costs[0] + p * (self.costs[1] - self.costs[0])).mean()))

    def learn_one(self, x: F64, action: int, quality: float, baseline: float = 0.5) -> float:
        """REINFORCE on one task whose other outcome nobody knows."""
        reward = quality - self.multiplier * (self.costs[action] - self.costs[0])
        self.w += self.rate * 0.1 * (reward - baseline) * (action - float(self.p(x))) * np.asarray(x)
        return self._paid(self.costs[action])

    def _paid(self, cost: float) -> float:
        self.multiplier = lagrange_step(self.multiplier, self.eta, cost, self.budget)
        return cost


@dataclass(frozen=True)
class LinearRouter:
    """A router whose context is a function of the query: P(cloud) = sigmoid(w . features)."""

    w: F64
    features: Callable[[Asked], F64]
    kind: str = "query"

    def p_cloud(self, asked: Asked) -> float:
        """The chance that the cloud is needed."""
        x = self.features(asked)
        return float(0.5 * (1 + np.tanh(0.5 * float(np.asarray(x) @ self.w))))


def local_steps(w: F64, x: F64, y: F64, steps: int, rate: float, decay: float) -> F64:
    """A client's gradient steps of logistic regression from w."""
    made = w.copy()
    for _ in range(steps):
        p = 0.5 * (1 + np.tanh(0.5 * (x @ made)))
        made -= rate * (x.T @ (p - y) / len(x) + decay * made)
    return made


def federated(
    clients: Sequence[tuple[F64, F64]],
    rounds: int = 20,
    steps: int = 5,
    rate: float = 0.5,
    decay: float = 1e-3,
) -> F64:
    """L7, FedAvg: weights [width] from clients' (contexts [n, width], labels [n]), which never leave them.
    Raises UserError without a client or without a limit of rounds."""
    bounded("rounds", rounds, 1, 10_000)
    if not clients or any(not len(x) or len(x) != len(y) for x, y in clients):
        raise UserError(
            "federated learning needs clients, each with as many labels as contexts.", field="clients"
        )
    counts = np.array([len(x) for x, _ in clients], np.float64)
    w = np.zeros(clients[0][0].shape[1])
    for _ in range(rounds):
        fresh = [local_steps(w, x, y, steps, rate, decay) for x, y in clients]
        w = np.einsum("c,cw->w", counts / counts.sum(), np.stack(fresh))
    return w
