"""Word error rate: how many words of a transcript are wrong, after both sides are written the same way.

Paper: none; the rate is that of every speech benchmark, (substitutions + deletions + insertions) / words of
the reference, over all texts of a set together. The normal form is that of Radford et al. (2022), appendix C.
What is here: the counts by jiwer, the English normal form (case, punctuation, fillers, contractions, numbers,
British spelling) by whisper-normalizer; both are of the extra `bench`. For other languages `basic` lowers,
and leaves marks and symbols out.
Cost: a table of words x words for each text.
Limits: a reference without words has no rate and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from haversack.core.errors import MissingExtraError, UserError, not_allowed

SYSTEM = 16
FORMS = ("english", "basic", "as-is")


@dataclass(frozen=True)
class WordErrors:
    """Counts over a set of texts; `words` of the references."""

    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def rate(self) -> float:
        """(S + D + I) / N; above 1 where more words were added than there are."""
        return (self.substitutions + self.deletions + self.insertions) / self.words

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.words + other.words,
        )


def word_errors(references: Sequence[str], hypotheses: Sequence[str], form: str = "english") -> WordErrors:
    """The errors of `hypotheses` against `references`, text by text, both in the normal `form`.

    >>> word_errors(["It's four apples."], ["its 4 apple"]).rate       # it is 4 apples
    0.5

    Raises UserError for no texts, for unequal numbers of them, and for a reference that has no words.
    """
    if isinstance(references, str) or isinstance(hypotheses, str) or len(references) != len(hypotheses):
        raise UserError(
            f"give as many transcripts as references, in lists; got {len(hypotheses)} and {len(references)}.",
            field="hypotheses",
            given=len(hypotheses),
            nearest=len(references),
        )
    if not references:
        raise UserError(
            "there is no reference; give one text at least.", field="references", given=0, nearest=1
        )
    try:
        import jiwer
    except ImportError as error:
        raise MissingExtraError("a word error rate", "jiwer", "bench") from error
    write = normalizer(form)
    ours, theirs = [write(text) for text in hypotheses], [write(text) for text in references]
    for index, text in enumerate(theirs):
        if not text.split():
            raise UserError(
                f"reference {index} has no words ({references[index][:40]!r}), so it has no error rate; "
                "leave it out.",
                field="references",
                given=references[index][:80],
            )
    found: Any = jiwer.process_words(theirs, ours)
    words = sum(len(text.split()) for text in theirs)
    return WordErrors(int(found.substitutions), int(found.deletions), int(found.insertions), words)


def normalizer(form: str) -> Callable[[str], str]:
    """What writes a text in the normal `form`: english, basic, or as-is (words apart, nothing else)."""
    if form not in FORMS:
        raise not_allowed("form", form, FORMS)
    if form == "as-is":
        return lambda text: " ".join(text.split())
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise MissingExtraError("the normal form of transcripts", "whisper-normalizer", "bench") from error
    made: Callable[[str], str] = EnglishTextNormalizer() if form == "english" else BasicTextNormalizer()
    return made
