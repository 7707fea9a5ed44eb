"""Grows token trees with a small model: all nodes of a tree in one cache, each seeing its own branch.

A `Drafter` follows one answer. `grow` extends the tree until its likeliest branch has become too unlikely;
`beside` does one more step while the large model waits for its weights; `settle` keeps of the tree what the
large model left of it.
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import filter_logits, only_allowed, softmax
from haversack.run._drafting import Drafting
from haversack.run._token_tree import TokenTree, shortfalls
from haversack.run._verify import DRAFTED, Numbers, Verdict, pick, without
from haversack.run._window import BACK

if TYPE_CHECKING:
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session
    from haversack.run.decode.tree import Tree

F32 = npt.NDArray[np.float32]
Ranked = list[tuple[int, float]]

FIRST_RATE, LEAST_RATE, MOST_RATE = 0.7, 0.05, 0.98
"""How often a drafted draw is taken to be accepted before any was, and the bounds of that."""
RATE_DECAY = 0.9
RESERVE = 6
"""Tokens below the branch threshold that are remembered at every node."""
UNLIKELY = 1e-3
"""What is not drafted beside a pass: nodes less likely than this where the branch itself is right."""
BESIDE_STEPS = 20
"""Steps that a wait must be long for one to be made: the reading thread needs the interpreter between reads,
and has it back late while the small model computes."""
SWITCH_S = 5e-5
"""How long that thread waits then, at most."""
FAINT = 0.01
"""Tokens less likely than this are not remembered."""


def room(engine: Engine, root: int) -> int:
    """How deep a tree may be that stands at `root`: within the context, and on one side of the length at
    which frequencies change."""
    beyond = engine.architecture.changes_at
    last = engine.context_length if beyond is None or root >= beyond else beyond
    return last - 1 - root


class Drafter:
    """The tree of one answer under way, drafted by `small` as `method` says. `spare` nodes beyond those of a
    pass may be drafted beside it."""

    def __init__(self, method: Tree, small: Engine, session: Session, capacity: int, spare: int) -> None:
        self.method, self.small, self.session = method, small, session
        self.counts = Drafting()
        self.capacity = method.nodes + spare
        self.cache = small.cache(
            min(capacity, small.context_length) + self.capacity, back=max(BACK, self.capacity)
        )
        self.tree = TokenTree(0, self.capacity)
        self.drafted: dict[int, Any] = {}
        self.exact = session.sampler.greedy or method.sampling == "tokens"
        self._read: list[int] = []  # nodes in the small model's cache, behind the text before the root
        self._reserve: dict[int, Ranked] = {}
        self._numbers = Numbers(session.sampler.seed, DRAFTED)
        self._rate = FIRST_RATE
        self._deepest = 0
        self._branch: int | None = None
        self._step_s = 0.0
        self._faint = min(FAINT, method.branch_threshold)

    def grow(self, deepest: int, nodes: int, threshold: float) -> TokenTree:
        """Extend the tree to at most `nodes` nodes that are put to the model and a depth of `deepest`, while
        the likeliest branch is at least as likely as `threshold`."""
        session, began = self.session, perf_counter()
        text = session.length
        self._deepest = min(deepest, room(self.small, text - 1))
        self._branch = None
        fits = nodes > (1 if self.exact else self.method.children)
        if not self._read:
            self.tree = TokenTree(int(session.tokens[-1]), self.capacity)
        if self._deepest > 0 and fits and text <= self.small.context_length:
            if not self._read:
                rows, _ = self.small.step(session.tokens[self.cache.length :], cache=self.cache)
                assert rows is not None
                self.counts.steps += 1
                self._read = [0]
                self._offer(0, rows[-1])
            while self.tree.confidence >= threshold:
                leaf = self._behind(nodes)
                if leaf is None:
                    break
                self._extend(leaf)
        self.counts.drafting_s += perf_counter() - began
        return self.tree

    def fill(self, nodes: int, least: float) -> None:
        """Add tokens that the small model held likely and that opened no branch: up to `nodes` nodes, while
        they are right with a chance of `least` or more. They cost a place in the pass and no step."""
        if not self.exact:
            return
        tree, began = self.tree, perf_counter()
        wishes = [
            (tree.confidences[node] * share, node, token, share)
            for node, ranked in self._reserve.items()
            for token, share in ranked
            if tree.confidences[node] * share >= least and tree.depths[node] < self._deepest
        ]
        wishes.sort(key=lambda wish: -wish[0])
        for _, node, token, share in wishes[: max(0, min(nodes, self.capacity) - len(tree))]:
            tree.add(node, token, share)
            self._reserve[node] = [wish for wish in self._reserve[node] if wish[0] != token]
        self.counts.drafting_s += perf_counter() - began

    def beside(self, seconds: float) -> bool:
        """One step of the small model on what follows the branch that most likely survives the pass under
        way, which waits for `seconds` more; False when that is too short or nothing is left to do."""
        tree, branch = self.tree, self._branch
        room = min(self.capacity - len(tree) - self.method.children, self.cache.capacity - self.cache.length)
        if branch is None or room < 1 or seconds < BESIDE_STEPS * self._step_s:
            return False
        began = perf_counter()
        least = UNLIKELY * tree.confidences[branch]
        leaves = [
            leaf
            for leaf in tree.leaves
            if tree.seen[leaf, branch]
            and tree.confidences[leaf] > least
            and tree.depths[leaf] < self._deepest
        ]
        if leaves:
            interval = sys.getswitchinterval()
            sys.setswitchinterval(SWITCH_S)
            try:
                self._extend(max(leaves, key=tree.confidences.__getitem__))
            finally:
                sys.setswitchinterval(interval)
            self.counts.speculated += 1
        self.counts.beside_s += perf_counter() - began
        return bool(leaves)

    def asked(self, nodes: list[int]) -> None:
        """`nodes` are put to the model now: drafting beside the pass goes on behind the likeliest branch."""
        shown = set(nodes)
        leaves = [node for node in nodes if shown.isdisjoint(self.tree.children[node])]
        self._branch = max(leaves, key=self.tree.confidences.__getitem__) if self._read else None

    def settle(self, verdict: Verdict) -> None:
        """Keep of the tree what follows the accepted path and the model's own token, which the session has by
        now."""
        tree, path = self.tree, verdict.path
        end = path[-1] if path else 0
        self._learn(path, end)
        following = tree.child(end, verdict.drawn[-1][0])
        if following is not None and following not in self._read:
            following = None
        kept = {0, *path}
        if following is not None:
            self.tree, numbers = tree.subtree(following, self.capacity)
            kept.update(numbers)
            self.counts.kept += len(numbers)
        places = [place for place, node in enumerate(self._read) if node in kept]
        if self._read:
            base = self.cache.length - len(self._read)
            self.cache.gather(np.concatenate([np.arange(base), base + np.asarray(places)]))
        if following is None:
            self._read, self._reserve = [], {}
        else:
            self._read = [numbers[node] for node in self._read if node in numbers]
            self._reserve = {numbers[n]: ranked for n, ranked in self._reserve.items() if n in numbers}
        self.drafted = {}

    def drop(self) -> None:
        """Forget the tree: the text goes on without it."""
        if self._read:
            self.cache.truncate(self.cache.length - len(self._read))
            self._read, self._reserve, self.drafted = [], {}, {}

    def _behind(self, nodes: int) -> int | None:
        """The branch that is most behind its share; None when none may grow."""
        tree, width = self.tree, self.method.children
        leaves, full = tree.leaves, len(tree) + width > nodes
        if len(tree) + width > self.capacity or self.cache.length >= self.cache.capacity:
            return None
        if full and not self.exact:
            return None  # a node that was drawn must be put to the model
        if full and max(leaves, key=tree.confidences.__getitem__) not in set(tree.best(nodes - width)):
            return None
        if len(leaves) == 1:
            return leaves[0] if tree.depths[leaves[0]] < self._deepest else None
        behind = shortfalls([tree.confidences[leaf] for leaf in leaves], [tree.held[leaf] for leaf in leaves])
        order = sorted(range(len(leaves)), key=lambda place: -behind[place])
        return next((leaves[at] for at in order if tree.depths[leaves[at]] < self._deepest), None)

    def _extend(self, node: int) -> None:
        """Let the small model read a leaf, and give it children."""
        tree, began = self.tree, perf_counter()
        place = np.array([self.cache.length - len(self._read) + tree.depths[node]], np.int32)
        mask = tree.seen[node, [*self._read, node]][None]
        rows, _ = self.small.step((tree.tokens[node],), place, mask, self.cache)
        assert rows is not None
        self.counts.steps += 1
        self._read.append(node)
        self._offer(node, rows[0])
        self._step_s += 0.1 * (perf_counter() - began - self._step_s)

    def _offer(self, node: int, row: F32) -> None:
        """Give `node` the children that the small model's logits f32 [vocabulary] speak for."""
        tree, method, session = self.tree, self.method, self.session
        most = 1 if len(tree.leaves) >= method.branches else method.children
        history = None
        if session.sampler.remembers:
            past = [tree.tokens[one] for one in tree.path(node)]
            history = np.concatenate([session.tokens, np.asarray(past, np.int32)])
        if session.constraint is not None:
            row = self._allowed(node, row)
        if not self.exact:
            self._draw_children(node, session.sampler.distribution(row, history), most)
            return
        if session.sampler.greedy:
            ranked = self._likeliest(row, history)
        else:
            ranked = self._drawn_first(node, row, history)
        for place, (token, share) in enumerate(ranked):
            if place >= most or (place and share < method.branch_threshold):
                self._reserve[node] = ranked[place:]
                break
            tree.add(node, token, share)

    def _allowed(self, node: int, row: F32) -> F32:
        """The logits, minus infinity where the answer's constraint does not allow a token after `node`."""
        session, tree = self.session, self.tree
        fresh = getattr(session.constraint, "fresh", None)
        if fresh is None:
            return row
        constraint = fresh()
        said = session.tokens[session.prompt_length :].tolist()
        for token in (*said, *(tree.tokens[one] for one in tree.path(node))):
            if constraint.done:
                return row
            constraint.advance(token)
        left = session.left - tree.depths[node]
        return row if constraint.done else only_allowed(row, constraint.allowed(left))

    def _likeliest(self, row: F32, history: Any) -> Ranked:
        if history is not None:
            penalty = self.session.sampler.repetition_penalty
            row = filter_logits(row, repetition_penalty=penalty, history=history)
        return _ranked(softmax(row[None])[0], self.method.children + RESERVE, self._faint)

    def _drawn_first(self, node: int, row: F32, history: Any) -> Ranked:
        """The token that the plain run's number draws from the small model, then the likeliest others."""
        sampler, step = self.session.sampler, self.session.drawn + self.tree.depths[node]
        token, _ = sampler.draw(row, history, step)
        others = without(sampler.distribution(row, history), token)
        rest = [
            (one, share * (1 - self._rate))
            for one, share in _ranked(others, self.method.children, self._faint)
        ]
        return [(token, self._rate), *rest]

    def _draw_children(self, node: int, q: F32, most: int) -> None:
        """Children drawn without replacement. A second is drawn only where what is left of q and the chance
        that the first is rejected make one worth it: neither depends on what will be drawn."""
        self.drafted[node] = q
        rest: Any = q
        share = self._rate
        for place in range(most):
            if place:
                share = (1 - self._rate) * float(rest.max())
                if share < self.method.branch_threshold or share <= 0:
                    return
            token = pick(rest, self._numbers.next())
            self.tree.add(node, token, share)
            rest = without(rest, token)

    def _learn(self, path: list[int], end: int) -> None:
        """How often the first child was right, of the nodes on the way."""
        tree = self.tree
        for node in (0, *path):
            if tree.children[node]:
                right = node != end and tree.children[node][0] in path
                self._rate = RATE_DECAY * self._rate + (1 - RATE_DECAY) * right
        self._rate = min(max(self._rate, LEAST_RATE), MOST_RATE)


def _ranked(shares: Any, count: int, least: float) -> Ranked:
    """At most `count` tokens of `shares` and their probabilities, the likeliest first (of equal ones the
    lower token): the likeliest, and those above `least`."""
    first = int(shares.argmax())
    if count == 1:
        return [(first, float(shares[first]))]
    found = {first, *np.flatnonzero(shares > least).tolist()}
    order = sorted(found, key=lambda token: (-shares[token], token))[:count]
    return [(token, float(shares[token])) for token in order]
