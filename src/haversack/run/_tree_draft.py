"""Grows token trees with a small model: all nodes of a tree in one cache, each seeing its own branch.

A `Drafter` follows one answer. `grow` extends the tree until its likeliest branch has become too unlikely;
`beside` does one more step while the large model waits for its weights; `settle` keeps of the tree what the
large model left of it.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from haversack.kernels import filter_logits, softmax
from haversack.run._draft_costs import Line
from haversack.run._drafting import Drafting
from haversack.run._token_tree import TokenTree, shortfalls
from haversack.run._verify import DRAFTED, Numbers, Verdict, pick, without

if TYPE_CHECKING:
    from haversack.run._engine import Engine
    from haversack.run._sampler import Session
    from haversack.run.decode.tree import Tree

F32 = npt.NDArray[np.float32]
Ranked = list[tuple[int, float]]

FIRST_RATE, LEAST_RATE, MOST_RATE = 0.7, 0.05, 0.98
"""How often a drafted draw is taken to be accepted before any was, and the bounds of that."""
RATE_DECAY = 0.9
RESERVE = 2
"""Tokens below the branch threshold that drafting beside a pass may try at every node."""
UNLIKELY = 1e-3
"""What is not drafted beside a pass: nodes less confident than this."""
FAINT = 0.02
"""Tokens less likely than this are not kept in reserve."""
TOGETHER = 8
"""Nodes that are read at once beside a pass."""


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
        self.cache = small.cache(min(capacity, small.context_length) + self.capacity)
        self.tree = TokenTree(0, self.capacity)
        self.drafted: dict[int, Any] = {}
        self.exact = session.sampler.greedy or method.sampling == "tokens"
        self._read: list[int] = []  # nodes in the small model's cache, behind the text before the root
        self._reserve: dict[int, Ranked] = {}
        self._numbers = Numbers(session.sampler.seed, DRAFTED)
        self._rate = FIRST_RATE
        self._deepest = 0
        self._branch: int | None = None
        self._line = Line()
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
                leaves = self._behind(nodes, threshold)
                if not leaves:
                    break
                self._extend(leaves)
        self.counts.drafting_s += perf_counter() - began
        return self.tree

    def beside(self, seconds: float) -> bool:
        """One step of the small model, of at most `seconds`, on what the pass under way will most likely
        leave; False when nothing is worth one any more."""
        tree, width = self.tree, self.method.children
        most = (self.capacity - len(tree)) // (width + 1)
        most = min(most, self.cache.capacity - self.cache.length, self._line.most(seconds), TOGETHER)
        if most < 1 or not self._read:
            return False
        began = perf_counter()
        nodes: list[int] = []
        for _, node, token in self._likeliest_ends(most):
            if token is not None:
                reserve = self._reserve[node]
                found = next(place for place, (one, _) in enumerate(reserve) if one == token)
                node = tree.add(node, *reserve.pop(found))
            nodes.append(node)
        if nodes:
            self._extend(sorted(nodes))
            self.counts.speculated += len(nodes)
        self.counts.beside_s += perf_counter() - began
        return bool(nodes)

    def _likeliest_ends(self, most: int) -> list[tuple[float, int, int | None]]:
        """Up to `most` places where the tree may go on: (confidence, leaf, None), or (confidence, node, a
        token that is no child of it yet). The likeliest first."""
        tree = self.tree
        branch = self._branch if self.method.speculate == "branch" else None
        found: list[tuple[float, int, int | None]] = [
            (tree.confidences[leaf], leaf, None)
            for leaf in tree.leaves
            if tree.confidences[leaf] > UNLIKELY
            and tree.depths[leaf] < self._deepest
            and (branch is None or tree.seen[leaf, branch])
        ]
        if branch is None:
            for node, ranked in self._reserve.items():
                confidence = tree.confidences[node]
                if tree.depths[node] + 1 < self._deepest:
                    found += (
                        (confidence * share, node, token)
                        for token, share in ranked
                        if confidence * share > UNLIKELY
                    )
        return sorted(found, key=lambda end: -end[0])[:most]

    def asked(self, nodes: list[int]) -> None:
        """`nodes` are put to the model now: drafting beside the pass begins at the likeliest branch."""
        leaves = [node for node in nodes if not any(child in nodes for child in self.tree.children[node])]
        self._branch = max(leaves, key=lambda leaf: self.tree.confidences[leaf])

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

    def _behind(self, nodes: int, threshold: float) -> list[int]:
        """The branches that are most behind their share, and likely enough: those to extend now."""
        tree, width = self.tree, self.method.children
        most = min(self.method.together, self.cache.capacity - self.cache.length)
        most = min(most, ((self.capacity if self.exact else nodes) - len(tree)) // width)
        leaves = tree.leaves
        if len(tree) + width > nodes and max(leaves, key=tree.confidences.__getitem__) not in set(
            tree.best(nodes - width)
        ):
            return []
        if len(leaves) == 1:
            return leaves[:most] if tree.depths[leaves[0]] < self._deepest else []
        behind = shortfalls([tree.confidences[leaf] for leaf in leaves], [tree.held[leaf] for leaf in leaves])
        order = sorted(range(len(leaves)), key=lambda place: -behind[place])
        growing = [leaves[place] for place in order if tree.depths[leaves[place]] < self._deepest]
        likely = [leaf for leaf in growing[1:most] if tree.confidences[leaf] >= threshold]
        return sorted([*growing[:1], *likely]) if most > 0 else []

    def _extend(self, nodes: list[int]) -> None:
        """Let the small model read some leaves, ascending, and give them children."""
        tree, began = self.tree, perf_counter()
        root = self.cache.length - len(self._read)
        mask = tree.seen[nodes][:, [*self._read, *nodes]]
        rows, _ = self.small.step(
            [tree.tokens[node] for node in nodes],
            tree.positions(root, nodes),
            np.ascontiguousarray(mask),
            self.cache,
            want="all",
        )
        assert rows is not None
        self.counts.steps += 1
        self.counts.read += len(nodes)
        self._read += nodes
        for node, row in zip(nodes, rows, strict=True):
            self._offer(node, row)
        self._line.observe(perf_counter() - began, len(nodes))

    def _offer(self, node: int, row: F32) -> None:
        """Give `node` the children that the small model's logits f32 [vocabulary] speak for."""
        tree, method, session = self.tree, self.method, self.session
        most = 1 if len(tree.leaves) >= method.branches else method.children
        history = None
        if session.sampler.remembers:
            past = [tree.tokens[one] for one in tree.path(node)]
            history = np.concatenate([session.tokens, np.asarray(past, np.int32)])
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
