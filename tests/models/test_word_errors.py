"""Word errors: counts against a brute-force alignment, the normal form, and what has no rate."""

from __future__ import annotations

import sys
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.core.errors import MissingExtraError, UserError
from haversack.models.audio.word_errors import WordErrors, normalizer, word_errors

words = st.lists(st.sampled_from("abcd"), min_size=0, max_size=6)


def distance(reference: tuple[str, ...], hypothesis: tuple[str, ...]) -> int:
    """The fewest edits, by trying all."""

    @cache
    def fewest(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        same = reference[i - 1] == hypothesis[j - 1]
        return min(fewest(i - 1, j - 1) + (not same), fewest(i - 1, j) + 1, fewest(i, j - 1) + 1)

    return fewest(len(reference), len(hypothesis))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words.filter(len), words), min_size=1, max_size=4))
def test_counts_are_the_fewest_edits(texts: list[tuple[list[str], list[str]]]) -> None:
    found = word_errors([" ".join(a) for a, _ in texts], [" ".join(b) for _, b in texts], "as-is")
    assert found.words == sum(len(a) for a, _ in texts)
    edits = sum(distance(tuple(a), tuple(b)) for a, b in texts)
    assert found.substitutions + found.deletions + found.insertions == edits
    assert found.rate == edits / found.words
    longer = sum(len(b) for _, b in texts) - found.words
    assert found.insertions - found.deletions == longer


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Mr. Brown can't COME, uh, today!", "mister brown can not come today"),
        ("I have twenty-two dollars", "i have $22"),
        ("one oh one", "101"),
        ("The colour of [noise] grey (aside)", "the color of gray"),
        ("two point five percent", "2.5%"),
        ("we'll, you know, go", "we will you know go"),
    ],
)
def test_the_normal_form(text: str, normal: str) -> None:
    assert normalizer("english")(text) == normal


def test_the_normal_form_is_the_reference_s() -> None:
    """transformers has the same rules; its table of spellings is in each checkpoint."""
    reference = pytest.importorskip("transformers.models.whisper.english_normalizer")
    theirs, ours = reference.EnglishTextNormalizer({}), normalizer("english")
    for text in (
        "Five hundred and three thousand, nine hundred!",
        "It's 3 o'clock; Dr. Who's gone.",
        "minus seven degrees and $4.50",
        "They'd've gone to St. Mary's 2nd street, eh?",
        "double oh seven",
    ):
        assert ours(text) == theirs(text)


def test_sets_are_pooled() -> None:
    one = word_errors(["four five"], ["four"], "basic")
    two = word_errors(["a b c d", "e"], ["a x c d", "e f"], "as-is")
    assert (one, two) == (WordErrors(0, 1, 0, 2), WordErrors(1, 0, 1, 5))
    assert (one + two).rate == 3 / 7
    assert word_errors(["a"], ["b c d e"], "as-is").rate == 4.0


@pytest.mark.parametrize(
    ("references", "hypotheses", "field"),
    [
        ([], [], "references"),
        (["a"], [], "hypotheses"),
        ("a", ["a"], "hypotheses"),
        (["a", " "], ["a", "b"], "references"),
        (["a", "[noise]"], ["a", "b"], "references"),
        (["Uh, hmm."], [""], "references"),
    ],
)
def test_what_has_no_rate(references: list[str], hypotheses: list[str], field: str) -> None:
    with pytest.raises(UserError) as caught:
        word_errors(references, hypotheses)
    assert caught.value.field == field


def test_a_form_that_is_not_known() -> None:
    with pytest.raises(UserError, match="english, basic, as-is"):
        normalizer("englisch")


@pytest.mark.parametrize("package", ["jiwer", "whisper_normalizer"])
def test_a_missing_library_is_said(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"haversack\[bench\]"):
        word_errors(["a"], ["a"])
