"""Hera: at every step of a task a small router decides whether the device's agent or the cloud's acts.

Paper: Hera: Learning Long-Horizon Coordination for Device-Cloud Collaborative LLM Agents (arXiv
2605.24598, 2026; no public code; read: the abstract, and second-hand accounts of the rest, marked
[secondary]).
What is here: the router g(x) = chance that the cloud is needed, of the task's text, the last observations
and actions, and the actions that are allowed; the cloud acts where g >= tau, and tau is the knob of cost.
It learns in two stages [secondary]. *Imitation*: along the cloud's own solved episodes the device is
asked too, without executing; the label is 1 where their actions differ, and the rarer label weighs more,
at most 5 times [inferred]. *State groups*: the mixed policy is rolled out, drawing device or cloud by g;
steps whose state is the same are a group; in a group where both were chosen the one with more success
behind it is preferred, and where success is equal (within epsilon) the one with fewer cloud calls behind
it; g learns the preferences and is held near what it was after imitation. `reward=penalised` prefers by
success less `call_cost` a call instead [secondary].
What we changed: the paper's router is a language model of 0.5 billion parameters with a classifier on its
last token (`share/_hera_lm.py`, any such checkpoint); the default is a network of one hidden layer over
hashed features [inferred], which needs more passes. Its features are what task and state share, kinds of
actions and counts: with the words of some tens of tasks it remembers the tasks and is worse on others [ours].
Few rollouts make a group's success a coin toss, and taken at its word it is worse than imitation where groups
are few. So a group's label is the chance that the preference would be the cloud's if its means were exact
[ours]: they are shrunk to the group's own mean by a Beta prior of `prior` episodes, and their doubt is read
from their scatter. With many episodes it is the preference itself; with one of each side it is near 1/2. A
group weighs n0 n1 / (n0 + n1), as sure as a difference of means is. The last `memory` rounds are kept,
and every round learns from imitation's parameters on, since to go on from the last round's would make more
passes over the same episodes. Rollouts keep a `floor` of chance for either side, so that groups with both go
on to exist. Calls are compared within half a call. A file's threshold is set so that the cloud takes `share`
of the steps learned from.
Cost: imitation takes one call of each agent a step, rollouts `rollouts` episodes a task and round. A
decision takes well below 2 ms with the default router.
Limits: states must have keys under which the future is the same (checked by replay); agents stay frozen;
a router is as good as the tasks it saw. The state's text goes to the cloud wherever the cloud acts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.core.method import Method, parameter
from haversack.share._hera_states import normalised

if TYPE_CHECKING:
    from pathlib import Path

    from haversack.share._hera_episodes import Episode, Step
    from haversack.share._routing import Router

F32 = npt.NDArray[np.float32]
DEVICE, CLOUD = 0, 1
CALLS_TIE = 0.5


def imitation_labels(
    device: Sequence[str], cloud: Sequence[str], order_free: frozenset[str] = frozenset()
) -> list[int]:
    """1 where the two agents' actions differ.

    >>> imitation_labels(["a", "b", "c", "d"], ["a", "x", "c", "y"])
    [0, 1, 0, 1]
    """
    return [
        int(normalised(one, order_free) != normalised(other, order_free))
        for one, other in zip(device, cloud, strict=True)
    ]


def class_weight(labels: Sequence[int], most: float = 5.0) -> float:
    """What a positive example weighs: negatives over positives, between 1 / `most` and `most`."""
    positive = sum(labels)
    return float(np.clip((len(labels) - positive) / max(positive, 1), 1 / most, most))


@dataclass
class Group:
    """One state's visits: by decision (device, cloud) the success that followed and the cloud calls from
    there on, the step's own included."""

    success: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    calls: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def both(self) -> bool:
        return bool(self.success[DEVICE]) and bool(self.success[CLOUD])

    @property
    def weight(self) -> float:
        """n0 n1 / (n0 + n1): as sure as the difference of two means is."""
        device, cloud = (len(one) for one in self.success)
        return device * cloud / max(device + cloud, 1)


def returns(steps: Sequence[Step]) -> list[tuple[float, int]]:
    """(G_i, C_i) of an episode's steps: reward from i on (gamma 1), cloud calls from i on."""
    found: list[tuple[float, int]] = []
    gained, calls = 0.0, 0
    for step in reversed(steps):
        gained += step.reward
        calls += step.chosen == "cloud"
        found.append((gained, calls))
    return found[::-1]


def group(episodes: Iterable[Episode], into: dict[str, Group] | None = None) -> dict[str, Group]:
    """Every step of the episodes by its state's key."""
    found = defaultdict(Group) if into is None else into
    for episode in episodes:
        for step, (gained, calls) in zip(episode.steps, returns(episode.steps), strict=True):
            decision = CLOUD if step.chosen == "cloud" else DEVICE
            one = found.setdefault(step.state_key, Group())
            one.success[decision].append(gained)
            one.calls[decision].append(calls)
    return found


def preference(
    gained: tuple[float, float], calls: tuple[float, float], epsilon: float = 0.05, tie: float = 0.0
) -> int:
    """DEVICE or CLOUD: more success; within `epsilon` of it fewer calls; within `tie` of those the
    device.

    >>> preference((0.2, 0.8), (0, 3)), preference((0.5, 0.52), (4, 2)), preference((0, 0), (2, 2))
    (1, 1, 0)
    """
    if abs(gained[CLOUD] - gained[DEVICE]) > epsilon:
        return int(gained[CLOUD] > gained[DEVICE])
    return int(calls[CLOUD] < calls[DEVICE] - tie)


def penalised(gained: tuple[float, float], calls: tuple[float, float], call_cost: float = 0.01) -> int:
    """DEVICE or CLOUD by success less `call_cost` a call; the device where equal."""
    worth = [one - call_cost * count for one, count in zip(gained, calls, strict=True)]
    return int(worth[CLOUD] > worth[DEVICE])


def preferred(one: Group, method: Hera) -> float:
    """The chance that `preference` would be the cloud, were a group's means those of endless episodes.

    Both successes are shrunk to the group's own mean by `prior` episodes; how far means may be off is read
    from the group's own scatter. 1/2 says that the group tells nothing.
    """
    n = np.array([len(values) for values in one.success], np.float64)
    success, calls = (np.array([*values[DEVICE], *values[CLOUD]]) for values in (one.success, one.calls))
    mean, prior = float(success.mean()), method.prior
    more = float(np.diff([(sum(values) + prior * mean) / (len(values) + prior) for values in one.success])[0])
    level = (success.sum() + prior / 2) / (n.sum() + prior)
    doubt = math.sqrt(max(level * (1 - level), 0.0) * float((1 / (n + prior)).sum()))
    fewer = float(np.mean(one.calls[DEVICE]) - np.mean(one.calls[CLOUD]))
    calls_doubt = math.sqrt(float(calls.var() + CALLS_TIE**2) * float((1 / n).sum()))
    if method.reward == "penalised":
        cost = method.call_cost
        return above(more + cost * fewer, 0.0, math.hypot(doubt, cost * calls_doubt))
    better, worse = above(more, method.epsilon, doubt), above(-more, method.epsilon, doubt)
    return better + (1 - better - worse) * above(fewer, CALLS_TIE, calls_doubt)


def above(mean: float, bound: float, doubt: float) -> float:
    """The chance that a normal number of this mean and standard deviation is above `bound`."""
    if doubt <= 0:
        return float(mean > bound)
    return 0.5 * (1 + math.erf((mean - bound) / (doubt * math.sqrt(2))))


@dataclass(frozen=True)
class Hera(Method):
    name = "hera"
    stage = "share"
    slot = "cut"
    paper = "Hera: Learning Long-Horizon Coordination for Device-Cloud Collaborative LLM Agents (2605.24598)"
    summary = "Every step of an agent's task to device or cloud, learned by imitation, then by outcomes."
    system = 39

    stages: str = parameter(
        "both", allowed=("both", "imitation", "outcomes"), help="what the router learns from"
    )
    reward: str = parameter(
        "lexicographic", allowed=("lexicographic", "penalised"), help="how a group prefers one side"
    )
    call_cost: float = parameter(0.01, help="reward=penalised: what a cloud call takes off a success")
    epsilon: float = parameter(0.05, help="success that counts as equal")
    prior: float = parameter(2.0, help="episodes of a group's own mean that either side's mean is shrunk by")
    rounds: int = parameter(3, allowed=range(0, 51), help="rounds of rollouts and learning")
    rollouts: int = parameter(8, allowed=range(1, 129), help="episodes of a task and round")
    memory: int = parameter(3, allowed=range(1, 51), help="rounds whose groups are learned from")
    floor: float = parameter(0.1, help="least chance of either side in rollouts")
    hold: float = parameter(1e-5, help="how strongly parameters are held near those of imitation")
    imitation_epochs: int = parameter(20, allowed=range(1, 101), help="passes over the imitation's steps")
    outcome_epochs: int = parameter(10, allowed=range(1, 101), help="passes over a round's groups")
    rate: float = parameter(1e-3, help="AdamW's rate")
    share: float = parameter(0.45, help="share of steps for the cloud by which the file's threshold is set")

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = {
            "epsilon": 1.0,
            "prior": 1e6,
            "floor": 0.5,
            "hold": 1e6,
            "rate": 1.0,
            "call_cost": 1e3,
            "share": 1.0,
        }
        for name, most in bounds.items():
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise UserError(
                    f"{name}={value:g} is not supported (allowed 0 to {most:g}).",
                    field=name,
                    given=value,
                    nearest=min(max(value, 0.0), most) if value == value else 0.0,
                )


def labelled(
    states: Mapping[str, Any], groups: Mapping[str, Group], method: Hera
) -> tuple[list[Any], list[float], list[float]]:
    """(states, chances that the cloud is preferred, weights) of the groups that have both decisions."""
    keys = [key for key, one in groups.items() if one.both and key in states]
    return (
        [states[key] for key in keys],
        [preferred(groups[key], method) for key in keys],
        [groups[key].weight for key in keys],
    )


def cross_entropy_slope(
    labels: Sequence[float], weights: Sequence[float]
) -> Callable[[F32, npt.NDArray[np.int64]], F32]:
    """d/d logit of the weighted mean of BCE(sigmoid(logit), label) over a batch."""
    wanted, worth = np.array(labels, np.float32), np.array(weights, np.float32)

    def slope(logits: F32, chosen: npt.NDArray[np.int64]) -> F32:
        chance = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
        return (worth[chosen] * (chance - wanted[chosen]) / max(float(worth[chosen].sum()), 1e-9)).astype(
            np.float32
        )

    return slope


def router_of(record: Mapping[str, Any], tensors: Mapping[str, Any], path: Path) -> Router:
    """A step router from its file's record and tensors. Raises DamagedFileError for one that does not
    hold."""
    from haversack.share._hera_router import StepRouter

    return StepRouter.of(record, tensors, path)
