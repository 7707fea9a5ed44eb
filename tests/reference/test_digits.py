"""The Whispers of digits: what ships, under which licence; a run that stopped goes on to the same bits."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from haversack.models._bundled import model_folder
from haversack.models.audio import read_speech
from haversack.models.audio._spoken_digits import WORDS, digit_strings, read_recordings
from haversack.models.audio.word_errors import word_errors

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {"digits-small": (64, 2), "digits": (160, 4)}
BYTES_OF_BOTH = 6_000_000


def tensors(name: str) -> dict[str, Any]:
    with (model_folder(name) / "model.safetensors").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    return header


@pytest.mark.parametrize(("name", "shape"), SHIPPED.items())
def test_a_shipped_model_is_a_whisper_of_the_size_it_says(name: str, shape: tuple[int, int]) -> None:
    folder = model_folder(name)
    one = read_speech(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    assert (one.width, len(one.encoder.blocks), len(one.decoder.blocks)) == (shape[0], shape[1], shape[1])
    stored = {key: tuple(value["shape"]) for key, value in tensors(name).items()}
    flat = {
        key: shape if len(shape) < 3 else (shape[0], math.prod(shape[1:])) for key, shape in stored.items()
    }
    assert flat == one.checkpoint_tensors()
    assert {value["dtype"] for value in tensors(name).values()} == {"F16"}
    card = (folder / "CARD.md").read_text(encoding="utf-8")
    assert f"{sum(math.prod(shape) for shape in stored.values()):,}" in card


def test_both_are_small_and_under_the_licence_of_their_recordings() -> None:
    places = [model_folder(name) for name in SHIPPED]
    assert sum((place / "model.safetensors").stat().st_size for place in places) <= BYTES_OF_BOTH
    for place in places:
        assert "CC BY-SA 4.0" in (place / "CARD.md").read_text(encoding="utf-8")
        assert "Attribution-ShareAlike" in (place / "NOTICE").read_text(encoding="utf-8")
    for notice in (ROOT / "NOTICE", places[0].parent / "NOTICE"):
        text = notice.read_text(encoding="utf-8")
        assert all(f"`{name}`" in text for name in SHIPPED) and "ShareAlike" in text


def test_a_word_is_a_token_and_comes_back() -> None:
    for name in SHIPPED:
        tokenizer = Tokenizer.from_file(str(model_folder(name) / "tokenizer.json"))
        assert tokenizer.encode(" ".join(WORDS)).ids == list(range(10))
        assert tokenizer.decode([11, *range(10), 10]) == " ".join(WORDS)


@pytest.mark.parametrize("name", SHIPPED)
def test_it_writes_down_held_out_strings(name: str, data: Callable[[str], Path]) -> None:
    from haversack.run._speech import Speech
    from haversack.run._transcribe import transcribe

    recordings = read_recordings(data("audio/spoken-digits.tar.xz"))
    strings = digit_strings(recordings, "test", 6, seed=1)
    with Speech.open(model_folder(name)) as speech:
        written = [transcribe(speech, np.asarray(one.samples)).text for one in strings]
    assert word_errors([one.text for one in strings], written, "as-is").rate <= 0.12


def ended(work: Path, stop_after: int) -> str:
    command = [sys.executable, str(Path(__file__).with_name("_resume_digits_run.py"))]
    done = subprocess.run(
        [*command, str(ROOT / "reference"), str(work), str(stop_after)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1]


def test_a_run_that_stopped_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """In the second stage, whose windows and rows are others; what is written opens as a speech model."""
    from haversack.run._speech import Speech

    whole = ended(tmp_path / "whole", 6)
    half = ended(tmp_path / "broken", 3)
    assert half != whole
    assert ended(tmp_path / "broken", 6) == whole
    with Speech.open(tmp_path / "whole" / "model") as speech:
        assert speech.window == 500 and speech.tokenizer.decode([3, 7]) == "three seven"
