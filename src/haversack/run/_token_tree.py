"""Trees of drafted tokens: what each node sees, where it stands, and which branch grows next.

A tree lies in one cache in order of creation. A node sees the text before the tree and its own ancestors, and
stands at the place of the root plus its depth, so that the siblings of a fork stand at the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


def shortfalls(confidences: Sequence[float] | F64, held: Sequence[int] | I32) -> F64:
    """How far each branch is behind its share of all tokens so far: M C_i / sum C - T_i, f64 [branches].

    `confidences` C f64 [branches] are the branches' cumulative confidences, `held` T their tokens, M all of
    them. The branch with the largest shortfall gets the next step of the small model.
    """
    shares = np.asarray(confidences, np.float64)
    tokens = np.asarray(held, np.float64)
    behind: F64 = tokens.sum() * shares / shares.sum() - tokens
    return behind


class TokenTree:
    """Continuations of a text. Node 0, the root, is the text's last token, which the model has not read yet.

    Of each node: its token, parent, depth, confidence (the product of the probabilities on its path), and
    `held`, the tokens of the branch that ends at it: a first child goes on with its parent's branch, any
    other opens one. `seen` bool [capacity, capacity]: ancestors, itself included.
    """

    def __init__(self, root: int, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = [root]
        self.parents = [-1]
        self.depths = [0]
        self.confidences = [1.0]
        self.held = [0]
        self.children: list[list[int]] = [[]]
        self.leaves = [0]
        self.seen: Mask = np.zeros((capacity, capacity), np.bool_)
        self.seen[0, 0] = True

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def confidence(self) -> float:
        """The largest confidence of a leaf: the probability that the likeliest branch is right."""
        return max(self.confidences[leaf] for leaf in self.leaves)

    def add(self, parent: int, token: int, probability: float) -> int:
        """A new child of `parent`; returns its number. Raises ValueError when the tree is full."""
        node = len(self.tokens)
        if node >= self.capacity:
            raise ValueError(f"a tree of {self.capacity} nodes is full")
        first = not self.children[parent]
        self.tokens.append(token)
        self.parents.append(parent)
        self.depths.append(self.depths[parent] + 1)
        self.confidences.append(self.confidences[parent] * probability)
        self.held.append(self.held[parent] + 1 if first else 1)
        self.children.append([])
        self.children[parent].append(node)
        if first:
            self.leaves[self.leaves.index(parent)] = node
        else:
            self.leaves.append(node)
        self.seen[node] = self.seen[parent]
        self.seen[node, node] = True
        return node

    def child(self, node: int, token: int) -> int | None:
        """The child of `node` that is `token`, if there is one."""
        for one in self.children[node]:
            if self.tokens[one] == token:
                return one
        return None

    def path(self, node: int) -> list[int]:
        """The nodes from the first below the root to `node`; of the root: none."""
        found = []
        while node > 0:
            found.append(node)
            node = self.parents[node]
        return found[::-1]

    def paths(self) -> list[list[int]]:
        """The branches: the path of every leaf."""
        return [self.path(leaf) for leaf in self.leaves]

    def mask(self, nodes: Sequence[int] | None = None) -> Mask:
        """What each of `nodes` (ascending; all by default) sees of them, bool [n, n]."""
        chosen = np.arange(len(self)) if nodes is None else np.asarray(nodes)
        seen: Mask = np.ascontiguousarray(self.seen[np.ix_(chosen, chosen)])
        return seen

    def positions(self, root: int, nodes: Sequence[int] | None = None) -> I32:
        """Where `nodes` stand, i32 [n], when the root stands at `root`."""
        depths = self.depths if nodes is None else [self.depths[node] for node in nodes]
        places: I32 = np.asarray(depths, np.int32) + np.int32(root)
        return places

    def best(self, count: int) -> list[int]:
        """The `count` most confident nodes, ascending. A parent is in whenever a child of it is."""
        if count >= len(self):
            return list(range(len(self)))
        order = sorted(range(len(self)), key=lambda node: (-self.confidences[node], node))
        return sorted(order[:count])

    def subtree(self, node: int, capacity: int) -> tuple[TokenTree, dict[int, int]]:
        """The tree below `node`, which becomes the root; and the new number of every node in it."""
        tree = TokenTree(self.tokens[node], capacity)
        numbers = {node: 0}
        for one in range(node + 1, len(self)):
            parent = numbers.get(self.parents[one])
            if parent is not None:
                share = self.confidences[one] / self.confidences[self.parents[one]]
                numbers[one] = tree.add(parent, self.tokens[one], share)
        return tree, numbers
