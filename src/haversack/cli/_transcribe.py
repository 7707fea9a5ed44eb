"""`haversack run` of a speech model: what is said in a sound file, with times where they are asked for."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from haversack.core.errors import UserError
from haversack.core.pack import TensorSource

_TAKEN = frozenset(
    (
        *("model", "json", "audio", "timestamps", "language", "task", "beam", "max_tokens"),
        *("ram_mib", "residency", "activations", "cache_type", "threads"),
    )
)
"""Options of `haversack run` that speech models have."""
MOST_BEAMS = 64


def run_speech(
    source: TensorSource,
    audio: Path | None,
    *,
    timestamps: bool = False,
    language: str | None = None,
    task: str | None = None,
    beams: int | None = None,
    most: int | None = None,
    json: bool = False,
    ram_mib: float | None = None,
    **options: Any,
) -> None:
    """Transcribe `audio` and print it."""
    from haversack.core.budget import Budget
    from haversack.models.audio._sound import read_sound
    from haversack.run._speech import Speech
    from haversack.run._transcribe import Asked, transcribe

    if audio is None:
        raise UserError("this is a speech model; give it a sound: --audio FILE.wav.", field="audio")
    if beams is not None and not 1 <= beams <= MOST_BEAMS:
        raise UserError(
            f"beam={beams} is outside 1 to {MOST_BEAMS}.",
            field="beam",
            given=beams,
            nearest=min(max(beams, 1), MOST_BEAMS),
        )
    sound = read_sound(audio)
    asked = Asked(language, task, timestamps or None, beams, most)
    budget = Budget(ram_mib=ram_mib)
    with Speech.open(source, budget=budget, seconds=sound.seconds, beams=beams, **options) as speech:
        speech.rules.prompt(bool(timestamps), None, task)  # refused before the work, not after it
        begun = time.perf_counter()
        found = transcribe(speech, sound.samples, asked)
        seconds = time.perf_counter() - begun
        record = _record(speech, sound, found, seconds, timestamps, beams)
    if json:
        from haversack.cli._output import print_json

        print_json(record)
    else:
        _show(record)


def _record(
    speech: Any, sound: Any, found: Any, seconds: float, timestamps: bool, beams: int | None
) -> dict[str, Any]:
    from haversack.core.measurement import machine
    from haversack.core.memory import peak_mib

    record = {
        "text": found.text,
        "language": found.language,
        "tokens": len(found.tokens),
        "seconds": round(sound.seconds, 3),
        "windows": found.windows,
        "notes": list(sound.notes),
        "ms": round(1000 * seconds, 3),
        "realtime": round(sound.seconds / seconds, 3),
        "ram_mib": {
            "planned": round(speech.memory_plan(sound.seconds, beams).total_mib, 2),
            "measured": round(peak_mib(speech.model.source.files), 2),
        },
        "plan": speech.plan,
        "machine": machine(),
    }
    if timestamps:
        record["segments"] = [
            {"start": round(segment.start, 2), "end": round(segment.end, 2), "text": text}
            for segment, text in found.segments
        ]
    return record


def _show(record: dict[str, Any]) -> None:
    """The text, or a segment a line; then, on standard error, how it went."""
    for segment in record.get("segments", ()):
        print(f"{segment['start']:8.2f} {segment['end']:8.2f}  {segment['text']}")
    if "segments" not in record:
        print(record["text"])
    for note in record["notes"]:
        print(f"note: {note}", file=sys.stderr)
    plan = ", ".join(f"{name} {value}" for name, value in record["plan"].items())
    memory = record["ram_mib"]
    print(
        f"{record['seconds']:.1f} s of sound in {record['ms'] / 1000:.1f} s, {record['tokens']} tokens\n"
        f"memory: planned {memory['planned']:.1f} MiB, measured {memory['measured']:.1f} MiB\nplan: {plan}",
        file=sys.stderr,
    )


def given_most(max_tokens: int) -> int | None:
    """--max-tokens where it was given: a window's tokens are bounded by the model otherwise."""
    from haversack.cli._given_options import given

    if not given("max_tokens"):
        return None
    if max_tokens < 1:
        raise UserError(
            f"max_tokens={max_tokens} writes nothing.", field="max_tokens", given=max_tokens, nearest=1
        )
    return max_tokens


def refuse_text_options() -> None:
    """Raises UserError for an option on the command line that a speech model does not have."""
    from haversack.cli._given_options import refuse_others

    refuse_others(
        _TAKEN,
        "for models that read text; this is a speech model, which takes --audio, --timestamps, --language, "
        "--task, --beam and --max-tokens.",
    )
