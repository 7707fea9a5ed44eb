"""The length of rounds over changing channels, in simulated time: exact tokens, modelled seconds.

Which drafts hold is real: `code` writes its greedy text and `code-draft` says at every place what it would
have drafted. Time is that of the specification's device and server (12 ms a drafted token, 60 ms a
verification) and of an emulated channel with this protocol's bytes, so that the same texts are written over
the same channel by every policy. The controller sees only what a device sees. Baselines are chosen in
hindsight: the best single length of all 16, and for the oracle the best one of each stretch of the channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.bench._harness import Run
from haversack.bench._rows import Bar, Outcome, Outcomes, Row
from haversack.bench.flexspec._bench import DRAFT, TARGET, answered, bench, prompts
from haversack.core.link import Link, Segment
from haversack.kernels import softmax
from haversack.share._controller import KMAX, Controller, State, round_joules

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

TEXTS, TOKENS = 40, 96
DRAFT_S, VERIFY_S, VERIFY_MORE_S = 0.012, 0.06, 0.0
UP_BYTES, DOWN_BYTES = 29, 34
"""Of a round without its drafts and of a reply, with their WebSocket frames."""
TCP_BYTES = 40
STRETCH_S, SEEDS = 120.0, 8
DRAFT_W, TRANSMIT_W, IDLE_W = 3.0, 1.2, 0.3
FIXED = 5


@dataclass(frozen=True)
class Text:
    """A greedy text of `code`, and what `code-draft` would draft from each of its places on: how many of the
    drafts hold, i64 [tokens], and the drafts' own probabilities, f64 [tokens, KMAX]."""

    holding: I64
    sure: F64


def texts_of(run: Run, count: int) -> list[Text]:
    """`count` texts. Where a draft is the text's own token, what follows it is what is drafted one place
    on."""
    from haversack.run import Engine

    found = []
    with Engine.open(TARGET) as large, Engine.open(DRAFT) as small:
        for prompt in prompts(run, count):
            tokens = answered(large, prompt, TOKENS).tokens
            found.append(_drafted(small, prompt, np.asarray(tokens, np.int32)))
    return found


def _drafted(small: Any, prompt: I32, tokens: I32) -> Text:
    text = np.concatenate([prompt, tokens[:-1]])
    cache = small.cache(len(text) + KMAX)
    rows, _ = small.step(text, cache=cache, want="all")
    rows = softmax(rows[len(prompt) - 1 :])
    count = len(tokens)
    holding, sure = np.zeros(count + 1, np.int64), np.ones((count + 1, KMAX))
    for place in range(count - 1, -1, -1):
        draft = int(rows[place].argmax())
        sure[place, 0] = rows[place, draft]
        if draft == tokens[place]:
            holding[place] = holding[place + 1] + 1
            sure[place, 1:] = sure[place + 1, :-1]
            continue
        cache.truncate(len(prompt) + place)
        for step in range(1, KMAX):
            logits, _ = small.step([draft], cache=cache)
            row = softmax(logits)[0]
            draft = int(row.argmax())
            sure[place, step] = row[draft]
    return Text(holding[:-1], sure[:-1])


@dataclass
class Log:
    """What a policy did: tokens in each stretch, lengths, and the state in which each was chosen."""

    tokens: list[int]
    lengths: list[int] = field(default_factory=list)
    states: list[State] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(self.tokens)


def write(
    texts: Sequence[Text],
    trace: Sequence[Segment],
    stretches: int,
    seed: int,
    fixed: int | None,
    **known: Any,
) -> Log:
    """Write texts one after the other until the trace is over, with rounds of `fixed` drafts or (None) of as
    many as the controller chooses. `known`: its settings."""
    up, down = Link(trace, seed), Link(trace, seed + 1)
    controller = Controller(header_bits=8.0 * (UP_BYTES + TCP_BYTES), **known)
    over = sum(segment.seconds for segment in trace)
    log, at, text = Log([0] * stretches), 0.0, 0
    while at < over:
        lengths, place = texts[text % len(texts)].holding, 0
        sure = texts[text % len(texts)].sure
        text += 1
        while place < len(lengths) and at < over:
            room = len(lengths) - place - 1
            chosen = controller.choose() if fixed is None else fixed
            log.lengths.append(chosen)
            log.states.append(controller.state)
            drafts = min(chosen, room)
            if fixed is None and controller.by_confidence:
                drafts = _sure_enough(controller, sure[place], drafts)
                log.lengths[-1] = drafts
            began = at
            at += drafts * DRAFT_S
            controller.drafted(drafts * DRAFT_S, drafts)
            bytes_up = UP_BYTES + 2 * drafts + TCP_BYTES
            arrived = up.transfer(bytes_up, at).arrived_at
            served = VERIFY_S + VERIFY_MORE_S * drafts
            heard = down.transfer(DOWN_BYTES + TCP_BYTES, arrived + served).arrived_at
            accepted = int(min(lengths[place], drafts))
            controller.accepted(accepted, drafts)
            controller.wrote(sure[place, :drafts].tolist(), accepted, heard - began)
            controller.served(VERIFY_S, VERIFY_MORE_S)
            controller.travelled(heard - at - served, 8 * bytes_up, 8 * (DOWN_BYTES + TCP_BYTES))
            at = heard
            place += accepted + 1
            if at < over:
                log.tokens[int(at / over * stretches)] += accepted + 1
    return log


def _sure_enough(controller: Controller, sure: F64, most: int) -> int:
    """Where a round ends by confidence."""
    for drafts in range(1, most):
        if controller.enough(sure[:drafts].tolist()):
            return drafts
    return most


def mixed_trace(seed: int) -> tuple[list[Segment], int]:
    """The mixed trace, and its number of stretches."""
    from haversack.simulate._traces import mixed

    kinds = ("5g", "weak", "4g", "fading")
    return mixed(STRETCH_S, seed, kinds), len(kinds)


@bench.measure(
    Row(
        "adaptive",
        "tokens over a mixed channel (5G, weak, 4G, fading), rounds as the controller chooses beside rounds "
        "of 5 drafts",
        "tokens",
        "quality",
        Bar(">=", 1.05),
        published="dynamic K",
        quick=True,
    ),
    Row(
        "adaptive-best",
        "the same beside the best single length, chosen in hindsight",
        "tokens",
        "quality",
        Bar(">=", 1.0),
    ),
    Row(
        "adaptive-oracle",
        "the same beside the best length of every stretch, chosen in hindsight",
        "tokens",
        "quality",
        Bar(">=", 0.97),
    ),
    Row(
        "adaptive-channel",
        "the printed formula (lengths by channel and acceptance alone) beside rounds of 5 drafts",
        "tokens",
        "quality",
    ),
    seconds=100,
    quick_seconds=10,
)
def adaptive(run: Run) -> Outcomes:
    texts = texts_of(run, 8 if run.quick else TEXTS)
    found: dict[str, list[float]] = {}
    lengths: list[int] = []
    for seed in range(1 if run.quick else SEEDS):
        trace, stretches = mixed_trace(run.seed + 10 * seed)
        chosen = write(texts, trace, stretches, seed, None, by="confidence")
        lengths += chosen.lengths
        fixed = (FIXED,) if run.quick else range(1, KMAX + 1)
        each = {k: write(texts, trace, stretches, seed, k) for k in fixed}
        totals = {"the controller": chosen.total, "5 drafts": each[FIXED].total}
        if not run.quick:
            totals["the formula"] = write(texts, trace, stretches, seed, None).total
            totals["best length"] = max(log.total for log in each.values())
            totals["best length a stretch"] = sum(
                max(log.tokens[at] for log in each.values()) for at in range(stretches)
            )
        for name, total in totals.items():
            found.setdefault(name, []).append(float(total))
    holds = np.concatenate([text.holding > 0 for text in texts]).mean()
    note = (
        f"{holds:.0%} of drafts hold where those before them do; lengths {np.percentile(lengths, 5):.0f} to "
        f"{np.percentile(lengths, 95):.0f}; channels of {4 * STRETCH_S:.0f} s"
    )
    against = {"adaptive": ("the controller", "5 drafts")}
    if not run.quick:
        against |= {
            "adaptive-best": ("the controller", "best length"),
            "adaptive-oracle": ("the controller", "best length a stretch"),
            "adaptive-channel": ("the formula", "5 drafts"),
        }
    return {
        row: Outcome.of(found, ours=ours, baseline=baseline, note=note)
        for row, (ours, baseline) in against.items()
    }


@bench.measure(
    Row(
        "energy",
        "rounds that keep the energy budget (or, where no length can, are of the length of least joules), "
        "checked by the log, budgets from none that any length keeps to one that all do",
        "share of rounds",
        "quality",
        Bar("==", 1.0),
        judged="ours",
    ),
    Row(
        "energy-saved",
        "modelled joules of the device a token, with a budget 10 % below what it takes unasked",
        "J/token",
        "quality",
    ),
    seconds=15,
)
def energy(run: Run) -> Outcomes:
    texts = texts_of(run, 8)
    trace, stretches = mixed_trace(run.seed)
    watts = {"draft_w": DRAFT_W, "transmit_w": TRANSMIT_W, "idle_w": IDLE_W}
    free = write(texts, trace, stretches, 0, None, **watts)
    unasked = spent(free)
    rounds = kept = 0
    logs = {}
    for share in (0.2, 0.6, 0.8, 0.9, 1.0, 2.0):
        logs[share] = log = write(texts, trace, stretches, 0, None, joule_budget=share * unasked, **watts)
        rounds += len(log.lengths)
        kept += sum(keeps(state, length) for state, length in zip(log.states, log.lengths, strict=True))
    note = f"{rounds} rounds under six budgets, {unasked:.3f} J a token unasked"
    return {
        "energy": Outcome.single(kept / rounds, name="rounds that keep it", note=note),
        "energy-saved": Outcome.single(
            spent(logs[0.9]), unasked, name="with a budget", against="without one", note=note
        ),
    }


def keeps(state: State, length: int) -> bool:
    """Whether a length keeps the budget of the state that it was chosen in, by definition."""
    assert state.joule_budget is not None
    a = state.acceptance

    def joules(k: int) -> float:
        tokens = sum(a**place for place in range(k + 1))
        return round_joules(state, k) / tokens

    least = min(joules(k) for k in range(1, KMAX + 1))
    return joules(length) <= max(state.joule_budget, least) * (1 + 1e-9)


def spent(log: Log) -> float:
    """Modelled joules of the device a token, of all rounds."""
    joules = sum(round_joules(state, k) for state, k in zip(log.states, log.lengths, strict=True))
    return joules / max(1, log.total)
