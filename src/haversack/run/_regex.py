"""Regular expressions over characters as deterministic automata, by derivatives (Brzozowski 1964; Owens,
Reppy and Turon 2009): union, intersection, complement and counted repetition cost nothing extra.

`parse` reads the regular part of ECMAScript's syntax. A pattern is searched for, as JSON Schema wants it; `^`
and `$` are known at the ends of an alternative. Look-around, back-references, word boundaries and property
classes are refused by name. `\\d`, `\\w` and `\\s` are the ASCII ones, their complements ASCII too: what they
allow is allowed by every reading of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

Ranges = tuple[tuple[int, int], ...]
ANY: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
DIGITS: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACES: Ranges = ((9, 13), (32, 32))
ASCII: Ranges = ((0, 127),)
NOT_LINES: Ranges = ((0, 9), (11, 12), (14, 0x2027), (0x202A, 0xD7FF), (0xE000, 0x10FFFF))
MOST_STATES = 3000
MOST_WORK = 100_000
MOST_REPEATS = 10_000
NOTHING, NIL, SET, CAT, OR, AND, NOT, REP = range(8)


class PatternError(Exception):
    """A pattern that cannot be enforced; the text says why."""


class Re:
    """An interned expression."""

    __slots__ = ("kind", "nullable", "number", "parts", "value")

    def __init__(self, number: int, kind: int, parts: tuple[Re, ...], value: Any, nullable: bool) -> None:
        self.number, self.kind, self.parts, self.value, self.nullable = number, kind, parts, value, nullable


def union(*sets: Ranges) -> Ranges:
    """Ranges of all the sets, merged."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for one in sets for pair in one):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(base: Ranges, taken: Ranges) -> Ranges:
    """Ranges of `base` that are not in `taken`."""
    found = []
    for low, high in base:
        for begin, end in taken:
            if end < low or begin > high:
                continue
            if begin > low:
                found.append((low, begin - 1))
            low = end + 1
        if low <= high:
            found.append((low, high))
    return tuple(found)


def common(one: Ranges, two: Ranges) -> Ranges:
    """Ranges in both."""
    return without(one, without(ANY, two))


class Builder:
    """Makes expressions, each once."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Re] = {}
        self._derived: dict[tuple[Re, int], Re] = {}
        self.nothing = self._re(NOTHING, (), None, False)
        self.nil = self._re(NIL, (), None, True)
        self.any = self.set(ANY)
        self.all = self.repeat(self.any, 0, None)

    def _re(self, kind: int, parts: tuple[Re, ...], value: Any, nullable: bool) -> Re:
        key = (kind, value, *[part.number for part in parts])
        found = self._made.get(key)
        if found is None:
            if len(self._made) > MOST_WORK:
                raise PatternError("it takes too much work")
            found = self._made[key] = Re(len(self._made), kind, parts, value, nullable)
        return found

    def set(self, ranges: Ranges) -> Re:
        """One character of a set."""
        return self._re(SET, (), ranges, False) if ranges else self.nothing

    def text(self, text: str) -> Re:
        """Exactly this text."""
        return self.cat(*(self.set(((ord(one), ord(one)),)) for one in text))

    def cat(self, *parts: Re) -> Re:
        """One after the other."""
        made = self.nil
        for part in reversed(parts):
            if self.nothing in (part, made):
                return self.nothing
            if made is self.nil:
                made = part
            elif part.kind == CAT:
                made = self.cat(part.parts[0], self.cat(part.parts[1], made))
            elif part is not self.nil:
                made = self._re(CAT, (part, made), None, part.nullable and made.nullable)
        return made

    def either(self, *parts: Re) -> Re:
        """One of them."""
        flat: dict[Re, None] = {}
        ranges: list[Ranges] = []
        for part in parts:
            for one in part.parts if part.kind == OR else (part,):
                if one.kind == SET:
                    ranges.append(one.value)
                elif one is self.all:
                    return one
                elif one is not self.nothing:
                    flat[one] = None
        if ranges:
            flat[self.set(union(*ranges))] = None
        found = sorted(flat, key=lambda one: one.number)
        if not found:
            return self.nothing
        if len(found) == 1:
            return found[0]
        return self._re(OR, tuple(found), None, any(one.nullable for one in found))

    def both(self, *parts: Re) -> Re:
        """All of them."""
        flat: dict[Re, None] = {}
        for part in parts:
            for one in part.parts if part.kind == AND else (part,):
                if one is self.nothing:
                    return one
                if one is not self.all:
                    flat[one] = None
        found = sorted(flat, key=lambda one: one.number)
        if not found:
            return self.all
        if len(found) == 1:
            return found[0]
        return self._re(AND, tuple(found), None, all(one.nullable for one in found))

    def negated(self, part: Re) -> Re:
        """Every text that is not in `part`."""
        if part.kind == NOT:
            return part.parts[0]
        return self._re(NOT, (part,), None, not part.nullable)

    def repeat(self, part: Re, low: int, high: int | None) -> Re:
        """`part` `low` to `high` times (None: without end)."""
        if high == 0 or part is self.nil:
            return self.nil
        if part is self.nothing:
            return self.nil if low == 0 else part
        if (low, high) == (1, 1):
            return part
        if part.kind == REP and part.value == (0, None):
            return part
        return self._re(REP, (part,), (0 if part.nullable else low, high), low == 0 or part.nullable)

    def derive(self, one: Re, character: int) -> Re:
        """What may follow `character` in `one`."""
        key = (one, character)
        found = self._derived.get(key)
        if found is None:
            if len(self._derived) > MOST_WORK:
                raise PatternError("it takes too much work")
            found = self._derived[key] = self._derivative(one, character)
        return found

    def _derivative(self, one: Re, c: int) -> Re:
        kind, parts = one.kind, one.parts
        if kind == SET:
            return self.nil if any(low <= c <= high for low, high in one.value) else self.nothing
        if kind == CAT:
            first = self.cat(self.derive(parts[0], c), parts[1])
            return self.either(first, self.derive(parts[1], c)) if parts[0].nullable else first
        if kind == OR:
            return self.either(*(self.derive(part, c) for part in parts))
        if kind == AND:
            return self.both(*(self.derive(part, c) for part in parts))
        if kind == NOT:
            return self.negated(self.derive(parts[0], c))
        if kind == REP:
            low, high = one.value
            rest = self.repeat(parts[0], max(low - 1, 0), None if high is None else high - 1)
            return self.cat(self.derive(parts[0], c), rest)
        return self.nothing

    def automaton(self, root: Re) -> Dfa:
        """The deterministic automaton of `root`. Raises PatternError when it has too many states."""
        classes = _classes(root)
        states, edges = {root: 0}, []
        waiting = [root]
        for one in waiting:
            leads: dict[int, list[Ranges]] = {}
            for ranges in classes:
                following = self.derive(one, ranges[0][0])
                if following is self.nothing:
                    continue
                if following not in states:
                    if len(states) >= MOST_STATES:
                        raise PatternError(f"its automaton has more than {MOST_STATES} states")
                    states[following] = len(states)
                    waiting.append(following)
                leads.setdefault(states[following], []).append(ranges)
            edges.append({to: union(*found) for to, found in leads.items()})
        return Dfa(edges, [one.nullable for one in states])


class Dfa:
    """`edges[state]`: next state -> characters; `accepts[state]`. State 0 begins."""

    def __init__(self, edges: list[dict[int, Ranges]], accepts: list[bool]) -> None:
        self.edges, self.accepts = edges, accepts

    def multiples(self, of: int) -> Dfa:
        """The decimal whole numbers of this automaton that are multiples of `of`."""
        states: dict[tuple[int, int], int] = {(0, 0): 0}
        edges: list[dict[int, Ranges]] = []
        waiting = [(0, 0)]
        for state, left in waiting:
            found: dict[int, list[Ranges]] = {}
            for to, ranges in self.edges[state].items():
                for low, high in ranges:
                    for code in range(low, high + 1):
                        after = (to, (left * 10 + code - 48) % of if 48 <= code <= 57 else left)
                        if after not in states:
                            if len(states) >= MOST_STATES:
                                raise PatternError(f"its automaton has more than {MOST_STATES} states")
                            states[after] = len(states)
                            waiting.append(after)
                        found.setdefault(states[after], []).append(((code, code),))
            edges.append({to: union(*sets) for to, sets in found.items()})
        return Dfa(edges, [self.accepts[state] and left == 0 for state, left in states])


def _classes(root: Re) -> list[Ranges]:
    """The characters, in classes that no set of `root` tells apart."""
    sets: set[Ranges] = {ANY}
    seen, waiting = {root}, [root]
    while waiting:
        one = waiting.pop()
        if one.kind == SET:
            sets.add(one.value)
        for part in one.parts:
            if part not in seen:
                seen.add(part)
                waiting.append(part)
    cuts = sorted({low for one in sets for low, _ in one} | {high + 1 for one in sets for _, high in one})
    ordered = sorted(sets)
    found: dict[tuple[bool, ...], list[tuple[int, int]]] = {}
    for low, end in pairwise(cuts):
        if low > 0xD7FF and end <= 0xE000:
            continue
        key = tuple(any(begin <= low <= last for begin, last in one) for one in ordered)
        found.setdefault(key, []).append((low, end - 1))
    return [union(tuple(ranges)) for ranges in found.values()]


class _Parser:
    """Recursive descent over one pattern."""

    def __init__(self, builder: Builder, pattern: str) -> None:
        self.b, self.text, self.at, self.depth = builder, pattern, 0, 0
        self.named = 0  # escapes such as \\d so far

    def fail(self, why: str) -> PatternError:
        return PatternError(f"{why} at character {self.at}")

    def peek(self, count: int = 1) -> str:
        return self.text[self.at : self.at + count]

    def take(self, expected: str) -> bool:
        if self.text.startswith(expected, self.at):
            self.at += len(expected)
            return True
        return False

    def searched(self) -> Re:
        """The whole pattern, anchored where it says so."""
        made = self.alternatives(top=True)
        if self.at < len(self.text):
            raise self.fail("an unbalanced parenthesis")
        return made

    def alternatives(self, top: bool) -> Re:
        self.depth += 1
        if self.depth > 40:
            raise self.fail("groups nested too deeply")
        found = [self.sequence(top)]
        while self.take("|"):
            found.append(self.sequence(top))
        self.depth -= 1
        return self.b.either(*found)

    def sequence(self, top: bool) -> Re:
        begins = False
        while top and self.take("^"):
            begins = True
        parts: list[Re] = []
        ends = False
        while self.at < len(self.text) and self.peek() not in "|)":
            if self.take("$"):
                if not top or (self.at < len(self.text) and self.peek() not in "|"):
                    raise self.fail("an anchor inside the pattern")
                ends = True
                continue
            parts.append(self.repeated())
        made = self.b.cat(*parts)
        if top:
            made = self.b.cat(*(() if begins else (self.b.all,)), made, *(() if ends else (self.b.all,)))
        return made

    def repeated(self) -> Re:
        one = self.atom()
        while True:
            low, high = self.bounds()
            if low is None:
                return one
            self.take("?")  # lazy or greedy: the same texts
            if max(low, high or 0) > MOST_REPEATS or (high is not None and high < low):
                raise self.fail(f"a repetition of {low} to {high} times")
            one = self.b.repeat(one, low, high)

    def bounds(self) -> tuple[int | None, int | None]:
        for mark, pair in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self.take(mark):
                return pair
        end = self.text.find("}", self.at)
        if self.peek() != "{" or end < 0:
            return None, None
        low, comma, high = self.text[self.at + 1 : end].partition(",")
        if not low.isdigit() or (high and not high.isdigit()) or len(low) > 6 or len(high) > 6:
            return None, None
        self.at = end + 1
        return int(low), (int(high) if high else None) if comma else int(low)

    def atom(self) -> Re:
        if self.take("("):
            if self.peek(2) in ("?=", "?!") or self.peek(3) in ("?<=", "?<!"):
                raise self.fail("look-around")
            if self.take("?<"):
                self.at = self.text.find(">", self.at) + 1
            elif self.peek() == "?" and not self.take("?:"):
                raise self.fail("an unknown kind of group")
            made = self.alternatives(top=False)
            if not self.take(")"):
                raise self.fail("an open parenthesis")
            return made
        if self.take("["):
            return self.b.set(self.bracket())
        if self.take("."):
            return self.b.set(NOT_LINES)
        if self.take("\\"):
            return self.b.set(self.escape())
        if self.peek() in "*+?":
            raise self.fail("nothing to repeat")
        if self.peek() == "^":
            raise self.fail("an anchor inside the pattern")
        self.at += 1
        code = ord(self.text[self.at - 1])
        return self.b.set(common(((code, code),), ANY))

    def escape(self) -> Ranges:
        if self.at >= len(self.text):
            raise self.fail("a lone backslash")
        c = self.peek()
        self.at += 1
        named = {"d": DIGITS, "w": WORD, "s": SPACES}
        if c.lower() in named:
            ranges = named[c.lower()]
            self.named += 1
            return ranges if c.islower() else without(ASCII, ranges)
        plain = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
        if c in plain:
            return ((plain[c],) * 2,)
        if c in "xu":
            if c == "u" and self.take("{"):
                digits, _, _ = self.text[self.at :].partition("}")
                self.at += len(digits) + 1
            else:
                digits = self.peek(2 if c == "x" else 4)
                self.at += len(digits)
            try:
                code = int(digits, 16)
            except ValueError as error:
                raise self.fail("an escape that is no number") from error
            return common(((code, code),), ANY)
        if c.isalnum() and c != "0":
            raise self.fail(f"\\{c}")
        code = 0 if c == "0" else ord(c)
        return ((code, code),)

    def bracket(self) -> Ranges:
        negated = self.take("^")
        before = self.named
        found: list[Ranges] = []
        while not self.take("]"):
            if self.at >= len(self.text):
                raise self.fail("an open bracket")
            first = self.member()
            if self.peek() == "-" and self.peek(2) != "-]" and len(self.peek(2)) == 2:
                self.at += 1
                last = self.member()
                if first[0][0] != first[-1][1] or last[0][0] != last[-1][1] or last[0][0] < first[0][0]:
                    raise self.fail("a range without order")
                first = common(((first[0][0], last[0][0]),), ANY)
            found.append(first)
        chosen = union(*found)
        return without(ANY if self.named == before else ASCII, chosen) if negated else chosen

    def member(self) -> Ranges:
        if self.take("\\"):
            if self.take("b"):
                return ((8, 8),)
            return self.escape()
        self.at += 1
        code = ord(self.text[self.at - 1])
        return common(((code, code),), ANY) or ((0xFFFD, 0xFFFD),)


def parse(builder: Builder, pattern: str) -> Re:
    """The texts in which `pattern` is found. Raises PatternError for what is not regular or not known."""
    if len(pattern) > 10_000:
        raise PatternError("it has more than 10000 characters")
    return _Parser(builder, pattern).searched()


def utf8(low: int, high: int) -> Iterable[tuple[tuple[int, int], ...]]:
    """The characters low..high as sequences of ranges of bytes."""
    for limit in (0x7F, 0x7FF, 0xFFFF):
        if low <= limit < high:
            yield from utf8(low, limit)
            yield from utf8(limit + 1, high)
            return
    if high <= 0x7F:
        yield ((low, high),)
        return
    for bits in (6, 12, 18):
        tail = (1 << bits) - 1
        if low & ~tail != high & ~tail:
            if low & tail:
                yield from utf8(low, low | tail)
                yield from utf8((low | tail) + 1, high)
                return
            if high & tail != tail:
                yield from utf8(low, (high & ~tail) - 1)
                yield from utf8(high & ~tail, high)
                return
    yield tuple(zip(chr(low).encode(), chr(high).encode(), strict=True))
