"""What a packed speech model is measured on: windows of sound, and what the model as it came writes of them.

The loss is the share of tokens that the packed model would write otherwise: both read the same text, that of
the model as it came, and after each of its tokens name the likeliest next. It needs no transcripts and moves
before word errors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from haversack.core.errors import UserError
from haversack.models.audio._record import RATE
from haversack.models.audio._sound import read_sound, sound_files
from haversack.models.audio.log_mel import HOP
from haversack.run._speech import Speech

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

LEAST_S = 2.0
KEPT_APART = 4
"""Without an evaluation folder every so manieth calibration file is measured on, not calibrated on."""


@dataclass(frozen=True)
class Said:
    """A window: its `samples` f32 [n], and the tokens that the decoder reads, what a text begins with first.

    `next`: the likeliest token after each from the last of the beginning on, i32.
    """

    samples: F32
    tokens: I32
    begins: int
    next: I32


def audio_files(calibration: Path | None, evaluation: Path | None) -> tuple[list[Path], list[Path]]:
    """(files to calibrate on, files to measure on). Raises UserError for a folder without any."""
    first = [] if calibration is None else sound_files(calibration, "calibration")
    if evaluation is not None:
        return first, sound_files(evaluation, "evaluation")
    if len(first) < KEPT_APART:
        return first, []
    return [one for i, one in enumerate(first) if (i + 1) % KEPT_APART], first[KEPT_APART - 1 :: KEPT_APART]


def windows_of(speech: Speech, files: Sequence[Path], purpose: str, most: int) -> list[F32]:
    """At most `most` windows of sound of `files`. Raises UserError when they are together too short."""
    size = speech.window * (HOP if speech.architecture.encoder.bands else 1)
    found: list[F32] = []
    for path in files:
        if len(found) >= most:
            break
        samples = read_sound(path).samples
        pieces = [samples[start : start + size] for start in range(0, len(samples), size)]
        found += [piece for piece in pieces if speech.architecture.encoder.frames(_rows(speech, piece)) > 0]
    found = found[:most]
    seconds = sum(map(len, found)) / RATE
    if seconds < LEAST_S:
        raise UserError(
            f"the {purpose} sound is too short: {seconds:.1f} s in {len(found)} windows, {LEAST_S:.0f} s are "
            "needed.",
            field=purpose,
            given=round(seconds, 2),
            nearest=LEAST_S,
        )
    return found


def _rows(speech: Speech, samples: F32) -> int:
    return speech.window if speech.architecture.encoder.bands else len(samples)


def say(speech: Speech, samples: F32) -> Said:
    """What `speech` writes of a window, greedily and without times."""
    heard = speech.hear(speech.rows(samples)[: speech.window], len(samples) / RATE)
    prompt = speech.rules.prompt(False)
    if None in prompt:
        prompt = [speech.language_of(heard) if token is None else token for token in prompt]
    begins = [token for token in prompt if token is not None]
    tokens = np.asarray(begins + speech.write(heard, begins, beams=1), np.int32)
    return Said(samples, tokens, len(begins), _next(speech, samples, tokens, len(begins)))


def _next(speech: Speech, samples: F32, tokens: I32, begins: int) -> I32:
    heard = speech.hear(speech.rows(samples)[: speech.window], len(samples) / RATE)
    cache = speech.cache(len(tokens))
    logits = speech.forward.write(tokens, cache, heard.listened, speech.weights, every=True)
    return np.asarray(logits[begins - 1 :].argmax(axis=1), np.int32)


def differing(speech: Speech, texts: Sequence[Said]) -> float:
    """The share of tokens after which `speech` would go on otherwise than the model that said `texts`."""
    wrong = total = 0
    for said in texts:
        ours = _next(speech, said.samples, said.tokens, said.begins)
        wrong += int((ours != said.next).sum())
        total += len(ours)
    return wrong / max(total, 1)
