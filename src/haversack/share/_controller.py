"""How many tokens to draft before asking the server: the round that gives most tokens a second over the
channel as it is now, within an energy budget.

Formulas are the standard ones of speculative decoding; all constants are [inferred] unless a caller gives
them. The acceptance is that of a draft whose predecessors hold, accepted over judged: what follows the first
wrong draft of a round is not judged, and counting it would make long rounds look worse than they are. Pure in
time: nothing here reads a clock.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from haversack.core.errors import UserError

KMAX = 16
ACCEPTANCE_FIRST, ACCEPTANCE_LEAST, ACCEPTANCE_MOST = 0.7, 0.05, 0.98
ACCEPTANCE_DECAY = 0.9
FIRST_WEIGHT = 4.0
"""Judged drafts that the first guess of the acceptance counts for."""
CHANNEL_DECAY = 0.7
"""What one round leaves of the round trips seen before it."""
GAIN = 1.02
"""Another length is taken when it is at least this much better."""
EDGES = (0.2, 0.4, 0.6, 0.8, 0.9, 0.97, 0.99)
"""Ranges of probability that drafts are counted by."""
WEIGHT = 4.0
CONFIDENCE_DECAY = 0.98
SPEED_DECAY = 0.9
HEADER_BITS = 8 * 16
RESULT_BITS = 8 * 4
TOLD = 1.5
"""A message says how fast the link is when it took so many round trips."""


def expected_tokens(acceptance: float, drafts: int) -> float:
    """E[n](K) = (1 - a^(K+1)) / (1 - a): tokens that a round of K drafts gives, each accepted with a."""
    if acceptance >= 1:
        return float(drafts + 1)
    return (1 - acceptance ** (drafts + 1)) / (1 - acceptance)


def shannon_bps(bandwidth_hz: float, snr: float) -> float:
    """The capacity B log2(1 + SNR) of a channel in bits a second; `snr` is a ratio, not decibels."""
    return bandwidth_hz * math.log2(1 + snr)


def ewma(before: float | None, value: float, decay: float) -> float:
    """`before` moved towards `value`; `value` itself when there is none before."""
    return value if before is None else decay * before + (1 - decay) * value


@dataclass(frozen=True)
class State:
    """What a choice depends on: seconds of a drafted token, of a round trip, of a verification as
    `verify_first_s + verify_more_s K`, bits a second up and down, bits of a token on the wire, the share of
    drafts that is accepted. Watts while drafting, sending, waiting; `joule_budget` a token (None: any)."""

    draft_s: float
    rtt_s: float
    verify_first_s: float
    verify_more_s: float = 0.0
    up_bps: float = math.inf
    down_bps: float = math.inf
    token_bits: float = 16.0
    acceptance: float = ACCEPTANCE_FIRST
    header_bits: float = HEADER_BITS
    draft_w: float = 0.0
    transmit_w: float = 0.0
    idle_w: float = 0.0
    joule_budget: float | None = None

    def verify_s(self, drafts: int) -> float:
        """t_verify(K) = c0 + c1 K."""
        return self.verify_first_s + self.verify_more_s * drafts

    def up_bits(self, drafts: int) -> float:
        """Bits of a round on its way up."""
        return self.header_bits + self.token_bits * drafts


def round_seconds(state: State, drafts: int) -> float:
    """T(K) = K t_draft + RTT + bits_up(K) / R_up + bits_down / R_down + t_verify(K)."""
    return (
        drafts * state.draft_s
        + state.rtt_s
        + state.up_bits(drafts) / state.up_bps
        + (state.header_bits + RESULT_BITS) / state.down_bps
        + state.verify_s(drafts)
    )


def round_joules(state: State, drafts: int) -> float:
    """J(K) = K e_draft + P_tx bits_up / R_up + P_idle (RTT + t_verify): what the device spends."""
    return (
        drafts * state.draft_s * state.draft_w
        + state.transmit_w * state.up_bits(drafts) / state.up_bps
        + state.idle_w * (state.rtt_s + state.verify_s(drafts))
    )


def tokens_per_s(state: State, drafts: int) -> float:
    """E[n](K) / T(K)."""
    return expected_tokens(state.acceptance, drafts) / round_seconds(state, drafts)


def joules_a_token(state: State, drafts: int) -> float:
    """J(K) / E[n](K)."""
    return round_joules(state, drafts) / expected_tokens(state.acceptance, drafts)


def best_length(state: State, most: int = KMAX) -> int:
    """K* = argmax of E[n](K) / T(K) over 1..`most` whose joules a token keep the budget; where none does, the
    K of least joules a token."""
    if most < 1:
        raise UserError(f"a round drafts at least 1 token, not {most}.", field="most", given=most, nearest=1)
    lengths = range(1, most + 1)
    budget = state.joule_budget
    fitting = [k for k in lengths if budget is None or joules_a_token(state, k) <= budget]
    if not fitting:
        return min(lengths, key=lambda k: joules_a_token(state, k))
    return max(fitting, key=lambda k: tokens_per_s(state, k))


class Confidence:
    """How often a draft holds (where those before it do) whose own probability lies in a range: as observed,
    the middle of the range counting as `WEIGHT` drafts more."""

    def __init__(self) -> None:
        middles = [(low + high) / 2 for low, high in itertools.pairwise((0.0, *EDGES, 1.0))]
        self._seen = [WEIGHT] * len(middles)
        self._held = [WEIGHT * middle for middle in middles]

    def observe(self, probabilities: Sequence[float], accepted: int) -> None:
        """Of drafts with these probabilities the first `accepted` held, and the next did not."""
        for place, probability in enumerate(probabilities[: accepted + 1]):
            at = bisect.bisect(EDGES, probability)
            self._seen[at] = CONFIDENCE_DECAY * self._seen[at] + 1
            self._held[at] = CONFIDENCE_DECAY * self._held[at] + (place < accepted)

    def holds(self, probability: float) -> float:
        """The chance that such a draft holds."""
        at = bisect.bisect(EDGES, probability)
        return self._held[at] / self._seen[at]


@dataclass
class Controller:
    """Follows a channel and a pair of models, and chooses. `acceptance` is kept by target version.

    `most`: the longest round; `up_bps`, `down_bps`: of a channel whose state is known, else measured.
    `by`: `channel`, the length of the formulas above; or `confidence`, which drafts on while another token is
    worth its time, given the drafts so far (an energy budget is kept by the formulas all the same).
    """

    most: int = KMAX
    by: str = "channel"
    token_bits: float = 16.0
    header_bits: float = HEADER_BITS
    draft_w: float = 0.0
    transmit_w: float = 0.0
    idle_w: float = 0.0
    joule_budget: float | None = None
    up_bps: float | None = None
    down_bps: float | None = None
    draft_s: float = 0.01
    rtt_s: float | None = None
    verify_first_s: float = 0.05
    verify_more_s: float = 0.0
    target: str = ""
    length: int = 0
    _judged: dict[str, tuple[float, float]] = field(default_factory=dict)
    _told_up: float | None = None
    _confidence: dict[str, Confidence] = field(default_factory=dict)
    _written: tuple[float, float] = (0.0, 0.0)
    _drafted: bool = False

    @property
    def acceptance(self) -> float:
        """Of the target version at hand."""
        accepted, judged = self._judged.get(self.target, (ACCEPTANCE_FIRST * FIRST_WEIGHT, FIRST_WEIGHT))
        return min(max(accepted / judged, ACCEPTANCE_LEAST), ACCEPTANCE_MOST)

    @property
    def state(self) -> State:
        """As it is known now."""
        up = self.up_bps or self._told_up or math.inf
        return State(
            draft_s=self.draft_s,
            rtt_s=0.1 if self.rtt_s is None else self.rtt_s,
            verify_first_s=self.verify_first_s,
            verify_more_s=self.verify_more_s,
            up_bps=up,
            down_bps=self.down_bps or up,
            token_bits=self.token_bits,
            acceptance=self.acceptance,
            header_bits=self.header_bits,
            draft_w=self.draft_w,
            transmit_w=self.transmit_w,
            idle_w=self.idle_w,
            joule_budget=self.joule_budget,
        )

    def choose(self) -> int:
        """The length of the next round. It changes only where that gains more than 2 %, or where the budget
        asks for it. By confidence: the longest there is, which `enough` cuts short."""
        if self.by_confidence:
            return self.most
        state = self.state
        best = best_length(state, self.most)
        held = self.length
        if 1 <= held <= self.most and held != best:
            budget = state.joule_budget
            keeps = budget is None or joules_a_token(state, held) <= budget
            if keeps and tokens_per_s(state, best) <= GAIN * tokens_per_s(state, held):
                best = held
        self.length = best
        return best

    @property
    def by_confidence(self) -> bool:
        """Whether drafts themselves say where a round ends."""
        return self.by == "confidence" and self.joule_budget is None

    def enough(self, probabilities: Sequence[float]) -> bool:
        """Whether the drafts so far, of these probabilities, are all of the round: another one adds its
        chance of being accepted, and takes the time in which the run writes so much otherwise."""
        state, sure = self.state, self._confidence.setdefault(self.target, Confidence())
        right = math.prod(map(sure.holds, probabilities)) * state.acceptance
        more_s = state.draft_s + state.token_bits / state.up_bps + state.verify_more_s
        tokens, seconds = self._written
        speed = tokens / seconds if seconds > 0 else tokens_per_s(state, best_length(state, self.most))
        return right <= speed * more_s

    def wrote(self, probabilities: Sequence[float], accepted: int, seconds: float) -> None:
        """A round of drafts of these probabilities took `seconds` all in all, and `accepted` of them held."""
        self._confidence.setdefault(self.target, Confidence()).observe(probabilities, accepted)
        tokens, before = self._written
        self._written = (SPEED_DECAY * tokens + accepted + 1, SPEED_DECAY * before + seconds)

    def drafted(self, seconds: float, tokens: int) -> None:
        """The device drafted `tokens` tokens in `seconds`."""
        if tokens:
            before = self.draft_s if self._drafted else None
            self.draft_s, self._drafted = ewma(before, seconds / tokens, ACCEPTANCE_DECAY), True

    def accepted(self, accepted: int, drafted: int) -> None:
        """The server judged `drafted` tokens: the first `accepted` are right, the one after them (if there
        is one) is wrong, and the rest says nothing."""
        before = self._judged.get(self.target, (ACCEPTANCE_FIRST * FIRST_WEIGHT, FIRST_WEIGHT))
        now = (accepted, min(accepted + 1, drafted))
        if drafted:
            kept, seen = (ACCEPTANCE_DECAY * old + new for old, new in zip(before, now, strict=True))
            self._judged[self.target] = (kept, seen)

    def served(self, first_s: float, more_s: float) -> None:
        """The server says what a verification takes."""
        self.verify_first_s, self.verify_more_s = first_s, more_s

    def travelled(self, seconds: float, bits_up: float, bits_down: float) -> None:
        """A message of `bits_up` and its reply of `bits_down` were under way for `seconds`, without the
        server's own time. A long message says how fast the link is, a short one how long it is."""
        known_rtt, up = self.rtt_s, self.up_bps or self._told_up
        if self.up_bps is None and known_rtt is not None and bits_up > 10 * self.header_bits:
            if seconds > TOLD * known_rtt:
                self._told_up = ewma(self._told_up, bits_up / (seconds - known_rtt), CHANNEL_DECAY)
            return
        down = self.down_bps or up
        carried = (bits_up / up if up else 0.0) + (bits_down / down if down else 0.0)
        self.rtt_s = ewma(known_rtt, max(0.0, seconds - carried), CHANNEL_DECAY)
