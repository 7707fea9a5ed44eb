"""Grammars over bytes as interned terms: what a text may be, and the fewest tokens that complete it.

A term is a set of bytes, a literal, a sequence, a choice, a counted repetition, a name (for recursion) or a
nest (whose depth is bounded). `settle` puts all terms into a table, which kernels/automaton.py measures and
runs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from haversack.kernels.automaton import (
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
    Table,
    Trie,
    measure,
)

ALL_BYTES = (1 << 256) - 1
MOST_TERMS = 100_000
CHUNK = 64
"""Bytes of a literal; a longer text is a sequence of them."""


class TooLargeError(Exception):
    """A grammar has more terms than this file allows."""


class Term:
    """One interned term; `parts` are its inner terms, `value` its bytes, literal, bounds or reason. `least`:
    the fewest tokens of a text, infinite when there is none or it is not known yet."""

    __slots__ = ("kind", "least", "number", "parts", "value")

    def __init__(self, number: int, kind: int, parts: tuple[Term, ...], value: Any) -> None:
        self.number, self.kind, self.parts, self.value = number, kind, parts, value
        self.least: float = math.inf


def byte_mask(values: Iterable[int]) -> int:
    """A set of bytes as an integer of 256 bits."""
    mask = 0
    for value in values:
        mask |= 1 << value
    return mask


class Terms:
    """Makes terms, each once, for the tokens of `trie`. `table`: what `settle` made of them."""

    table: Table

    def __init__(self, trie: Trie) -> None:
        self.usable = trie.usable
        self._trie = trie
        self._made: dict[tuple[Any, ...], Term] = {}
        self.all: list[Term] = []
        self.empty = self._term(EMPTY, (), None)
        self.leave = self._term(LEAVE, (), None)
        self.settled = False

    def _term(self, kind: int, parts: tuple[Term, ...], value: Any) -> Term:
        key = (kind, value, *map(id, parts))
        found = self._made.get(key)
        if found is None:
            if len(self.all) >= MOST_TERMS and not self.settled:
                raise TooLargeError(f"it has more than {MOST_TERMS} parts")
            found = self._made[key] = Term(len(self.all), kind, parts, value)
            self.all.append(found)
        return found

    def never(self, reason: str) -> Term:
        """No text; `reason` says why."""
        return self._term(NEVER, (), reason)

    def byte(self, mask: int) -> Term:
        """One byte of a set."""
        return self._term(BYTES, (), mask & self.usable)

    def literal(self, text: bytes | str) -> Term:
        """Exactly this text."""
        data = text.encode() if isinstance(text, str) else text
        if len(data) > CHUNK:
            pieces = [self.literal(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
            return self._term(SEQUENCE, tuple(pieces), None)
        return self._term(LITERAL, (), data) if data else self.empty

    def one_of(self, texts: Iterable[bytes]) -> Term:
        """One of some texts, their common beginnings written once."""
        return self._branches(sorted(set(texts)))

    def _branches(self, texts: list[bytes]) -> Term:
        """One of `texts`, which are sorted and differ."""
        first, last = texts[0], texts[-1]
        if len(texts) == 1:
            return self.literal(first)
        shared = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), None)
        if shared is None:
            shared = min(len(first), len(last))
        groups: dict[bytes, list[bytes]] = {}
        for text in texts:
            groups.setdefault(text[shared : shared + 1], []).append(text[shared:])
        found = [self._branches(group) for group in groups.values()]
        return self.sequence(self.literal(first[:shared]), self.choice(found))

    def sequence(self, *parts: Term) -> Term:
        """One after the other."""
        flat: list[Term] = []
        for part in parts:
            inner = part.parts if part.kind == SEQUENCE else (part,)
            for one in inner:
                if one.kind == NEVER:
                    return one
                joins = flat and one.kind == LITERAL == flat[-1].kind
                if joins and len(one.value) + len(flat[-1].value) <= CHUNK:
                    flat[-1] = self.literal(flat[-1].value + one.value)
                elif one.kind != EMPTY:
                    flat.append(one)
        if not flat:
            return self.empty
        return flat[0] if len(flat) == 1 else self._term(SEQUENCE, tuple(flat), None)

    def choice(self, parts: Iterable[Term]) -> Term:
        """One of them; of none of them, `never` with the first reason."""
        given = list(parts)
        flat: dict[int, Term] = {}
        for part in given:
            for one in part.parts if part.kind == CHOICE else (part,):
                if one.kind != NEVER:
                    flat[id(one)] = one
        if not flat:
            return given[0] if given else self.never("nothing is allowed")
        found = tuple(flat.values())
        return found[0] if len(found) == 1 else self._term(CHOICE, found, None)

    def optional(self, part: Term) -> Term:
        """The part or nothing."""
        return self.choice([self.empty, part])

    def repeat(self, part: Term, low: int = 0, high: int | None = None) -> Term:
        """The part `low` to `high` times (None: without end). The part must not match the empty text."""
        if (high is not None and high <= 0) or (part.kind == NEVER and low == 0):
            return self.empty
        return part if part.kind == NEVER else self._term(REPEAT, (part,), (low, high))

    def name(self, key: Any) -> Term:
        """A name whose `parts` are set once to (body,)."""
        return self._term(NAME, (), ("name", key))

    def nest(self, part: Term) -> Term:
        """The part, one level deeper."""
        return part if part.kind == NEVER else self._term(NEST, (part,), None)

    def ended(self, text: Term) -> Term:
        """A settled text and a line break after it."""
        made = self.sequence(text, self.literal("\n"))
        self.settle()
        return made

    def settle(self) -> None:
        """Measure all terms, recursion included."""
        self.table = self._table()
        measure(self.table, self._trie)
        for term, least in zip(self.all, self.table.least.tolist(), strict=True):
            term.least = least
        self.settled = True

    def _table(self) -> Table:
        bounds: list[tuple[int, int]] = []
        texts, sets, parts, starts = bytearray(), bytearray(), list[int](), [0]
        for term in self.all:
            kind, value = term.kind, term.value
            if kind == LITERAL:
                bounds.append((len(texts), len(value)))
                texts += value
            elif kind == BYTES:
                bounds.append((len(sets) // 32, 0))
                sets += value.to_bytes(32, "little")
            elif kind == REPEAT:
                bounds.append((value[0], -1 if value[1] is None else value[1]))
            else:
                bounds.append((0, 0))
            parts += [part.number for part in term.parts]
            starts.append(len(parts))
        low, high = np.ascontiguousarray(np.asarray(bounds, np.int64).T)
        return Table(
            kinds=np.asarray([term.kind for term in self.all], np.uint8),
            starts=np.asarray(starts, np.int32),
            parts=np.asarray(parts, np.int32),
            low=low,
            high=high,
            sets=np.frombuffer(sets, np.uint8).reshape(-1, 32),
            texts=np.frombuffer(texts, np.uint8),
            least=np.full(len(bounds), np.inf),
            depth=np.full(len(bounds), np.inf),
        )

    def reason(self, root: Term) -> str:
        """Why no text matches `root`, after `settle`."""
        seen, waiting = {id(root)}, [root]
        while waiting:
            term = waiting.pop()
            if term.kind == NEVER:
                return str(term.value)
            if term.kind == LITERAL or (term.kind == BYTES):
                return "the tokenizer has no tokens for the bytes it needs"
            for part in reversed(term.parts):
                if part.least == math.inf and id(part) not in seen:
                    seen.add(id(part))
                    waiting.append(part)
        return "it refers to itself without an end"
