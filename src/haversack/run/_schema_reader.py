"""Reading a JSON schema: references resolved, choices spread out, every keyword known or refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any
from urllib.parse import unquote

from haversack.core.errors import UserError, nearest_name

KINDS = ("object", "array", "string", "boolean", "null", "integer", "fraction")
TYPES = {name: {name} for name in KINDS if name != "fraction"} | {"number": {"integer", "fraction"}}


def named(text: str) -> list[str]:
    """The words of a closed list."""
    return text.split()


ENFORCED = named("""
    type enum const minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minLength maxLength
    pattern format items prefixItems additionalItems minItems maxItems properties required
    additionalProperties patternProperties propertyNames minProperties maxProperties
""")
CHOICES = ("$ref", "allOf", "anyOf", "oneOf")
SAID = named("""
    title description default examples example $comment $schema $id $anchor $defs definitions
    deprecated readOnly writeOnly contentMediaType contentEncoding $vocabulary
""")
REFUSED = named("""
    not if then else contains minContains maxContains dependentRequired dependentSchemas
    dependencies unevaluatedProperties unevaluatedItems $dynamicRef $recursiveRef nullable
""")
MOST_ALTERNATIVES = 256
MOST_WORK = 100_000
"""Looks at a part of the schema, all together."""
LARGEST = 1 << 20
Placed = tuple[str, Any]


def refusal(what: str, place: str) -> UserError:
    """The error for a schema that cannot be enforced at `place`."""
    return UserError(f"the schema at {place} {what}.", field="schema", given=place)


def show(value: Any) -> str:
    """A value, short enough for a sentence."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass
class Items:
    """What one schema says of an array's items: the first ones, each with its own schema, and the rest."""

    fixed: list[Placed]
    rest: Placed | None


@dataclass
class Properties:
    """What one schema says of an object's properties; `other` None: nothing, `names`: of their names."""

    place: str
    named: dict[str, Placed] = field(default_factory=dict)
    patterns: list[tuple[str, Placed]] = field(default_factory=list)
    other: Placed | None = None
    required: list[str] = field(default_factory=list)
    names: Placed | None = None


class Atom:
    """The keywords of one schema object that hold directly, with its place."""

    def __init__(self, place: str, keywords: Mapping[str, Any]) -> None:
        self.place, self._keywords = place, keywords
        self._listed: set[str] | None = None

    def has(self, name: str) -> bool:
        return name in self._keywords

    def get(self, name: str) -> Any:
        return self._keywords.get(name)

    def kinds(self) -> set[str]:
        """The kinds of values that `type` allows; `number` is whole or fraction."""
        named = self.get("type")
        if not self.has("type"):
            return set(KINDS)
        found: set[str] = set()
        for name in named if isinstance(named, list) else [named]:
            if not isinstance(name, str) or name not in TYPES:
                near = nearest_name(str(name), TYPES)
                raise refusal(
                    f"has the type {show(name)} (allowed: {', '.join(TYPES)}; nearest: {near})", self.place
                )
            found |= TYPES[name]
        return found

    def values(self) -> list[Any] | None:
        """The values of `enum` or `const`, None without them."""
        if self.has("const"):
            return [self.get("const")]
        listed = self.get("enum")
        if not self.has("enum"):
            return None
        if not isinstance(listed, list) or not listed:
            raise refusal("has an enum that is no list of values", self.place)
        return listed

    def lists(self, value: Any) -> bool:
        """True when `value` is one of the values of `enum` or `const`, or there are none."""
        values = self.values()
        if values is None:
            return True
        if self._listed is None:
            self._listed = {canonical(one) for one in values}
        return canonical(value) in self._listed

    def count(self, name: str) -> int | None:
        """A keyword that counts, None without it."""
        value = self.get(name)
        if not self.has(name):
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise refusal(f"has {name}={show(value)}, which is no count", self.place)
        return min(value, 1 << 40)

    def items(self) -> Items:
        fixed, place, rest = self.get("prefixItems"), "prefixItems", self.get("items")
        after: Placed | None = (f"{self.place}/items", rest) if self.has("items") else None
        if isinstance(rest, list):  # the spelling of drafts before 2020
            fixed, place = rest, "items"
            more = self.has("additionalItems")
            after = (f"{self.place}/additionalItems", self.get("additionalItems")) if more else None
        elif fixed is not None and not isinstance(fixed, list):
            raise refusal("has prefixItems that are no list", self.place)
        return Items([(f"{self.place}/{place}/{n}", one) for n, one in enumerate(fixed or [])], after)

    def properties(self) -> Properties:
        found = Properties(self.place)
        for keyword in ("properties", "patternProperties"):
            table = self.get(keyword)
            if self.has(keyword) and not isinstance(table, dict):
                raise refusal(f"has {keyword} that are no object", self.place)
            for name, schema in (table or {}).items():
                placed = (f"{self.place}/{keyword}/{_escaped(name)}", schema)
                if keyword == "properties":
                    found.named[name] = placed
                else:
                    found.patterns.append((name, placed))
        if self.has("additionalProperties"):
            found.other = (f"{self.place}/additionalProperties", self.get("additionalProperties"))
        if self.has("propertyNames"):
            found.names = (f"{self.place}/propertyNames", self.get("propertyNames"))
        required = self.get("required")
        if self.has("required"):
            if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
                raise refusal("has required that is no list of names", self.place)
            found.required = required
        return found


def fraction(atom: Atom, name: str) -> Fraction:
    """The exact value of a number keyword."""
    value = atom.get(name)
    fine = not isinstance(value, bool) and isinstance(value, int | float)
    if not fine or abs(value) > 10**30 or value != value:
        raise refusal(f"has {name}={show(value)}, which is no number up to 1e30", atom.place)
    return Fraction(str(value))


class Reader:
    """One schema document: alternatives of what must hold, and whether a value satisfies a part."""

    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, dict | bool):
            raise UserError(
                "a schema is a JSON object, or true or false.", field="schema", given=show(schema)
            )
        self._work = 0
        try:
            text = json.dumps(schema)
            self.root: Any = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError("the schema is no JSON, or nests too deeply.", field="schema") from error
        if len(text) > LARGEST:
            raise UserError(
                f"the schema has {len(text)} characters (allowed {LARGEST}).",
                field="schema",
                given=len(text),
                nearest=LARGEST,
            )

    def alternatives(self, schemas: Sequence[Placed], trail: tuple[str, ...] = ()) -> list[list[Atom]]:
        """The ways to satisfy all of `schemas`, each a list of atoms that must hold together."""
        found: list[list[Atom]] = [[]]
        for placed in schemas:
            ways = self._ways(placed, trail)
            found = [[*one, *way] for one in found for way in ways]
            if len(found) > MOST_ALTERNATIVES:
                raise refusal(f"has more than {MOST_ALTERNATIVES} combinations of alternatives", placed[0])
        return found

    def _ways(self, placed: Placed, trail: tuple[str, ...]) -> list[list[Atom]]:
        place, schema = placed
        self._count(place)
        if schema is True:
            return [[]]
        if schema is False:
            return []
        if place in trail:
            raise refusal("refers to itself without an end", place)
        trail = (*trail, place)
        self._check(place, schema)
        own = {name: value for name, value in schema.items() if name in ENFORCED}
        found: list[list[Atom]] = [[Atom(place, own)] if own else []]
        parts: list[Placed] = []
        if "$ref" in schema:
            parts.append(self.target(schema["$ref"], place))
        parts += self._list(place, schema, "allOf")
        groups = [self.alternatives([part], trail) for part in parts]
        for keyword in ("anyOf", "oneOf"):
            branches = self._list(place, schema, keyword)
            if not branches and keyword not in schema:
                continue
            if keyword == "oneOf":
                self._check_exclusive(place, branches)
            groups.append([way for branch in branches for way in self.alternatives([branch], trail)])
        for group in groups:
            found = [[*one, *way] for one in found for way in group]
            if len(found) > MOST_ALTERNATIVES:
                raise refusal(f"has more than {MOST_ALTERNATIVES} combinations of alternatives", place)
        return found

    def _count(self, place: str) -> None:
        self._work += 1
        if self._work > MOST_WORK:
            raise refusal("takes too much work to read", place)

    @staticmethod
    def _list(place: str, schema: Mapping[str, Any], keyword: str) -> list[Placed]:
        listed = schema.get(keyword)
        if keyword not in schema:
            return []
        if not isinstance(listed, list) or not listed:
            raise refusal(f"has {keyword} that is no list of schemas", place)
        return [(f"{place}/{keyword}/{index}", one) for index, one in enumerate(listed)]

    def _check(self, place: str, schema: Any) -> None:
        if not isinstance(schema, dict):
            raise refusal(f"is {show(schema)}, neither an object nor true nor false", place)
        for name in schema:
            if name in ENFORCED or name in CHOICES or name in SAID or name.startswith("x-"):
                continue
            if name == "uniqueItems" and schema[name] is False:
                continue
            if name in REFUSED or name == "uniqueItems":
                raise refusal(f"has {name}, which cannot be enforced while a text is written", place)
            near = nearest_name(name, [*ENFORCED, *CHOICES])
            raise refusal(f"has the keyword {name!r}, which is not known (nearest: {near})", place)

    def target(self, reference: Any, place: str) -> Placed:
        """Where a `$ref` leads: its place in this document and the schema there."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise refusal(f"refers to {show(reference)}; references within the document are allowed", place)
        pointer = unquote(reference[1:])
        found: Any = self.root
        if pointer and not pointer.startswith("/"):
            raise refusal(f"refers to {reference!r}; references by JSON pointer are allowed", place)
        for part in pointer.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and re.fullmatch("[0-9]{1,6}", part) and int(part) < len(found):
                found = found[int(part)]
            else:
                raise refusal(f"refers to {reference!r}, which is not there", place)
        return f"#{pointer}", found

    # --- does a value satisfy a schema

    def holds_all(self, placed: Placed, value: Any) -> bool:
        """True when `value` satisfies the schema `placed`."""
        return any(all(self.holds(atom, value) for atom in atoms) for atoms in self.alternatives([placed]))

    def holds(self, atom: Atom, value: Any) -> bool:
        """True when `value` satisfies the keywords of `atom`."""
        self._count(atom.place)
        kind = kind_of(value)
        if kind not in atom.kinds():
            return False
        if not atom.lists(value):
            return False
        if kind in ("integer", "fraction"):
            return self._number_holds(atom, value)
        if kind == "string":
            return self._string_holds(atom, value)
        low, high = ("minItems", "maxItems") if kind == "array" else ("minProperties", "maxProperties")
        if kind in ("array", "object"):
            most = atom.count(high)
            if len(value) < (atom.count(low) or 0) or (most is not None and len(value) > most):
                return False
            return self._items_hold(atom, value) if kind == "array" else self._properties_hold(atom, value)
        return True

    @staticmethod
    def _number_holds(atom: Atom, value: Any) -> bool:
        exact = Fraction(str(value))
        for name, sign in (("imum", 1), ("imum", -1)):
            bound = "min" + name if sign > 0 else "max" + name
            exclusive = "exclusive" + bound.capitalize()
            strict = atom.get(exclusive) is True
            if atom.has(bound):
                distance = sign * (exact - fraction(atom, bound))
                if distance < 0 or (strict and distance == 0):
                    return False
            if not atom.has(exclusive) or isinstance(atom.get(exclusive), bool):
                continue
            if sign * (exact - fraction(atom, exclusive)) <= 0:
                return False
        return not atom.has("multipleOf") or (exact / fraction(atom, "multipleOf")).denominator == 1

    @staticmethod
    def _string_holds(atom: Atom, value: str) -> bool:
        from haversack.run import _regex
        from haversack.run._schema_formats import FORMATS

        if not (atom.count("minLength") or 0) <= len(value):
            return False
        if atom.has("maxLength") and len(value) > (atom.count("maxLength") or 0):
            return False
        for pattern in (atom.get("pattern"), FORMATS.get(str(atom.get("format")))):
            if pattern is None:
                continue
            builder = _regex.Builder()
            try:
                expression = _regex.parse(builder, pattern)
                for character in value:
                    expression = builder.derive(expression, ord(character))
            except _regex.PatternError as error:
                raise refusal(f"has a pattern that cannot be enforced ({error})", atom.place) from error
            if not expression.nullable:
                return False
        return True

    def _items_hold(self, atom: Atom, value: list[Any]) -> bool:
        items = atom.items()
        for index, one in enumerate(value):
            placed = items.fixed[index] if index < len(items.fixed) else items.rest
            if placed is not None and not self.holds_all(placed, one):
                return False
        return True

    def _properties_hold(self, atom: Atom, value: dict[str, Any]) -> bool:
        said = atom.properties()
        if any(name not in value for name in said.required):
            return False
        for name, one in value.items():
            placed = [said.named[name]] if name in said.named else []
            for pattern, schema in said.patterns:
                if self._string_holds(Atom(atom.place, {"pattern": pattern}), name):
                    placed.append(schema)
            if not placed and said.other is not None:
                placed.append(said.other)
            if said.names is not None and not self.holds_all(said.names, name):
                return False
            if not all(self.holds_all(schema, one) for schema in placed):
                return False
        return True

    # --- do two schemas exclude one another

    def _check_exclusive(self, place: str, branches: Sequence[Placed]) -> None:
        if len(branches) > 64:
            raise refusal(f"has oneOf with {len(branches)} branches (allowed 64)", place)
        for second, two in enumerate(branches):
            for first, one in enumerate(branches[:second]):
                if not self.exclusive(one, two):
                    raise refusal(
                        f"has oneOf whose branches {first} and {second} may hold together, which cannot be "
                        "enforced; use anyOf, or give them a property with different const values",
                        place,
                    )

    def exclusive(self, one: Placed, two: Placed, depth: int = 0) -> bool:
        """True when it is certain that no value satisfies both."""
        if depth > 4:
            return False
        return all(
            self._conflict(first, second, depth)
            for first in self.alternatives([one])
            for second in self.alternatives([two])
        )

    def _conflict(self, first: Sequence[Atom], second: Sequence[Atom], depth: int) -> bool:
        self._count("#")
        kinds = set(KINDS)
        for atom in (*first, *second):
            kinds &= atom.kinds()
        if not kinds:
            return True
        for ours, theirs in ((first, second), (second, first)):
            for atom in ours:
                values = atom.values()
                if values is not None:
                    kept = [v for v in values if all(self.holds(each, v) for each in (*ours, *theirs))]
                    return not kept
        if kinds <= {"integer", "fraction"}:
            return self._apart(first, second)
        if kinds != {"object"}:
            return False
        return self._objects_conflict(first, second, depth) or self._objects_conflict(second, first, depth)

    @staticmethod
    def _apart(first: Sequence[Atom], second: Sequence[Atom]) -> bool:
        """True when the bounds of numbers leave nothing in common."""
        from haversack.run._json_numbers import Bounds

        bounds = Bounds()
        for atom in (*first, *second):
            for name, narrow in (("Minimum", bounds.at_least), ("Maximum", bounds.at_most)):
                exclusive = atom.get("exclusive" + name)
                if atom.has(name.lower()):
                    narrow(fraction(atom, name.lower()), exclusive is True)
                if exclusive is not None and not isinstance(exclusive, bool):
                    narrow(fraction(atom, "exclusive" + name), True)
        if bounds.low is None or bounds.high is None:
            return False
        return bounds.low > bounds.high or (bounds.low == bounds.high and (bounds.above or bounds.below))

    def _objects_conflict(self, first: Sequence[Atom], second: Sequence[Atom], depth: int) -> bool:
        """True when a property that the first requires cannot satisfy both, or is not allowed by the
        second."""
        ours = [atom.properties() for atom in first]
        theirs = [atom.properties() for atom in second]
        for name in {name for shape in ours for name in shape.required}:
            for shape in theirs:
                said = shape.named.get(name)
                if (
                    said is None
                    and shape.other is not None
                    and shape.other[1] is False
                    and not shape.patterns
                ):
                    return True
                if said is None:
                    continue
                if any(name in o.named and self.exclusive(o.named[name], said, depth + 1) for o in ours):
                    return True
        return False


def kind_of(value: Any) -> str:
    """The kind of a JSON value; 1.0 is whole."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    names = ((float, "fraction"), (str, "string"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "object")


def canonical(value: Any) -> str:
    """A text that equal JSON values share: numbers by value, true is not 1."""

    def plain(one: Any) -> Any:
        if isinstance(one, float) and one.is_integer():
            return int(one)
        if isinstance(one, list):
            return [plain(each) for each in one]
        return {name: plain(each) for name, each in one.items()} if isinstance(one, dict) else one

    return json.dumps(plain(value), sort_keys=True)


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
