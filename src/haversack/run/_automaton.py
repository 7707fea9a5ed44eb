"""What a vocabulary and a grammar become before they are run: a trie and a table (kernels/automaton.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from haversack.kernels.automaton import Trie, automaton
from haversack.run._terms import Term, Terms

MOST_CONFIGURATIONS = 30_000
MOST_NBYTES = 32 << 20


class Vocabulary:
    """The bytes of every token, and what was compiled for them: `kept`."""

    def __init__(self, tokens: list[bytes | None]) -> None:
        self.trie = Trie(tokens)
        self.size = len(tokens)
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

    def automaton(self, terms: Terms, root: Term, ends: Sequence[int]) -> Any:
        """What runs the term `root` of settled `terms`; `ends`: tokens that end a text."""
        return automaton(terms.table, root.number, self.trie, ends, MOST_CONFIGURATIONS, MOST_NBYTES)
