"""The step router: `fit_imitation`, `fit_rl`, `fit_outcomes`, `route`; kept as one safetensors file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.core.errors import DamagedFileError, UserError
from haversack.share._hera_agents import Agent
from haversack.share._hera_episodes import Episode, Step, run_episode, states_of
from haversack.share._hera_features import DIMENSIONS, state_bag
from haversack.share._hera_net import NAMES, BagNet, fit
from haversack.share._hera_states import Env
from haversack.share._router_files import read_router, save_router
from haversack.share._routing import Asked
from haversack.share.hera import (
    Group,
    Hera,
    class_weight,
    cross_entropy_slope,
    group,
    imitation_labels,
    labelled,
)

F32 = npt.NDArray[np.float32]
FORM = "hashed-relations"
HIDDEN_MOST = 4096


@dataclass
class Learned:
    """What a fit did: `steps` or groups it learned from, of them `positive` ones for the cloud, what is to be
    said (`notes`), and by round the success and calls a task of the rollouts."""

    steps: int = 0
    positive: int = 0
    notes: list[str] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)


class StepRouter:
    """g(x) of the method's file; before any fit it says 0.5 of every state. A `constant` router always
    says that."""

    kind = "step"

    def __init__(self, method: Hera | None = None, seed: int = 0) -> None:
        self.method = method or Hera()
        self.seed = seed
        self.net = BagNet.new(seed)
        self.constant: float | None = None
        self.threshold = 0.5

    def calibrate(self, states: Sequence[Asked]) -> float:
        """Set the threshold so that of these states the method's `share` goes to the cloud, as nearly as
        their chances allow; one half for a constant router."""
        if self.constant is not None or not states:
            self.threshold = 0.5
            return 0.5
        chances = np.array([self.route(state) for state in states])
        self.threshold = float(np.quantile(chances, 1 - self.method.share))
        return self.threshold

    def route(self, asked: Asked) -> float:
        """The chance that the cloud is needed."""
        if self.constant is not None:
            return self.constant
        logit = self.net.score(state_bag(asked))
        return float(1 / (1 + np.exp(-min(max(logit, -30.0), 30.0))))

    p_cloud = route

    def fit_imitation(self, traces: Sequence[Step], order_free: frozenset[str] = frozenset()) -> Learned:
        """Learn where the actions differ, along the traces' solved episodes where there are any.

        Raises UserError for traces without both actions. Labels of one class make a constant router, and
        say so.
        """
        states, labels, weights = imitated(traces, order_free)
        learned = Learned(len(labels), sum(labels))
        if learned.positive in (0, len(labels)):
            self.constant = float(labels[0])
            told = (
                "differ on every step: the cloud always acts"
                if labels[0]
                else "agree on every step: the device acts"
            )
            learned.notes.append(f"device and cloud {told}")
            return learned
        self.constant = None
        bags = [[state_bag(state)] for state in states]
        slope = cross_entropy_slope(labels, weights)
        fit(self.net, bags, slope, epochs=self.method.imitation_epochs, rate=self.method.rate, seed=self.seed)
        return learned

    def fit_rl(
        self,
        env_factory: Callable[[], Sequence[Env]],
        device: Agent,
        cloud: Agent,
        rounds: int | None = None,
        rollouts: int | None = None,
        *,
        say: Callable[[int], None] = lambda episodes: None,
        after_round: Callable[[int], None] = lambda at: None,
    ) -> Learned:
        """Roll out the mixed policy on the worlds of `env_factory`, learn from the groups, and again.

        In the first round one episode of each world is replayed before anything is learned: raises UserError
        when its keys are not deterministic.
        """
        from haversack.share._hera_episodes import replayed

        method, anchor = self.method, self.net.copy()
        learned = Learned()
        envs = env_factory()
        kept: list[tuple[dict[str, Group], dict[str, Any]]] = []
        count = method.rollouts if rollouts is None else rollouts
        for at in range(method.rounds if rounds is None else rounds):
            explorer = Floored(self, method.floor)
            episodes: list[Episode] = []
            for env in envs:
                first = at * count
                for number in range(first, first + count):
                    episodes.append(
                        run_episode(env, device, cloud, explorer, seed=self.seed, episode=number, sample=True)
                    )
                    say(1)
                if at == 0:
                    replayed(env, episodes[-1].steps)
            kept = [*kept, (group(episodes), states_by_key(episodes))][-method.memory :]
            used = self.fit_groups(kept, anchor)
            learned.steps, learned.positive = used.steps, used.positive
            learned.notes += used.notes
            learned.rounds.append(
                {
                    "success": float(np.mean([one.success for one in episodes])),
                    "cloud_calls": float(np.mean([one.cloud_calls for one in episodes])),
                    "groups": float(used.steps),
                    "for_cloud": used.positive / max(used.steps, 1),
                }
            )
            after_round(at)
        return learned

    def fit_outcomes(self, traces: Sequence[Step]) -> Learned:
        """Stage 2 on recorded episodes alone: the groups that they happen to hold."""
        episodes = episodes_of(traces)
        return self.fit_groups([(group(episodes), states_by_key(episodes))], self.net.copy())

    def fit_groups(self, kept: Sequence[tuple[dict[str, Group], dict[str, Any]]], anchor: BagNet) -> Learned:
        """Learn what groups prefer, from the anchor's parameters on and held near them."""
        merged: dict[str, Group] = defaultdict(Group)
        states: dict[str, Any] = {}
        for groups, of_round in kept:
            states.update(of_round)
            for key, one in groups.items():
                for decision in (0, 1):
                    merged[key].success[decision].extend(one.success[decision])
                    merged[key].calls[decision].extend(one.calls[decision])
        chosen, labels, weights = labelled(states, merged, self.method)
        learned = Learned(len(labels), sum(label > 0.5 for label in labels))
        if not labels:
            learned.notes.append("no state was visited with both decisions; more rollouts are needed")
            return learned
        self.constant, self.net = None, anchor.copy()
        fit(
            self.net,
            [[state_bag(state)] for state in chosen],
            cross_entropy_slope(labels, weights),
            epochs=self.method.outcome_epochs,
            rate=self.method.rate,
            seed=self.seed,
            anchor=anchor,
            hold=self.method.hold,
        )
        return learned

    def save(self, path: Path) -> int:
        """One safetensors file, written at once: the network, and in its header a record of what it is.
        Returns its bytes."""
        record = {
            "kind": self.kind,
            "form": FORM,
            "threshold": self.threshold,
            "method": asdict(self.method),
            "constant": self.constant,
        }
        save_router(path, record, {name: self.net.parameters[name] for name in NAMES})
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path) -> StepRouter:
        """Raises DamagedFileError for a file that is no step router or not finite, UserError for one of
        another version."""
        record, tensors = read_router(path)
        return cls.of(record, tensors, path)

    @classmethod
    def of(cls, record: Mapping[str, Any], tensors: Mapping[str, F32], path: Path) -> StepRouter:
        """A router from its file's record and tensors, checked. Raises DamagedFileError."""
        if (record.get("kind"), record.get("form")) != (cls.kind, FORM):
            raise DamagedFileError(path, f"it is no step router ({FORM})")
        try:
            router = cls(Hera(**record["method"]))
            constant = record["constant"]
            router.constant = None if constant is None else float(constant)
            router.threshold = float(record["threshold"])
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise DamagedFileError(path, f"its parameters do not hold ({error})") from error
        if router.constant is not None and not 0 <= router.constant <= 1:
            raise DamagedFileError(path, "its constant is no chance")
        if not 0 <= router.threshold <= 1:
            raise DamagedFileError(path, "its threshold is no chance")
        bias = tensors.get("bias")
        hidden = len(bias) if bias is not None and bias.ndim == 1 else 0
        if not 1 <= hidden <= HIDDEN_MOST:
            raise DamagedFileError(path, "its hidden layer has no size")
        shapes = {"embedding": (DIMENSIONS, hidden), "bias": (hidden,), "out": (hidden,), "offset": (1,)}
        for name, shape in shapes.items():
            values = tensors.get(name)
            if values is None or values.shape != shape:
                raise DamagedFileError(path, f"its tensor {name} is not f32 {list(shape)}")
            router.net.parameters[name] = values
        return router


@dataclass
class Floored:
    """A router whose chance stays `least` away from 0 and 1."""

    router: StepRouter
    least: float
    kind: str = "step"

    def p_cloud(self, asked: Asked) -> float:
        return min(max(self.router.p_cloud(asked), self.least), 1 - self.least)


def imitated(
    traces: Sequence[Step], order_free: frozenset[str] = frozenset()
) -> tuple[list[Asked], list[int], list[float]]:
    """(states, labels, weights) of the imitation. Raises UserError for traces without both actions."""
    pairs = [
        (state, step)
        for step, state in states_of(solved_first(traces))
        if step.device_action is not None and step.cloud_action is not None
    ]
    if not pairs:
        raise UserError(
            "no step of these traces has both the device's and the cloud's action; record them with: "
            "haversack share episodes --record both",
            field="traces",
        )
    device, cloud = (
        [str(getattr(step, name)) for _, step in pairs] for name in ("device_action", "cloud_action")
    )
    labels = imitation_labels(device, cloud, order_free)
    extra = class_weight(labels)
    return [state for state, _ in pairs], labels, [extra if label else 1.0 for label in labels]


def solved_first(traces: Sequence[Step]) -> list[Step]:
    """The steps of solved episodes; all steps where none was solved."""
    solved = [step for episode in episodes_of(traces) if episode.success for step in episode.steps]
    return solved or list(traces)


def episodes_of(traces: Sequence[Step]) -> list[Episode]:
    """Recorded steps as the episodes they came from."""
    found: list[list[Step]] = []
    for step in traces:
        last = found[-1][-1] if found else None
        goes_on = last is not None and step.step == last.step + 1
        if last is None or not goes_on or (step.task_id, step.episode) != (last.task_id, last.episode):
            found.append([])
        found[-1].append(step)
    return [Episode(tuple(steps), steps[-1].reward > 0) for steps in found]


def states_by_key(episodes: Sequence[Episode]) -> dict[str, Asked]:
    """One state of each key, as it was last seen."""
    return {step.state_key: state for episode in episodes for step, state in states_of(episode.steps)}


def cloud_share(router: StepRouter, traces: Sequence[Step], tau: float) -> float:
    """The share of recorded steps on which the cloud would act."""
    return float(np.mean([router.route(state) >= tau for _, state in states_of(traces)]))
