"""Constrained decoding: what the model may write next, so that the text is valid in the end.

    constraint = json_schema({"type": "object", ...}, tokenizer, end_tokens)
    answer = generate(engine, prompt, limits, constraint=constraint)

Every text that is finished satisfies the constraint, and every answer finishes: near the end of its tokens
only those remain after which the text can still be completed. A schema whose shortest text does not fit is
refused before work starts. What JSON schemas may ask is said in _json_schema.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.run._automaton import DEAD, Automaton, Vocabulary
from haversack.run._terms import Term, Terms

Mask = npt.NDArray[np.bool_]
MOST_KEPT = 16
"""Compiled constraints a tokenizer keeps."""


class Constraint(Protocol):
    """What restricts the tokens of one answer. `done`: the text is complete and nothing may follow."""

    done: bool

    def allowed(self, left: int | None = None) -> Mask:
        """The tokens that may come next, bool [vocabulary], read-only. `left`: tokens that may still be
        drawn, this one included; None: any number."""

    def advance(self, token: int) -> None:
        """`token` was drawn."""

    def require_room(self, tokens: int) -> None:
        """Raises UserError when `tokens` are not enough for the shortest text."""


class TokenConstraint:
    """A `Constraint` by an automaton. Made by `json_schema`, `regular_expression` and `one_of`."""

    def __init__(self, automaton: Automaton, ends: Sequence[int]) -> None:
        self._automaton = automaton
        self._ends = [end for end in ends if 0 <= end < automaton.vocabulary.size]
        self._start()

    def _start(self) -> None:
        self._generation = self._automaton.generation
        self._at = self._automaton.number(self._automaton.start)
        self._nodes = self._automaton.start
        self.done = False

    def fresh(self) -> TokenConstraint:
        """The same constraint at the beginning of another text."""
        return TokenConstraint(self._automaton, self._ends)

    @property
    def least(self) -> float:
        """Tokens that are enough to complete the text from here."""
        return self._automaton.least(self._number())

    @property
    def complete(self) -> bool:
        """True when the text so far is valid as it stands."""
        return self.done or self._automaton.accepts(self._number())

    def require_room(self, tokens: int) -> None:
        """Raises UserError when `tokens` are not enough for the shortest text."""
        needed = int(self.least)
        if needed > tokens:
            raise UserError(
                f"the shortest text that satisfies the schema takes up to {needed} tokens and the answer has "
                f"room for {tokens}; allow more tokens.",
                field="max_tokens",
                given=tokens,
                nearest=needed,
            )

    def allowed(self, left: int | None = None) -> Mask:
        automaton = self._automaton
        if self.done:
            return self._with_ends(np.zeros(automaton.vocabulary.size, np.bool_))
        number = self._number()
        found = automaton.allowed(number)
        mask = found.mask
        if left is not None and automaton.least(number) + found.growth > left - 1:
            closing = automaton.completing(number, left - 1)
            mask = closing if closing.any() or automaton.accepts(number) else mask
        return self._with_ends(mask) if automaton.accepts(number) else mask

    def _with_ends(self, mask: Mask) -> Mask:
        if self._ends:
            mask = mask.copy()
            mask[self._ends] = True
        return mask

    def advance(self, token: int) -> None:
        if self.done:
            return
        number = self._number()
        if token in self._ends:
            self.done = True
            return
        after = self._automaton.draw(number, token)
        if after == DEAD:
            raise ValueError(f"the token {token} does not satisfy the constraint")
        after = self._automaton.relieved(after)
        self._at, self._nodes, self._generation = (
            after,
            self._automaton.nodes(after),
            self._automaton.generation,
        )
        self.done = self._automaton.ended(after)

    def _number(self) -> int:
        """The number of where the text stands, which another text may have made the automaton forget."""
        if self._generation != self._automaton.generation:
            self._at = self._automaton.number(self._nodes)
            self._generation = self._automaton.generation
        return self._at


def json_schema(schema: Any, tokenizer: Any, end_tokens: Sequence[int]) -> TokenConstraint:
    """The constraint that the text is JSON which `schema` (an object, true or false) allows.

    Compiled once a tokenizer and schema. Raises UserError for a schema that asks what cannot be enforced or
    that nothing satisfies, naming the place, and for a tokenizer whose tokens have no bytes of their own
    (WordPiece)."""
    from haversack.run._json_schema import Compiler

    try:
        key = json.dumps(schema)
    except (TypeError, ValueError, RecursionError):
        key = ""  # refused by the compiler, which says why
    return _kept(("schema", key), tokenizer, end_tokens, lambda terms: Compiler(schema, terms).compile())


def json_object(tokenizer: Any, end_tokens: Sequence[int]) -> TokenConstraint:
    """The constraint that the text is a JSON object, of any content."""
    return json_schema({"type": "object"}, tokenizer, end_tokens)


def regular_expression(pattern: str, tokenizer: Any, end_tokens: Sequence[int]) -> TokenConstraint:
    """The constraint that the whole text matches `pattern` (the syntax of run/_regex.py)."""
    from haversack.run import _regex
    from haversack.run._json_schema import of_automaton

    def compiled(terms: Terms) -> Term:
        builder = _regex.Builder()
        try:
            dfa = builder.automaton(_regex.parse(builder, f"^(?:{pattern})$"))
        except _regex.PatternError as error:
            raise UserError(
                f"the pattern {pattern[:60]!r} cannot be enforced: {error}.",
                field="pattern",
                given=pattern[:200],
            ) from error
        root = of_automaton(terms, dfa, "pattern", in_json=False)
        terms.settle()
        if root.least == float("inf"):
            raise UserError(
                f"no text matches the pattern {pattern[:60]!r}.", field="pattern", given=pattern[:200]
            )
        return root

    return _kept(("pattern", pattern), tokenizer, end_tokens, compiled)


def one_of(texts: Sequence[str], tokenizer: Any, end_tokens: Sequence[int]) -> TokenConstraint:
    """The constraint that the text is one of `texts`."""
    if not texts or any(not isinstance(text, str) or not text for text in texts):
        raise UserError("a choice takes at least one text, none of them empty.", field="choice")

    def compiled(terms: Terms) -> Term:
        root = terms.one_of(text.encode() for text in texts)
        terms.settle()
        return root

    return _kept(("choice", tuple(texts)), tokenizer, end_tokens, compiled)


def _kept(key: Any, tokenizer: Any, ends: Sequence[int], compiled: Any) -> TokenConstraint:
    """A constraint whose automaton the tokenizer's vocabulary keeps."""
    vocabulary = Vocabulary.of(tokenizer)
    if vocabulary is None:
        raise UserError(
            "this tokenizer's tokens have no bytes of their own (neither byte-level nor with byte tokens), "
            "so its text cannot be constrained.",
            field="tokenizer",
        )
    bare = not any(0 <= end < vocabulary.size for end in ends)
    key = (*key, bare)
    automaton = vocabulary.kept.pop(key, None)
    if automaton is None:
        terms = Terms(vocabulary.usable, vocabulary.split)
        root = compiled(terms)
        if bare:  # without a token that ends a text, a line break does
            root = terms.ended(root)
        automaton = Automaton(terms, root, vocabulary)
        while len(vocabulary.kept) >= MOST_KEPT:
            vocabulary.kept.pop(next(iter(vocabulary.kept)))
    vocabulary.kept[key] = automaton
    return TokenConstraint(automaton, ends)
