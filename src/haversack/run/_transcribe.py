"""Sound of any length as text: window after window, with times where the model has them.

A model with times says itself where a segment ends, and the next window begins there. One without hears
windows of its own length (30 s where it has none), cut where the sound is quietest in the last five seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from haversack.core.errors import UserError
from haversack.models.audio._record import RATE
from haversack.models.audio.log_mel import HOP
from haversack.run._speech import Heard, Speech
from haversack.run._times import Segment, segments

F32 = npt.NDArray[np.float32]

QUIET_S = 5.0
BLOCK_S = 0.1


@dataclass
class Transcript:
    """What was said: `text`, `tokens` of it without times, and its segments (one for each window where the
    model has no times). `language` is the code of what was found or asked for, None where there is one."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    segments: list[tuple[Segment, str]] = field(default_factory=list)
    language: str | None = None
    windows: int = 0


@dataclass(frozen=True)
class Asked:
    """How to transcribe: `language` and `task` as in `Rules`; `times`: in the answer; `beams` and `most`
    tokens of a window as in `Speech.write`."""

    language: str | None = None
    task: str | None = None
    times: bool | None = None
    beams: int | None = None
    most: int | None = None


def transcribe(speech: Speech, samples: F32, asked: Asked | None = None) -> Transcript:
    """The text of `samples` f32 [n] at 16 kHz.

    Raises UserError for a language, a task or times that the model does not have, and for sound too short.
    """
    found = Transcript()
    for segment in listen(speech, samples, asked or Asked(), found):
        found.segments.append((segment, speech.tokenizer.decode(segment.tokens).strip()))
        found.tokens += segment.tokens
    if speech.architecture.encoder.bands is None:
        found.text = " ".join(text for _, text in found.segments if text)
    else:
        found.text = speech.tokenizer.decode(found.tokens).strip()
    return found


def listen(speech: Speech, samples: F32, asked: Asked, found: Transcript) -> Iterator[Segment]:
    """The segments of `samples` as they are written; `found` learns the language and counts windows."""
    rules = speech.rules
    times = rules.times if asked.times is None else asked.times
    rows = speech.rows(samples)
    step = HOP if speech.architecture.encoder.bands else 1
    count = max(len(samples) // step, 1)
    if count > speech.window and rules.no_times is not None:
        times = True
    language = None if asked.language is None else rules.language_token(asked.language)
    prompt = rules.prompt(times, language, asked.task)
    at = 0
    while at < count:
        end = min(at + speech.window, count)
        if not times and end < count:
            end = quiet(samples, at * step, end * step) // step
        # What follows a cut is not heard; silence behind the end is.
        stop = end if end < count and not times else at + speech.window
        heard = speech.hear(rows[at:stop], (end - at) * step / RATE)
        if None in prompt:
            prompt = [speech.language_of(heard) if token is None else token for token in prompt]
        if found.language is None:
            found.language = _code(speech, prompt)
        found.windows += 1
        tokens = _write(speech, heard, [token for token in prompt if token is not None], times, asked)
        if times:
            said, onward = segments(tokens, rules, at, end - at)
            yield from said
            at += max(onward, 1)
        else:
            first = speech.architecture.vocabulary if rules.first_time is None else rules.first_time
            yield Segment(at * step / RATE, end * step / RATE, tuple(t for t in tokens if t < first))
            at = end


def _write(speech: Speech, heard: Heard, prompt: list[int], times: bool, asked: Asked) -> list[int]:
    return speech.write(heard, prompt, times=times, beams=asked.beams, most=asked.most)


def _code(speech: Speech, prompt: list[int | None]) -> str | None:
    """The code of the language that a prompt names."""
    for name, token in speech.rules.languages.items():
        if token in prompt:
            return name.removeprefix("<|").removesuffix("|>")
    return None


def quiet(samples: F32, begin: int, end: int) -> int:
    """Where to cut samples `begin` to `end`: in the middle of the quietest tenth of a second of the last
    five."""
    block = int(BLOCK_S * RATE)
    first = max(begin + block, end - int(QUIET_S * RATE))
    blocks = (end - first) // block
    if blocks < 1:
        raise UserError("a window is too short to be cut.", field="audio", given=end - begin)
    power = np.square(samples[first : first + blocks * block]).reshape(blocks, block).mean(axis=1)
    return first + int(power.argmin()) * block + block // 2
