"""The scores of LongBench's tasks: each 0 to 1, of a reply beside one right answer.

Source: the benchmark's paper (arXiv 2308.14508) and public code. Word F1 for questions, ROUGE-L for
summaries, the right class, the right number, and how alike two lines of code are.
What we changed: ROUGE-L is that of two whole texts, the longest common subsequence of their words, where the
package that the benchmark uses takes distinct words sentence by sentence; scores of summaries are close to it
but not the same. Every class that is merely a part of the right one is left out, where the benchmark's loop
may pass one over. Alikeness of code is the share of characters in the longest common subsequence of both, in
whole hundredths, as the benchmark's package gives it with its fast part installed [inferred].
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

Score = Callable[[str, str, Sequence[str]], float]
"""(reply, right answer, all classes) -> 0 to 1."""

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
COMMENTED = ("`", "#", "//")
"""What a line of a reply holds that is no code."""


def longest_common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """The length of the longest common subsequence, by bits: a row of the table is one number (Hyyro,
    2004)."""
    places: dict[Hashable, int] = {}
    for at, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << at
    whole = (1 << len(first)) - 1
    row = whole
    for item in second:
        matched = row & places.get(item, 0)
        row = (row + matched | row - matched) & whole
    return len(first) - row.bit_count()


def harmonic(shared: int, first: int, second: int) -> float:
    """The harmonic mean of the shares that `shared` is of `first` and of `second`."""
    return 2 * shared / (first + second) if shared else 0.0


def plain_words(text: str) -> list[str]:
    """The words of a text without case, punctuation and articles."""
    return ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split()


def word_f1(reply: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the words, each as often as both have it."""
    ours, theirs = plain_words(reply), plain_words(answer)
    shared = (Counter(ours) & Counter(theirs)).total()
    return harmonic(shared, len(ours), len(theirs))


def rouge_l(reply: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the longest common subsequence of words."""
    ours, theirs = reply.split(), answer.split()
    return harmonic(longest_common(ours, theirs), len(ours), len(theirs))


def classified(reply: str, answer: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the reply names, when the right one is among them; a class that is
    a part of the right one's name is not counted."""
    named = [one for one in classes if one in reply and (one == answer or one not in answer)]
    return 1 / len(named) if answer in named else 0.0


def _numbered(reply: str, answer: str) -> float:
    numbers = re.findall(r"\d+", reply)
    return numbers.count(answer) / len(numbers) if numbers else 0.0


def counted(reply: str, answer: str, classes: Sequence[str] = ()) -> float:
    """The share of the reply's numbers that are the right one."""
    return _numbered(reply, answer.strip())


def found_paragraph(reply: str, answer: str, classes: Sequence[str] = ()) -> float:
    """The share of the reply's numbers that are the right paragraph's, of an answer `Paragraph 7`."""
    number = re.search(r"\d+", answer)
    return _numbered(reply, number.group()) if number else 0.0


def code_like(reply: str, answer: str, classes: Sequence[str] = ()) -> float:
    """How alike the reply's first line of code and the right one are."""
    lines = reply.lstrip("\n").split("\n")
    line = next((one for one in lines if not any(mark in one for mark in COMMENTED)), "")
    return round(100 * harmonic(longest_common(line, answer), len(line), len(answer))) / 100
