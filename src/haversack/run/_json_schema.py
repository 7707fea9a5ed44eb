"""A JSON schema as a grammar over bytes: every text of the grammar is valid against the schema.

What is written is a subset of what is valid, chosen so that it can be told byte by byte: properties in the
order of their declaration, one optional space after a comma or a colon, no property that is not declared
unless `additionalProperties` is given, numbers without useless digits, characters of keys and of patterns
unescaped where JSON allows it. `oneOf` is allowed where its branches exclude one another. What cannot be
enforced so is refused by name and place (_schema_reader.py); what nothing can satisfy is refused as well."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from haversack.core.errors import UserError
from haversack.kernels.automaton import NEVER
from haversack.run import _regex
from haversack.run._json_numbers import Bounds, integers, numbers
from haversack.run._regex import Builder, Dfa, PatternError, Ranges, Re
from haversack.run._schema_formats import FORMATS, format_automaton
from haversack.run._schema_reader import KINDS, Atom, Reader, fraction, refusal, show
from haversack.run._terms import Term, Terms, TooLargeError, byte_mask

SHORT = {8: b"\\b", 9: b"\\t", 10: b"\\n", 12: b"\\f", 13: b"\\r", 34: b'\\"', 92: b"\\\\"}
PRINTABLE: Ranges = ((0x20, 0x7E),)
MOST_NAMES = 20_000
MOST_ENUM = 10_000


def encoded(terms: Terms, ranges: Ranges, in_json: bool = True) -> Term:
    """One character of `ranges`, as UTF-8; inside a JSON text with the escapes that it must have and no
    others."""
    found: list[Term] = []
    if in_json:
        for low, high in _regex.common(ranges, ((0, 31), (34, 34), (92, 92))):
            for code in range(low, high + 1):
                found.append(terms.literal(SHORT.get(code) or b"\\u%04x" % code))
        ranges = _regex.without(ranges, ((0, 31), (34, 34), (92, 92)))
    single = 0
    for low, high in ranges:
        for pieces in _regex.utf8(low, high):
            if len(pieces) == 1:
                single |= byte_mask(range(pieces[0][0], pieces[0][1] + 1))
            else:
                parts = [terms.byte(byte_mask(range(one, two + 1))) for one, two in pieces]
                found.append(terms.sequence(*parts))
    if single:
        found.insert(0, terms.byte(single))
    return terms.choice(found)


def of_automaton(terms: Terms, dfa: Dfa, key: Any, in_json: bool = True) -> Term:
    """The texts of an automaton over characters: a name for each of its states."""
    names = [terms.name((key, state)) for state in range(len(dfa.edges))]
    written = cache(lambda ranges: encoded(terms, ranges, in_json))
    for state, leads in enumerate(dfa.edges):
        found = [terms.empty] if dfa.accepts[state] else []
        found += [terms.sequence(written(ranges), names[to]) for to, ranges in leads.items()]
        names[state].parts = (terms.choice(found),)
    return names[0]


class Compiler:
    """Turns one schema into a term. Raises UserError for what it cannot enforce, and for what nothing
    satisfies."""

    def __init__(self, schema: Any, terms: Terms) -> None:
        self.terms = terms
        self.reader = Reader(schema)
        self._names: dict[frozenset[str], Term] = {}
        self._waiting: list[tuple[Term, tuple[tuple[str, Any], ...]]] = []
        self._expressions = Builder()
        self._leaves: dict[Any, Term] = {}
        self.space = terms.optional(terms.literal(" "))
        self.comma = terms.sequence(terms.literal(","), self.space)
        self.colon = terms.sequence(terms.literal(":"), self.space)
        self.character = self._any_character()

    def compile(self) -> Term:
        """The term of the whole schema, settled."""
        terms = self.terms
        try:
            root = self.value([("#", self.reader.root)])
            while self._waiting:
                name, schemas = self._waiting.pop()
                name.parts = (self._body(schemas),)
            text = terms.sequence(self.space, root)
            terms.settle()
        except TooLargeError as error:
            raise refusal(f"is too large: {error}", "#") from error
        except PatternError as error:
            raise refusal(f"has patterns that cannot be enforced together: {error}", "#") from error
        except RecursionError as error:
            raise refusal("nests too deeply", "#") from error
        if root.least == float("inf"):
            raise UserError(
                f"no JSON satisfies the schema: {terms.reason(root)}.",
                field="schema",
                given=show(self.reader.root),
            )
        return text

    def value(self, schemas: Sequence[tuple[str, Any]]) -> Term:
        """The name of what satisfies all of `schemas`, each with its place."""
        schemas = tuple(dict((place, (place, schema)) for place, schema in schemas).values())
        key = frozenset(place for place, schema in schemas if schema is not True and schema != {})
        name = self._names.get(key)
        if name is None:
            if len(self._names) > MOST_NAMES:
                raise TooLargeError(f"it has more than {MOST_NAMES} parts")
            name = self._names[key] = self.terms.name(key)
            self._waiting.append((name, schemas))
        return name

    def _body(self, schemas: Sequence[tuple[str, Any]]) -> Term:
        places = " and ".join(place for place, _ in schemas) or "#"
        found = [self._alternative(atoms, places) for atoms in self.reader.alternatives(schemas)]
        return self.terms.choice(found or [self.terms.never(f"{places} allows nothing")])

    def _alternative(self, atoms: Sequence[Atom], places: str) -> Term:
        """The JSON values that satisfy all `atoms`, which hold no references and no choices any more."""
        terms = self.terms
        kinds = set(KINDS)
        for atom in atoms:
            kinds &= atom.kinds()
        if not kinds:
            asked = " and ".join(
                f"{show(atom.get('type'))} at {atom.place}" for atom in atoms if atom.has("type")
            )
            return terms.never(f"no type is both {asked}" if asked else f"{places} allows no type")
        listed = [atom for atom in atoms if atom.values() is not None]
        if listed:
            return self._listed(listed[0], atoms, places)
        makers: dict[str, Callable[[], Term]] = {
            "object": lambda: self._object(atoms, places),
            "array": lambda: self._array(atoms, places),
            "string": lambda: self._string(atoms, places),
            "boolean": lambda: terms.choice([terms.literal("true"), terms.literal("false")]),
            "null": lambda: terms.literal("null"),
        }
        found = [make() for kind, make in makers.items() if kind in kinds]
        if kinds & {"integer", "fraction"}:
            found.append(self._number(atoms, places, whole="fraction" not in kinds))
        return terms.choice(found)

    def _listed(self, listed: Atom, atoms: Sequence[Atom], places: str) -> Term:
        """The values of an enum or const that satisfy everything else."""
        values = listed.values() or []
        if len(values) > MOST_ENUM:
            raise refusal(f"lists {len(values)} values (allowed {MOST_ENUM})", listed.place)
        kept = [value for value in values if all(self.reader.holds(atom, value) for atom in atoms)]
        if not kept:
            return self.terms.never(f"none of the values at {listed.place} satisfies {places}")
        return self.terms.one_of(self._written(value, listed.place) for value in kept)

    @staticmethod
    def _written(value: Any, place: str) -> bytes:
        try:
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise refusal("holds a value that is no JSON", place) from error

    # --- numbers

    def _number(self, atoms: Sequence[Atom], places: str, whole: bool) -> Term:
        bounds = Bounds()
        for atom in atoms:
            for name, narrow in (("minimum", bounds.at_least), ("maximum", bounds.at_most)):
                exclusive = atom.get("exclusive" + name.capitalize())
                if atom.has(name):
                    narrow(fraction(atom, name), exclusive is True)
                if exclusive is not None and not isinstance(exclusive, bool):
                    narrow(fraction(atom, "exclusive" + name.capitalize()), True)
            if atom.has("multipleOf"):
                multiple = fraction(atom, "multipleOf")
                if multiple <= 0:
                    raise refusal("has a multipleOf that is not above 0", atom.place)
                bounds.multiple_of(multiple)
        key = ("number", whole, bounds.low, bounds.high, bounds.above, bounds.below, bounds.multiple)
        make = integers if whole else numbers
        return self._leaf(key, lambda: make(self._expressions, bounds), places, "a number within its bounds")

    # --- strings

    def _any_character(self) -> Term:
        """A character in a text that nothing restricts: escapes are free, pairs of surrogates whole."""
        terms = self.terms
        hexadecimal = terms.byte(byte_mask(b"0123456789abcdefABCDEF"))
        backslash = terms.literal("\\")
        d, low = terms.byte(byte_mask(b"dD")), terms.byte(byte_mask(b"cdefCDEF"))
        high = terms.byte(byte_mask(b"89abAB"))
        plain = terms.choice(
            [
                terms.sequence(terms.byte(byte_mask(b"0123456789abcefABCEF")), *[hexadecimal] * 3),
                terms.sequence(d, terms.byte(byte_mask(b"01234567")), *[hexadecimal] * 2),
            ]
        )
        pair = terms.sequence(
            d, high, hexadecimal, hexadecimal, terms.literal("\\u"), d, low, hexadecimal, hexadecimal
        )
        escaped = terms.choice(
            [
                terms.byte(byte_mask(b'"\\/bfnrt')),
                terms.sequence(terms.literal("u"), terms.choice([plain, pair])),
            ]
        )
        unescaped = _regex.without(_regex.ANY, ((0, 31), (34, 34), (92, 92)))
        return terms.choice([encoded(terms, unescaped), terms.sequence(backslash, escaped)])

    def _string(self, atoms: Sequence[Atom], places: str) -> Term:
        terms = self.terms
        low, high = self._lengths(atoms)
        if high is not None and low > high:
            return terms.never(f"minLength {low} exceeds maxLength {high} at {places}")
        wanted = [self._pattern(atom.get("pattern"), atom.place) for atom in atoms if atom.has("pattern")]
        formats = [atom for atom in atoms if atom.has("format")]
        bounded = low > 0 or high is not None
        quote = terms.literal('"')
        if len(formats) == 1 and not wanted and not bounded and formats[0].get("format") in FORMATS:
            name = formats[0].get("format")
            inner = self._leaf(("format", name), lambda: format_automaton(name), places, "a text")
            return terms.sequence(quote, inner, quote)
        wanted += [self._format(atom) for atom in formats]
        if not wanted:
            return terms.sequence(quote, terms.repeat(self.character, low, high), quote)
        b = self._expressions
        if bounded:
            wanted.append(b.repeat(b.any, low, high))
        inner = self._text(b.both(*wanted), places, "a text with this pattern, format and length")
        return terms.sequence(quote, inner, quote)

    @staticmethod
    def _lengths(atoms: Sequence[Atom]) -> tuple[int, int | None]:
        low = max((atom.count("minLength") or 0 for atom in atoms), default=0)
        highs = [high for atom in atoms if (high := atom.count("maxLength")) is not None]
        return low, min(highs, default=None)

    def _pattern(self, pattern: Any, place: str) -> Re:
        if not isinstance(pattern, str):
            raise refusal("has a pattern that is no text", place)
        try:
            return _regex.parse(self._expressions, pattern)
        except PatternError as error:
            raise refusal(
                f"has the pattern {pattern[:60]!r}, which cannot be enforced ({error})", place
            ) from error

    def _format(self, atom: Atom) -> Re:
        name = atom.get("format")
        pattern = FORMATS.get(name) if isinstance(name, str) else None
        if pattern is None:
            raise refusal(
                f"has the format {name!r}, which cannot be enforced (allowed: {', '.join(sorted(FORMATS))})",
                atom.place,
            )
        return self._pattern(pattern, atom.place)

    def _text(self, expression: Re, places: str, what: str) -> Term:
        key = ("text", expression.number)
        return self._leaf(key, lambda: self._expressions.automaton(expression), places, what)

    def _leaf(self, key: Any, make: Callable[[], Dfa], places: str, what: str) -> Term:
        """The term of an automaton, made once."""
        found = self._leaves.get(key)
        if found is None:
            try:
                dfa = make()
            except PatternError as error:
                raise refusal(f"asks for {what}, which cannot be enforced ({error})", places) from error
            empty = not any(dfa.accepts)
            found = self.terms.never(f"there is no {what.removeprefix('a ')} at {places}") if empty else None
            found = self._leaves[key] = found or of_automaton(self.terms, dfa, key)
        return found

    # --- arrays

    def _array(self, atoms: Sequence[Atom], places: str) -> Term:
        terms = self.terms
        low = max((atom.count("minItems") or 0 for atom in atoms), default=0)
        highs = [high for atom in atoms if (high := atom.count("maxItems")) is not None]
        high = min(highs, default=None)
        if high is not None and low > high:
            return terms.never(f"minItems {low} exceeds maxItems {high} at {places}")
        shapes = [atom.items() for atom in atoms]
        fixed = max((len(shape.fixed) for shape in shapes), default=0)
        if fixed and all(shape.rest is None for shape in shapes):
            high = min(max(fixed, low), high if high is not None else max(fixed, low))
        if high is not None:
            fixed = min(fixed, high)

        def item(index: int) -> Term:
            found = []
            for shape in shapes:
                one = shape.fixed[index] if index < len(shape.fixed) else shape.rest
                if one is not None:
                    found.append(one)
            return self.value(found)

        rest = terms.sequence(self.comma, item(fixed))
        more = terms.repeat(rest, max(low - max(fixed, 1), 0), None if high is None else high - max(fixed, 1))
        if fixed == 0:
            tail = terms.sequence(item(0), more) if high != 0 else terms.empty
            return self._bracketed("[", tail if low else terms.optional(tail), "]")
        for index in range(fixed - 1, -1, -1):
            start = (
                terms.sequence(item(index), more)
                if index == 0
                else terms.sequence(self.comma, item(index), more)
            )
            more = start if index < low else terms.optional(start)
        return self._bracketed("[", more, "]")

    def _bracketed(self, opening: str, inner: Term, closing: str) -> Term:
        terms = self.terms
        return terms.nest(terms.sequence(terms.literal(opening), inner, terms.literal(closing)))

    # --- objects

    def _object(self, atoms: Sequence[Atom], places: str) -> Term:
        shapes = [atom.properties() for atom in atoms]
        least = max((atom.count("minProperties") or 0 for atom in atoms), default=0)
        mosts = [most for atom in atoms if (most := atom.count("maxProperties")) is not None]
        most = min(mosts, default=None)
        required = list(dict.fromkeys(name for shape in shapes for name in shape.required))
        names = list(dict.fromkeys(name for shape in shapes for name in shape.named))
        names += [name for name in required if name not in names]
        closed = bool(names) or any(shape.patterns for shape in shapes)
        opened = any(shape.other is not None for shape in shapes)
        members = []
        for name in names:
            value = self.value([one for shape in shapes for one in self._of_name(shape, name)])
            if not self._name_allowed(shapes, name):
                value = self.terms.never(f"the property {name!r} is not allowed by propertyNames at {places}")
            written = self.terms.literal(self._written(name, places))
            members.append((self.terms.sequence(written, self.colon, value), name in required))
        patterned = [pattern for shape in shapes for pattern, _ in shape.patterns]
        other = self._others(shapes, names, places) if (opened or not closed or patterned) else None
        if least > len(names) + 1 and other is not None:
            raise refusal(
                f"asks for minProperties {least} beside properties without names, which cannot be enforced "
                "(two of them may have the same name)",
                places,
            )
        if len(required) > (most if most is not None else len(required)):
            return self.terms.never(
                f"{len(required)} properties are required and maxProperties is {most} at {places}"
            )
        return self._bracketed("{", self._members(members, other, least, most, places), "}")

    def _of_name(self, shape: Any, name: str) -> list[tuple[str, Any]]:
        """What one schema says of the property `name`."""
        found = [shape.named[name]] if name in shape.named else []
        for pattern, schema in shape.patterns:
            if self._matches(self._pattern(pattern, shape.place), name):
                found.append(schema)
        if not found and shape.other is not None:
            found.append(shape.other)
        return found

    def _matches(self, expression: Re, text: str) -> bool:
        for character in text:
            expression = self._expressions.derive(expression, ord(character))
        return expression.nullable

    def _name_allowed(self, shapes: Sequence[Any], name: str) -> bool:
        return all(self.reader.holds_all(shape.names, name) for shape in shapes if shape.names is not None)

    def _others(self, shapes: Sequence[Any], names: Sequence[str], places: str) -> Term | None:
        """A member that is not declared by name: by the patterns its key matches, else by
        additionalProperties."""
        b, terms = self._expressions, self.terms
        patterns = list(dict.fromkeys((p, shape.place) for shape in shapes for p, _ in shape.patterns))
        if len(patterns) > 4:
            raise refusal(f"has {len(patterns)} patternProperties (allowed 4)", places)
        key = b.negated(b.either(*(b.text(name) for name in names)))
        if patterns:  # where readers of a pattern may differ, keys stay plain
            key = b.both(key, b.repeat(b.set(PRINTABLE), 0, None))
        for shape in shapes:
            if shape.names is not None:
                key = b.both(key, self._names_expression(shape.names))
        closed = bool(names or patterns) and not any(shape.other is not None for shape in shapes)
        found = []
        for chosen in range(1 << len(patterns)):
            matched = {patterns[i][0] for i in range(len(patterns)) if chosen >> i & 1}
            if not matched and closed:
                continue
            expressions = [self._pattern(p, place) for p, place in patterns]
            signs = [
                e if p in matched else b.negated(e) for e, (p, _) in zip(expressions, patterns, strict=True)
            ]
            schemas: list[tuple[str, Any]] = []
            for shape in shapes:
                own = [schema for pattern, schema in shape.patterns if pattern in matched]
                schemas += own or ([shape.other] if shape.other is not None else [])
            if any(schema is False for _, schema in schemas):
                continue
            text = self._text(b.both(key, *signs), places, "a name for such a property")
            quote = terms.literal('"')
            found.append(terms.sequence(quote, text, quote, self.colon, self.value(schemas)))
        found = [one for one in found if one.kind != NEVER]
        return terms.choice(found) if found else None

    def _names_expression(self, named: tuple[str, Any]) -> Re:
        """The names that propertyNames allows."""
        b = self._expressions
        found = b.nothing
        for atoms in self.reader.alternatives([named]):
            wanted = [self._pattern(a.get("pattern"), a.place) for a in atoms if a.has("pattern")]
            wanted += [self._format(atom) for atom in atoms if atom.has("format")]
            for atom in atoms:
                values = atom.values()
                if values is not None:
                    wanted.append(b.either(*(b.text(v) for v in values if isinstance(v, str))))
                if "string" not in atom.kinds():
                    wanted.append(b.nothing)
            low, high = self._lengths(atoms)
            found = b.either(found, b.both(b.repeat(b.any, low, high), *wanted))
        return found

    def _members(
        self,
        members: Sequence[tuple[Term, bool]],
        other: Term | None,
        least: int,
        most: int | None,
        places: str,
    ) -> Term:
        """The members in order, commas between those that are written, within the counts."""
        terms, comma = self.terms, self.comma
        counted = least > 0 or most is not None

        def others(written: int) -> Term:
            """What may follow when `written` members stand."""
            if other is None:
                return (
                    terms.empty
                    if written >= least
                    else terms.never(f"minProperties {least} cannot be met at {places}")
                )
            high = None if most is None else max(most - written, 0)
            low = max(least - written, 0)
            if low > 1:
                return terms.never(f"minProperties {least} cannot be met at {places}")
            if high == 0:
                return (
                    terms.empty
                    if low == 0
                    else terms.never(f"minProperties {least} cannot be met at {places}")
                )
            after = terms.repeat(terms.sequence(comma, other), 0, None if high is None else high - 1)
            if written:
                return terms.repeat(terms.sequence(comma, other), low, high)
            some = terms.sequence(other, after)
            return some if low else terms.optional(some)

        counts = range(len(members) + 1) if counted else range(2)
        tails = {count: others(count) for count in counts}
        for index in range(len(members) - 1, -1, -1):
            member, required = members[index]
            before: dict[int, Term] = {}
            for count in range(index + 1) if counted else range(min(index, 1) + 1):
                taken = count + 1 if counted else 1
                if most is not None and taken > most:
                    written = terms.never(f"maxProperties {most} is exceeded at {places}")
                else:
                    written = terms.sequence(comma if count else terms.empty, member, tails[taken])
                before[count] = written if required else terms.choice([tails[count], written])
            tails = before
        return tails[0]
