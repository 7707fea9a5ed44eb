"""Grammars over bytes as interned terms: what a text may be, and the fewest tokens that complete it.

A term is a set of bytes, a literal, a sequence, a choice, a counted repetition, a name (for recursion) or a
nest (whose depth is bounded). `least` is the number of tokens that its cheapest text takes: a literal counts
the tokens of its greedy split, any other byte one token. `depth` is how deep that text nests. Both are
infinite for a term that no text matches, and every alternative of that kind is left out when the term is run,
so that whatever was begun can be completed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

EMPTY, NEVER, BYTES, LITERAL, SEQUENCE, CHOICE, REPEAT, NAME, NEST, LEAVE = range(10)
ALL_BYTES = (1 << 256) - 1
MOST_TERMS = 100_000
CHUNK = 64
"""Bytes of a literal; a longer text is a sequence of them."""


class TooLargeError(Exception):
    """A grammar has more terms than this file allows."""


class Term:
    """One interned term; `parts` are its inner terms, `value` its bytes, literal, bounds or reason."""

    __slots__ = ("classes", "depth", "kind", "least", "parts", "value")

    def __init__(self, kind: int, parts: tuple[Term, ...], value: Any) -> None:
        self.kind, self.parts, self.value = kind, parts, value
        self.least: float = math.inf
        self.depth: float = math.inf
        self.classes: list[int] | None = None


def byte_mask(values: Iterable[int]) -> int:
    """A set of bytes as an integer of 256 bits."""
    mask = 0
    for value in values:
        mask |= 1 << value
    return mask


class Terms:
    """Makes terms, each once. `usable`: the bytes that some token writes alone; `split`: tokens of a
    literal."""

    def __init__(self, usable: int, split: Callable[[bytes], int]) -> None:
        self.usable = usable
        self._split = split
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
            found = self._made[key] = Term(kind, parts, value)
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
        if high == 0 or (part.kind == NEVER and low == 0):
            return self.empty
        if part.kind == NEVER:
            return part
        made = self._term(REPEAT, (part,), (low, high))
        if self.settled and made.least == math.inf:
            self._measure(made)
        return made

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

    def suffix(self, literal: Term) -> Term:
        """A literal without its first byte."""
        made = self.literal(literal.value[1:])
        if made.least == math.inf:
            self._measure(made)
        return made

    def settle(self) -> None:
        """Compute `least` and `depth` of every term, recursion included."""
        changed = True
        while changed:
            changed = False
            for term in self.all:
                changed |= self._measure(term)
        self.settled = True

    def _measure(self, term: Term) -> bool:
        """Bring one term up to date with its parts; True when it changed."""
        least, depth = math.inf, math.inf
        kind, parts = term.kind, term.parts
        if kind in (EMPTY, LEAVE):
            least = depth = 0
        elif kind == BYTES and term.value:
            least, depth = 1, 0
        elif kind == LITERAL:
            if term.least < math.inf:
                return False
            if all(self.usable >> byte & 1 for byte in term.value):
                least, depth = self._split(term.value), 0
        elif kind == SEQUENCE:
            least, depth = sum(part.least for part in parts), max(part.depth for part in parts)
        elif kind == CHOICE or (kind == NAME and parts):
            least, depth = min((part.least, part.depth) for part in parts)
        elif kind == REPEAT:
            low = term.value[0]
            least, depth = (low * parts[0].least, parts[0].depth) if low else (0, 0)
        elif kind == NEST:
            least, depth = parts[0].least, parts[0].depth + 1
        if (least, depth) < (term.least, term.depth):
            term.least, term.depth = least, depth
            return True
        return False

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
