"""Needles: prompts of any text for any tokenizer, and what a reply scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from haversack.bench._needles import (
    ASKED,
    DEPTHS,
    LENGTHS,
    NEEDLES,
    Cell,
    lines_of,
    needle_prompt,
    rounds,
    share_of_words,
    words_of,
)
from haversack.bench.dhsa._records import ASK
from haversack.bench.dhsa.needles import asked_at_depths, constants
from haversack.core.errors import UserError
from haversack.models import Tokenizer
from haversack.models._bundled import model_folder
from haversack.models._calibration import default_text

PROSE = "".join(f"Line {number} of a tale that goes on and on.\n" for number in range(300))
CODE = Tokenizer.of_folder(model_folder("code")).encode
COUNTS: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(text.split()),
    "bytes": lambda text: len(text.encode()),
    "code": lambda text: len(CODE(text)),
}


@pytest.mark.parametrize("tokenizer", COUNTS)
@pytest.mark.parametrize("text", [PROSE, default_text("evaluation")], ids=["prose", "source"])
@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_a_prompt_is_as_long_as_asked_and_holds_its_needle_at_its_depth(
    tokenizer: str, text: str, depth: float
) -> None:
    count, lines, length = COUNTS[tokenizer], lines_of(text), 1500
    cell = Cell(length, depth, NEEDLES[2])
    made = needle_prompt(count, lines, cell)
    assert made == needle_prompt(count, lines, cell), "the same in every run"
    longest = max(count(line) for line in lines)
    assert length - longest - 2 <= count(made) <= length
    assert made.count(cell.needle.fact) == 1 and made.endswith("Answer:")
    assert cell.needle.question in made[made.index(cell.needle.fact) :]
    asked = ASKED.after.replace("{question}", cell.needle.question)
    filler = made[len(ASKED.before) : len(made) - len(asked)]
    at = filler.index(cell.needle.fact)
    edge = max(len(line) for line in lines) + 2
    assert abs(at - depth * (len(filler) - len(cell.needle.fact))) <= edge
    for line in (*filler[:at].splitlines(), *filler[at:].splitlines()):
        assert line == cell.needle.fact or line in text, "what is around it are whole lines of the text"


def test_lines_begin_anew_where_the_text_ends_and_other_seeds_begin_elsewhere() -> None:
    cell = Cell(4000, 0.3, NEEDLES[0])
    made = needle_prompt(COUNTS["words"], ["one two\n", "three four\n"], cell)
    assert Counter(words_of(made))["three"] > 500
    first, second = (needle_prompt(COUNTS["words"], lines_of(PROSE), cell, seed=seed) for seed in (1, 2))
    assert first != second


def test_a_length_that_holds_no_question_is_refused_with_the_least_that_does() -> None:
    with pytest.raises(UserError) as refused:
        needle_prompt(COUNTS["words"], lines_of(PROSE), Cell(12, 0.5, NEEDLES[0]))
    least = refused.value.nearest
    assert isinstance(least, int) and str(least) in str(refused.value)
    needle_prompt(COUNTS["words"], lines_of(PROSE), Cell(least, 0.5, NEEDLES[0]))
    with pytest.raises(UserError, match="hides no needle"):
        lines_of(" \n\t\n")


def test_rounds_have_every_length_and_together_every_depth() -> None:
    made = rounds()
    assert len(made) == 10 and all([cell.length for cell in part] == list(LENGTHS) for part in made)
    assert all(len({cell.depth for cell in part}) == len(LENGTHS) for part in made)
    cells = Counter((cell.length, cell.depth) for part in made for cell in part)
    assert set(cells) == {(length, depth) for length in LENGTHS for depth in DEPTHS}
    assert set(cells.values()) == {1}
    assert {cell.needle for part in made for cell in part} == set(NEEDLES)
    assert DEPTHS[0] == 0 and DEPTHS[-1] == 1


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab. !?\n\r\u2028é"), min_size=1, max_size=900))
def test_lines_are_the_text(text: str) -> None:
    if text.strip():
        assert "".join(lines_of(text)) == text and all(lines_of(text))


@pytest.mark.parametrize(
    ("reply", "share"),
    [
        ("They are called Pepper and Compass.", 1.0),
        ("PEPPER, compass!", 1.0),
        ("Her dog is Pepper", 0.5),
        ("peppers and compasses", 0.0),
        ("", 0.0),
        ("PEPPER_COMPASS = 3", 1.0),
    ],
)
def test_a_reply_scores_the_share_of_the_words(reply: str, share: float) -> None:
    assert share_of_words(("pepper", "Compass"), reply) == share


def test_needles_are_answered_by_their_facts_and_not_by_their_questions() -> None:
    for needle in NEEDLES:
        assert share_of_words(needle.expected, needle.fact) == 1
        assert share_of_words(needle.expected, needle.question) == 0
        assert all(share_of_words(needle.expected, other.fact) < 1 for other in NEEDLES if other != needle)
    for constant in constants():
        assert share_of_words(constant.expected, constant.fact) == 1
        assert share_of_words(constant.expected, constant.question) == 0
    assert len({constant.question for constant in constants()}) == len(constants())


@pytest.mark.parametrize("length", [1024, 8192])
def test_records_are_asked_for_at_ten_depths(length: int) -> None:
    made = asked_at_depths(np.random.default_rng(length), length)
    asked = np.flatnonzero(made.first)
    starts = np.flatnonzero(made.starts)
    assert len(made.tokens) == length and len(asked) == 10 and asked[0] > starts[-1]
    found = []
    for at in asked:
        assert made.tokens[at - 2] == ASK
        record = next(one for one in starts if made.tokens[one] == made.tokens[at - 1])
        assert made.tokens[at] == made.tokens[record + 1]
        found.append(record / starts[-1])
    assert np.abs(np.sort(found) - DEPTHS).max() < 90 / length + 0.02
