"""Who acts: a planner that knows the world, a small scorer of commands trained on walkthroughs, a
language model that is asked in words. All are frozen while a router learns."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.errors import HaversackError, UserError
from haversack.share._hera_features import I32, CommandView, command_bags
from haversack.share._hera_net import BagNet, fit
from haversack.share._hera_states import Env, asked, last_tokens, nearest_admissible, state_text
from haversack.share._routing import Asked

if TYPE_CHECKING:
    from haversack.run._engine import Engine

F32 = npt.NDArray[np.float32]
PROMPT = (
    "You act in a world of text. Answer with one of the allowed actions and nothing else.\n\n{state}\nAction:"
)


class Unreachable(HaversackError):  # noqa: N818 - a state of the link, not a fault
    """An agent that cannot be asked now: no link, no answer in time, a refusal."""


@dataclass(frozen=True)
class Decision:
    """An agent's `action`. `entropy` of its choice in [0, 1] (0 where it has none), `latency_ms`, and what it
    `spent` by the ledger's counters."""

    action: str
    entropy: float = 0.0
    latency_ms: float = 0.0
    spent: Mapping[str, float] = field(default_factory=dict)


class Agent(Protocol):
    """Maps a state to an action. `begin` is called once an episode; agents without privileges ignore it.

    `ceiling`: the most that one call may spend, by counter, known before it is made. `act` raises
    Unreachable.
    """

    def begin(self, env: Env, seed: int) -> None: ...

    def ceiling(self, asked: Asked) -> Mapping[str, float]: ...

    def act(self, asked: Asked) -> Decision: ...


@dataclass
class Planner:
    """The strong agent of experiments: the world's own best next action, and with chance `noise` any other.

    It stands for a strong model; that it sees what the others do not is its privilege. `cost_usd` a call.
    """

    noise: float = 0.03
    cost_usd: float = 0.001

    def begin(self, env: Env, seed: int) -> None:
        self._env: Any = env
        self._draw = random.Random(f"{env.task_id} {seed}")

    def ceiling(self, asked: Asked) -> Mapping[str, float]:
        return {"cost_usd": self.cost_usd, "uplink_bytes": float(len(state_text(asked).encode()))}

    def act(self, asked: Asked) -> Decision:
        best = self._env.best
        if best is None or self._draw.random() < self.noise:
            best = self._draw.choice(asked.admissible)
        return Decision(best, spent=self.ceiling(asked))


class Scorer:
    """The device's agent: the admissible command of highest score; a command is a bag of words beside the
    state, so the order of words is not seen."""

    def __init__(self, net: BagNet) -> None:
        self.net = net
        self._known: dict[CommandView, Decision] = {}

    @classmethod
    def learn(cls, envs: Sequence[Env], *, seed: int, epochs: int = 12, rate: float = 3e-3) -> Scorer:
        """Behaviour cloning of a searching way through `envs`."""
        examples: list[list[I32]] = []
        right: list[int] = []
        for env in envs:
            for state, best in walkthrough(env, knowing=False):
                examples.append(command_bags(CommandView.of(state)))
                right.append(state.admissible.index(best))
        if not examples:
            raise UserError("there is no game to learn the device's agent from.", field="games")
        sizes = np.array([len(one) for one in examples])
        picks = np.array(right)
        net = BagNet.new(seed, hidden=32)

        def slope(scores: F32, chosen: npt.NDArray[np.int64]) -> F32:
            starts = np.concatenate(([0], np.cumsum(sizes[chosen])[:-1]))
            top = np.repeat(np.maximum.reduceat(scores, starts), sizes[chosen])
            shares = np.exp(scores - top)
            shares /= np.repeat(np.add.reduceat(shares, starts), sizes[chosen])
            shares[starts + picks[chosen]] -= 1
            found: F32 = (shares / len(chosen)).astype(np.float32)
            return found

        fit(net, examples, slope, epochs=epochs, rate=rate, seed=seed, batch=16)
        return cls(net)

    def begin(self, env: Env, seed: int) -> None:
        if len(self._known) > 1 << 16:
            self.forget()

    def forget(self) -> None:
        """Drop the decisions that are kept so that no state is judged twice."""
        self._known.clear()

    def ceiling(self, asked: Asked) -> Mapping[str, float]:
        return {}

    def act(self, asked: Asked) -> Decision:
        view = CommandView.of(asked)
        found = self._known.get(view)
        if found is None:
            scores = self.net.scores(command_bags(view))
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
            spread = float(-(shares * np.log(shares + 1e-12)).sum())
            most = float(np.log(len(shares))) if len(shares) > 1 else 1.0
            found = Decision(asked.admissible[int(scores.argmax())], min(1.0, spread / most))
            self._known[view] = found
        return found


def walkthrough(env: Env, knowing: bool = True) -> list[tuple[Asked, str]]:
    """A way through a world: (state, action) until it is done. The planner's, or without `knowing` that of
    someone who has to look for things, in worlds that have one."""
    observation = env.reset()
    past: list[tuple[str, str]] = []
    found: list[tuple[Asked, str]] = []
    done = False
    while not done:
        best = getattr(env, "best" if knowing or not hasattr(env, "searching") else "searching")
        state = asked(env.task, past, observation, env.admissible)
        if best is None or best not in state.admissible:
            break
        found.append((state, best))
        past.append((observation, best))
        observation, _, done = env.step(best)
    return found


class Completer(Protocol):
    """A language model as a function: a prompt to the text that follows, and what that spent."""

    def __call__(self, prompt: str) -> tuple[str, Mapping[str, float]]: ...


Hiding = Callable[[str], tuple[str, Callable[[str], str]]]
"""A text to what may leave in its place, and how an answer to that is read back."""


class Prompted:
    """A language model as an agent: asked for one of the allowed actions, held to them.

    `ceiling_of` a prompt is the most that it may spend; `hide` keeps personal data on the device.
    """

    def __init__(
        self,
        complete: Completer,
        ceiling_of: Callable[[str], Mapping[str, float]] = lambda prompt: {},
        prompt: str = PROMPT,
        hide: Hiding = lambda text: (text, lambda answer: answer),
    ) -> None:
        self.complete, self.ceiling_of, self.prompt, self.hide = complete, ceiling_of, prompt, hide

    def begin(self, env: Env, seed: int) -> None:
        pass

    def ceiling(self, asked: Asked) -> Mapping[str, float]:
        return self.ceiling_of(self._asking(asked)[0])

    def act(self, asked: Asked) -> Decision:
        """An answer that names no allowed action counts as the first of them, as a parser would pick."""
        began = time.perf_counter()
        prompt, read_back = self._asking(asked)
        text, spent = self.complete(prompt)
        action = nearest_admissible(read_back(text), asked.admissible) or (asked.admissible or ("",))[0]
        return Decision(action, latency_ms=1000 * (time.perf_counter() - began), spent=spent)

    def _asking(self, asked: Asked) -> tuple[str, Callable[[str], str]]:
        text, read_back = self.hide(state_text(asked))
        return self.prompt.format(state=text), read_back


def of_engine(engine: Engine, max_tokens: int = 16) -> Completer:
    """A pack's or checkpoint's engine as a `Completer`: greedy, up to the end of a line. Of a prompt that is
    longer than the context its end is read."""
    from haversack.run._generate import Limits, generate

    limits = Limits(max_tokens=max_tokens, stop=("\n",))
    tokenizer, most = engine.model.tokenizer(), engine.context_length - max_tokens

    def complete(prompt: str) -> tuple[str, Mapping[str, float]]:
        answer = generate(engine, last_tokens(prompt, most, tokenizer), limits)
        for _ in answer:
            pass
        return answer.text, {}

    return complete
