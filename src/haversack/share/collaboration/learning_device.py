"""L5 and L6: a device model that learns when to call the cloud, and what to take from it.

Papers: Large Language Models over Networks (arXiv 2605.08626, 2026; named there, details [inferred]);
group-relative policy optimisation (Shao et al., 2024); LoRA (Hu et al., 2021).
What is here: `DeviceModel`, a softmax over answers and one more, `call cloud`, with frozen weights and a
low-rank change A B that alone is trained. `group_step` (L5): for each question a group of draws, rewards in
the group made relative (less their mean, over their deviation), the clipped ratio of policies and a
divergence from the frozen model. `accept_step` (L6): cross entropy on edits of the cloud that were accepted.
`best_response`: alternate training of the device against a partner whose answers are frozen.
Cost: two matrices of rank r; a step is one pass over a batch.
Limits: the model is linear in its features; a language model is trained the same way by its own trainer, for
which these are the losses and gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from haversack.share.collaboration._algorithm import bounded

SYSTEM = 40

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


@dataclass
class DeviceModel:
    """`base` f64 [answers + 1, width] frozen, the last row is `call cloud`; `a` [answers + 1, r], `b` [r,
    width]."""

    base: F64
    a: F64
    b: F64

    @classmethod
    def of(cls, base: F64, rank: int = 4, call: float = -2.0, seed: int = 0) -> DeviceModel:
        """From a trained model [answers, width] whose last feature is constant; `call`: the logit of calling
        at first. A is 0, so that nothing changes before training."""
        bounded("rank", rank, 1, base.shape[1])
        row = np.zeros(base.shape[1])
        row[-1] = call
        rng = np.random.default_rng(seed)
        whole = np.concatenate([base, row[None]])
        width = base.shape[1]
        return cls(whole, np.zeros((len(whole), rank)), rng.normal(0, width**-0.5, (rank, width)))

    @property
    def call(self) -> int:
        """The number of `call cloud`."""
        return len(self.base) - 1

    def probabilities(self, x: F64) -> F64:
        """[n, answers + 1]"""
        return softmax(x @ (self.base + self.a @ self.b).T)

    def descend(self, logits_gradient: F64, x: F64, rate: float) -> None:
        """One step of A and B against the gradient [n, answers + 1] with respect to the logits."""
        whole = logits_gradient.T @ x / len(x)
        a, b = whole @ self.b.T, self.a.T @ whole
        self.a -= rate * a
        self.b -= rate * b


def softmax(z: F64) -> F64:
    """Over the last axis."""
    shifted = np.exp(z - z.max(-1, keepdims=True))
    found: F64 = shifted / shifted.sum(-1, keepdims=True)
    return found


def relative(rewards: F64) -> F64:
    """Advantages of groups [n, g]: less the group's mean, over its deviation; 0 in a group of equal
    rewards."""
    spread = rewards.std(1, keepdims=True)
    centred = rewards - rewards.mean(1, keepdims=True)
    found: F64 = np.where(spread > 1e-9, centred / np.maximum(spread, 1e-9), 0.0)
    return found


def group_gradient(
    p: F64, old: F64, reference: F64, draws: I64, advantages: F64, clip: float = 0.2, beta: float = 0.02
) -> F64:
    """The gradient of L5's loss with respect to the logits [n, k]: minus the mean over the group of
    min(ratio A, clip(ratio) A), plus beta KL(p | reference)."""
    rows = np.arange(len(p))[:, None]
    ratio = p[rows, draws] / old[rows, draws]
    bound = np.where(advantages >= 0, 1 + clip, 1 - clip)
    active = np.where(advantages >= 0, ratio <= bound, ratio >= bound)
    weight = active * advantages * ratio / draws.shape[1]
    pulled = np.zeros_like(p)
    np.add.at(pulled, (np.broadcast_to(rows, draws.shape), draws), weight)
    gradient = -(pulled - p * weight.sum(1, keepdims=True))
    logs = np.log(p) - np.log(reference)
    found: F64 = gradient + beta * p * (logs - (p * logs).sum(1, keepdims=True))
    return found


def group_step(
    model: DeviceModel,
    x: F64,
    reward: Callable[[I64], F64],
    *,
    group: int = 16,
    rate: float = 0.5,
    inner: int = 2,
    seed: int = 0,
) -> float:
    """L5: one batch. `reward` gives [n, group] for draws [n, group] (`model.call` is a call). Returns the
    mean reward of the draws."""
    rng = np.random.default_rng(seed)
    old = model.probabilities(x)
    reference = softmax(x @ model.base.T)
    steps = rng.random((len(x), group, 1))
    draws = (steps > old.cumsum(1)[:, None, :]).sum(2).clip(0, model.call)
    rewards = reward(draws)
    advantages = relative(rewards)
    for _ in range(inner):
        gradient = group_gradient(model.probabilities(x), old, reference, draws, advantages)
        model.descend(gradient, x, rate)
    return float(rewards.mean())


def accept_step(model: DeviceModel, x: F64, accepted: I64, rate: float = 0.5) -> float:
    """L6: one step of cross entropy on accepted edits [n] (answers, never calls). Returns the loss before."""
    p = model.probabilities(x)
    rows = np.arange(len(x))
    gradient = p.copy()
    gradient[rows, accepted] -= 1
    model.descend(gradient, x, rate)
    return float(-np.log(np.maximum(p[rows, accepted], 1e-12)).mean())


def best_response(
    model: DeviceModel, x: F64, right: I64, partner: I64, price: float, *, rounds: int = 60, seed: int = 0
) -> list[float]:
    """The device's best response to a partner whose answers [n] are frozen: L5 with reward 1 for a right
    answer, and for a call what the partner's is worth less `price`. Returns the mean rewards by round. Raises
    UserError for rounds without a limit and a price outside 0 to 1."""
    bounded("rounds", rounds, 1, 100_000)
    bounded("price", price, 0.0, 1.0)
    worth = (partner == right).astype(np.float64) - price

    def reward(draws: I64) -> F64:
        found: F64 = np.where(draws == model.call, worth[:, None], draws == right[:, None])
        return found

    return [group_step(model, x, reward, seed=seed + place) for place in range(rounds)]
