"""The sound that the rows are measured on, and how wrong a transcript is.

A test set is the strings of one speaker, from recordings held out of training; errors are pooled in each set,
then averaged over the sets, as the paper averages over its corpora. Words are compared as they are written:
the leaderboard's normalisation of English writes a string of digits as one number, and so would count one
word for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from haversack.bench._rows import Unavailable
from haversack.bench._spelling_cnn import spoken_digits
from haversack.core.errors import MissingExtraError
from haversack.models.audio._spoken_digits import Utterance, digit_strings
from haversack.models.audio.word_errors import word_errors

EACH_SPEAKER, QUICK_EACH_SPEAKER, SEED = 50, 6, 2026
CALIBRATION, CALIBRATION_SEED = 128, 16


def test_sets(each_speaker: int = EACH_SPEAKER, seed: int = SEED) -> dict[str, tuple[Utterance, ...]]:
    """Speaker -> strings of the held-out recordings. Raises Unavailable without the recordings."""
    strings = digit_strings(spoken_digits(), "test", each_speaker, seed)
    return {
        speaker: tuple(one for one in strings if one.speaker == speaker)
        for speaker in sorted({one.speaker for one in strings})
    }


def calibration_strings(count: int = CALIBRATION, seed: int = CALIBRATION_SEED) -> tuple[Utterance, ...]:
    """Strings of the recordings that models were trained on, the speakers taking turns."""
    recordings = spoken_digits()
    speakers = len({one.speaker for one in recordings})
    each = -(-count // speakers)
    strings = digit_strings(recordings, "train", each, seed)
    return tuple(strings[turn + each * speaker] for turn in range(each) for speaker in range(speakers))[
        :count
    ]


@dataclass(frozen=True)
class SetErrors:
    """Word error rates in per cent by set; `words` were said in all, and so many of each error were made."""

    by_set: Mapping[str, float]
    words: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def mean(self) -> float:
        """The unweighted mean over the sets, in per cent."""
        return sum(self.by_set.values()) / len(self.by_set)

    def __str__(self) -> str:
        sets = ", ".join(f"{name} {value:.1f}" for name, value in self.by_set.items())
        return (
            f"{self.words} words; {self.substitutions} substituted, {self.deletions} left out, "
            f"{self.insertions} put in; by speaker: {sets}"
        )


def set_errors(said: Mapping[str, Sequence[str]], written: Mapping[str, Sequence[str]]) -> SetErrors:
    """Compare lines of words, set by set.

    Raises UserError for a set without words, over which no rate is defined; Unavailable without jiwer.
    """
    try:
        counts = {name: word_errors(lines, written[name], "as-is") for name, lines in said.items()}
    except MissingExtraError as error:
        raise Unavailable(str(error)) from error
    total = sum(list(counts.values())[1:], next(iter(counts.values())))
    rates = {name: 100 * one.rate for name, one in counts.items()}
    return SetErrors(rates, total.words, total.substitutions, total.deletions, total.insertions)
