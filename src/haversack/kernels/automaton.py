"""Which tokens a grammar allows next: a pushdown automaton over bytes, determinized as it runs, walked along
the trie of a vocabulary.

A grammar is a table of terms: sets of bytes, literals, sequences, choices, counted repetitions, names (for
recursion) and nests (whose depth is bounded). `measure` finds the tokens of each term's cheapest text; an
alternative that no text matches is left out when the table is run, so that whatever was begun can be
completed. A stack is a term on a stack, a configuration a set of stacks; it gets a number, and a row of a
table says where each class of bytes leads. The mask of a configuration is found by walking the trie, and
kept; counters far from their ends look alike, so that position 40 and position 41 of a long text share one.
When too much is kept, all but the texts under way is forgotten.

Native code and twin give the same masks; the twin walks level by level, the native code in depth, leaving out
what is dead by one jump. Not for two threads at once: the interpreter's lock is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from haversack.kernels._native import native

I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

EMPTY, NEVER, BYTES, LITERAL, SEQUENCE, CHOICE, REPEAT, NAME, NEST, LEAVE = range(10)
"""Kinds of terms; LEAVE stands where a NEST ends."""
DEEPEST = 64
"""Levels of nesting."""
STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Counts to the end of a repetition that are told apart: between them, a token that would go on to the very
end is left to shorter ones."""
ANY_NUMBER = 1 << 62
DEAD, UNKNOWN = 0, -1


class Trie:
    """The bytes of every token (None: it has none), as a trie in arrays: nodes in order of levels, children
    of a node in a row. `usable`: the bytes that some token writes alone, as an integer of 256 bits."""

    def __init__(self, tokens: Sequence[bytes | None]) -> None:
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
        self.node_of = np.zeros(self.size, np.int32)
        self.node_of[numbers] = at
        self.tokens = tokens
        self.usable = sum(1 << byte for byte in {data[0] for _, data in known if len(data) == 1})

    @cached_property
    def native(self) -> Any:
        """The trie as native code holds it, None with the twins."""
        module = native()
        return None if module is None else module.trie(self.parents, self.bytes, self.node_of)

    @cached_property
    def texts(self) -> set[bytes]:
        """What tokens write."""
        return {data for data in self.tokens if data}

    def split(self, text: bytes) -> int:
        """Tokens of the greedy split of `text`: the longest token that fits, again and again, else a byte."""
        if self.native is not None:
            return int(self.native.split(text))
        count = at = 0
        while at < len(text):
            longest = min(self.longest, len(text) - at)
            fits = (length for length in range(longest, 1, -1) if text[at : at + length] in self.texts)
            at += next(fits, 1)
            count += 1
        return count


@dataclass(frozen=True)
class Table:
    """Terms by their numbers, in arrays.

    kinds u8 [terms]; parts i32: the numbers of the parts, those of term t from starts[t] to starts[t + 1]
    (i32 [terms + 1]); low, high i64 [terms]: the bounds of a REPEAT (high -1: without end; its part must not
    match the empty text), the row of BYTES in sets u8 [rows, 32] (a bit for each byte, lowest first), or the
    place and length of a LITERAL in texts u8. least, depth f64 [terms]: see `measure`."""

    kinds: npt.NDArray[np.uint8]
    starts: I32
    parts: I32
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    sets: npt.NDArray[np.uint8]
    texts: npt.NDArray[np.uint8]
    least: npt.NDArray[np.float64]
    depth: npt.NDArray[np.float64]


def measure(table: Table, trie: Trie) -> None:
    """Write `least`, the fewest tokens of a term's cheapest text (a literal counts the tokens of its greedy
    split, any other byte one token), and `depth`, how deep that text nests. Both are infinite for a term that
    no text matches."""
    module = native()
    if module is not None:
        module.measure_terms(table, trie.native)
    else:
        measure_twin(table, trie)


def automaton(
    table: Table, root: int, trie: Trie, ends: Sequence[int], configurations: int, nbytes: int
) -> Any:
    """The automaton of term `root` of a measured table; `ends`: tokens that may stand where a text may end.
    It forgets when it holds so many `configurations`, or masks (native: everything) of so many `nbytes`."""
    module = native()
    if module is not None:
        return module.Automaton(table, root, trie.native, np.asarray(ends, np.int32), configurations, nbytes)
    return AutomatonTwin(table, root, trie, ends, configurations, nbytes)


def text_of(automaton: Any) -> Any:
    """A text at its beginning: what `TextTwin` is."""
    module = native()
    return TextTwin(automaton) if module is None else module.text_of(automaton)


def measure_twin(table: Table, trie: Trie) -> None:
    """The definition of `measure`."""
    least, depth = [np.inf] * len(table.kinds), [np.inf] * len(table.kinds)
    terms = _terms_of(table)

    def measured(term: _Term) -> tuple[float, float]:
        kind, parts = term.kind, [part.number for part in term.parts]
        if kind in (EMPTY, LEAVE):
            return 0, 0
        if kind == BYTES and term.value:
            return 1, 0
        if kind == LITERAL and all(trie.usable >> byte & 1 for byte in term.value):
            return trie.split(term.value), 0
        if kind == SEQUENCE:
            return sum(least[part] for part in parts), max(depth[part] for part in parts)
        if kind in (CHOICE, NAME):
            return min(((least[part], depth[part]) for part in parts), default=(np.inf, np.inf))
        if kind == REPEAT:
            low = term.value[0]
            return (low * least[parts[0]], depth[parts[0]]) if low else (0, 0)
        if kind == NEST:
            return least[parts[0]], depth[parts[0]] + 1
        return np.inf, np.inf

    changed = True
    while changed:
        changed = False
        for number, term in enumerate(terms):
            found = measured(term)
            if found < (least[number], depth[number]):
                least[number], depth[number] = found
                changed = True
    table.least[:], table.depth[:] = least, depth


class _Term:
    """A term of the twins; `value`: bytes as an integer, a literal, or bounds."""

    __slots__ = ("classes", "depth", "kind", "least", "number", "parts", "value")

    def __init__(self, number: int, kind: int, value: Any, least: float, depth: float) -> None:
        self.number, self.kind, self.value, self.least, self.depth = number, kind, value, least, depth
        self.parts: tuple[_Term, ...] = ()
        self.classes: list[int] | None = None


def _terms_of(table: Table) -> list[_Term]:
    """The terms of a table."""
    found = []
    for number, kind in enumerate(table.kinds.tolist()):
        low, high = int(table.low[number]), int(table.high[number])
        value: Any = None
        if kind == BYTES:
            value = int.from_bytes(table.sets[low].tobytes(), "little")
        elif kind == LITERAL:
            value = table.texts[low : low + high].tobytes()
        elif kind == REPEAT:
            value = (low, None if high < 0 else high)
        found.append(_Term(number, kind, value, float(table.least[number]), float(table.depth[number])))
    for term in found:
        parts = table.parts[table.starts[term.number] : table.starts[term.number + 1]]
        term.parts = tuple(found[part] for part in parts.tolist())
    return found


class _Node:
    """A stack: a term on what lies below. `least`: tokens that complete it."""

    __slots__ = ("accepts", "depth", "least", "moves", "rest", "saturated", "term")

    def __init__(self, term: _Term | None, rest: _Node | None) -> None:
        self.term, self.rest = term, rest
        self.least: float = 0 if term is None or rest is None else term.least + rest.least
        self.depth: int = 0 if term is None or rest is None else rest.depth + (term.kind == LEAVE)
        self.moves: dict[int, tuple[_Node, ...]] | None = None
        self.accepts = False
        self.saturated: _Node | None = None


class AutomatonTwin:
    """The definition of `automaton`."""

    def __init__(
        self, table: Table, root: int, trie: Trie, ends: Sequence[int], configurations: int, nbytes: int
    ) -> None:
        self.trie, self.ends = trie, list(ends)
        self._most_configurations, self._most_nbytes = configurations, nbytes
        self._terms = _terms_of(table)
        self._root = self._terms[root]
        self._empty, self._leave = _Term(-1, EMPTY, None, 0, 0), _Term(-2, LEAVE, None, 0, 0)
        self._classes_of_bytes()
        self._reset()

    def _classes_of_bytes(self) -> None:
        """Bytes that no term tells apart are one class."""
        masks = sorted({term.value for term in self._terms if term.kind == BYTES})
        singles = {byte for term in self._terms if term.kind == LITERAL for byte in term.value}
        known: dict[tuple[Any, ...], int] = {}
        self.class_of = np.zeros(256, np.int64)
        for byte in range(256):
            key = (byte if byte in singles else -1, *(mask >> byte & 1 for mask in masks))
            self.class_of[byte] = known.setdefault(key, len(known))
        self.class_count = len(known)
        self._node_class = self.class_of.astype(np.int16)[self.trie.bytes]

    def _reset(self) -> None:
        self._made: dict[tuple[Any, ...], _Term] = {}
        for term in self._terms:
            if term.kind in (LITERAL, REPEAT):
                self._made[term.kind, term.value, *map(id, term.parts)] = term
        self._nodes: dict[tuple[int, int], _Node] = {}
        self._bottom = _Node(None, None)
        self._numbers: dict[frozenset[_Node], int] = {}
        self.held: list[frozenset[_Node]] = []
        self._table = np.full((64, self.class_count), UNKNOWN, np.int32)
        self.least = np.zeros(64)
        self._masks: dict[int, tuple[Mask, float]] = {}
        self._grown: dict[int, npt.NDArray[np.float32]] = {}
        self._nbytes = 0
        self.number(frozenset())  # number 0: dead
        self._table[DEAD] = DEAD
        self.start = frozenset([self._push(self._root, self._bottom)])

    def relieve(self) -> None:
        if len(self.held) >= self._most_configurations or self._nbytes >= self._most_nbytes:
            self._reset()

    def _term(self, kind: int, parts: tuple[_Term, ...], value: Any, least: float, depth: float) -> _Term:
        key = (kind, value, *map(id, parts))
        if key not in self._made:
            self._made[key] = _Term(-1, kind, value, least, depth)
            self._made[key].parts = parts
        return self._made[key]

    def _repeat(self, part: _Term, low: int, high: int | None) -> _Term:
        if high == 0:
            return self._empty
        least, depth = (low * part.least, part.depth) if low else (0, 0)
        return self._term(REPEAT, (part,), (low, high), least, depth)

    def _push(self, term: _Term, rest: _Node) -> _Node:
        key = (id(term), id(rest))
        if key not in self._nodes:
            self._nodes[key] = _Node(term, rest)
        return self._nodes[key]

    def number(self, nodes: frozenset[_Node]) -> int:
        """The number of a configuration."""
        found = self._numbers.get(nodes)
        if found is None:
            found = self._numbers[nodes] = len(self.held)
            self.held.append(nodes)
            if found == len(self._table):
                more = np.full_like(self._table, UNKNOWN)
                self._table = np.concatenate([self._table, more])
                self.least = np.concatenate([self.least, np.zeros(len(more))])
            self.least[found] = min((node.least for node in nodes), default=np.inf)
        return found

    def accepts(self, number: int) -> bool:
        """True when the text so far is complete."""
        return any(self._expanded(node).accepts for node in self.held[number])

    def ended(self, number: int) -> bool:
        """True when the text is complete and nothing may follow."""
        return self.accepts(number) and not any(self._expanded(one).moves for one in self.held[number])

    def advance(self, number: int, token: int) -> int:
        """The configuration after a token, 0 when it is not allowed."""
        data = self.trie.tokens[token] if 0 <= token < self.trie.size else None
        if not data:
            return DEAD
        for byte in data:
            kind = int(self.class_of[byte])
            following = int(self._table[number, kind])
            number = self._step(number, kind) if following == UNKNOWN else following
            if number == DEAD:
                break
        return number

    def _step(self, number: int, kind: int) -> int:
        found: set[_Node] = set()
        for node in self.held[number]:
            moves = self._expanded(node).moves
            assert moves is not None
            found.update(moves.get(kind, ()))
        following = self.number(frozenset(found)) if found else DEAD
        self._table[number, kind] = following
        return following

    def _expanded(self, node: _Node) -> _Node:
        """`node` with its moves: for each class of bytes, the stacks after it."""
        if node.moves is not None:
            return node
        gathered: dict[int, dict[_Node, None]] = {}
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

    def _unfolded(self, top: _Node, gathered: dict[int, dict[_Node, None]]) -> Iterable[_Node]:
        """The stacks that `top` stands for; what reads a byte goes into `gathered`."""
        term, rest, push = top.term, top.rest, self._push
        assert term is not None and rest is not None
        kind = term.kind
        if kind == BYTES:
            if term.classes is None:
                term.classes = sorted({int(self.class_of[b]) for b in range(256) if term.value >> b & 1})
            for one in term.classes:
                gathered.setdefault(one, {})[rest] = None
        elif kind == LITERAL:
            after, suffix = rest, term.value[1:]
            if suffix:
                after = push(self._term(LITERAL, (), suffix, self.trie.split(suffix), 0), rest)
            gathered.setdefault(int(self.class_of[term.value[0]]), {})[after] = None
        elif kind in (EMPTY, LEAVE):
            return (rest,)
        elif kind == SEQUENCE:
            for part in reversed(term.parts):
                rest = push(part, rest)
            return (rest,)
        elif kind in (CHOICE, NAME):
            return [push(part, rest) for part in term.parts if part.least < np.inf]
        elif kind == NEST:
            if rest.depth + term.depth <= DEEPEST:
                return (push(term.parts[0], push(self._leave, rest)),)
        elif kind == REPEAT:
            (low, high), part = term.value, term.parts[0]
            found = [] if low else [rest]
            if part.least < np.inf:
                again = self._repeat(part, max(low - 1, 0), None if high is None else high - 1)
                found.append(push(part, push(again, rest)))
            return found
        return ()

    def _saturated(self, node: _Node) -> _Node:
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

    def _far(self, term: _Term) -> _Term:
        """A repetition with its counts made equal to those of others like it; any other term as it is."""
        if term.kind != REPEAT:
            return term
        (low, high), far = term.value, self.trie.longest + 1
        if high is None or high > far:
            return self._repeat(term.parts[0], min(low, far), None)
        if low:
            return term
        return self._repeat(term.parts[0], 0, max(step for step in STEPS if step <= high))

    def allowed(self, number: int) -> tuple[Mask, float]:
        """The tokens that may come next, bool [tokens], and the most by which one raises the tokens that
        complete the text."""
        alike = self._alike(number)
        if alike not in self._masks:
            after = self._walk(alike)
            mask = after > DEAD
            growth = float(self.least[after[mask]].max(initial=0) - self.least[alike])
            mask[self.ends] |= self.accepts(alike)
            mask.flags.writeable = False
            self._masks[alike] = mask, growth
            self._nbytes += mask.nbytes
        return self._masks[alike]

    def completing(self, number: int, left: int) -> Mask:
        """The tokens after which at most `left` more complete the text, bool [tokens]."""
        alike = self._alike(number)
        if alike not in self._grown:
            grown = (self.least[self._walk(alike)] - self.least[alike]).astype(np.float32)
            if self.accepts(alike):
                grown[self.ends] = -np.inf
            self._grown[alike] = grown
            self._nbytes += grown.nbytes
        mask: Mask = self._grown[alike] <= np.float32(left - self.least[number])
        mask.flags.writeable = False
        return mask

    def _alike(self, number: int) -> int:
        return self.number(frozenset(self._saturated(node) for node in self.held[number]))

    def _walk(self, number: int) -> I32:
        """The configuration after each token, i32 [tokens], 0 where a token is not allowed."""
        states = np.full(len(self.trie.bytes), number, np.int32)
        for begin, end in self.trie.levels:
            before = states[self.trie.parents[begin:end]]
            states[begin:end] = self._follow(before, self._node_class[begin:end])
        after: I32 = np.where(self.trie.node_of, states[self.trie.node_of], DEAD)
        return after

    def _follow(self, at: I32, kinds: npt.NDArray[np.int16]) -> I32:
        where = at * np.int64(self.class_count) + kinds
        unknown = self._table.reshape(-1).take(where) == UNKNOWN
        for pair in np.unique(where[unknown]).tolist():
            self._step(*divmod(pair, self.class_count))
        found: I32 = self._table.reshape(-1).take(where)
        return found


class TextTwin:
    """Where a text stands. It keeps its stacks, for another text may make the automaton forget."""

    def __init__(self, automaton: AutomatonTwin) -> None:
        self._automaton, self._nodes = automaton, automaton.start

    def _number(self) -> int:
        return self._automaton.number(self._nodes)

    @property
    def least(self) -> float:
        """Tokens that complete the text."""
        return float(self._automaton.least[self._number()])

    @property
    def accepts(self) -> bool:
        """True when the text is complete."""
        return self._automaton.accepts(self._number())

    @property
    def ended(self) -> bool:
        """True when the text is complete and nothing may follow."""
        return self._automaton.ended(self._number())

    def allowed(self, left: int) -> Mask:
        """The tokens that may come next, bool [vocabulary], read-only: those after which fewer than `left`
        (ANY_NUMBER: any number) complete the text, or all when there are none of these."""
        mask, growth = self._automaton.allowed(self._number())
        if self.least + growth > left - 1:
            closing = self._automaton.completing(self._number(), left - 1)
            if closing.any() or self.accepts:
                return closing
        return mask

    def advance(self, token: int) -> bool:
        """Move on by a token; False, and nothing changed, for one that is not allowed."""
        after = self._automaton.advance(self._number(), token)
        if after != DEAD:
            self._nodes = self._automaton.held[after]
            self._automaton.relieve()
        return after != DEAD
