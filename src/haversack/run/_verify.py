"""Which drafted tokens a model accepts: exact for greedy decoding and for sampling, for chains and for trees.

Papers: Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023) and Chen et al.,
"Accelerating Large Language Model Decoding with Speculative Sampling" (2023) for one draft a place; Miao et
al., "SpecInfer" (2023) and Jeon et al., "Recursive Speculative Decoding" (2024) for several.
What is here: the walk from a tree's root along what the model says. Greedy, and where the draft is coupled to
the plain run's random numbers, a child is accepted when it is the very token that plain decoding would give.
By rejection, the children of a node are draws without replacement from the draft's distribution q, and are
tried in the order of their drawing: x is accepted with min(1, p(x) / q(x)); when it is not, p becomes
max(p - q, 0) and q loses x, both normalized; when none is, the token is drawn from what p has become. The
distribution is then the model's, whatever q is. How many children a node has may depend on q and on those
drawn before, never on the one to be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from haversack.run._sampler import Session
    from haversack.run._token_tree import TokenTree

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Drawn = tuple[int, float]

# Streams of random numbers beside the one of plain decoding.
DRAFTED, ACCEPTED, REPLACED = 0x5D1F_0001, 0x5D1F_0002, 0x5D1F_0003


def kept_share(p: float, q: float) -> float:
    """The probability min(1, p / q) with which a draft is kept."""
    return 1.0 if q <= 0 else min(1.0, p / q)


def remainder(p: Any, q: Any) -> F64:
    """max(p - q, 0), normalized: what a rejected draft is replaced from. p itself when nothing is left."""
    left = np.maximum(p.astype(np.float64) - q.astype(np.float64), 0)
    total = left.sum()
    chosen: F64 = left / total if total > 0 else p.astype(np.float64) / p.sum(dtype=np.float64)
    return chosen


def without(q: Any, token: int) -> F64:
    """q without `token`, normalized; zeros when it held nothing else."""
    rest: F64 = q.astype(np.float64)
    rest[token] = 0
    total = rest.sum()
    return rest / total if total > 0 else rest


def pick(shares: Any, number: float) -> int:
    """The token at which the running sum of `shares` passes `number` times their sum."""
    sums = np.cumsum(shares, dtype=np.float64)
    passed = np.flatnonzero(sums > number * sums[-1])
    return int(passed[0]) if len(passed) else int(np.flatnonzero(shares)[-1])


def log_probability(logits: F32, token: int) -> float:
    """Natural logarithm of the probability of `token` under `logits` f32 [vocabulary]."""
    shifted = logits.astype(np.float64) - float(logits.max())
    return float(shifted[token] - math.log(np.exp(shifted).sum()))


class Numbers:
    """Random numbers in [0, 1) of one purpose, one after the other: functions of (seed, stream, count)."""

    def __init__(self, seed: int, stream: int) -> None:
        self._seed = seed ^ (stream << 32)
        self._count = 0

    def next(self) -> float:
        """The next number."""
        from haversack.kernels.sampling import uniform

        self._count += 1
        return uniform(self._seed, self._count - 1)


def accept_one(p: Any, q: Any, candidates: Sequence[int], numbers: Numbers) -> tuple[int | None, Any]:
    """The first of `candidates`, draws without replacement from q, that is accepted under p: its place in
    them and p; or None, and what p has become: the token is to be drawn from that."""
    for place, token in enumerate(candidates):
        if numbers.next() < kept_share(float(p[token]), float(q[token])):
            return place, p
        p, q = remainder(p, q), without(q, token)
    return None, p


@dataclass
class Verdict:
    """What a pass gave: the accepted nodes below the root, and one token more than those with their natural
    log-probabilities: the accepted ones, then the model's own."""

    path: list[int] = field(default_factory=list)
    drawn: list[Drawn] = field(default_factory=list)


def verify_same(tree: TokenTree, nodes: Sequence[int], rows: F32, session: Session) -> Verdict:
    """Accept what plain decoding would give: greedy, or drawn by the plain run's own numbers.

    `rows` f32 [n, vocabulary] are the model's logits at `nodes`, ascending, the root first; nodes of the tree
    that are not among them were not put to the model. `session` gets all tokens.
    """
    places = {node: place for place, node in enumerate(nodes)}
    verdict, node = Verdict(), 0
    while True:
        drawn = session.draw(rows[places[node]])
        verdict.drawn.append(drawn)
        following = tree.child(node, drawn[0])
        if following is None or following not in places:
            return verdict
        verdict.path.append(following)
        node = following


def number_at(session: Session, stream: int, step: int) -> float:
    """The random number in [0, 1) of a purpose for token number `step` of the answer: a function of (seed,
    stream, step), so that whoever knows the seed knows it, in whatever order texts are read."""
    from haversack.kernels.sampling import uniform

    return uniform(session.sampler.seed ^ (stream << 32), step)


def verify_chain(
    chain: Sequence[int], rows: F32, session: Session, shares: Sequence[Any] | None = None
) -> list[Drawn]:
    """What the model makes of `chain`, tokens drafted one after the other: those it accepts and one of its
    own, (token, log-probability); `session` gets them all.

    `rows` f32 [n + 1, vocabulary] are its logits before, between and behind the n tokens. Without `shares` a
    token is accepted when it is the very one that plain decoding would give. With them, f32 [n, vocabulary],
    the distributions that the tokens were drawn from, it is kept with min(1, p / q), else replaced from
    max(p - q, 0), normalized: the distribution is the model's.
    """
    found: list[Drawn] = []
    for place, row in enumerate(rows):
        if shares is None:
            drawn = session.draw(row)
            accepted = place < len(chain) and drawn[0] == chain[place]
        else:
            token, accepted = _judged(row, chain, shares, session, place)
            session.add(token)
            drawn = (token, log_probability(row, token))
        found.append(drawn)
        if not accepted:
            break
    return found


def _judged(
    row: F32, chain: Sequence[int], shares: Sequence[Any], session: Session, place: int
) -> tuple[int, bool]:
    """The rule for one place: the token, and whether it is the drafted one."""
    p, step = session.distribution(row), session.drawn
    if place == len(chain):
        return pick(p, number_at(session, REPLACED, step)), False
    token, q = chain[place], shares[place]
    if number_at(session, ACCEPTED, step) < kept_share(float(p[token]), float(q[token])):
        return token, True
    return pick(remainder(p, q), number_at(session, REPLACED, step)), False


class Rejection:
    """Acceptance that keeps the distribution; the numbers that decide it are those of `seed`."""

    def __init__(self, seed: int) -> None:
        self._accepting, self._replacing = Numbers(seed, ACCEPTED), Numbers(seed, REPLACED)

    def verify(self, tree: TokenTree, rows: F32, session: Session, drafted: Mapping[int, Any]) -> Verdict:
        """Accept along the whole of `tree`: `rows` f32 [nodes, vocabulary] are the model's logits, `drafted`
        the distributions f32 [vocabulary] that the children of a node were drawn from, in their order."""
        verdict, node = Verdict(), 0
        while True:
            row, children = rows[node], tree.children[node]
            p: Any = session.distribution(row)
            place: int | None = None
            if children:
                tokens = [tree.tokens[child] for child in children]
                place, p = accept_one(p, drafted[node], tokens, self._accepting)
            if place is None:
                token = pick(p, self._replacing.next())
            else:
                node = children[place]
                token = tree.tokens[node]
                verdict.path.append(node)
            session.add(token)
            verdict.drawn.append((token, log_probability(row, token)))
            if place is None:
                return verdict
