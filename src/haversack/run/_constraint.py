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
from haversack.kernels.automaton import ANY_NUMBER, text_of
from haversack.run._automaton import Vocabulary
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
    """A `Constraint` by an automaton whose texts end with one of `ends`. Made by `json_schema`,
    `regular_expression` and `one_of`."""

    def __init__(self, automaton: Any, ends: Sequence[int], size: int) -> None:
        self._automaton, self._ends, self._size = automaton, frozenset(ends), size
        self._text = text_of(automaton)
        self.done = False

    def fresh(self) -> TokenConstraint:
        """The same constraint at the beginning of another text."""
        return TokenConstraint(self._automaton, tuple(self._ends), self._size)

    @property
    def least(self) -> float:
        """Tokens that are enough to complete the text from here."""
        least: float = self._text.least
        return least

    @property
    def complete(self) -> bool:
        """True when the text so far is valid as it stands."""
        return self.done or self._text.accepts

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
        if self.done:
            mask = np.zeros(self._size, np.bool_)
            mask[list(self._ends)] = True
            return mask
        allowed: Mask = self._text.allowed(ANY_NUMBER if left is None else left)
        return allowed

    def advance(self, token: int) -> None:
        if self.done:
            return
        if token in self._ends:
            self.done = True
        elif self._text.advance(token):
            self.done = self._text.ended
        else:
            raise ValueError(f"the token {token} does not satisfy the constraint")


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
    ends = tuple(end for end in ends if 0 <= end < vocabulary.size)
    key = (*key, ends)
    automaton = vocabulary.kept.pop(key, None)
    if automaton is None:
        terms = Terms(vocabulary.trie)
        root = compiled(terms)
        if not ends:  # without a token that ends a text, a line break does
            root = terms.ended(root)
            if root.least == float("inf"):
                raise UserError(
                    "no token of this model ends a text and none of its tokenizer is a line break, so its "
                    "text cannot be constrained.",
                    field="tokenizer",
                )
        automaton = vocabulary.automaton(terms, root, ends)
        while len(vocabulary.kept) >= MOST_KEPT:
            vocabulary.kept.pop(next(iter(vocabulary.kept)))
    vocabulary.kept[key] = automaton
    return TokenConstraint(automaton, ends, vocabulary.size)
