"""Which tokens may come next: a pushdown automaton over bytes, determinized as it runs, walked along the trie
of a vocabulary.

A configuration is a set of stacks of terms; it gets a number, and a row of a table says where each class of
bytes leads. The mask of a configuration is found by walking the vocabulary's trie level by level, all nodes
of a level at once, and kept. Counters far from their ends look alike (`Node.saturated`), so that position 40
and position 41 of a long text share one mask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.run._terms import (
    BYTES,
    CHOICE,
    EMPTY,
    LEAVE,
    LITERAL,
    NAME,
    NEST,
    NEVER,
    REPEAT,
    SEQUENCE,
    Term,
    Terms,
)

I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

DEEPEST = 64
"""Levels of nesting."""
MOST_CONFIGURATIONS = 30_000
MASKS_NBYTES = 32 << 20
DRAWN_NBYTES = 100
DEAD, UNKNOWN = 0, -1
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Counts to the end of a repetition that are told apart: between them, a token that would go on to the very
end is left to shorter ones."""


class Vocabulary:
    """The bytes of every token, as a trie in arrays: nodes in order of levels, children of a node in a
    row."""

    def __init__(self, tokens: list[bytes | None]) -> None:
        self.size = len(tokens)
        known = [(number, data) for number, data in enumerate(tokens) if data]
        numbers = np.asarray([number for number, _ in known], np.int64)
        lengths = np.asarray([len(data) for _, data in known], np.int64)
        data = np.frombuffer(b"".join(data for _, data in known), np.uint8)
        starts = np.cumsum(lengths) - lengths
        self.longest = int(lengths.max(initial=0))
        at = np.zeros(len(known), np.int64)
        parents, values = [np.zeros(1, np.int64)], [np.zeros(1, np.uint8)]
        self.levels: list[tuple[int, int]] = []
        nodes = 1
        for level in range(self.longest):
            going = np.flatnonzero(lengths > level)
            keys = at[going] * 256 + data[starts[going] + level]
            found, where = np.unique(keys, return_inverse=True)
            at[going] = nodes + where
            parents.append(found >> 8)
            values.append((found & 255).astype(np.uint8))
            self.levels.append((nodes, nodes + len(found)))
            nodes += len(found)
        self.bytes = np.concatenate(values)
        self.parents = np.concatenate(parents).astype(np.int32)
        self.children = np.bincount(self.parents[1:], minlength=nodes).astype(np.int32)
        self.first = np.cumsum(self.children, dtype=np.int32) - self.children + 1
        self.node_of = np.zeros(self.size, np.int32)
        self.node_of[numbers] = at
        single = {data[0] for _, data in known if len(data) == 1}
        self.usable = sum(1 << byte for byte in single)
        self._texts = {data for _, data in known}
        self._longest_with = [0] * 256
        for text in self._texts:
            self._longest_with[text[0]] = max(self._longest_with[text[0]], len(text))
        self.tokens = tokens
        self.kept: dict[Any, Any] = {}

    @classmethod
    def of(cls, tokenizer: Any) -> Vocabulary | None:
        """The vocabulary of a tokenizer, made once; None when its tokens cannot be told apart from
        context."""
        made = getattr(tokenizer, "_byte_vocabulary", None)
        if made is None:
            tokens = [tokenizer.bytes_of(token) for token in range(tokenizer.size)]
            if any(data is None for data in tokens):
                return None
            made = cls(tokens)
            tokenizer._byte_vocabulary = made
        found: Vocabulary = made
        return found

    def split(self, text: bytes) -> int:
        """Tokens of the greedy split of `text`: the longest token that fits, again and again."""
        count = at = 0
        while at < len(text):
            for length in range(min(self._longest_with[text[at]], len(text) - at), 1, -1):
                if text[at : at + length] in self._texts:
                    break
            else:
                length = 1  # the caller made sure that every byte is a token
            at += length
            count += 1
        return count


class Node:
    """A stack: a term on what lies below. `least`: tokens that complete it."""

    __slots__ = ("accepts", "depth", "least", "moves", "rest", "saturated", "term")

    def __init__(self, term: Term | None, rest: Node | None) -> None:
        self.term, self.rest = term, rest
        self.least: float = 0 if term is None or rest is None else term.least + rest.least
        below = 0 if rest is None else rest.depth
        self.depth: int = below + (term is not None and term.kind == LEAVE)
        self.moves: dict[int, tuple[Node, ...]] | None = None
        self.accepts = False
        self.saturated: Node | None = None


@dataclass
class Allowed:
    """What may follow a configuration: `mask` bool [tokens], read-only; `growth`: the most by which a token
    raises the tokens that are needed to complete the text; `grown`: by how much each one does, f32 [tokens],
    infinite where it is not allowed, made when first asked for."""

    mask: Mask
    growth: float
    grown: npt.NDArray[np.float32] | None = None


class Place:
    """What is asked of a configuration at every token: `accepts` and `ended` (see Automaton), None until
    asked for, and the configuration after each token that was drawn there."""

    __slots__ = ("accepts", "after", "ended")

    def __init__(self) -> None:
        self.accepts: bool | None = None
        self.ended: bool | None = None
        self.after: dict[int, int] = {}


class Automaton:
    """A grammar over one vocabulary. Not for two threads at once."""

    def __init__(self, terms: Terms, root: Term, vocabulary: Vocabulary) -> None:
        self.terms, self.root, self.vocabulary = terms, root, vocabulary
        self._classes_of_bytes()
        self.generation = 0
        self._reset()

    def _classes_of_bytes(self) -> None:
        """Bytes that no term tells apart are one class."""
        masks = {term.value for term in self.terms.all if term.kind == BYTES}
        singles = {byte for term in self.terms.all if term.kind == LITERAL for byte in term.value}
        known: dict[tuple[Any, ...], int] = {}
        ordered = sorted(masks)
        self.class_of = np.zeros(256, np.int64)
        for byte in range(256):
            alone = byte if byte in singles else -1
            key = (alone, *(mask >> byte & 1 for mask in ordered))
            self.class_of[byte] = known.setdefault(key, len(known))
        self.class_count = len(known)
        self._node_class = self.class_of.astype(np.int16)[self.vocabulary.bytes]

    def _reset(self) -> None:
        self.generation += 1
        self._nodes: dict[tuple[int, int], Node] = {}
        self._bottom = Node(None, None)
        self._numbers: dict[frozenset[Node], int] = {}
        self._held: list[frozenset[Node]] = []
        self._places: list[Place] = []
        self._drawn = 0
        self._table = np.full((64, self.class_count), UNKNOWN, np.int32)
        self._least = np.zeros(64)
        self._masks: dict[int, Allowed] = {}
        self._masks_nbytes = 0
        self.number(frozenset())  # number 0: dead
        self._table[DEAD] = DEAD
        self.start = frozenset([self._push(self.root, self._bottom)])
        self.number(self.start)  # beginning a text changes nothing then

    def relieved(self, number: int) -> int:
        """The number of the configuration `number`, after forgetting all that is kept when it is too much."""
        kept = self._masks_nbytes + DRAWN_NBYTES * self._drawn
        if len(self._held) < MOST_CONFIGURATIONS and kept < MASKS_NBYTES:
            return number
        nodes = self._held[number]
        self._reset()
        return self.number(nodes)

    def _push(self, term: Term, rest: Node) -> Node:
        key = (id(term), id(rest))
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(term, rest)
        return node

    def number(self, nodes: frozenset[Node]) -> int:
        """The number of a configuration."""
        found = self._numbers.get(nodes)
        if found is None:
            found = self._numbers[nodes] = len(self._held)
            self._held.append(nodes)
            self._places.append(Place())
            if found == len(self._table):
                more = np.full_like(self._table, UNKNOWN)
                self._table = np.concatenate([self._table, more])
                self._least = np.concatenate([self._least, np.zeros(len(more))])
            self._least[found] = min((node.least for node in nodes), default=np.inf)
        return found

    def nodes(self, number: int) -> frozenset[Node]:
        """The stacks of a configuration."""
        return self._held[number]

    def least(self, number: int) -> float:
        """Tokens that complete the text from here."""
        return float(self._least[number])

    def accepts(self, number: int) -> bool:
        """True when the text so far is complete."""
        place = self._places[number]
        if place.accepts is None:
            place.accepts = any(self._expanded(node).accepts for node in self._held[number])
        return place.accepts

    def ended(self, number: int) -> bool:
        """True when the text is complete and nothing may follow."""
        place = self._places[number]
        if place.ended is None:
            nodes = self._held[number]
            place.ended = self.accepts(number) and not any(self._expanded(node).moves for node in nodes)
        return place.ended

    def draw(self, number: int, token: int) -> int:
        """The configuration after a token, 0 when it is not allowed."""
        after = self._places[number].after
        found = after.get(token)
        if found is None:
            data = self.vocabulary.tokens[token] if 0 <= token < self.vocabulary.size else b""
            found = after[token] = self.advance(number, data) if data else DEAD
            self._drawn += 1
        return found

    def advance(self, number: int, data: bytes) -> int:
        """The configuration after some bytes, 0 when they are not allowed."""
        for byte in data:
            kind = self.class_of[byte]
            following = int(self._table[number, kind])
            number = self._step(number, int(kind)) if following == UNKNOWN else following
            if number == DEAD:
                break
        return number

    def _step(self, number: int, kind: int) -> int:
        found: set[Node] = set()
        for node in self._held[number]:
            moves = self._expanded(node).moves
            assert moves is not None
            found.update(moves.get(kind, ()))
        following = self.number(frozenset(found)) if found else DEAD
        self._table[number, kind] = following
        return following

    def _expanded(self, node: Node) -> Node:
        """`node` with its moves: for each class of bytes, the stacks after it."""
        if node.moves is not None:
            return node
        gathered: dict[int, dict[Node, None]] = {}
        waiting, seen = [node], {id(node)}
        while waiting:
            top = waiting.pop()
            if top.term is None:
                node.accepts = True
                continue
            for one in self._unfolded(top, gathered):
                if id(one) not in seen:
                    seen.add(id(one))
                    waiting.append(one)
        node.moves = {kind: tuple(found) for kind, found in gathered.items()}
        return node

    def _unfolded(self, top: Node, gathered: dict[int, dict[Node, None]]) -> Iterable[Node]:
        """The stacks that `top` stands for; what reads a byte goes into `gathered`."""
        term, rest, push = top.term, top.rest, self._push
        assert term is not None and rest is not None
        kind = term.kind
        if kind == BYTES:
            for one in self._kinds(term):
                gathered.setdefault(one, {})[rest] = None
        elif kind == LITERAL:
            after = push(self.terms.suffix(term), rest) if len(term.value) > 1 else rest
            gathered.setdefault(int(self.class_of[term.value[0]]), {})[after] = None
        elif kind in (EMPTY, LEAVE):
            return (rest,)
        elif kind == SEQUENCE:
            for part in reversed(term.parts[1:]):
                rest = push(part, rest)
            return (push(term.parts[0], rest),)
        elif kind in (CHOICE, NAME):
            return [push(part, rest) for part in term.parts if part.least < np.inf]
        elif kind == NEST:
            if rest.depth + term.depth <= DEEPEST:
                return (push(term.parts[0], push(self.terms.leave, rest)),)
        elif kind == REPEAT:
            return self._repeated(term, rest)
        else:
            assert kind == NEVER
        return ()

    def _repeated(self, term: Term, rest: Node) -> Iterable[Node]:
        (low, high), part = term.value, term.parts[0]
        found = [] if low else [rest]
        if part.least < np.inf:
            again = self.terms.repeat(part, max(low - 1, 0), None if high is None else high - 1)
            found.append(self._push(part, self._push(again, rest)))
        return found

    def _kinds(self, term: Term) -> list[int]:
        if term.classes is None:
            term.classes = sorted({int(self.class_of[b]) for b in range(256) if term.value >> b & 1})
        return term.classes

    def _saturated(self, node: Node) -> Node:
        """`node` with counters that no single token can exhaust made equal."""
        above = []
        while node.saturated is None and node.rest is not None:
            above.append(node)
            node = node.rest
        found = node.saturated or node
        for one in reversed(above):
            assert one.term is not None
            found = one.saturated = self._push(self._far(one.term), found)
        return found

    def _far(self, term: Term) -> Term:
        """A repetition with its counts made equal to those of others like it; any other term as it is."""
        if term.kind != REPEAT:
            return term
        (low, high), far = term.value, self.vocabulary.longest + 1
        if high is None or high > far:
            return self.terms.repeat(term.parts[0], min(low, far), None)
        if low:
            return term
        return self.terms.repeat(term.parts[0], 0, max(step for step in STEPS if step <= high))

    def allowed(self, number: int) -> Allowed:
        """What may follow the configuration `number`."""
        found = self._masks.get(number)
        if found is None:
            alike = self._alike(number)
            found = self._masks.get(alike)
            if found is None:
                after = self._walk(alike)
                mask = after > DEAD
                mask.flags.writeable = False
                grown = self._least[after[mask]].max(initial=0) - self._least[alike]
                found = self._masks[alike] = Allowed(mask, float(grown))
                self._masks_nbytes += mask.nbytes
            self._masks[number] = found
        return found

    def completing(self, number: int, left: float) -> Mask:
        """The tokens after which at most `left` more complete the text, bool [tokens]."""
        found = self.allowed(number)
        if found.grown is None:
            alike = self._alike(number)
            found.grown = (self._least[self._walk(alike)] - self._least[alike]).astype(np.float32)
            self._masks_nbytes += found.grown.nbytes
        mask: Mask = found.grown <= left - self._least[number]
        return mask

    def _alike(self, number: int) -> int:
        return self.number(frozenset(self._saturated(node) for node in self._held[number]))

    def _walk(self, number: int) -> I32:
        """The configuration after each token, i32 [tokens], 0 where a token is not allowed."""
        vocabulary = self.vocabulary
        states = np.zeros(len(vocabulary.bytes), np.int32)
        front, at = np.zeros(1, np.int64), np.full(1, number, np.int32)
        for begin, end in vocabulary.levels:
            counts = vocabulary.children[front]
            ends = counts.cumsum()
            total = int(ends[-1])
            if not total:
                break
            if 2 * total > end - begin:  # most of the level: look at all of it
                level = slice(begin, end)
                before = states[vocabulary.parents[level]] if begin > 1 else at.repeat(end - begin)
                at = states[level] = self._follow(before, self._node_class[level])
                front = at.nonzero()[0]
                at, front = at[front], front + begin
            else:
                nodes: Any = np.arange(total) + (vocabulary.first[front] - (ends - counts)).repeat(counts)
                at = self._follow(at.repeat(counts), self._node_class[nodes])
                alive = at.nonzero()[0]
                front, at = nodes[alive], at[alive]
                states[front] = at
            if not front.size:
                break
        found: I32 = states[vocabulary.node_of]
        return found

    def _follow(self, at: I32, kinds: npt.NDArray[np.int16]) -> I32:
        where = at * np.int64(self.class_count) + kinds
        found: I32 = self._table.reshape(-1).take(where)
        if found.min() == UNKNOWN:
            for pair in np.unique(where[found == UNKNOWN]).tolist():
                self._step(*divmod(pair, self.class_count))
            found = self._table.reshape(-1).take(where)
        return found
